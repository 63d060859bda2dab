"""Names and files -> arrays, checked once so that nothing downstream has to.

Features are [N, features], uint8 where the source is (a quarter of the bytes on the way to the device) and float32
otherwise; labels are int32 [N].
"""

import contextlib
import dataclasses
import hashlib
import io
from collections.abc import Callable, Sized
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch.utils.data

from distmlp.config import NAMED_DATASETS, Config, InputError

ARRAY_NAMES = ("x_train", "y_train", "x_test", "y_test")


class ArrayDataset(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray]]):
    """A labelled array; indexed by an integer array of any shape, it returns that many examples at once.

    Raises:
      InputError: shapes, dtypes or values that cannot be trained on; `name` says which array it was.
    """

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str) -> None:
        self.name = name
        self.mapped = isinstance(images, np.memmap)
        if images.ndim and len(images) == 0:
            raise InputError(f"{name} is empty: give at least one example")
        images, labels = images.reshape(len(images), -1) if images.ndim else images, np.asarray(labels)
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
        if not self.mapped:
            images = _features(images)
            self._check_finite(images, np.arange(len(images)))
        self.images, self.labels = images, np.ascontiguousarray(labels, dtype=np.int32)
        self.num_features, self.dtype = images.shape[1], _features(images[:1]).dtype

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        images = self.images[index]
        if self.mapped and images.dtype != np.uint8:
            images = _features(images)
            self._check_finite(images, index)
        return images, self.labels[index]

    def _check_finite(self, images: np.ndarray, index: np.ndarray) -> None:
        # A sum is finite unless a value is not (or unless it overflows): one fast pass, the slow one only if needed.
        if images.dtype == np.float32 and not np.isfinite(images.sum(dtype=np.float64)):
            bad = ~np.isfinite(images).all(axis=-1)
            if bad.any():
                raise InputError(f"{self.name}: example {np.asarray(index)[bad].flat[0]} has a value that is NaN or "
                                 "infinite (or beyond float32): remove or mend it")

    def fingerprint(self) -> str:
        """Digest of shape, dtype, labels and features; of a memory-mapped set, 64 spaced rows stand for all."""
        rows = np.linspace(0, len(self) - 1, min(len(self), 64)).astype(np.int64) if self.mapped else slice(None)
        digest = hashlib.blake2b(f"{self.images.shape} {self.images.dtype}".encode(), digest_size=16)
        digest.update(self.labels.data)
        digest.update(np.ascontiguousarray(self.images[rows]).data)
        return digest.hexdigest()


class ItemDataset(torch.utils.data.Dataset[tuple[np.ndarray, np.ndarray]]):
    """Any map-style Dataset of (image, label), indexed like ArrayDataset; items are read, and checked, one by one.

    Raises:
      InputError: it is empty; or, as items are read, one that cannot be trained on.
    """

    def __init__(self, dataset: "torch.utils.data.Dataset[Any]", name: str, num_classes: int) -> None:
        self.dataset, self.name, self.num_classes, self.mapped = dataset, name, num_classes, True
        if len(self) == 0:
            raise InputError(f"{name} is empty: give at least one example")
        self.num_features = 0  # not known yet
        first = self._item(0)[0]
        self.num_features, self.dtype = first.size, first.dtype

    def __len__(self) -> int:
        return len(cast(Sized, self.dataset))

    def _item(self, index: int) -> tuple[np.ndarray, int]:
        where = f"{self.name}: example {index}"
        try:
            image, label = (np.asarray(part) for part in self.dataset[index])
        except (TypeError, ValueError) as error:
            raise InputError(f"{where} must be a pair of an image and a label ({_flat(error)})") from None
        if image.dtype.kind not in "uifb" or image.size != (self.num_features or image.size):
            raise InputError(f"{where} must be {self.num_features or 'some'} numbers, "
                             f"not {image.dtype} {list(image.shape)}")
        if label.dtype.kind not in "ui" or label.size != 1:
            raise InputError(f"{where}: the label must be an integer, not {label.dtype} {list(label.shape)}")
        if not 0 <= label.item() < self.num_classes:
            raise InputError(f"{where}: label {label.item()} is out of range for {self.num_classes} classes; "
                             f"mend the labels or give another --num_classes")
        image = _features(image.ravel())
        if not np.isfinite(image).all():
            raise InputError(f"{where} has a value that is NaN or infinite (or beyond float32): remove or mend it")
        return image, label.item()

    def __getitem__(self, index: Any) -> tuple[np.ndarray, np.ndarray]:
        index = np.asarray(index)
        items = [self._item(int(i)) for i in index.flat]
        images = np.stack([image for image, _ in items]).reshape(*index.shape, -1)
        return images, np.array([label for _, label in items], np.int32).reshape(index.shape)

    def fingerprint(self) -> str:
        """Digest of the length and of up to 64 spaced items."""
        rows = np.linspace(0, len(self) - 1, min(len(self), 64)).astype(np.int64)
        images, labels = self[rows]
        digest = hashlib.blake2b(f"{len(self)} {images.dtype}".encode(), digest_size=16)
        digest.update(images.data)
        digest.update(labels.data)
        return digest.hexdigest()


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

    def fingerprint(self) -> str:
        return f"{self.train.fingerprint()} {self.test.fingerprint()}"


