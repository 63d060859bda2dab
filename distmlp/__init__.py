"""distmlp: the JAX tutorial's MLP on one device or many, with the same answer everywhere.

`from distmlp import Config, load, train`. Importing this package starts no JAX backend.
"""

from typing import TYPE_CHECKING, Any

from distmlp.config import Config
from distmlp.errors import InputError

if TYPE_CHECKING:
    from distmlp.loop import train as train
    from distmlp.results.load import load as load

__all__ = ["Config", "InputError", "load", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # imports jax, torch and Orbax, which --help does not need
        from distmlp.loop import train

        return train
    if name == "load":  # imports jax and Orbax
        from distmlp.results.load import load

        return load
    raise AttributeError(f"module 'distmlp' has no attribute {name!r}")
