"""Data of kinds that are not read: what they are, and what to give instead."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from distmlp.errors import InputError, listed

_FRAMES = {  # suffixes of tables, and pandas' function that reads them
    ".xlsx": "read_excel({})", ".xls": "read_excel({})", ".xlsm": "read_excel({})", ".ods": "read_excel({})",
    ".orc": "read_orc({})", ".json": "read_json({})",
    ".jsonl": "read_json({}, lines=True)", ".ndjson": "read_json({}, lines=True)", ".dta": "read_stata({})",
    ".sav": "read_spss({})", ".sas7bdat": "read_sas({})",
}  # fmt: skip
_ARRAYS = {  # suffixes of arrays, and what reads them
    ".h5": "h5py.File", ".hdf5": "h5py.File", ".pt": "torch.load", ".pth": "torch.load", ".mat": "scipy.io.loadmat",
    ".pkl": "pickle.load", ".pickle": "pickle.load", ".joblib": "joblib.load",
    ".safetensors": "safetensors.numpy.load_file",
}  # fmt: skip
_PACKED = (".zip", ".tar", ".tgz", ".bz2", ".xz", ".7z", ".rar", ".gz")


def check_place(path: Path) -> None:
    """Raises InputError for a path at which there is neither a file nor a folder."""
    if not path.exists():
        raise InputError(f"{path} does not exist")
    if not (path.is_file() or path.is_dir()):
        raise InputError(f"{path} is neither a file nor a folder, perhaps a pipe: write what comes from it to a file, "
                         "and give that")


def is_saved(path: Path) -> bool:
    """Whether Hugging Face's save_to_disk has made it. (What is loaded from their hub may have a dataset_info.json.)"""
    single = all((path / name).exists() for name in ("dataset_info.json", "state.json"))
    return single or (path / "dataset_dict.json").exists()


def check_not_saved(path: Path) -> None:
    """Raises InputError if it is such a folder."""
    if is_saved(path):
        raise InputError(f"{path} was saved by Hugging Face's save_to_disk: make a pack of it, by `distmlp pack {path} "
                         "--output=FOLDER`, and give that")


def check_file(path: Path) -> None:
    """Raises InputError for a file whose name says that it is of a kind that is not read."""
    if path.suffix.lower() in {*_FRAMES, *_ARRAYS, *_PACKED}:
        raise unread(path)


def unread(path: Path) -> InputError:
    """What to say of a file that is of no kind that is read."""
    suffix = path.suffix.lower()
    remedy = "give a .csv, .tsv or .parquet table, an .npz file of arrays, or a folder of class folders with pictures"
    if suffix in _FRAMES:
        read = _FRAMES[suffix].format(f'"{path.name}"')
        remedy = f'make a table of it, as by pandas.{read}.to_csv("{path.stem}.csv", index=False)'
    elif suffix in _ARRAYS:
        remedy = (f'read it by {_ARRAYS[suffix]}, and save its arrays by numpy.savez("{path.stem}.npz", x_train=..., '
                  "y_train=..., x_test=..., y_test=...)")
    elif suffix in _PACKED:
        remedy = "unpack it first"
    kind = f"{suffix} files are" if suffix else "files of its kind are"
    return InputError(f"{path} cannot be read, {kind} not taken: {remedy}")


def check_object(dataset: Any, name: str) -> None:
    """Raises InputError for data given from Python that are neither a tuple (x, y) or (x, y, weights) nor a Dataset."""
    kind = type(dataset).__name__
    if isinstance(dataset, Mapping) and 0 not in dataset:
        keys = listed([repr(key) for key in dataset])
        example = "train(config, data['train'], data['test'])" if "train" in dataset else "train(config, (x, y))"
        raise InputError(f"{name} is a {kind} of {keys}: give each set by itself, as in {example}")
    if isinstance(dataset, (str, Path)):
        raise InputError(f"{name} is a {kind}: name files and folders in the config, as in Config(dataset={dataset!r})")
    parts = getattr(dataset, "tensors", dataset)
    few = isinstance(parts, (tuple, list)) and len(parts) <= 4
    if few and (isinstance(parts, tuple) or all(hasattr(part, "shape") for part in parts)):
        raise InputError(f"{name} is a {kind} of {len(parts)} parts: give a tuple (x, y), or (x, y, weights)")
    if kind == "DataLoader":
        raise InputError(f"{name} is a DataLoader: give its .dataset, for batches are made here")
