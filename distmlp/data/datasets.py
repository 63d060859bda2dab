"""Data sets, checked once so that nothing downstream has to.

Features are [N, features], uint8 where the source is (a quarter of the bytes on the way to the device) and float32
otherwise; labels are int32 [N].
"""

import dataclasses
import hashlib
from collections.abc import Iterator, Sequence, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch.utils.data

from distmlp.config import FROM_PYTHON, NAMED_DATASETS, Config, InputError
from distmlp.data import sources
from distmlp.data.sources import one_line

_READ_WHOLE = 1 << 30  # bytes of a memory-mapped set that are read and checked before training
_BLOCK = 8192  # rows read at a time


class ArrayDataset(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray]]):
    """A labelled array; indexed by an integer array of any shape, or a slice, it returns that many examples at once.

    Raises:
      InputError: shapes, dtypes or values that cannot be trained on; `name` says which array it was.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str) -> None:
        self.name = name
        self.mapped = isinstance(images, np.memmap)
        if images.ndim and len(images) == 0:
            raise InputError(f"{name} is empty: give at least one example")
        shape, labels = images.shape[1:], np.asarray(labels)
        images = images.reshape(len(images), -1) if images.ndim else images
        if images.ndim != 2 or images.shape[1] == 0 or images.dtype.kind not in "uifb":
            raise InputError(f"{name}: features must be numbers of shape [examples, ...], "
                             f"not {images.dtype} {list(images.shape)}")
        if labels.ndim == 2 and labels.shape[1] == 1:
            labels = labels[:, 0]
        if labels.dtype.kind not in "ui" or labels.ndim != 1:
            raise InputError(f"{name}: labels must be integers of shape [N] or [N, 1], "
                             f"not {labels.dtype} {list(labels.shape)}")
        if len(labels) != len(images):
            raise InputError(f"{name} has {len(images)} examples but {len(labels)} labels: give as many of both")
        for label in (int(labels.min()), int(labels.max())):
            if not 0 <= label <= np.iinfo(np.int32).max:
                raise InputError(f"{name}: labels must count from 0, but there is {label}")
        self.labels = np.ascontiguousarray(labels, dtype=np.int32)
        self.shape = shape
        self.images = images if self.mapped else _features(images)
        if not self.mapped:
            self._check_finite(self.images, slice(None))
        self.num_features, self.dtype = images.shape[1], _features(images[:1]).dtype

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        images = self.images[index]
        if self.mapped and images.dtype != np.uint8:
            images = _features(images)
            self._check_finite(images, index)
        return images, self.labels[index]

    def _check_finite(self, images: np.ndarray, index: Any) -> None:
        # A sum is finite unless a value is not (or unless it overflows): one fast pass, the slow one only if needed.
        if images.dtype == np.float32 and not np.isfinite(images.sum(dtype=np.float64)):
            bad = ~np.isfinite(images).all(axis=-1)
            if bad.any():
                example = np.arange(len(self))[index][bad].flat[0]
                raise InputError(f"{self.name}: example {example} has a value that is NaN or infinite "
                                 "(or beyond float32): remove or mend it")

    @property
    def covered(self) -> bool:
        """Whether the fingerprint covers each value."""
        return not self.mapped or self.images.nbytes <= _READ_WHOLE

    def fingerprint(self) -> str:
        """Digest of shape, dtype and labels, and of the features: of a memory-mapped set of more than 1 GiB, of 4096
        spaced rows only. See `modified` for what tells of its others.

        Raises:
          InputError: a value that was read is NaN or infinite: before training, not after.
        """
        digest = hashlib.blake2b(f"{self.images.shape} {self.images.dtype}".encode(), digest_size=16)
        digest.update(self.labels.data)
        for images in blocks(self) if self.covered else [self[np.linspace(0, len(self) - 1, 4096).astype(int)][0]]:
            digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()

    def modified(self) -> int | None:
        """When the features' file was last written, in ns; None where the fingerprint covers them all.

        No part of the fingerprint: a copy on another host has another time, and is the same set.
        """
        return None if self.covered else Path(self.images.filename).stat().st_mtime_ns  # type: ignore[attr-defined]


class ItemDataset(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray]]):
    """Any map-style Dataset of (image, label), indexed like ArrayDataset; items are read, and checked, one by one.

    Raises:
      InputError: it is empty; or, as items are read, one that cannot be trained on.
    """

    def __init__(self, dataset: "torch.utils.data.Dataset[Any]", name: str, num_classes: int) -> None:
        self.dataset, self.name, self.num_classes, self.mapped = dataset, name, num_classes, True
        if len(self) == 0:
            raise InputError(f"{name} is empty: give at least one example")
        self.num_features, self.dtype, self.shape = 0, np.dtype(np.float32), ()  # not known yet
        first = self._item(0)[0]
        self.num_features, self.dtype, self.shape = first.size, first.dtype, first.shape

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def _item(self, index: int) -> tuple[np.ndarray, int]:
        where = f"{self.name}: example {index}"
        try:
            item = self.dataset[index]
        except Exception as error:  # whatever the user's own code raises
            raise InputError(f"{where} cannot be read ({type(error).__name__}: {one_line(error)})") from error
        try:
            image, label = (np.asarray(part) for part in item)
        except (TypeError, ValueError) as error:
            raise InputError(f"{where} must be a pair of an image and a label ({one_line(error)})") from None
        if image.dtype.kind not in "uifb" or image.size != (self.num_features or image.size):
            raise InputError(f"{where} must be {self.num_features or 'some'} numbers, "
                             f"not {image.dtype} {list(image.shape)}")
        if label.dtype.kind not in "ui" or label.size != 1:
            raise InputError(f"{where}: the label must be an integer, not {label.dtype} {list(label.shape)}")
        if not 0 <= label.item() < self.num_classes:
            raise InputError(f"{where}: label {label.item()} is out of range for {self.num_classes} classes; "
                             f"mend the labels or give another --num_classes")
        image = _features(image)
        if self.num_features and not np.can_cast(image.dtype, self.dtype):
            raise InputError(f"{where} has values of type {image.dtype}, but example 0 of {self.dtype}: give all alike")
        if not np.isfinite(image).all():
            raise InputError(f"{where} has a value that is NaN or infinite (or beyond float32): remove or mend it")
        return image, label.item()

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        index = np.asarray(index)
        items = [self._item(int(i)) for i in index.flat]
        images = np.stack([image.ravel() for image, _ in items], dtype=self.dtype).reshape(*index.shape, -1)
        return images, np.array([label for _, label in items], np.int32).reshape(index.shape)

    def fingerprint(self) -> str:
        """Digest of the length, of the first item's shape and dtype, and of `.targets` or `.labels` if there are any.

        Not of values: a data set with random augmentation has others at each reading.
        """
        digest = hashlib.blake2b(f"{len(self)} {self.shape} {self.dtype}".encode(), digest_size=16)
        digest.update(repr(_listed_labels(self.dataset, len(self))).encode())
        return digest.hexdigest()

    def modified(self) -> None:
        """See ArrayDataset: files that a Dataset reads are its own affair."""


def _listed_labels(dataset: Any, size: int) -> list[Any] | None:
    """All labels of a Dataset, where it lists them as torchvision's do, so that no item need be read for them."""
    for name in ("targets", "labels"):
        listed = getattr(dataset, name, None)
        if isinstance(listed, (Sequence, np.ndarray, torch.Tensor)) and len(listed) == size:
            return np.asarray(listed).tolist()  # type: ignore[no-any-return]
    return None


