"""In which order examples come: a position in the run -> the indices and weights of a batch's rows.

Global batch k of an epoch is the positions [k*batch_size, min((k+1)*batch_size, size)) of that epoch's permutation,
which torch's DistributedSampler deals to the shards.
"""

import dataclasses
import functools
from collections.abc import Iterator, Sequence, Sized
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data.distributed import DistributedSampler


@dataclasses.dataclass(frozen=True)
class Order:
    """Which examples make up each batch of each epoch; it does not depend on how the shards lie on devices."""

    size: int  # of the data set, in examples
    batch_size: int  # of a global batch, over all shards
    num_shards: int = 1
    shuffle: bool = False  # whether each epoch has an order of its own, by `seed`; otherwise all have the data set's
    seed: int = 0

    @property
    def rows(self) -> int:
        """The rows of a shard of a batch: each shard is filled up to as many."""
        return -(-self.batch_size // self.num_shards)

    @property
    def steps_per_epoch(self) -> int:
        return -(-self.size // self.batch_size)

    def examples(self, step: int) -> int:
        """The number of examples in global batch `step` of an epoch."""
        return min(self.batch_size, self.size - step * self.batch_size)

    def indices(self, epoch: int, start: int, stop: int, shards: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The examples of an epoch's steps start..stop-1 in these shards, of which those from num_shards on are empty.

        Returns:
          indices int64 and weights float32, each [steps, shards, rows]; a row of weight 0 only fills up its shard.
        """
        indices = np.zeros((stop - start, len(shards), self.rows), np.int64)
        weights = np.zeros(indices.shape, np.float32)
        begins = np.minimum(np.arange(start, stop + 1) * self.batch_size, self.size)  # of the batches, as positions
        for at, shard in enumerate(shards):
            if shard < min(self.num_shards, self.size):
                examples: Any = range(self.size)  # of which torch's sampler only asks how many there are
                sampler = ShardSampler(examples, self.num_shards, shard, self.shuffle, self.seed)
                sampler.set_epoch(epoch)
                dealt = sampler.indices()
                # The first of this shard's positions at or behind each batch's begin, as an index into `dealt`.
                first = -(-(begins - shard) // self.num_shards)
                row = first[:-1, None] + np.arange(self.rows)
                weights[:, at] = row < first[1:, None]
                indices[:, at] = dealt[np.minimum(row, len(dealt) - 1)]
        return indices, weights


class ShardSampler(DistributedSampler[Any]):
    """torch's DistributedSampler (same seed, epoch and replica: same order), but it repeats no example to fill up.

    Shard s of S holds the positions p of the epoch's permutation with p ≡ s (mod S), ascending.
    """

    def indices(self) -> np.ndarray:
        """This shard's example indices in this epoch, int64: a view of the shared permutation."""
        size = len(cast(Sized, self.dataset))  # torch declares no length of a Dataset
        return _permutation(size, self.shuffle, self.seed + self.epoch)[self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices().tolist())

    def __len__(self) -> int:
        return len(self.indices())


@functools.lru_cache(maxsize=2)  # this epoch's and, while it is prefetched, the next one's
def _permutation(size: int, shuffle: bool, seed: int) -> np.ndarray:
    """The order of an epoch, int64 [size]: one array that all shards slice."""
    if not shuffle:
        return np.arange(size)
    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).numpy()
