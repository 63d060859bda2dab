"""NumpyLoader: torch's DataLoader and DistributedSampler, yielding one static shape of NumPy batches per shard."""

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import numpy as np
import torch
import torch.utils.data
from torch.utils.data.distributed import DistributedSampler

from distmlp.config import InputError
from distmlp.data.datasets import AnyDataset, ItemDataset

_CHUNK = 256  # steps whose indices are computed at once


class Batch(NamedTuple):
    """This process's share of a global batch. Rows of weight 0 only fill up a shard."""

    images: Any  # uint8 or float32 [local shards, rows, features]
    labels: Any  # int32 [local shards, rows]
    weights: Any  # float32 [local shards, rows]
    weight_sum: Any  # float32 []: of the whole global batch


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

    def indices(self) -> np.ndarray:
        """This shard's example indices in this epoch, int64: a view of the shared permutation."""
        order = _permutation(len(self.dataset), self.shuffle, self.seed + self.epoch)  # type: ignore[arg-type]
        return order[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def __len__(self) -> int:
        return len(range(self.rank, len(self.dataset), self.num_replicas))  # type: ignore[arg-type]

    def rows(self, start: int, stop: int, batch_size: int) -> tuple[np.ndarray, np.ndarray]:
        """This shard's rows of the global batches start..stop-1.

        Returns:
          indices int64 [stop-start, ceil(batch_size/S)] and weights float32 of that shape; a row of weight 0 repeats
          some example.
        """
        order, width = self.indices(), -(-batch_size // self.num_replicas)
        # The first of this shard's positions at or behind each batch's begin, as an index into `order`.
        begins = np.minimum(np.arange(start, stop + 1) * batch_size, len(self.dataset))  # type: ignore[arg-type]
        first = -(-(begins - self.rank) // self.num_replicas)
        row = first[:-1, None] + np.arange(width)
        weights = (row < first[1:, None]).astype(np.float32)
        if not len(order):  # fewer examples than shards
            return np.zeros(row.shape, np.int64), weights
        return order[np.minimum(row, len(order) - 1)], weights


class _StepSampler(torch.utils.data.Sampler[tuple[np.ndarray, np.ndarray]]):
    """For each step from the current position to the epoch's end: indices and weights [local shards, rows]."""

    def __init__(self, loader: "NumpyLoader") -> None:
        self.loader = loader

    def __len__(self) -> int:
        return self.loader.steps_per_epoch - self.loader.step

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        end = self.loader.steps_per_epoch
        for start in range(self.loader.step, end, _CHUNK):
            indices, weights = self.loader.indices(start, min(start + _CHUNK, end))
            yield from zip(indices, weights, strict=True)


class _Rows(torch.utils.data.Dataset[Any]):
    """The data set as the DataLoader sees it: an item is a step's share of a global batch, or what is wrong with it."""

    def __init__(self, dataset: AnyDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(
        self, step: tuple[np.ndarray, np.ndarray]
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray] | InputError:
        indices, weights = step
        try:
            return *self.dataset[indices], weights
        except InputError as error:
            return error  # raised by NumpyLoader: torch would bury its line in the worker's stack


def _identity(batch: Any) -> Any:
    return batch


class NumpyLoader(torch.utils.data.DataLoader[Any]):
    """Yields the `Batch`es of an epoch from the current position on; the same (seed, epoch, step) is the same batch.

    Global batch k is the positions [k*batch_size, min((k+1)*batch_size, size)) of the epoch's permutation, dealt to
    the shards by ShardSampler, each filled up to ceil(batch_size / num_shards) rows.

    Args:
      dataset: indexed by an integer array, it returns so many (images, labels) at once.
      batch_size: examples per global batch.
      num_shards: shards of a global batch.
      local_shards: the shards to yield, in this order; those from num_shards on are empty. All, if None.
      shuffle: whether each epoch has an order of its own; otherwise all have the data set's.
      seed: of the order.
      num_workers: spawned processes that read ahead; only useful where items are read one by one.
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
        num_workers = num_workers if isinstance(dataset, ItemDataset) else 0
        super().__init__(
            _Rows(dataset),
            batch_size=None,
            sampler=_StepSampler(self),
            collate_fn=_identity,
            num_workers=num_workers,
            # JAX is multithreaded: a forked worker can deadlock.
            multiprocessing_context="spawn" if num_workers else None,
            persistent_workers=bool(num_workers),
            generator=torch.Generator().manual_seed(seed),  # else every epoch would draw from torch's global one
        )

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
        dataset = cast(_Rows, self.dataset).dataset
        images = np.zeros((*rows, dataset.num_features), dataset.dtype)
        return Batch(images, np.zeros(rows, np.int32), np.zeros(rows, np.float32), np.float32(0))

    def weight_sum(self, step: int) -> int:
        """The number of examples in global batch `step` of an epoch."""
        size = len(self.dataset)  # type: ignore[arg-type]
        return min((step + 1) * self.global_batch_size, size) - step * self.global_batch_size

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override]
        for step, rows in enumerate(super().__iter__(), start=self.step):
            if isinstance(rows, InputError):
                raise rows
            images, labels, weights = rows
            yield Batch(images, labels, weights, np.float32(self.weight_sum(step)))