def blocks(dataset: "AnyDataset") -> Iterator[np.ndarray]:
    """The features, some thousand rows at a time: a memory-mapped set need not fit in memory."""
    for start in range(0, len(dataset), _BLOCK):
        stop = min(start + _BLOCK, len(dataset))
        yield dataset[slice(start, stop) if isinstance(dataset, ArrayDataset) else range(start, stop)][0]


def _features(images: np.ndarray) -> np.ndarray:
    """uint8 as it is, all else as float32; what float32 cannot hold becomes infinite, for the caller to find."""
    with np.errstate(over="ignore"):
        return images if images.dtype == np.uint8 else images.astype(np.float32)


AnyDataset = ArrayDataset | ItemDataset


@dataclasses.dataclass(frozen=True)
class Data:
    """A training and a test set of the same width, and what the model needs to know of them."""

    train: AnyDataset
    test: AnyDataset
    num_features: int
    num_classes: int
    name: str = ""

    def fingerprint(self) -> str:
        return f"{self.train.fingerprint()} {self.test.fingerprint()}"

    def modified(self) -> list[int | None]:
        """See ArrayDataset.modified."""
        return [self.train.modified(), self.test.modified()]

    def info(self) -> dict[str, Any]:
        """What a checkpoint says of the data, as JSON values, so that the model can be used without them."""
        first = self.train
        largest = None if not isinstance(first, ArrayDataset) or first.mapped else float(first.images.max())
        return {
            "name": self.name,
            "classes": None,
            "columns": None,
            "shape": list(first.shape),  # of one example
            "dtype": str(first.dtype),
            "largest": largest,  # training value
        }


