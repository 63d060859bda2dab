"""NumpyLoader: torch's DataLoader and DistributedSampler, yielding one static shape of NumPy batches per shard."""

import atexit
import contextlib
import functools
import multiprocessing
import pickle
import signal
import traceback
import warnings
from collections.abc import Iterable, Iterator, Sequence, Sized
from multiprocessing import resource_tracker
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.utils.data
from torch.utils.data.distributed import DistributedSampler

from distmlp.config import InputError
from distmlp.data.examples import AnyDataset, ItemDataset
from distmlp.data.sources import one_line

_CHUNK = 256  # steps whose indices are computed at once
Step = tuple[np.ndarray, np.ndarray]  # indices int64 and weights float32, of one shape


class Batch(NamedTuple):
    """This process's share of a global batch. Rows of weight 0 only fill up a shard."""

    images: Any  # uint8 or float32 [local shards, rows, features]
    labels: Any  # int32 [local shards, rows]
    weights: Any  # float32 [local shards, rows]
    weight_sum: Any  # float32 []: of the whole global batch
    indices: Any = None  # int64 [local shards, rows]: which examples they are; stays on the host

    @property
    def arrays(self) -> tuple[Any, Any, Any, Any]:
        """What the devices need."""
        return self[:4]


@functools.lru_cache(maxsize=2)  # this epoch's and, while it is prefetched, the next one's
def _permutation(size: int, shuffle: bool, seed: int) -> np.ndarray:
    """The order of an epoch, int64 [size]: one array that all shards slice."""
    if not shuffle:
        return np.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).numpy()


