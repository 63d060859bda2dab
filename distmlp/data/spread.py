"""Whether float32, by which all is computed, holds the differences between the values of a training set."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from distmlp.errors import InputError

_STEPS = 16  # of float32: columns with fewer from their smallest to their largest value are looked at
_BLOCK = 8192  # rows that are looked at together
_SPACED = 4096  # rows that are looked at, of an array in a file that is too large to be read for this
_READ_WHOLE = 1 << 30  # bytes


class Spread:
    """The smallest and the largest value of each of some columns, as far as they have been seen."""

    def __init__(self, columns: int = 0) -> None:
        self._smallest = self._largest = np.zeros(0)
        self._rounded = np.zeros(0, bool)  # whether float32 has changed a value while all were close together
        self.begin(columns)

    def begin(self, columns: int) -> None:
        """With so many columns, unless it has them."""
        if len(self._rounded) != columns:
            self._smallest, self._largest = np.full(columns, np.inf), np.full(columns, -np.inf)
            self._rounded = np.zeros(columns, bool)

    def as_json(self) -> dict[str, Any]:
        return {"smallest": self._smallest.tolist(), "largest": self._largest.tolist(),
                "rounded": self._rounded.tolist()}  # fmt: skip

    def restore(self, saved: dict[str, Any]) -> None:
        """As `as_json` was of it."""
        self._smallest, self._largest = np.array(saved["smallest"]), np.array(saved["largest"])
        self._rounded = np.array(saved["rounded"], bool)

    def add(self, values: np.ndarray, at: Any = slice(None)) -> None:
        """More rows, NaN where there is no value: of all columns, [rows, columns], or of the one at this place."""
        if not len(values):
            return
        self._smallest[at] = np.minimum(self._smallest[at], np.fmin.reduce(values, axis=0))
        self._largest[at] = np.maximum(self._largest[at], np.fmax.reduce(values, axis=0))
        close = _are_close(self._smallest[at], self._largest[at])
        if np.any(close) and may_round(values.dtype):
            with np.errstate(over="ignore"):
                changed = (values != values.astype(np.float32)) & (values == values)  # noqa: PLR0124 - NaN
            self._rounded[at] |= close & changed.any(axis=0)

    @property
    def close(self) -> np.ndarray:
        """The places of the columns whose values may be too close together, int64."""
        return np.flatnonzero(_are_close(self._smallest, self._largest))

    def check(self, name: str, columns: Sequence[str] = ()) -> None:
        """Raises InputError for a column whose values are too close together, as times in seconds since 1970 are.

        Args:
          name: of the training set.
          columns: their names, if they have any.
        """
        close = self.close
        for place in close[self._rounded[close] & (self._smallest < self._largest)[close]][:1]:
            what = f"column {columns[place]}" if columns else f"feature {place}"
            remedy = f", or give --ignore_columns={columns[place]}" if columns else ""
            raise InputError(f"{name}: the values of {what}, {self._smallest[place]:.15g} to "
                             f"{self._largest[place]:.15g}, are too close together for float32, by which all is "
                             f"computed: subtract a constant from them{remedy}")


def _are_close(smallest: np.ndarray, largest: np.ndarray) -> np.ndarray:
    """Whether float32 has hardly a dozen values from the one to the other; also where they are one."""
    with np.errstate(all="ignore"):
        step = np.spacing(np.maximum(np.abs(smallest), np.abs(largest)).astype(np.float32))
        return (largest - smallest < _STEPS * step) & (step < np.inf)


def check(images: Any, name: str) -> None:
    """Raises InputError, as Spread.check, for a training set of these features, if they are an array [N, ...]; where it
    lies in a file of more than 1 GiB, by spaced rows."""
    if not isinstance(images, np.ndarray) or images.ndim < 2 or not len(images) or not may_round(images.dtype):
        return
    some = np.asarray(images[np.linspace(0, len(images) - 1, min(len(images), _SPACED)).astype(int)])
    found = Spread(math.prod(images.shape[1:]))
    found.add(some.reshape(len(some), -1))
    if isinstance(images, np.memmap) and images.nbytes > _READ_WHOLE:
        found.check(name)
        return
    left = found.close  # others are no closer in all rows
    for start in range(0, len(images) if len(left) else 0, _BLOCK):
        rows = np.asarray(images[start : start + _BLOCK])
        found.add(rows.reshape(len(rows), -1)[:, left], left)
    found.check(name)


def may_round(kind: np.dtype[Any]) -> bool:
    """Whether float32 may change numbers of this type."""
    return kind.kind in "uif" and kind.itemsize > (4 if kind.kind == "f" else 2)
