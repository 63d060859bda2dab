"""Rows of sources of any size, block by block in one order: what is packed. Tables, arrays and pictures have theirs."""

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np

from distmlp import machine
from distmlp.config import digest_json
from distmlp.data.labels import Classes, Seen
from distmlp.data.spread import Spread
from distmlp.data.typed import Words, surely_finite
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
    @property
    def remarks(self) -> list[str]:
        """What the user should know of the rows that were read."""

    @property
    def files(self) -> Sequence[Path]: ...

    @property
    def classes(self) -> Sequence[str] | None:
        """By number, where the source says so."""

    def labels(self) -> Iterator[Labels]: ...

    def features(self, start: int = 0, spread: Spread | None = None) -> Iterator[np.ndarray]:
        """uint8 or float32 [rows, ...], always of one dtype and shape; finite. Of a training set, `spread` is shown
        them as they were before, and an InputError raised at their end if it finds that columns are too close.
        """


def ahead(blocks: Iterator[T]) -> Iterator[T]:
    """The blocks, of which the next is read in a thread while one is worked on."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = reader.submit(next, blocks, None)
            yield block


def by_cores(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
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


def codes(stream: Stream, seen: Seen) -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
    """The codes of a stream's labels, int32, as they are seen, and their weights."""
    for labels, weights, written in stream.labels():
        if isinstance(labels, Words):
            yield seen.add_words(labels.codes, labels.words, written), weights
        else:
            yield seen.add(labels), weights


class Streamed:
    """The rows of a stream as examples of a model's classes, to be taken in their order: what lies before the last ones
    that were taken is read again. Memory does not grow with them."""

    one_by_one = False

    def __init__(self, stream: Stream, classes: Classes, ended: Callable[[], object]) -> None:
        """All labels are read here, for together they say what they are. `ended` is called once all rows were taken."""
        self._stream, self._ended, self._seen = stream, ended, Seen(stream.name)
        for _ in codes(stream, self._seen):
            pass
        self._count = self._seen.examples
        if not self._count:
            raise InputError(f"{stream.name} is empty: give at least one example")
        self._numbers = self._seen.numbers(classes)
        first = next(stream.features())
        self.name, self.shape, self.dtype = stream.name, first.shape[1:], first.dtype
        self.num_features = math.prod(self.shape)
        self._begin()

    def __len__(self) -> int:
        return self._count

    def _begin(self) -> None:
        self._blocks, self._start = self._read(), 0
        self._x, self._y = np.empty((0, self.num_features), self.dtype), np.empty(0, np.int32)  # from row _start on

    def _read(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        labels, rest = codes(self._stream, self._seen), np.empty(0, np.int32)
        for x in ahead(self._stream.features()):
            while len(rest) < len(x):  # their blocks may have other numbers of rows
                rest = np.concatenate([rest, next(labels)[0]])
            yield x.reshape(len(x), -1), self._numbers[rest[: len(x)]]
            rest = rest[len(x) :]

    def ask(self, indices: np.ndarray) -> None:
        pass

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        first, last = int(indices.min()), int(indices.max())
        if first < self._start:
            self._begin()
        while self._start + len(self._x) <= last:
            x, y = next(self._blocks)
            used = min(first - self._start, len(self._x))
            self._start += used
            self._x, self._y = np.concatenate([self._x[used:], x]), np.concatenate([self._y[used:], y])
        if last == self._count - 1:
            self._ended()
        return self._x[indices - self._start], self._y[indices - self._start]

    def fingerprint(self) -> str:
        """Of what is known of them before they are read."""
        return digest_json([self._count, self.num_features, str(self.dtype), self._numbers.tolist()])


def finite(features: np.ndarray, name: str, row: int) -> np.ndarray:
    """The features, which begin with example `row`, if all of them are finite numbers; else an InputError."""
    if features.dtype == np.float32 and not surely_finite(features):
        bad = np.flatnonzero(~np.isfinite(features.reshape(len(features), -1)).all(axis=1))
        if len(bad):
            raise InputError(f"{name}: example {row + bad[0]} {NOT_FINITE}")
    return features
