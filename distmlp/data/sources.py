"""Where data lie: files and folders, read as they are; datasets.py checks them."""

import contextlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distmlp.config import FROM_PYTHON, NAMED_DATASETS, Config
from distmlp.data import refused, tables
from distmlp.errors import InputError, one_line

_PARTS = {"train": ("train", "training"), "test": ("test",), "validation": ("val", "valid", "validation")}
_FEATURES = ("x", "data", "images", "features", "inputs")
_LABELS = ("y", "target", "targets", "label", "labels")


class Part(NamedTuple):
    """Features [N, ...] and labels [N] of any kind; or a Dataset and None."""

    features: Any
    labels: Any
    name: str  # for messages


class Source(NamedTuple):
    """The parts that a source has, and the names that it gives to classes and features."""

    train: Part
    test: Part | None = None
    validation: Part | None = None
    names: list[str] | None = None
    columns: list[str] | None = None

    def parts(self) -> dict[str, Part]:
        parts = {"train": self.train, "test": self.test, "validation": self.validation}
        return {name: part for name, part in parts.items() if part is not None}


def read(config: Config, info: dict[str, Any] | None = None) -> Source:
    """What lies at the path that --dataset gives; see datasets.load for `info`.

    Raises:
      InputError: it is not there, or cannot be read.
    """
    path = Path(config.dataset)
    if config.dataset.startswith(FROM_PYTHON):
        raise InputError(f"--dataset={path}: the data of this run were given from Python: "
                         "give them to train(config, train_set, test_set) again")
    if not path.exists():
        raise InputError(f"--dataset={path} does not exist: give one of {', '.join(NAMED_DATASETS)}, an .npz, .csv or "
                         ".parquet file, a folder of .npy files, or one of class folders with pictures")
    if path.is_dir():
        found = {file.stem: file for file in sorted(path.iterdir()) if file.suffix.lower() in tables.SUFFIXES}
        if found and not list(path.glob("*.npy")):
            return _tables(config, {part: found[name] for part, names in _PARTS.items() for name in names
                                    if name in found} or found, info)
        arrays = {file.stem: file for file in sorted(path.glob("*.npy"))}
        if not arrays and any(inner.is_dir() for inner in path.iterdir()):
            return _pictures(config, path)
        return _arrays(path, arrays, lambda name: _load(arrays[name], mmap_mode="r"))
    if path.suffix.lower() in tables.SUFFIXES:
        return _tables(config, {"train": path}, info)
    refused.check_file(path)
    with path.open("rb") as file:  # given a path, a damaged file would stay open
        loaded = _load(path, file)
        if not isinstance(loaded, Mapping):
            raise InputError(f"{path} holds a single array: give an .npz file of features and labels")
        with contextlib.closing(loaded):  # type: ignore[type-var] # an NpzFile, which is a Mapping, too
            return _arrays(path, loaded, lambda name: _load(path, loaded, name))


def _load(path: Path, file: Any = None, name: str = "", **options: Any) -> Any:
    """An array or an archive of arrays; damage surfaces as any of a dozen types, from NumPy, zipfile and zlib."""
    try:
        return file[name] if name else np.load(file or path, **options)
    except Exception as error:  # the docstring says which
        reason = one_line(error)
        if reason.startswith("Object arrays"):
            raise InputError(f"{path}{name and ': '}{name} holds Python objects, which are not safe to read: "
                             "save text as text, as in y.astype(str), and all else as numbers") from None
        if path.suffix.lower() not in (".npz", ".npy"):
            raise refused.unread(path) from None
        reason = "it does not begin as one of them" if "pickled" in reason else reason  # which NumPy takes it for
        raise InputError(f"{path} cannot be read as NumPy arrays, it may be damaged or truncated "
                         f"({reason}): bring back an intact copy") from None


def _arrays(path: Path, names: Mapping[str, Any], get: Callable[[str], np.ndarray]) -> Source:
    """The parts among named arrays, by the usual names: x_train and y_train, data and target, val_images, ..."""

    def find(words: tuple[str, ...], affixes: tuple[str, ...]) -> str:
        wanted = {f"{word}_{affix}" for word in words for affix in affixes} | {
            f"{affix}_{word}" for word in words for affix in affixes}
        found = [name for name in names if name.lower().replace("-", "_") in wanted]
        if not found and "train" in affixes:
            found = [name for name in names if name.lower() in words]
        if len(found) > 1:
            raise InputError(f"{path} holds {' and '.join(found)}, which could both be meant: leave one out")
        return found[0] if found else ""

    parts: dict[str, Any] = {}
    for part, affixes in _PARTS.items():
        features, labels = find(_FEATURES, affixes), find(_LABELS, affixes)
        if features and labels:
            parts[part] = Part(get(features), get(labels), f"{path}: {features}, {labels}")
        elif features or labels or part == "train":
            lacking = "y" if features else "x"
            raise InputError(f"{path} lacks {lacking}_{affixes[0]}, it holds {', '.join(names) or 'no arrays'}: "
                             "it must hold x_train, y_train, x_test, y_test, or for instance data, target")
    return Source(**parts)


def _pictures(config: Config, path: Path) -> Source:
    """The parts train, test and val of a folder, or all of it as one, to be divided."""
    from distmlp.data.image_folder import ImageFolder

    roots = {part: path / name for part, names in _PARTS.items() for name in names if (path / name).is_dir()}
    folders: dict[str, ImageFolder] = {}
    for part, root in ({"train": path} | roots if "train" not in roots else roots).items():
        folders[part] = ImageFolder(root, config, folders.get("train"))
    parts: dict[str, Any] = {
        part: Part(folder.decoded(), np.array(folder.targets), str(roots.get(part, path))) if folder.fits
        else Part(folder, None, str(roots.get(part, path)))
        for part, folder in folders.items()
    }
    return Source(**parts, names=folders["train"].classes)


def _tables(config: Config, files: dict[str, Path], info: dict[str, Any] | None) -> Source:
    """The parts that tables hold; they find their columns by those of the training set, or of a model."""
    if "train" not in files:
        raise InputError(f"{config.dataset} holds no train.csv or train.parquet, but {', '.join(files)}: "
                         "name the parts train, test and val, or give a single file")
    read = {part: tables.read(path) for part, path in files.items()}
    names, path = read["train"].column_names, files["train"]
    label = tables.label_column(config, names, path)
    columns = info["columns"] if info and info.get("columns") else tables.feature_columns(config, names, path)
    parts: dict[str, Any] = {
        part: Part(tables.features(table, columns, files[part]), tables.labels(table, label, files[part]),
                   str(files[part]))
        for part, table in read.items()
    }
    return Source(**parts, columns=columns)
