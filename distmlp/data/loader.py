"""NumpyLoader: the global batches of an epoch, in one static shape of NumPy arrays per shard."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch.utils.data

from distmlp.data.examples import AnyDataset
from distmlp.data.sampler import ShardSampler
from distmlp.data.step_reader import Step, StepReader

_CHUNK = 256  # steps whose indices are computed at once


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


class _StepSampler(torch.utils.data.Sampler[Step]):
    """For each step from the current position to the epoch's end: indices and weights [local shards, rows]."""

    def __init__(self, loader: "NumpyLoader") -> None:
        self.loader = loader

    def __iter__(self) -> Iterator[Step]:
        end = self.loader.steps_per_epoch
        for start in range(self.loader.step, end, _CHUNK):
            yield from zip(*self.loader.indices(start, min(start + _CHUNK, end)), strict=True)


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

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override] # torch's is of a class of its own
        for step, (images, labels, weights, indices) in enumerate(super().__iter__(), start=self.step):
            yield Batch(images, labels, weights, np.float32(self.weight_sum(step)), indices)
