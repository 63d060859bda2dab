"""distmlp: the JAX tutorial's MLP on one device or many, with the same answer everywhere.

`from distmlp import Config, train`. Importing this package starts no JAX backend.
"""

from typing import Any

from distmlp.config import Config, InputError

__all__ = ["Config", "InputError", "train"]


def __getattr__(name: str) -> Any:
    if name == "train":  # imports jax, torch and Orbax, which --help does not need
        from distmlp.loop import train

        return train
    raise AttributeError(f"module 'distmlp' has no attribute {name!r}")
