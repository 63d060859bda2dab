"""Batches of one static shape, as NumPy arrays: read by torch's DataLoader, also in processes of its own."""

import atexit
import contextlib
import ctypes
import multiprocessing
import pickle
import resource
import signal
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.utils.data

from distmlp import machine
from distmlp.data.examples import Examples, Readable
from distmlp.data.order import Order
from distmlp.errors import STOP_SIGNALS, InputError, one_line

_CHUNK = 256  # steps whose indices are computed at once
_TOLD = 16  # steps whose examples are on their way from the disk
_LOOKED, _WAITED = 10.0, 0.25  # seconds over which Reading looks, and the share of waiting that it speaks of
_AT_ONCE = 16  # examples that are read one by one between two signs of life
Step = tuple[np.ndarray, np.ndarray]  # indices int64 and weights float32, of one shape


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


class _Rows(torch.utils.data.Dataset[Any]):
    """The data set as the DataLoader sees it: an item is what ExampleLoader yields, or what is wrong with it.

    `taken` counts the examples that were read one by one, in all processes; roughly, as nothing locks it.
    """

    def __init__(self, dataset: Readable, shared: bool) -> None:
        self.dataset = dataset
        self.taken = multiprocessing.RawValue("Q") if shared else ctypes.c_uint64()
        self.waited, self.bytes = 0.0, 0  # seconds for which other reading waited for the disk, and what it has read

    def __getitem__(self, step: Step) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | InputError:
        indices, weights = step
        real = weights > 0
        try:
            if real.all():
                return *self._take(indices), weights, indices
            images = np.zeros((*indices.shape, self.dataset.num_features), self.dataset.dtype)
            labels = np.zeros(indices.shape, np.int32)
            if real.any():
                images[real], labels[real] = self._take(indices[real])
            return images, labels, weights, indices
        except InputError as error:  # raised by ExampleLoader: torch would bury its line in the worker's stack
            if error.__cause__ and torch.utils.data.get_worker_info():  # pickling would lose the cause
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
            self.taken.value += len(taken[-1][1])
        images, labels = (np.concatenate(parts) for parts in zip(*taken, strict=True))
        return images.reshape(*indices.shape, -1), labels.reshape(indices.shape)


def _waits() -> int:
    """How often this thread has waited for something, and not only for its turn."""
    return resource.getrusage(resource.RUSAGE_THREAD).ru_nvcsw if hasattr(resource, "RUSAGE_THREAD") else 0


class _Announced(torch.utils.data.Sampler[Step]):
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


def _identity(batch: Any) -> Any:
    return batch  # what torch does by itself would make tensors of the arrays


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Processes that are started within this context never see a signal that asks for a stop: it reaches the whole
    process group, and only the trainer, which saves, is to act on it (run/signals.py).
    """
    resource_tracker.ensure_running()  # when it starts, it unblocks the signals
    others = multiprocessing.active_children()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for process in multiprocessing.active_children():
        if process not in others:
            atexit.register(process.kill)  # multiprocessing sends SIGTERM, which is blocked, and waits for ever


class ExampleLoader(torch.utils.data.DataLoader[Any]):
    """torch's DataLoader over steps, each given by example indices (int64) and weights (float32) of one shape.

    Yields (images [..., features], labels, weights, indices). For rows of weight 0 nothing is read: they are zeros.
    Where items are read one by one, `num_workers` spawned processes read ahead; `seed` is of their random numbers.
    """

    def __init__(self, dataset: Readable, steps: Iterable[Step], num_workers: int = 0, seed: int = 0) -> None:
        self._name = dataset.name
        num_workers = num_workers if dataset.one_by_one else 0
        self._rows = _Rows(dataset, shared=num_workers > 0)
        super().__init__(
            self._rows, batch_size=None, sampler=_Announced(steps, dataset), collate_fn=_identity,
            num_workers=num_workers, persistent_workers=bool(num_workers),
            multiprocessing_context="spawn" if num_workers else None,  # JAX has threads: a forked worker can deadlock
            generator=torch.Generator().manual_seed(seed),  # without it each epoch draws from torch's global one
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch's is of a class of its own
        with _blocked_signals() if self.num_workers else contextlib.nullcontext(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # torch's lines beside the one below
            try:
                steps = super().__iter__()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise InputError(f"{self._name} cannot be sent to the processes of --num_workers="
                                 f"{self.num_workers} ({one_line(error)}): give it functions that can be imported "
                                 "instead of lambdas and open files, or give --num_workers=0") from error
        for rows in steps:
            if isinstance(rows, InputError):
                raise rows
            yield rows

    @property
    def taken(self) -> int:
        """How many examples were read so far, where they are read one by one; it grows amid a batch."""
        return int(self._rows.taken.value)

    @property
    def waited(self) -> tuple[float, int]:
        """For how many seconds reading has waited for the disk, and how many bytes of features it has read; where
        examples are not read one by one."""
        return self._rows.waited, self._rows.bytes

    def close(self) -> None:
        """Ends the workers. Left to the garbage collector, they do not end, and torch waits ten seconds for each."""
        if self.num_workers and self._iterator is not None:
            self._iterator._shutdown_workers()  # type: ignore[attr-defined] # there is no public way
            self._iterator = None


class _RestOfEpoch(torch.utils.data.Sampler[Step]):
    """The steps from a NumpyLoader's position to the end of its epoch."""

    def __init__(self, loader: "NumpyLoader") -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Step]:
        order, shards, (epoch, step) = self._loader.order, self._loader.local_shards, self._loader.position
        for start in range(step, order.steps_per_epoch, _CHUNK):
            stop = min(start + _CHUNK, order.steps_per_epoch)
            yield from zip(*order.indices(epoch, start, stop, shards), strict=True)