def load(config: Config, train_set: Any = None, test_set: Any = None) -> Data:
    """The data of a run: what --dataset names, or two map-style Datasets of (image, label) given from Python."""
    if (train_set is None) != (test_set is None):
        raise InputError("train_set and test_set go together: give both or neither")
    if train_set is not None:
        train, test = (_wrap(given, name, config) for given, name in ((train_set, "train_set"), (test_set, "test_set")))
    elif config.dataset in NAMED_DATASETS:
        x_train, y_train, x_test, y_test = _LOADERS[config.dataset](config)
        train = ArrayDataset(x_train, y_train, f"the training set of --dataset={config.dataset}")
        test = ArrayDataset(x_test, y_test, f"the test set of --dataset={config.dataset}")
    else:
        arrays = _read_files(config.dataset)
        train = ArrayDataset(arrays["x_train"], arrays["y_train"], f"{config.dataset}: x_train, y_train")
        test = ArrayDataset(arrays["x_test"], arrays["y_test"], f"{config.dataset}: x_test, y_test")
    if train.num_features != test.num_features:
        raise InputError(f"{train.name} has {train.num_features} features but {test.name} has {test.num_features}: "
                         "they must agree")
    return Data(train, test, train.num_features, _num_classes(config, train, test))


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


def _digits(config: Config) -> tuple[np.ndarray, ...]:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        images.astype(np.uint8), labels, test_size=0.2, stratify=labels, random_state=0
    )
    return x_train, y_train, x_test, y_test


def _torchvision(class_name: str) -> Callable[[Config], tuple[np.ndarray, ...]]:
    def read(config: Config) -> tuple[np.ndarray, ...]:
        import torchvision.datasets

        kind = getattr(torchvision.datasets, class_name)
        folder = Path(config.data_dir) / class_name / "raw"
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints each address that it tries
                sets = [kind(config.data_dir, train=train, download=True) for train in (True, False)]
        except Exception as error:  # damage surfaces as any of a dozen types
            if isinstance(error, OSError) or "download" in str(error) or "corrupted" in str(error):
                raise InputError(f"--dataset={config.dataset} is not in {folder} and could not be downloaded "
                                 f"({_flat(error)}): connect, or give --data_dir=FOLDER that holds it") from None
            raise InputError(f"--dataset={config.dataset}: the files in {folder} are damaged ({_flat(error)}): "
                             "delete them to download them again") from None
        arrays = [array.numpy() for s in sets for array in (s.data, s.targets)]
        return tuple(a.reshape(len(a), -1) if a.ndim > 1 else a for a in arrays)

    return read


def _flat(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__


def _synthetic(config: Config) -> tuple[np.ndarray, ...]:
    """Uniform uint8 features whose label is the largest of `classes` random projections: learnable, any size."""
    rng = np.random.default_rng(config.seed)
    projections = rng.standard_normal((config.synthetic_features, config.synthetic_classes), dtype=np.float32)

    def draw(examples: int) -> tuple[np.ndarray, np.ndarray]:
        images = rng.integers(0, 256, (examples, config.synthetic_features), dtype=np.uint8)
        labels = np.empty(examples, np.int32)
        for start in range(0, examples, 65536):  # in blocks: a float32 copy of the whole would be four times the set
            block = images[start : start + 65536].astype(np.float32) - 127.5
            labels[start : start + 65536] = (block @ projections).argmax(axis=1)
        return images, labels

    return (*draw(config.synthetic_examples), *draw(max(1, config.synthetic_examples // 6)))


_LOADERS: dict[str, Callable[[Config], tuple[np.ndarray, ...]]] = {
    "digits": _digits,
    "mnist": _torchvision("MNIST"),
    "fashion_mnist": _torchvision("FashionMNIST"),
    "synthetic": _synthetic,
}


def _read_files(path: str) -> dict[str, np.ndarray]:
    """The four arrays of an .npz file (read into memory) or of a folder of .npy files (memory-mapped)."""
    source = Path(path)
    if not source.exists():
        raise InputError(f"--dataset={path} does not exist: give one of {', '.join(NAMED_DATASETS)}, "
                         "an .npz file or a folder of .npy files")
    try:
        if source.is_dir():
            return {name: np.load(source := Path(path) / f"{name}.npy", mmap_mode="r") for name in ARRAY_NAMES}
        with source.open("rb") as file, np.load(file) as arrays:  # given a path, a damaged file would stay open
            missing = [name for name in ARRAY_NAMES if name not in arrays]
            if missing:
                raise InputError(f"{path} lacks {', '.join(missing)}: it must hold {', '.join(ARRAY_NAMES)}")
            return {name: arrays[name] for name in ARRAY_NAMES}
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{source} is missing: the folder must hold "
                         f"{', '.join(f'{name}.npy' for name in ARRAY_NAMES)}") from None
    except Exception as error:  # damage surfaces as any of a dozen types, from NumPy, zipfile and zlib
        raise InputError(f"{source} cannot be read as NumPy arrays, it may be damaged or truncated "
                         f"({_flat(error)}): bring back an intact copy") from None
