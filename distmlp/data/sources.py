"""Where the arrays come from: what --dataset names, read as it is; datasets.py checks it."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np

from distmlp.config import FROM_PYTHON, NAMED_DATASETS, Config, InputError


class Arrays(NamedTuple):
    """Features [N, ...] and labels [N] of a training and a test set; also the names that files give them."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def read(config: Config) -> Arrays:
    """What --dataset names.

    Raises:
      InputError: it is not there, or cannot be read.
    """
    return _LOADERS[config.dataset](config) if config.dataset in _LOADERS else _files(config.dataset)


def one_line(error: Exception) -> str:
    """Its text without line breaks, or its type where it has none."""
    return " ".join(str(error).split()) or type(error).__name__


def _digits(config: Config) -> Arrays:
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    images, labels = load_digits(return_X_y=True)
    x_train, x_test, y_train, y_test = train_test_split(
        images.reshape(-1, 8, 8).astype(np.uint8), labels, test_size=0.2, stratify=labels, random_state=0
    )
    return Arrays(x_train, y_train, x_test, y_test)


def _torchvision(class_name: str) -> Callable[[Config], Arrays]:
    def read(config: Config) -> Arrays:
        import torchvision.datasets

        kind = getattr(torchvision.datasets, class_name)
        folder = Path(config.data_dir) / class_name / "raw"
        try:
            with contextlib.redirect_stdout(io.StringIO()):  # it prints each address that it tries
                sets = [kind(config.data_dir, train=train, download=True) for train in (True, False)]
        except Exception as error:  # damage surfaces as any of a dozen types
            if isinstance(error, OSError) or "download" in str(error) or "corrupted" in str(error):
                raise InputError(f"--dataset={config.dataset} is not in {folder} and could not be downloaded "
                                 f"({one_line(error)}): connect, or give --data_dir=FOLDER that holds it") from None
            raise InputError(f"--dataset={config.dataset}: the files in {folder} are damaged ({one_line(error)}): "
                             "delete them to download them again") from None
        return Arrays(*(array.numpy() for each in sets for array in (each.data, each.targets)))

    return read


def _synthetic(config: Config) -> Arrays:
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

    return Arrays(*draw(config.synthetic_examples), *draw(max(1, config.synthetic_examples // 6)))


_LOADERS: dict[str, Callable[[Config], Arrays]] = {
    "digits": _digits,
    "mnist": _torchvision("MNIST"),
    "fashion_mnist": _torchvision("FashionMNIST"),
    "synthetic": _synthetic,
}


def _files(dataset: str) -> Arrays:
    """The four arrays of an .npz file (read into memory) or of a folder of .npy files (memory-mapped)."""
    source = Path(dataset)
    if dataset.startswith(FROM_PYTHON):
        raise InputError(f"--dataset={dataset}: the data of this run were given from Python: "
                         "give them to train(config, train_set, test_set) again")
    if not source.exists():
        raise InputError(f"--dataset={dataset} does not exist: give one of {', '.join(NAMED_DATASETS)}, "
                         "an .npz file or a folder of .npy files")
    try:
        if source.is_dir():
            paths = [source / f"{name}.npy" for name in Arrays._fields]
            return Arrays(*(np.load(source := path, mmap_mode="r") for path in paths))
        with source.open("rb") as file, np.load(file) as arrays:  # given a path, a damaged file would stay open
            missing = [name for name in Arrays._fields if name not in arrays]
            if missing:
                raise InputError(f"{dataset} lacks {', '.join(missing)}: it must hold {', '.join(Arrays._fields)}")
            return Arrays(*(arrays[name] for name in Arrays._fields))
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError(f"{source} is missing: the folder must hold "
                         f"{', '.join(f'{name}.npy' for name in Arrays._fields)}") from None
    except Exception as error:  # damage surfaces as any of a dozen types, from NumPy, zipfile and zlib
        raise InputError(f"{source} cannot be read as NumPy arrays, it may be damaged or truncated "
                         f"({one_line(error)}): bring back an intact copy") from None
