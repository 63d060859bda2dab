"""Which examples a shard gets: torch's DistributedSampler, which repeats none here."""

import functools
from collections.abc import Iterator, Sized
from typing import Any, cast

import numpy as np
import torch
from torch.utils.data.distributed import DistributedSampler


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
