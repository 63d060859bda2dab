"""distmlp: the JAX tutorial's MLP on one device or many, with the same answer everywhere.

`from distmlp import Config, MLPClassifier, load, train`. Importing this package starts no JAX backend.
"""

import importlib
from typing import TYPE_CHECKING, Any

from distmlp.config import Config
from distmlp.errors import InputError

if TYPE_CHECKING:
    from distmlp.data.packing import pack as pack
    from distmlp.estimator import MLPClassifier as MLPClassifier
    from distmlp.loop import train as train
    from distmlp.many.sweep import sweep as sweep
    from distmlp.results.load import load as load

__all__ = ["Config", "InputError", "MLPClassifier", "load", "pack", "sweep", "train"]


def __getattr__(name: str) -> Any:
    # MLPClassifier imports scikit-learn; train and load import jax and Orbax, which takes two seconds.
    places = {"MLPClassifier": "distmlp.estimator", "train": "distmlp.loop", "load": "distmlp.results.load",
              "pack": "distmlp.data.packing", "sweep": "distmlp.many.sweep"}  # fmt: skip
    if name not in places:
        raise AttributeError(f"module 'distmlp' has no attribute {name!r}")
    return getattr(importlib.import_module(places[name]), name)
