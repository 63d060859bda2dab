"""Data given from Python: arrays, tensors, frames, and what a Dataset says of itself without being read."""

import sys
from collections.abc import Sequence
from typing import Any

import numpy as np

from distmlp.config import Config
from distmlp.data import columnar, refused, tables
from distmlp.data.arrays import Part, Source, as_array
from distmlp.errors import InputError, listed

_IMAGES, _LABELS = ("image", "images", "img", "x", "features", "pixel_values"), ("label", "labels", "target", "y")


def source(config: Config, train_set: Any, test_set: Any = None, validation_set: Any = None) -> Source:
    """The parts of the data that were given: each a tuple of arrays (x, y) or (x, y, weights), or a map-style Dataset
    of pairs or dicts.

    Where x is a frame, other frames find their columns by its.
    """
    parts: dict[str, Part] = {}
    names = columns = None
    one_hot: list[str] = []  # the columns of the training set's labels, where these are a frame of several
    remarks: list[str] = []
    for part, dataset in (("train", train_set), ("test", test_set), ("validation", validation_set)):
        arrays, name = _arrays(dataset), f"{part}_set"
        if arrays is not None:
            one_hot = one_hot or (_names(arrays[1]) if part == "train" else [])
            labels = _one_hot(arrays[1], one_hot, name)
        if arrays is not None and columnar.is_frame(arrays[0]):
            raw = columnar.frame(arrays[0], name)
            if part == "train":
                found, columns, more = tables.first(raw, config, labelled=False)
            else:
                found, more = tables.Reader(config, columns, len(raw.names)).part(raw, labelled=False)
            if found.weights is not None and arrays[2] is not None:
                raise InputError(f"--weight_column={config.weight_column}: {name} comes with weights, too: give one of "
                                 "both")
            weights = arrays[2] if found.weights is None else found.weights
            parts[part], remarks = found._replace(labels=labels, weights=weights), remarks + more
        elif arrays is not None:
            parts[part] = Part(as_array(arrays[0]), labels, name, weights=arrays[2])
        elif dataset is not None:
            refused.check_object(dataset, name)
            kind, map_style = type(dataset).__name__, hasattr(dataset, "__getitem__") and hasattr(dataset, "__len__")
            if not map_style or _is_torchs(dataset, "IterableDataset"):
                raise InputError(f"{name} is a {kind}, whose examples cannot be asked for by number: give a map-style "
                                 "Dataset (with __getitem__ and __len__), list(...) of it, or arrays (x, y)")
            if isinstance(dataset, np.ndarray) or _is_tensor(dataset) or hasattr(dataset, "to_numpy"):
                raise InputError(f"{name} is a single {kind}: give a pair (x, y) of features and labels")
            parts[part] = Part(dataset, None, name)
        own = _class_names(dataset)
        if names and own and names != own:
            raise InputError(f"{name} has the classes {', '.join(own[:10])}, but train_set {', '.join(names[:10])}: "
                             "give both the same, in one order")
        names = names or own
    return Source(parts, names, columns, remarks)


def _columns(labels: Any) -> list[str]:
    """The names of one-hot labels' columns, if a frame has them."""
    if not columnar.is_frame(labels) or labels.shape[1] < 2:
        return []
    return [str(name) for name in getattr(labels, "column_names", labels.columns)]


def _names(labels: Any) -> list[str]:
    """The same, unless they are numbers that count them, in whatever order."""
    names = _columns(labels)
    return [] if _places(names) else names


def _places(names: Sequence[str]) -> list[int]:
    """Where the columns called 0, 1, 2, ... are; none if others are among the names."""
    numbers = [str(number) for number in range(len(names))]
    return [names.index(number) for number in numbers] if sorted(names) == sorted(numbers) else []


def label_array(labels: Any) -> np.ndarray:
    """Labels as an array; a frame's one-hot columns in the order of their names, where these are numbers."""
    array, places = as_array(labels), _places(_columns(labels))
    return array[:, places] if places else array


def _one_hot(labels: Any, known: Sequence[str], name: str) -> np.ndarray:
    """Labels as an array; the columns of a frame of one-hot labels as those that are known, found by name."""
    names, array = _names(labels), label_array(labels)
    if not known or not names or names == known:
        return array
    if strange := [column for column in names if column not in known]:
        raise InputError(f"{name}: the one-hot labels have the columns {listed(names)}, of which train_set does not "
                         f"have {listed(strange)}: it has {listed(known)}; give both the same")
    ordered = np.zeros((len(array), len(known)), array.dtype)
    ordered[:, [known.index(column) for column in names]] = array
    return ordered


def title(dataset: Any) -> str:
    """What to call the data."""
    return "arrays" if _arrays(dataset) else type(dataset).__name__


def _arrays(dataset: Any) -> tuple[Any, Any, np.ndarray | None] | None:
    """x, y and the weights, if any, of a tuple (x, y) or (x, y, weights), and x, y of a TensorDataset of two; None for
    other Datasets."""
    if _is_torchs(dataset, "TensorDataset") and len(dataset.tensors) == 2:
        dataset = dataset.tensors
    if not isinstance(dataset, tuple) or len(dataset) not in (2, 3):
        return None
    x, y, weights = (*dataset, None)[:3]
    return x, y, None if weights is None else as_array(weights)


def _is_torchs(dataset: Any, name: str) -> bool:
    """Whether it is one of torch's data sets of this kind; torch, which takes a second to import, is not: who has such
    a data set has imported it."""
    module = sys.modules.get("torch.utils.data")
    return module is not None and isinstance(dataset, getattr(module, name, ()))


def _is_tensor(value: Any) -> bool:
    module = sys.modules.get("torch")
    return module is not None and isinstance(value, getattr(module, "Tensor", ()))


def pair(item: Any) -> tuple[np.ndarray, np.ndarray]:
    """The image and the label of a Dataset's item; TypeError or ValueError: no pair, nor a dict of the usual names."""
    if isinstance(item, dict):
        found = [next((item[name] for name in names if name in item), None) for names in (_IMAGES, _LABELS)]
        if found[0] is None or found[1] is None:
            raise ValueError(f"a dict of {', '.join(map(str, item))}: name them image and label")
        item = found
    image, label = item
    return as_array(image), as_array(label)


def _class_names(dataset: Any) -> list[str] | None:
    """The names of the classes by number, where a Dataset says them as torchvision's or Hugging Face's do."""
    while _is_torchs(dataset, "Subset"):
        dataset = dataset.dataset
    names, features = getattr(dataset, "classes", None), getattr(dataset, "features", None)
    if names is None and isinstance(features, dict):
        names = next((getattr(features[name], "names", None) for name in _LABELS if name in features), None)
    return [str(name) for name in names] if isinstance(names, (list, tuple)) and names else None


def listed_labels(dataset: Any) -> np.ndarray | None:
    """All labels of a Dataset, where it lists them as torchvision's do, so that no item need be read for them."""
    if _is_torchs(dataset, "Subset"):
        whole = listed_labels(dataset.dataset)
        return None if whole is None else whole[np.asarray(dataset.indices)]
    for name in ("targets", "labels"):
        listed: Any = getattr(dataset, name, None)
        if (isinstance(listed, (Sequence, np.ndarray)) or _is_tensor(listed)) and len(listed) == len(dataset):
            return as_array(listed)
    return None
