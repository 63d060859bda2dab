"""The data sets that --dataset knows by name: scikit-learn's, torchvision's, and a synthetic one."""

import contextlib
import fcntl
import functools
import gzip
import importlib.util
import io
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from distmlp.config import Config
from distmlp.data import split
from distmlp.data.arrays import Part, Source
from distmlp.errors import InputError, one_line

_DIGITS = "datasets/data/digits.csv.gz"  # in scikit-learn's folder
_Arrays = tuple[np.ndarray, np.ndarray]  # features and labels


def _named(config: Config, train: _Arrays, test: _Arrays, names: list[str] | None = None) -> Source:
    where = f"set of --dataset={config.dataset}"
    return Source({"train": Part(*train, f"the training {where}"), "test": Part(*test, f"the test {where}")}, names)


def _digits(config: Config) -> Source:
    images, labels = _sklearns_digits()
    train, test = split.stratified(labels, 0.2, seed=0)
    return _named(config, (images[train], labels[train]), (images[test], labels[test]))


def _sklearns_digits() -> _Arrays:
    """As load_digits gives them, but uint8 [N, 8, 8]: of the file that it reads. To import scikit-learn takes longer
    than a training on them."""
    package = importlib.util.find_spec("sklearn")
    for folder in package.submodule_search_locations or () if package else ():
        path = Path(folder) / _DIGITS
        with contextlib.suppress(OSError, ValueError), gzip.open(path, "rt", encoding="ascii") as file:
            rows = np.loadtxt(file, np.int64, delimiter=",", ndmin=2)  # a line for each: its pixels, its label
            return rows[:, :-1].reshape(-1, 8, 8).astype(np.uint8), rows[:, -1]
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    return images.reshape(-1, 8, 8).astype(np.uint8), labels


def _mnist(config: Config) -> Source:
    raw = Path(config.data_dir) / "MNIST" / "raw"
    try:
        train, test = [(_idx(raw / f"{part}-images-idx3-ubyte"), _idx(raw / f"{part}-labels-idx1-ubyte"))
                       for part in ("train", "t10k")]
    except (OSError, ValueError):  # torchvision downloads, or says what is damaged
        return _torchvision(config, "MNIST")
    return _named(config, train, test)


def _idx(file: Path) -> np.ndarray:
    """The array in a file of MNIST's own format: two zeros, 8 for bytes, the number of axes, their sizes, the bytes. It
    is read here, because importing torchvision takes longer than an epoch.
    """
    data = file.read_bytes()
    if data[:3] != b"\0\0\x08":
        raise ValueError(f"{file} is no file of bytes")
    shape = np.frombuffer(data, ">i4", data[3], 4)
    array = np.frombuffer(data, np.uint8, offset=4 + 4 * len(shape)).reshape(shape)
    return array.astype(np.int64) if array.ndim == 1 else array


def _torchvision(config: Config, class_name: str) -> Source:
    import torchvision.datasets

    kind, folder = getattr(torchvision.datasets, class_name), Path(config.data_dir) / class_name / "raw"
    try:
        with _one_at_a_time(config.data_dir), contextlib.redirect_stdout(io.StringIO()):  # it prints each address
            sets = [kind(config.data_dir, train=train, download=True) for train in (True, False)]
    except Exception as error:  # damage surfaces as any of a dozen types
        if isinstance(error, OSError) or "download" in str(error) or "corrupted" in str(error):
            raise InputError(f"--dataset={config.dataset} is not in {folder} and could not be downloaded "
                             f"({one_line(error)}): connect, or give --data_dir=FOLDER that holds it") from None
        raise InputError(f"--dataset={config.dataset}: the files in {folder} are damaged ({one_line(error)}): "
                         "delete them to download them again") from None
    train, test = [(each.data.numpy(), each.targets.numpy()) for each in sets]
    return _named(config, train, test, None if class_name == "MNIST" else sets[0].classes)


def _synthetic(config: Config) -> Source:
    """Uniform uint8 features whose label is the largest of `classes` random projections: learnable, any size."""
    rng = np.random.default_rng(config.drawing_seed)
    projections = rng.standard_normal((config.synthetic_features, config.synthetic_classes), dtype=np.float32)

    def draw(examples: int) -> _Arrays:
        images = rng.integers(0, 256, (examples, config.synthetic_features), dtype=np.uint8)
        labels = np.empty(examples, np.int32)
        for start in range(0, examples, 65536):  # in blocks: a float32 copy of the whole would be four times the set
            block = images[start : start + 65536].astype(np.float32) - 127.5
            labels[start : start + 65536] = (block @ projections).argmax(axis=1)
        return images, labels

    return _named(config, draw(config.synthetic_examples), draw(max(1, config.synthetic_examples // 6)))


LOADERS: dict[str, Callable[[Config], Source]] = {  # InputError: a set is not there, or damaged
    "digits": _digits,
    "mnist": _mnist,
    "fashion_mnist": functools.partial(_torchvision, class_name="FashionMNIST"),
    "synthetic": _synthetic,
}


@contextlib.contextmanager
def _one_at_a_time(folder: str) -> Iterator[None]:
    """Processes of one host that share a folder do not download into it at the same time."""
    Path(folder).mkdir(parents=True, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
