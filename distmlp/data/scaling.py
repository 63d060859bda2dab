"""What scales inputs: statistics of a training set's values, by the weights of its examples."""

from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

BLOCK = 8192  # rows at a time: the sums, and so the last bits of a mean, depend on it


class Rows(NamedTuple):
    """The features of a training set, BLOCK rows at a time, and the examples' weights, float32 [N] (None: each 1).

    `map` is Python's, or does the same by threads.
    """

    blocks: Callable[[], Iterator[np.ndarray]]
    weights: np.ndarray | None
    map: Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[Any]] = map


def largest(rows: Rows) -> float:
    """The largest absolute value. An example of weight 0 is none, here and below."""
    return max(rows.map(lambda block: max(float(block[0].max()), -float(block[0].min())), _weighed(rows)))


def moments(rows: Rows, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Each feature's mean and standard deviation, float64 [features]; all rows are read twice."""
    if rows.weights is None:
        mean = _mean(rows, width, lambda block: block)
    else:  # from one of the examples on, so that a constant feature has exactly its value as the mean
        one = next(_weighed(rows))[0][0].astype(np.float64)
        mean = one + _mean(rows, width, lambda block: block - one)

    def squares(block: np.ndarray) -> np.ndarray:
        distances = block.astype(np.float64)  # in which the rest is done, for new memory is what takes time
        distances -= mean
        distances *= distances
        return distances

    return mean, np.sqrt(_mean(rows, width, squares))


def _weighed(rows: Rows) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The blocks, and their rows' weights, float64 [rows, 1] (None: each 1); without rows of weight 0."""
    start = 0
    for block in rows.blocks():
        if rows.weights is None:
            yield block, None
        else:
            each = rows.weights[start : start + len(block)].astype(np.float64)
            start += len(block)
            if each.any():
                yield block[each > 0], each[each > 0, None]


def _mean(rows: Rows, width: int, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """The mean of what a function makes of the features, by the examples' weights: float64 [features]."""

    def part(weighed: tuple[np.ndarray, np.ndarray | None]) -> tuple[np.ndarray, float]:
        block, each = weighed
        values = function(block) if each is None else function(block) * each
        return values.sum(axis=0, dtype=np.float64), len(block) if each is None else float(each.sum())

    total, count = np.zeros(width), 0.0
    for sums, weight in rows.map(part, _weighed(rows)):
        total += sums
        count += weight
    return total / count
