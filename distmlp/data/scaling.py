"""What scales inputs: statistics of a training set's values."""

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

BLOCK = 8192  # rows at a time: the sums, and so the last bits of a mean, depend on it
Each = Callable[[Callable[[np.ndarray], Any]], Iterable[Any]]  # what a function says of each block of rows, in order


def largest_of(each: Each) -> float:
    """The largest absolute value."""
    return max(each(lambda block: max(float(block.max()), -float(block.min()))))


def moments(each: Each, width: int, count: int) -> tuple[float, np.ndarray, np.ndarray]:
    """The largest absolute value, and each feature's mean and standard deviation, float64 [width], of `count` rows.

    Each block is read twice; `each` may let threads do it.
    """

    def first(block: np.ndarray) -> tuple[float, np.ndarray]:
        return max(float(block.max()), -float(block.min())), block.sum(axis=0, dtype=np.float64)

    largest, total = 0.0, np.zeros(width)
    for most, sums in each(first):
        largest, total = max(largest, most), total + sums
    mean = total / count
    squares = sum(each(lambda block: ((block - mean) ** 2).sum(axis=0)), np.zeros(width))
    return largest, mean, np.sqrt(squares / count)