class ShardSampler(DistributedSampler[Any]):
    """torch's DistributedSampler (same seed, epoch and replica: same order) that repeats no example to fill up.

    Shard s of S holds the positions p of the epoch's permutation with p ≡ s (mod S), ascending.
    """

    @property
    def _size(self) -> int:
        return len(cast(Sized, self.dataset))  # torch declares no length of a Dataset

    def indices(self) -> np.ndarray:
        """This shard's example indices in this epoch, int64: a view of the shared permutation."""
        order = _permutation(self._size, self.shuffle, self.seed + self.epoch)
        return order[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def __len__(self) -> int:
        return len(range(self.rank, self._size, self.num_replicas))

    def rows(self, start: int, stop: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """This shard's rows of the global batches start..stop-1.

        Returns:
          indices int64 [stop-start, ceil(batch_size/S)] and weights float32 of that shape; a row of weight 0 repeats
          some example.
        """
        order, width = self.indices(), -(-batch_size // self.num_replicas)
        # The first of this shard's positions at or behind each batch's begin, as an index into `order`.
        begins = np.minimum(np.arange(start, stop + 1) * batch_size, self._size)
        first = -(-(begins - self.rank) // self.num_replicas)
        row = first[:-1, None] + np.arange(width)
        weights = (row < first[1:, None]).astype(np.float32)
        if not len(order):  # fewer examples than shards
            return np.zeros(row.shape, np.int64), weights
        return order[np.minimum(row, len(order) - 1)], weights


class _StepSampler(torch.utils.data.Sampler[Step]):
    """For each step from the current position to the epoch's end: indices and weights [local shards, rows]."""

    def __init__(self, loader: "NumpyLoader") -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Step]:
        end = self.loader.steps_per_epoch
        for start in range(self.loader.step, end, _CHUNK):
            yield from zip(*self.loader.indices(start, min(start + _CHUNK, end)), strict=True)


class _Rows(torch.utils.data.Dataset[Any]):
    """The data set as the DataLoader sees it: an item is what StepReader yields, or what is wrong with it."""

    def __init__(self, dataset: AnyDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, step: Step) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | InputError:
        indices, weights = step
        real = weights > 0
        try:
            if real.all():
                return *self.dataset[indices], weights, indices
            images = np.zeros((*indices.shape, self.dataset.num_features), self.dataset.dtype)
            labels = np.zeros(indices.shape, np.int32)
            if real.any():
                images[real], labels[real] = self.dataset[indices[real]]
            return images, labels, weights, indices
        except InputError as error:  # raised by StepReader: torch would bury its line in the worker's stack
            if error.__cause__ and torch.utils.data.get_worker_info():  # pickling would lose the cause
                error.add_note("".join(traceback.format_exception(error.__cause__)))
            return error


def _identity(batch: Any) -> Any:
    return batch


_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Processes that are started meanwhile never see what asks for a stop: such signals reach the whole process group,
    and only the trainer, which saves, is to act on them (run/signals.py)."""
    resource_tracker.ensure_running()  # its own start would unblock them
    others = multiprocessing.active_children()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for process in multiprocessing.active_children():
        if process not in others:
            atexit.register(process.kill)  # multiprocessing's SIGTERM would not end it, and its wait never


class StepReader(torch.utils.data.DataLoader[Any]):
    """torch's DataLoader over steps, each given by example indices (int64) and weights (float32) of one shape.

    Yields (images [..., features], labels, weights, indices). For rows of weight 0 nothing is read: they are zeros.

    Args:
      dataset: indexed by an integer array, it returns so many (images, labels) at once.
      steps: can be iterated over again and again.
      num_workers: spawned processes that read ahead; only used where items are read one by one.
      seed: of the random numbers in these processes.
    """

    def __init__(self, dataset: AnyDataset, steps: Iterable[Step], num_workers: int = 0, seed: int = 0) -> None:
        self._examples = dataset
        num_workers = num_workers if isinstance(dataset, ItemDataset) else 0
        super().__init__(
            _Rows(dataset),
            batch_size=None,
            sampler=steps,
            collate_fn=_identity,
            num_workers=num_workers,
            # JAX is multithreaded: a forked worker can deadlock.
            multiprocessing_context="spawn" if num_workers else None,
            persistent_workers=bool(num_workers),
            generator=torch.Generator().manual_seed(seed),  # else every epoch would draw from torch's global one
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch's is of a class of its own
        with _blocked_signals() if self.num_workers else contextlib.nullcontext(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # torch's lines beside the one below
            try:
                steps = super().__iter__()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise InputError(f"{self._examples.name} cannot be sent to the processes of --num_workers="
                                 f"{self.num_workers} ({one_line(error)}): give it functions that can be imported "
                                 "instead of lambdas and open files, or give --num_workers=0") from error
        for rows in steps:
            if isinstance(rows, InputError):
                raise rows
            yield rows

    def close(self) -> None:
        """Ends the workers. Left to the garbage collector, they do not end, and torch waits ten seconds for each."""
        if self.num_workers and self._iterator is not None:
            self._iterator._shutdown_workers()  # type: ignore[attr-defined] # there is no public way
            self._iterator = None


class NumpyLoader(StepReader):
    """Yields the `Batch`es of an epoch from the current position on; the same (seed, epoch, step) is the same batch.

    Global batch k is the positions [k*batch_size, min((k+1)*batch_size, size)) of the epoch's permutation, dealt to
    the shards by ShardSampler, each filled up to ceil(batch_size / num_shards) rows.

    Args:
      dataset, num_workers: see StepReader.
      local_shards: the shards to yield, in this order; those from num_shards on are empty. All, if None.
      shuffle: whether each epoch has an order of its own, by `seed`; otherwise all have the data set's.
    """

    def __init__(
        self,
        dataset: AnyDataset,
        batch_size: int,
        num_shards: int = 1,
        local_shards: Sequence[int] | None = None,
        shuffle: bool = False,
        seed: int = 0,
        num_workers: int = 0,
    ) -> None:
        self.global_batch_size, self.num_shards = batch_size, num_shards
        self.steps_per_epoch = -(-len(dataset) // batch_size)
        self.epoch = self.step = 0
        shards = range(num_shards) if local_shards is None else local_shards
        self.samplers = [
            ShardSampler(dataset, num_shards, shard, shuffle, seed) if shard < num_shards else None
            for shard in shards
        ]
        super().__init__(dataset, _StepSampler(self), num_workers, seed)

    def set_position(self, epoch: int, step: int = 0) -> None:
        """The next iteration starts before this step of this epoch, both counted from 0."""
        self.epoch, self.step = epoch, step
        for sampler in self.samplers:
            if sampler is not None:
                sampler.set_epoch(epoch)

    def indices(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Example indices (int64) and weights (float32) of this epoch's steps start..stop-1: [steps, shards, rows]."""
        empty = np.zeros((stop - start, -(-self.global_batch_size // self.num_shards)))
        rows = [
            sampler.rows(start, stop, self.global_batch_size)
            if sampler is not None
            else (empty.astype(np.int64), empty.astype(np.float32))
            for sampler in self.samplers
        ]
        return np.stack([index for index, _ in rows], axis=1), np.stack([weight for _, weight in rows], axis=1)

    def empty_batch(self) -> Batch:
        """A batch of zeros, of the shapes and dtypes of all: no data are read for it."""
        rows = len(self.samplers), -(-self.global_batch_size // self.num_shards)
        images = np.zeros((*rows, self._examples.num_features), self._examples.dtype)
        return Batch(images, np.zeros(rows, np.int32), np.zeros(rows, np.float32), np.float32(0))

    def weight_sum(self, step: int) -> int:
        """The number of examples in global batch `step` of an epoch."""
        size = len(self._examples)
        return min((step + 1) * self.global_batch_size, size) - step * self.global_batch_size

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override] # as above
        for step, (images, labels, weights, indices) in enumerate(super().__iter__(), start=self.step):
            yield Batch(images, labels, weights, np.float32(self.weight_sum(step)), indices)
