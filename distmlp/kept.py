"""What is made once in a process and used again: compiled programs, which many small fits would each make anew."""

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

P = ParamSpec("P")
T = TypeVar("T")


def kept(make: Callable[P, T]) -> Callable[P, T]:
    """Has a function of a module make its result once for the same settings, until too many others were asked for.

    The settings are all that it depends on. They are hashable and small: numbers, names, shapes, devices, or what was
    kept before; not arrays, and not a Config, of which most settings would make no difference.
    """
    return cast("Callable[P, T]", functools.partial(_made, make))


@functools.lru_cache(maxsize=256, typed=True)  # some six entries for each kind of fit
def _made(make: Callable[..., Any], *settings: Any, **named: Any) -> Any:
    return make(*settings, **named)


forget = _made.cache_clear  # all of it: the next run begins as in a new process
