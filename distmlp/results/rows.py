"""Files to predict for: pictures, and rows of .npy, .npz and .csv."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from distmlp.data import refused
from distmlp.errors import InputError, one_line
from distmlp.results.load import Model

_NPZ_NAMES = ("x", "x_test", "data", "images")
_ROW_SUFFIXES = (".npy", ".npz", ".csv")


def is_rows(path: Path) -> bool:
    """Whether a file holds rows; else it is a picture."""
    return path.suffix.lower() in _ROW_SUFFIXES


def read(path: Path, model: Model) -> np.ndarray:
    """A file's rows, uint8 or float32 [N, features], checked for the model.

    Raises:
      InputError: the file cannot be read, or does not fit the model.
    """
    if not path.is_file():
        raise InputError(f"{path} does not exist" if not path.exists() else f"{path} is no file")
    refused.check_file(path)
    if not is_rows(path):
        from distmlp.results import pictures

        return model.check(pictures.for_model(model.num_features, model.data_info, model.config, path)[None])
    try:
        return model.check(_read_rows(path, model))
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    except Exception as error:  # damage surfaces as any of a dozen types, from NumPy, zipfile and csv
        reason = one_line(error)
        raise InputError(f"{path} cannot be read as rows of numbers ({reason})") from None


def _read_rows(path: Path, model: Model) -> np.ndarray:
    if path.suffix.lower() == ".csv":
        return _read_csv(path, model)
    with path.open("rb") as file:
        loaded = np.load(file)
        if isinstance(loaded, np.ndarray):
            rows = loaded
        else:
            names = loaded.files if len(loaded.files) == 1 else [n for n in _NPZ_NAMES if n in loaded.files]
            if not names:
                raise InputError(f"holds {', '.join(loaded.files) or 'nothing'}: "
                                 f"name the array of rows {' or '.join(_NPZ_NAMES)}")
            rows = loaded[names[0]]
    return rows[None] if rows.shape == (model.num_features,) else rows


def _read_csv(path: Path, model: Model) -> np.ndarray:
    """Numbers separated by commas; a header names columns, which are then found by the names that training saw."""
    with path.open(newline="", encoding="utf-8-sig") as file:
        lines = [line for line in csv.reader(file) if line]
    if not lines:
        raise InputError("holds no rows")
    names, header = model.data_info.get("columns"), [] if _numeric(lines[0]) else [name.strip() for name in lines[0]]
    wanted: Sequence[int] = range(len(lines[0]))
    if header and names:
        missing = [name for name in names if name not in header]
        if missing:
            raise InputError(f"lacks the column {missing[0]}, on which the run was trained")
        wanted = [header.index(name) for name in names]
    first = bool(header)
    return np.array([_numbers(line, wanted, n) for n, line in enumerate(lines[first:], start=1 + first)], np.float32)


def _numeric(line: Sequence[str]) -> bool:
    try:
        [float(text) for text in line]
    except ValueError:
        return False
    return True


def _numbers(line: Sequence[str], wanted: Sequence[int], number: int) -> list[float]:
    try:
        return [float(line[column]) for column in wanted]
    except IndexError:
        raise InputError(f"line {number} has {len(line)} columns, fewer than the first") from None
    except ValueError:
        bad = next(line[column] for column in wanted if not _numeric([line[column]]))
        raise InputError(f"line {number}: {bad!r} is no number") from None
