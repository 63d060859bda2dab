"""What is made once in a process and used again: compiled programs, which many small fits would each make anew."""

import functools
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


@functools.lru_cache(maxsize=256, typed=True)  # some six entries for each kind of fit
def kept(make: Callable[..., T], *settings: Any) -> T:
    """What `make`, a function of a module, returns for these settings: made once, until too many others were asked for.

    The settings are all that it depends on. They are hashable and small: numbers, names, shapes, devices, or what was
    kept before; not arrays, and not a Config, of which most settings would make no difference.
    """
    return make(*settings)