def load(config: Config, train_set: Any = None, test_set: Any = None) -> Data:
    """The data of a run: what --dataset names, or two map-style Datasets of (image, label) given from Python."""
    if (train_set is None) != (test_set is None):
        raise InputError("train_set and test_set go together: give both or neither")
    if train_set is not None:
        train, test = (_wrap(given, name, config) for given, name in ((train_set, "train_set"), (test_set, "test_set")))
    else:
        x_train, y_train, x_test, y_test = sources.read(config)
        if config.dataset in NAMED_DATASETS:
            names = [f"the {kind} set of --dataset={config.dataset}" for kind in ("training", "test")]
        else:
            names = [f"{config.dataset}: {arrays}" for arrays in ("x_train, y_train", "x_test, y_test")]
        train, test = ArrayDataset(x_train, y_train, names[0]), ArrayDataset(x_test, y_test, names[1])
    if train.num_features != test.num_features:
        raise InputError(f"{train.name} has {train.num_features} features but {test.name} has {test.num_features}: "
                         "they must agree")
    name = Path(config.dataset).stem.removeprefix(FROM_PYTHON)
    return Data(train, test, train.num_features, _num_classes(config, train, test), name)


def _num_classes(config: Config, train: AnyDataset, test: AnyDataset) -> int:
    known = config.num_classes
    if config.dataset == "synthetic" and isinstance(train, ArrayDataset):
        known = known or config.synthetic_classes
    for dataset in (train, test):
        if isinstance(dataset, ItemDataset):
            continue  # checks its labels against --num_classes as they are read
        largest = int(dataset.labels.max())
        if known and largest >= known:
            raise InputError(f"{dataset.name}: label {largest} is out of range for {known} classes; "
                             f"mend the labels or give --num_classes={largest + 1}")
        if not known and largest >= max(1000, len(dataset)):
            raise InputError(f"{dataset.name}: label {largest} of {len(dataset)} examples looks damaged; "
                             f"mend the labels or give --num_classes={largest + 1}")
        known = known or largest + 1
    if known < 2:
        raise InputError(f"{train.name} has a single class: give labels of at least two, or --num_classes")
    return known


def _wrap(dataset: Any, name: str, config: Config) -> AnyDataset:
    if isinstance(dataset, (ArrayDataset, ItemDataset)):
        return dataset
    if not config.num_classes:
        raise InputError(f"--num_classes is needed for {name}, whose labels are read item by item")
    return ItemDataset(dataset, name, config.num_classes)
