"""The data of a run: what its source gives, divided into parts and checked."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.config import FROM_PYTHON, Config
from distmlp.data import given, named, read
from distmlp.data.arrays import Part, Source
from distmlp.data.examples import ArrayDataset, Examples, ItemDataset
from distmlp.data.labels import Classes, find_classes
from distmlp.data.splits import hold_out
from distmlp.errors import InputError

__all__ = ["ArrayDataset", "Data", "Examples", "ItemDataset", "load"]


@dataclasses.dataclass(frozen=True)
class Data:
    """The parts of a data set, all of the same width, and what the model needs to know of them."""

    train: Examples
    test: Examples
    num_features: int
    num_classes: int
    name: str = ""
    validation: Examples | None = None
    classes: list[str] | None = None  # names by number
    columns: list[str] | None = None  # names of the features

    @property
    def parts(self) -> list[Examples]:
        return [part for part in (self.train, self.test, self.validation) if part is not None]

    def fingerprint(self) -> str:
        """Digests of the parts, and of the names of classes and columns if there are any."""
        prints = [part.fingerprint() for part in self.parts]
        if self.classes or self.columns:
            names = repr((self.classes, self.columns)).encode()
            prints.append(hashlib.blake2b(names, digest_size=16).hexdigest())
        return " ".join(prints)

    def modified(self) -> list[int | None]:
        """When the file of each part was last written; see Examples.modified."""
        return [part.modified() for part in self.parts]

    def info(self) -> dict[str, Any]:
        """What a checkpoint says of the data, as JSON values, so that the model can be used without them."""
        first, resident = self.train, self.train.resident
        largest = float(resident[0].max()) if resident else None
        return {
            "name": self.name,
            "classes": self.classes,
            "columns": self.columns,
            "shape": list(first.shape),  # of one example
            "dtype": str(first.dtype),
            "largest": largest,  # value in the training set
            "background": _background(first, largest),  # of pictures: 0 dark .. 1 bright
        }


def _background(dataset: Examples, largest: float | None) -> float | None:
    """The median of the values at the edges of some pictures, over the largest value; None where there are none."""
    shape = [size for size in dataset.shape if size != 1]
    if not dataset.resident or not largest or len(shape) != 2 or min(shape) < 3:
        return None
    pictures = dataset.resident[0][:1000].reshape(-1, *shape)
    edges = (pictures[:, 0], pictures[:, -1], pictures[:, :, 0], pictures[:, :, -1])
    return float(np.median(np.concatenate(edges, axis=1)) / largest)


def load(
    config: Config, train_set: Any = None, test_set: Any = None, validation_set: Any = None,
    info: dict[str, Any] | None = None,
) -> Data:
    """The data of a run: what --dataset names, or sets given from Python.

    Args:
      train_set, test_set, validation_set: pairs of arrays (x, y), or map-style Datasets of pairs or dicts.
      info: what a model's checkpoint says of the data that it has learned from: these have the same classes, and the
        same columns by name. Nothing is held out for it: a source without a test set is one.

    Raises:
      InputError: there are no such data, or they cannot be trained on.
    """
    if train_set is not None:
        source = given.source(train_set, test_set, validation_set)
    elif test_set is None and validation_set is None:
        by_name = named.LOADERS.get(config.dataset)
        source = by_name(config) if by_name else read.source(config, info)
    else:
        raise InputError("test_set and validation_set go with a train_set: give it, too")
    known = Classes.named(info["classes"]) if info and info.get("classes") else _classes(config, source)
    parts = {name: _examples(part, known) for name, part in source.parts.items()}
    if info is not None:
        config = dataclasses.replace(config, test_fraction=0.0, validation_fraction=0.0)
        parts.setdefault("test", parts["train"])
    for name in ("test", "validation"):
        fraction = getattr(config, f"{name}_fraction")
        if fraction and name in parts:
            raise InputError(f"--{name}_fraction={fraction}: {parts['train'].name} comes with a {name} set, "
                             f"{parts[name].name}: leave the flag out")
        if fraction:
            parts["train"], parts[name] = hold_out(parts["train"], name, fraction, config.seed, known.names)
    train = parts["train"]
    if "test" not in parts:
        raise InputError(f"{train.name} comes without a test set: give one, or --test_fraction=0.2")
    for part in parts.values():
        if part.num_features != train.num_features:
            raise InputError(f"{train.name} has {train.num_features} features but {part.name} has "
                             f"{part.num_features}: they must agree")
    name = Path(config.dataset).stem.removeprefix(FROM_PYTHON)
    return Data(train, parts["test"], train.num_features, known.number, name, parts.get("validation"), known.names,
                source.columns)


def _classes(config: Config, source: Source) -> Classes:
    train, names = source.parts["train"], source.names
    known = config.num_classes or (config.synthetic_classes if config.dataset == "synthetic" else 0)
    if train.labels is not None:
        return find_classes(train.labels, train.name, known, names)
    if known or names:
        return Classes(known or len(names or ()), names if not known or len(names or ()) == known else None)
    listed = given.listed_labels(train.features)
    if listed is None:
        raise InputError(f"--num_classes is needed for {train.name}: its labels are read item by item, and it has "
                         "neither .classes nor .targets")
    return find_classes(listed, train.name, 0)


def _examples(part: Part, classes: Classes) -> Examples:
    if part.labels is None:
        return ItemDataset(part.features, part.name, classes)
    return ArrayDataset(part.features, classes.encode(part.labels, part.name), part.name)
