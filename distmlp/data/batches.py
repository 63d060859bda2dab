"""Batches of one static shape, as NumPy arrays: which examples they have, and how these are read."""

import ctypes
import multiprocessing
import resource
import time
import traceback
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from distmlp import machine
from distmlp.data.examples import Examples, Readable
from distmlp.data.order import Order
from distmlp.errors import InputError

_TOLD = 16  # steps whose examples are on their way from the disk
_LOOKED, _WAITED = 10.0, 0.25  # seconds over which Reading looks, and the share of waiting that it speaks of
_AT_ONCE = 16  # examples that are read one by one between two signs of life
Step = tuple[np.ndarray, np.ndarray]  # indices int64 and weights float32, of one shape
Read = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]  # images [..., features], labels, weights, indices


class Batch(NamedTuple):
    """This process's share of a global batch. Rows that only fill up a shard have weight 0."""

    images: Any  # uint8 or float32 [local shards, rows, features]
    labels: Any  # int32 [local shards, rows]
    weights: Any  # float32 [local shards, rows]: what each counts in the loss
    weight_sum: Any  # float32 []: of the whole global batch
    indices: Any = None  # int64 [local shards, rows]: which examples they are; these two stay on the host
    real: Any = None  # float32 [local shards, rows]: 0 for rows that only fill up a shard, else 1

    def on_devices(self) -> "Batch":
        """Without what stays on the host."""
        return self._replace(indices=None, real=None)


class Rows:
    """The data set as steps ask for it. An item is what `read` returns, or the InputError that it raises.

    `taken` is of all processes; roughly, as nothing locks it.
    """

    def __init__(self, dataset: Readable, shared: bool = False) -> None:
        """`shared`: whether processes of their own read items of it."""
        self.dataset = dataset
        self._taken = multiprocessing.RawValue("Q") if shared else ctypes.c_uint64()
        self.waited, self.bytes = 0.0, 0  # seconds for which other reading waited for the disk, and what it has read

    @property
    def taken(self) -> int:
        """How many examples were read so far, where they are read one by one; it grows amid a batch."""
        return int(self._taken.value)

    def read(self, step: Step) -> Read:
        """For rows of weight 0 nothing is read: they are zeros."""
        indices, weights = step
        real = weights > 0
        if real.all():
            return *self._take(indices), weights, indices
        images = np.zeros((*indices.shape, self.dataset.num_features), self.dataset.dtype)
        labels = np.zeros(indices.shape, np.int32)
        if real.any():
            images[real], labels[real] = self._take(indices[real])
        return images, labels, weights, indices

    def __getitem__(self, step: Step) -> Read | InputError:
        try:
            return self.read(step)
        except InputError as error:  # torch would bury its line in the stack of a process of its own
            if error.__cause__ and multiprocessing.parent_process():  # pickling would lose the cause
                error.add_note("".join(traceback.format_exception(error.__cause__)))
            return error

    def _take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        if not self.dataset.one_by_one:
            begun, worked, waits = time.perf_counter(), time.thread_time(), _waits()
            images, labels = self.dataset.take(indices)
            if _waits() > waits:
                self.waited += time.perf_counter() - begun - (time.thread_time() - worked)
            self.bytes += images.nbytes
            return images, labels
        taken = []
        for start in range(0, indices.size, _AT_ONCE):
            taken.append(self.dataset.take(indices.ravel()[start : start + _AT_ONCE]))
            self._taken.value += len(taken[-1][1])
        images, labels = (np.concatenate(parts) for parts in zip(*taken, strict=True))
        return images.reshape(*indices.shape, -1), labels.reshape(indices.shape)


def _waits() -> int:
    """How often this thread has waited for something, and not only for its turn."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw if hasattr(resource, "RUSAGE_THREAD") else 0


class Announced:
    """Steps whose examples the data set is told of some steps before."""

    def __init__(self, steps: Iterable[Step], dataset: Readable) -> None:
        self._steps, self._dataset = steps, dataset

    def __iter__(self) -> Iterator[Step]:
        told: deque[Step] = deque()
        for step in self._steps:
            indices, weights = step
            self._dataset.ask(indices[weights > 0])
            told.append(step)
            if len(told) > _TOLD:
                yield told.popleft()
        yield from told


class Batches:
    """The batches of a training set; the same (seed, epoch, step) is the same batch.

    Order says which examples a batch has. Of its shards, those of `local_shards` are this process's, and all if that is
    None; shards from num_shards on are empty. `weights`, float32 [N], are the examples' (None: each 1).
    """

    def __init__(
        self, dataset: Examples, batch_size: int, num_shards: int = 1, local_shards: Sequence[int] | None = None,
        shuffle: bool = False, seed: int = 0, weights: np.ndarray | None = None,
    ) -> None:
        self.examples, self.weights = dataset, weights
        self.order = Order(len(dataset), batch_size, num_shards, shuffle, seed)
        self.local_shards = range(num_shards) if local_shards is None else local_shards
        self.rows = Rows(dataset)

    def weigh(self, indices: np.ndarray, real: np.ndarray) -> np.ndarray:
        """The weights of rows, float32, of which `real` is 0 where they are no examples, and else 1."""
        return real if self.weights is None else real * self.weights[indices]

    def read(self, epoch: int, step: int, shards: Sequence[int]) -> Batch:
        """A batch's rows in these shards, read in this process, here and now."""
        [indices], [real] = self.order.indices(epoch, step, step + 1, shards)
        images, labels, *_ = self.rows.read((indices, real))
        [weight_sum] = self.order.weight_sums(self.weights, epoch, step, step + 1)
        return Batch(images, labels, self.weigh(indices, real), weight_sum, indices, real)

    def empty_batch(self) -> Batch:
        """A batch of zeros, of the shapes and dtypes of all: no data are read for it."""
        rows = len(self.local_shards), self.order.rows
        images = np.zeros((*rows, self.examples.num_features), self.examples.dtype)
        return Batch(images, np.zeros(rows, np.int32), np.zeros(rows, np.float32), np.float32(0))

    def close(self) -> None:
        """Ends what reads ahead."""


class Reading:
    """Looks whether the disk gives a training set's examples as fast as they are asked for, where these are more than
    memory holds."""

    def __init__(self, batches: Batches) -> None:
        self._rows, self._name, examples = batches.rows, batches.examples.name, batches.examples
        size = len(examples) * examples.num_features * examples.dtype.itemsize
        self._looks = examples.resident is None and size > machine.memory() // 2
        self._begin()
        self._waits = self._rows.waited  # seconds for which reading had waited when `remark` was called last

    def _begin(self) -> None:
        self._since, self._read, self._waited = time.monotonic(), self._rows.bytes, 0.0

    def remark(self, idle: bool) -> str:
        """What to say, once, of the last seconds; "" if that is nothing. To be called after each dispatch.

        `idle`: whether the devices had done all before it. Else they did not wait for what was read meanwhile.
        """
        self._waited += (self._rows.waited - self._waits) * idle
        self._waits = self._rows.waited
        seconds, waited, size = time.monotonic() - self._since, self._waited, self._rows.bytes - self._read
        if not self._looks or seconds < _LOOKED:
            return ""
        self._begin()
        if waited < _WAITED * seconds:
            return ""
        self._looks = False
        gives, could = size / seconds / 1e6, size / (seconds - waited) / 1e6
        return (f"training waits for the disk, {waited / seconds:.0%} of the time: it gives {gives:,.1f} MB/s of "
                f"examples, and the devices could take {could:,.1f}: put {self._name} on a faster "
                "disk, or give more memory")
