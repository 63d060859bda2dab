"""distmlp: the JAX tutorial's MLP on one device or many, with the same answer everywhere.

`from distmlp import Config, load, train`. Importing this package starts no JAX backend.
"""

import importlib
from typing import TYPE_CHECKING, Any

from distmlp.config import Config
from distmlp.errors import InputError

if TYPE_CHECKING:
    from distmlp.loop import train as train
    from distmlp.results.load import load as load

__all__ = ["Config", "InputError", "load", "train"]


def __getattr__(name: str) -> Any:
    places = {"train": "distmlp.loop", "load": "distmlp.results.load"}  # they import jax and Orbax: two seconds
    if name not in places:
        raise AttributeError(f"module 'distmlp' has no attribute {name!r}")
    return getattr(importlib.import_module(places[name]), name)
