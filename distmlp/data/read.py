"""What lies at the path that --dataset gives; datasets.py checks what is read."""

from pathlib import Path
from typing import Any

from distmlp.config import FROM_PYTHON, NAMED_DATASETS, Config
from distmlp.data import arrays, tables
from distmlp.data.arrays import Source
from distmlp.errors import InputError


def source(config: Config, info: dict[str, Any] | None = None) -> Source:
    """The parts that a file or a folder holds; see datasets.load for `info`."""
    path = Path(config.dataset)
    if config.dataset.startswith(FROM_PYTHON):
        raise InputError(f"--dataset={path}: the data of this run were given from Python: "
                         "give them to train(config, train_set, test_set) again")
    if not path.exists():
        raise InputError(f"--dataset={path} does not exist: give one of {', '.join(NAMED_DATASETS)}, an .npz, .csv or "
                         ".parquet file, a folder of .npy files, or one of class folders with pictures")
    if path.suffix.lower() in tables.SUFFIXES and not path.is_dir():
        return tables.source(config, {"train": path}, info)
    if path.is_dir() and not any(path.glob("*.npy")):
        found = {file.stem: file for file in sorted(path.iterdir()) if file.suffix.lower() in tables.SUFFIXES}
        if found:
            return tables.source(config, arrays.by_part(found) or found, info)
        if any(inner.is_dir() for inner in path.iterdir()):
            from distmlp.data import pictures

            return pictures.source(config, path)
    return arrays.source(path)
