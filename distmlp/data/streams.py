"""Rows of sources of any size, block by block in one order: what is packed. Tables, arrays and pictures have theirs."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from distmlp import machine
from distmlp.data.typed import Words
from distmlp.errors import InputError

NOT_FINITE = "has a value that is NaN or infinite (or beyond float32): remove or mend it"

T = TypeVar("T")
U = TypeVar("U")


class Labels(NamedTuple):
    """The labels of some rows, of any kind, or as places among words; and their weights, float64, if they have any."""

    values: np.ndarray | Words
    weights: np.ndarray | None = None
    written: bool = False  # in a text file, whose words may be numbers


class Stream(Protocol):
    """The rows of one part of a data set. Each method reads them anew, from the first or from row `start` on."""

    name: str  # for messages
    pictures: bool
    remarks: list[str]  # what the user should know

    @property
    def files(self) -> Sequence[Path]: ...

    @property
    def classes(self) -> Sequence[str] | None:
        """By number, where the source says so."""

    def labels(self) -> Iterator[Labels]: ...

    def features(self, start: int = 0) -> Iterator[np.ndarray]:
        """uint8 or float32 [rows, ...], always of one dtype and shape; finite."""


def ahead(blocks: Iterator[T]) -> Iterator[T]:
    """The blocks, of which the next is read in a thread while one is worked on."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = reader.submit(next, blocks, None)
            yield block


def spread(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """As map, by as many threads as there are cores; a few items wait at a time."""
    cores = machine.cores()
    with ThreadPoolExecutor(cores) as pool:
        coming: deque[Future[U]] = deque()
        for item in items:
            coming.append(pool.submit(function, item))
            if len(coming) > 2 * cores:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def finite(features: np.ndarray, name: str, row: int) -> np.ndarray:
    """The features, which begin with example `row`, if all of them are finite numbers; else an InputError."""
    # A sum is finite unless a value is not (or unless it overflows): one fast pass, the slow one only if needed.
    if features.dtype == np.float32 and not np.isfinite(features.sum(dtype=np.float64)):
        bad = np.flatnonzero(~np.isfinite(features.reshape(len(features), -1)).all(axis=1))
        if len(bad):
            raise InputError(f"{name}: example {row + bad[0]} {NOT_FINITE}")
    return features