class NumpyLoader(ExampleLoader):
    """Yields the `Batch`es of an epoch from the current position on; the same (seed, epoch, step) is the same batch.

    Order says which examples a batch has. Of its shards, those of `local_shards` are yielded, in this order, and all if
    that is None; shards from num_shards on are empty. `weights`, float32 [N], are the examples' (None: each 1).
    """

    def __init__(
        self, dataset: Examples, batch_size: int, num_shards: int = 1, local_shards: Sequence[int] | None = None,
        shuffle: bool = False, seed: int = 0, num_workers: int = 0, weights: np.ndarray | None = None,
    ) -> None:
        self.examples, self.weights = dataset, weights
        self.order = Order(len(dataset), batch_size, num_shards, shuffle, seed)
        self.local_shards = range(num_shards) if local_shards is None else local_shards
        self.position = (0, 0)  # epoch and step, both counted from 0
        super().__init__(dataset, _RestOfEpoch(self), num_workers, seed)

    def set_position(self, epoch: int, step: int = 0) -> None:
        """The next iteration starts before this step of this epoch, both counted from 0."""
        self.position = (epoch, step)

    def weigh(self, indices: np.ndarray, real: np.ndarray) -> np.ndarray:
        """The weights of rows, float32, of which `real` is 0 where they are no examples, and else 1."""
        return real if self.weights is None else real * self.weights[indices]

    def read(self, epoch: int, step: int, shards: Sequence[int]) -> Batch:
        """A batch's rows in these shards, read in this process, here and now."""
        [indices], [real] = self.order.indices(epoch, step, step + 1, shards)
        found = self._rows[indices, real]
        if isinstance(found, InputError):
            raise found
        [weight_sum] = self.order.weight_sums(self.weights, epoch, step, step + 1)
        return Batch(*found[:2], self.weigh(indices, real), weight_sum, indices, real)

    def empty_batch(self) -> Batch:
        """A batch of zeros, of the shapes and dtypes of all: no data are read for it."""
        rows = len(self.local_shards), self.order.rows
        images = np.zeros((*rows, self.examples.num_features), self.examples.dtype)
        return Batch(images, np.zeros(rows, np.int32), np.zeros(rows, np.float32), np.float32(0))

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override] # torch's is of a class of its own
        epoch, first = self.position
        for step, (images, labels, real, indices) in enumerate(super().__iter__(), first):
            [weight_sum] = self.order.weight_sums(self.weights, epoch, step, step + 1)
            yield Batch(images, labels, self.weigh(indices, real), weight_sum, indices, real)


class Reading:
    """Looks whether the disk gives the examples of a loader as fast as they are asked for, where these are more than
    memory holds."""

    def __init__(self, loader: NumpyLoader) -> None:
        self._loader, examples = loader, loader.examples
        size = len(examples) * examples.num_features * examples.dtype.itemsize
        self._looks = examples.resident is None and size > machine.memory() // 2
        self._begin()
        self._waits = self._found[0]  # seconds for which reading had waited when `remark` was called last

    def _begin(self) -> None:
        self._since, self._found, self._waited = time.monotonic(), self._loader.waited, 0.0

    def remark(self, idle: bool) -> str:
        """What to say, once, of the last seconds; "" if that is nothing. To be called after each dispatch.

        `idle`: whether the devices had done all before it. Else they did not wait for what was read meanwhile.
        """
        waits, size = self._loader.waited
        self._waited += (waits - self._waits) * idle
        self._waits = waits
        seconds, waited, size = time.monotonic() - self._since, self._waited, size - self._found[1]
        if not self._looks or seconds < _LOOKED:
            return ""
        self._begin()
        if waited < _WAITED * seconds:
            return ""
        self._looks = False
        gives, could = size / seconds / 1e6, size / (seconds - waited) / 1e6
        return (f"training waits for the disk, {waited / seconds:.0%} of the time: it gives {gives:,.1f} MB/s of "
                f"examples, and the devices could take {could:,.1f}: put {self._loader.examples.name} on a faster "
                "disk, or give more memory")
