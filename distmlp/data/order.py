"""In which order examples come: a position in the run -> the indices and weights of a batch's rows.

Global batch k of an epoch is the positions [k*batch_size, min((k+1)*batch_size, size)) of that epoch's permutation.
Permutation and shards are those of torch's DistributedSampler, without the examples that it repeats to fill up its
shards. For few examples torch itself is not imported: that takes longer than a small training.
"""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from distmlp.errors import InputError

_WINDOWS, _ORDERS, _MARGIN = 64, 10, 0.15  # of far_batch: windows that are looked at, random orders, distance
_FEW = 16  # examples, of which chance may have any classes
_FEW_EXCHANGES = 1 << 14  # examples whose order takes Python a millisecond or two; of more, torch is imported for it
_HELD = 1 << 27  # examples of which a shuffled order is held in memory, as torch draws it: a GiB
_ROUNDS = 6  # of Scattered


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

    @property
    def drawn(self) -> str:
        """How an epoch's order is made. Drawn in another way it is another one, and a place in it means nothing."""
        return "computed" if self.shuffle and self.size > _HELD else "held"

    def examples(self, step: int, stop: int | None = None) -> int:
        """The number of examples in global batch `step` of an epoch, or in the batches step..stop-1."""
        return min((step + 1 if stop is None else stop) * self.batch_size, self.size) - step * self.batch_size

    def weight_sums(self, weights: np.ndarray | None, epoch: int, start: int, stop: int) -> np.ndarray:
        """What the examples of an epoch's global batches start..stop-1 weigh together, float32 [steps]: their number,
        or the sum of these weights, float32 [size], in float64 and in the epoch's order, whatever the devices are.
        """
        if weights is None:
            return np.array([self.examples(step) for step in range(start, stop)], np.float32)
        order, size = _permutation(self.size, self.shuffle, self.seed + epoch), self.batch_size
        positions = (np.arange(step * size, step * size + self.examples(step)) for step in range(start, stop))
        batches = (weights[order[each]] for each in positions)
        return np.array([batch.sum(dtype=np.float64) for batch in batches], np.float32)

    def dealt(self, epoch: int, shard: int) -> "np.ndarray | Scattered":
        """The examples of a shard in an epoch, int64: those at positions p with p ≡ shard (mod num_shards), ascending;
        a view of the permutation that all shards share."""
        return _permutation(self.size, self.shuffle, self.seed + epoch)[shard :: self.num_shards]

    def indices(self, epoch: int, start: int, stop: int, shards: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """The examples of an epoch's steps start..stop-1 in these shards, of which those from num_shards on are empty:
        indices int64 and weights float32, each [steps, shards, rows]. A row of weight 0 only fills up its shard.
        """
        return self.cut({shard: self.dealt(epoch, shard) for shard in self.filled(shards)}, start, stop, shards)

    def filled(self, shards: Sequence[int]) -> list[int]:
        """Those of these shards that have examples."""
        return [shard for shard in shards if shard < min(self.num_shards, self.size)]

    def cut(
        self, dealt: "Mapping[int, np.ndarray | Scattered]", start: int, stop: int, shards: Sequence[int]
    ) -> tuple[np.ndarray, np.ndarray]:
        """`indices`, of what was `dealt` to each of the shards in an epoch."""
        indices = np.zeros((stop - start, len(shards), self.rows), np.int64)
        weights = np.zeros(indices.shape, np.float32)
        begins = np.minimum(np.arange(start, stop + 1) * self.batch_size, self.size)  # of the batches, as positions
        for at, shard in enumerate(shards):
            if shard in dealt:
                # The first of this shard's positions at or behind each batch's begin, as an index into what it has.
                first = -(-(begins - shard) // self.num_shards)
                row = first[:-1, None] + np.arange(self.rows)
                weights[:, at] = row < first[1:, None]
                indices[:, at] = dealt[shard][np.minimum(row, len(dealt[shard]) - 1)]
        return indices, weights


def check_batch_size(batch_size: int, examples: int, of: str = "") -> None:
    """Raises InputError for a batch of more than all training examples; `of` says whose these are."""
    if batch_size > examples:
        raise InputError(f"--batch_size={batch_size}: give at most {examples}, the training examples{of}")


def far_batch(labels: np.ndarray, batch_size: int) -> np.ndarray | None:
    """The labels of that batch, or of those examples in a row, whose classes are farthest from the whole set's, if the
    set is in no random order; else None.

    How far the classes' shares in a window are from their shares in the set is the total variation distance, 0 to 1.
    Windows are the batches, and also so many examples that as many classes can show in them. If their mean distance, or
    the largest one, is above that of each of some random orders by _MARGIN, this order is none.
    """
    if batch_size >= len(labels):
        return None
    shares = np.bincount(labels) / len(labels)
    scatter = np.sqrt(shares * (1 - shares)).sum() ** 2  # at most the number of classes less 1
    rng = np.random.default_rng(0)
    for size in {batch_size, min(max(batch_size, 32, math.ceil(16 * scatter)), len(labels) // 2)}:
        begins = np.arange(0, len(labels), size)
        if len(labels) - begins[-1] < min(size, _FEW):
            begins = begins[:-1]
        ends = np.append(begins[1:], len(labels))
        if len(begins) < 2:
            continue
        seen = np.unique(np.linspace(0, len(begins) - 1, _WINDOWS).astype(int))
        windows = [labels[begins[at] : ends[at]] for at in seen]
        distances, chance = _distances(windows, shares), []
        lengths = np.cumsum([len(window) for window in windows])
        for _ in range(_ORDERS):
            again = bool(10 * lengths[-1] < len(labels))  # so few of many that it makes no difference, and is quick
            drawn = labels[rng.choice(len(labels), lengths[-1], replace=again)]
            chance.append(_distances(np.split(drawn, lengths[:-1]), shares))
        unusual = distances.mean() > np.mean(chance, axis=1).max() + _MARGIN
        if unusual or (size >= _FEW and distances.max() > np.max(chance) + _MARGIN):
            return windows[int(distances.argmax())]
    return None


def _distances(windows: Sequence[np.ndarray], shares: np.ndarray) -> np.ndarray:
    """How far the shares of the classes in each window are from these: total variation distances, 0 to 1."""
    return np.array([
        np.abs(np.bincount(window, minlength=len(shares)) / len(window) - shares).sum() / 2 for window in windows
    ])


@functools.lru_cache(maxsize=2)  # this epoch's and, while it is prefetched, the next one's
def _permutation(size: int, shuffle: bool, seed: int) -> "np.ndarray | Scattered":
    """The order of an epoch, int64 [size]: one array that all shards slice."""
    if size > _HELD:
        return Scattered(size, seed if shuffle else None, range(size))
    if not shuffle:
        return np.arange(size)
    if size <= _FEW_EXCHANGES:
        return shuffled(size, seed)
    import torch

    return torch.randperm(size, generator=torch.Generator().manual_seed(seed)).numpy()


def shuffled(size: int, seed: int) -> np.ndarray:
    """torch's randperm of this seed, int64 [size], without torch: each place in turn is exchanged with one that is
    drawn of it and those behind it, by the same random numbers."""
    draws = np.frombuffer(np.random.RandomState(seed).bytes(4 * size), "<u4").astype(np.int64)
    others = np.arange(size) + draws % np.arange(size, 0, -1)
    order = list(range(size))
    for place, other in enumerate(others.tolist()):
        order[place], order[other] = order[other], order[place]
    return np.array(order, np.int64)


class Scattered:
    """A shuffled order of the numbers from 0 to size - 1 (without a seed, they themselves), or every so manieth of it:
    an array whose elements are computed where they are asked for, so that it takes no memory.

    The bits of a position are split in two halves, each of which is changed in turn by a hash of the other (a Feistel
    network), so that no two positions meet. Where this leads to a number beyond the size, it is done again.
    """

    def __init__(self, size: int, seed: int | None, positions: range) -> None:
        self._size, self._seed, self._positions = size, seed, positions

    def __len__(self) -> int:
        return len(self._positions)

    def __getitem__(self, key: Any) -> Any:
        """A slice is an order again; integers, an array of any shape, are answered by the numbers there, int64."""
        if isinstance(key, slice):
            return Scattered(self._size, self._seed, self._positions[key])
        numbers = (self._positions.start + self._positions.step * key.ravel()).astype(np.uint64)
        if self._seed is None:
            return numbers.astype(np.int64).reshape(key.shape)
        keys = np.random.SeedSequence(self._seed).generate_state(_ROUNDS, np.uint64)
        bits, places = (self._size - 1).bit_length(), np.arange(len(numbers))
        while len(places):
            values, low = numbers[places], bits // 2
            for each in keys:
                high, kept = bits - low, values & np.uint64((1 << low) - 1)
                changed = (values >> np.uint64(low)) ^ (_hashed(kept + each) & np.uint64((1 << high) - 1))
                values, low = kept << np.uint64(high) | changed, high
            numbers[places] = values
            places = places[values >= self._size]
        return numbers.astype(np.int64).reshape(key.shape)


def _hashed(values: np.ndarray) -> np.ndarray:
    """Numbers of 64 bits, each of which depends on all bits of the given one: the end of splitmix64."""
    values = (values ^ values >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ values >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return values ^ values >> np.uint64(31)
