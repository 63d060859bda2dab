"""The data of a run: what its source gives, divided into parts and checked."""

import dataclasses
import hashlib
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.config import FROM_PYTHON, Config
from distmlp.data import given, named, sources
from distmlp.data.examples import AnyDataset, ArrayDataset, ItemDataset
from distmlp.data.labels import Classes, find_classes
from distmlp.data.sources import Part, Source
from distmlp.data.splits import hold_out
from distmlp.errors import InputError

__all__ = ["AnyDataset", "ArrayDataset", "Data", "ItemDataset", "load"]


@dataclasses.dataclass(frozen=True)
class Data:
    """The parts of a data set, all of the same width, and what the model needs to know of them."""

    train: AnyDataset
    test: AnyDataset
    num_features: int
    num_classes: int
    name: str = ""
    validation: AnyDataset | None = None
    classes: list[str] | None = None  # names by number
    columns: list[str] | None = None  # names of the features

    @property
    def parts(self) -> list[AnyDataset]:
        return [part for part in (self.train, self.test, self.validation) if part is not None]

    def fingerprint(self) -> str:
        """Digests of the parts, and of the names of classes and columns if there are any."""
        prints = [part.fingerprint() for part in self.parts]
        if self.classes or self.columns:
            names = repr((self.classes, self.columns)).encode()
            prints.append(hashlib.blake2b(names, digest_size=16).hexdigest())
        return " ".join(prints)

    def modified(self) -> list[int | None]:
        """See ArrayDataset.modified."""
        return [part.modified() for part in self.parts]

    def info(self) -> dict[str, Any]:
        """What a checkpoint says of the data, as JSON values, so that the model can be used without them."""
        first = self.train
        largest = None if not isinstance(first, ArrayDataset) or first.mapped else float(first.images.max())
        return {
            "name": self.name,
            "classes": self.classes,
            "columns": self.columns,
            "shape": list(first.shape),  # of one example
            "dtype": str(first.dtype),
            "largest": largest,  # training value
            "background": _background(first, largest),  # of pictures: 0 dark .. 1 bright
        }


def _background(dataset: AnyDataset, largest: float | None) -> float | None:
    """The median of the outermost values of some pictures, over the largest value; None where these are none."""
    shape = [size for size in dataset.shape if size != 1]
    if not isinstance(dataset, ArrayDataset) or not largest or len(shape) != 2 or min(shape) < 3:
        return None
    pictures = dataset[slice(0, 1000)][0].reshape(-1, *shape)
    edges = (pictures[:, 0], pictures[:, -1], pictures[:, :, 0], pictures[:, :, -1])
    return float(np.median(np.concatenate(edges, axis=1)) / largest)


def load(
    config: Config,
    train_set: Any = None,
    test_set: Any = None,
    validation_set: Any = None,
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
        source = _given(train_set, test_set, validation_set)
    elif test_set is None and validation_set is None:
        read = named.LOADERS.get(config.dataset)
        source = read(config) if read else sources.read(config, info)
    else:
        raise InputError("test_set and validation_set go with a train_set: give it, too")
    known = Classes.named(info["classes"]) if info and info.get("classes") else _classes(config, source)
    parts = {name: _examples(part, known) for name, part in source.parts().items()}
    if info is not None:
        config = dataclasses.replace(config, test_fraction=0.0, validation_fraction=0.0)
        parts.setdefault("test", parts["train"])
    for name, flag in (("test", "test_fraction"), ("validation", "validation_fraction")):
        if getattr(config, flag) and name in parts:
            raise InputError(f"--{flag}={getattr(config, flag)}: {source.train.name} comes with a {name} set, "
                             f"{parts[name].name}: leave the flag out")
        if getattr(config, flag):
            whole = parts["train"]
            stay, held = hold_out(whole.labels, flag, config, whole.name, known.names)
            parts["train"] = whole.part(stay, whole.name)
            parts[name] = whole.part(held, f"{whole.name} ({name} part)")
    if "test" not in parts:
        raise InputError(f"{source.train.name} comes without a test set: give one, or --test_fraction=0.2")
    train = parts["train"]
    for part in parts.values():
        if part.num_features != train.num_features:
            raise InputError(f"{train.name} has {train.num_features} features but {part.name} has "
                             f"{part.num_features}: they must agree")
    name = Path(config.dataset).stem.removeprefix(FROM_PYTHON)
    return Data(train, parts["test"], train.num_features, known.number, name, parts.get("validation"), known.names,
                source.columns)


def _given(train_set: Any, test_set: Any, validation_set: Any) -> Source:
    found, columns, names = {}, None, None
    for name, dataset in (("train", train_set), ("test", test_set), ("validation", validation_set)):
        if dataset is None:
            continue
        arrays = given.arrays(dataset)
        if arrays is None:
            given.check_dataset(dataset, f"{name}_set")
            found[name] = Part(dataset, None, f"{name}_set")
        else:
            found[name] = Part(*arrays[:2], f"{name}_set")
            columns = columns or arrays[2]
        names = names or given.class_names(dataset)
    return Source(found["train"], found.get("test"), found.get("validation"), names, columns)


def _classes(config: Config, source: Source) -> Classes:
    train, names = source.train, source.names
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


def _examples(part: Part, classes: Classes) -> AnyDataset:
    if part.labels is None:
        return ItemDataset(part.features, part.name, classes)
    return ArrayDataset(part.features, classes.encode(part.labels, part.name), part.name)
