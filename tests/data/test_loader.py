"""Order and NumpyLoader: every example exactly once, whatever the shards."""

import contextlib
import multiprocessing
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.data.distributed import DistributedSampler

from distmlp.data import order as order_module
from distmlp.data.batches import Batch
from distmlp.data.datasets import ArrayDataset, ItemDataset
from distmlp.data.labels import Classes
from distmlp.data.loader import NumpyLoader, ShardSampler
from distmlp.data.order import Order, Scattered


def numbered(size: int) -> ArrayDataset:
    """A set whose example i has the features [i] and the label i."""
    return ArrayDataset(np.arange(size, dtype=np.float32)[:, None], np.arange(size), "numbers")


def loader(size: int, batch_size: int, shards: int, epoch: int = 0, step: int = 0, **more: Any) -> NumpyLoader:
    made = NumpyLoader(numbered(size), batch_size, shards, seed=5, **more)
    made.set_position(epoch, step)
    return made


def members(batch: Batch) -> list[int]:
    """The examples of a batch that count."""
    return batch.labels[batch.weights == 1].tolist()


sizes = st.integers(1, 60)
shard_counts = st.integers(1, 8)


@settings(deadline=None, max_examples=200)
@given(size=sizes, batch_size=st.integers(1, 70), shards=shard_counts, epoch=st.integers(0, 3), shuffle=st.booleans())
def test_every_example_appears_exactly_once(
    size: int, batch_size: int, shards: int, epoch: int, shuffle: bool
) -> None:
    batches = list(loader(size, batch_size, shards, epoch, shuffle=shuffle))
    assert len(batches) == -(-size // batch_size)
    assert sorted(i for batch in batches for i in members(batch)) == list(range(size))
    for batch in batches:
        rows = -(-batch_size // shards)
        assert batch.images.shape == (shards, rows, 1)  # one static shape
        assert batch.labels.shape == batch.weights.shape == (shards, rows)
        assert batch.weight_sum == batch.weights.sum() == len(members(batch))
        np.testing.assert_array_equal(batch.images[..., 0], batch.labels)  # each row is an example of the set


@settings(deadline=None, max_examples=100)
@given(size=sizes, batch_size=st.integers(1, 70), shards=shard_counts, shuffle=st.booleans())
def test_a_global_batch_holds_the_same_examples_for_every_shard_count(
    size: int, batch_size: int, shards: int, shuffle: bool
) -> None:
    whole = [members(batch) for batch in loader(size, batch_size, 1, 2, shuffle=shuffle)]
    dealt = [sorted(members(batch)) for batch in loader(size, batch_size, shards, 2, shuffle=shuffle)]
    assert [sorted(batch) for batch in whole] == dealt
    order = [i for batch in whole for i in batch]
    assert whole == [order[k : k + batch_size] for k in range(0, size, batch_size)]
    if not shuffle:
        assert order == list(range(size))


@settings(deadline=None, max_examples=100)
@given(size=sizes, shards=shard_counts, seed=st.integers(0, 9), epoch=st.integers(0, 3), shuffle=st.booleans())
def test_a_shard_is_the_stock_distributed_samplers_without_its_repeats(
    size: int, shards: int, seed: int, epoch: int, shuffle: bool
) -> None:
    order: Any = Order(size, 7, shards, shuffle, seed)
    for shard in range(shards):
        stock = DistributedSampler(numbered(size), shards, shard, shuffle=shuffle, seed=seed)
        stock.set_epoch(epoch)
        # Positions shard, shard + shards, ...: the stock's from `size` on wrap around to the front.
        real = len(range(shard, size, shards))
        own = ShardSampler(order, shard)
        own.set_epoch(epoch)
        assert list(own) == order.dealt(epoch, shard).tolist() == list(stock)[:real]
        assert len(own) == real


@pytest.mark.parametrize("seed", [0, 7, 2**31 - 1, 2**31 + 20])
def test_an_order_is_that_of_torch_whether_torch_draws_it_or_not(seed: int) -> None:
    for size in (1, 2, 1437, order_module._FEW_EXCHANGES, order_module._FEW_EXCHANGES + 1):
        theirs = torch.randperm(size, generator=torch.Generator().manual_seed(seed)).numpy()
        np.testing.assert_array_equal(order_module.shuffled(size, seed), theirs)
        np.testing.assert_array_equal(order_module._permutation(size, True, seed), theirs)


@settings(deadline=None, max_examples=60)
@given(size=sizes, batch_size=st.integers(1, 20), shards=shard_counts, data=st.data())
def test_a_position_gives_the_rest_of_the_epoch(size: int, batch_size: int, shards: int, data: st.DataObject) -> None:
    whole = list(loader(size, batch_size, shards, 1, shuffle=True))
    step = data.draw(st.integers(0, len(whole)))
    rest = list(loader(size, batch_size, shards, 1, step, shuffle=True))
    assert len(rest) == len(whole) - step
    for a, b in zip(rest, whole[step:], strict=True):
        for x, y in zip(a, b, strict=True):
            np.testing.assert_array_equal(x, y)


@settings(deadline=None, max_examples=60)
@given(size=sizes, batch_size=st.integers(1, 30), shards=shard_counts, extra=st.integers(0, 3))
def test_local_shards_are_a_part_of_the_whole_and_those_beyond_are_empty(
    size: int, batch_size: int, shards: int, extra: int
) -> None:
    mine = list(range(shards // 2, shards + extra))
    whole = list(loader(size, batch_size, shards))
    part = list(loader(size, batch_size, shards, local_shards=mine))
    for a, b in zip(part, whole, strict=True):
        real = shards - shards // 2
        np.testing.assert_array_equal(a.labels[:real], b.labels[shards // 2 :])
        np.testing.assert_array_equal(a.weights[:real], b.weights[shards // 2 :])
        assert not a.weights[real:].any()
        assert a.weight_sum == b.weight_sum


def test_epochs_differ_when_shuffled_and_repeat_by_seed() -> None:
    orders = [[i for b in loader(50, 7, 3, epoch, shuffle=True) for i in members(b)] for epoch in (0, 1, 1)]
    assert orders[0] != orders[1] == orders[2]
    seeds = [members(next(iter(NumpyLoader(numbered(50), 50, shuffle=True, seed=seed)))) for seed in (0, 5)]
    assert seeds[0] != seeds[1]


def test_torchs_global_random_numbers_are_left_alone() -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    list(loader(20, 6, 2, shuffle=True))
    assert torch.equal(before, torch.get_rng_state())


def test_shards_slice_one_permutation() -> None:
    orders: Any = [Order(1000, 10, 4, shuffle=True).dealt(0, shard) for shard in range(4)]
    assert len({id(order.base) for order in orders}) == 1


def test_of_very_many_examples_the_order_is_computed_where_it_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    for size in (1, 2, 3, 5, 64, 65, 1000, 4096, 5000):
        orders = [Scattered(size, seed, range(size))[np.arange(size)] for seed in (0, 1)]
        assert sorted(orders[0]) == sorted(orders[1]) == [*range(size)]
        if size > 60:
            assert (orders[0] == orders[1]).mean() < 0.1
            chance = np.random.default_rng(0).permutation(size)
            for order in orders:  # each part of the order has as many of each part of the numbers as chance gives
                found, expected = (np.histogram2d(np.arange(size), each, 4)[0] for each in (order, chance))
                assert abs(found - size / 16).max() <= max(5, 3 * abs(expected - size / 16).max())
                assert abs((np.diff(order) == 1).mean()) < 0.1
    far = Scattered(10**12, 0, range(10**12))[np.array([[0, 10**12 - 1], [5, 6]])]
    assert (far.shape, far.dtype) == ((2, 2), np.int64)
    assert len({*far.ravel().tolist()}) == 4
    monkeypatch.setattr(order_module, "_HELD", 40)
    order_module._permutation.cache_clear()
    weights = np.arange(50, dtype=np.float32)
    whole, dealt = ([members(batch) for batch in loader(50, 7, shards, 3, shuffle=True)] for shards in (1, 3))
    assert [sorted(batch) for batch in whole] == [sorted(batch) for batch in dealt]
    assert sorted(i for batch in whole for i in batch) == [*range(50)]
    sums = Order(50, 7, 1, shuffle=True, seed=5).weight_sums(weights, 3, 2, 8)
    assert sums.tolist() == [sum(batch) for batch in whole[2:]]
    in_place = [members(batch) for batch in loader(50, 7, 3)]
    assert [sorted(batch) for batch in in_place] == [[*range(at, min(at + 7, 50))] for at in range(0, 50, 7)]
    assert isinstance(order_module._permutation(50, False, 0), Scattered)
    order_module._permutation.cache_clear()


def test_an_order_is_a_function_of_the_position() -> None:
    """Asked in any order, for any steps and shards, it says what the loader yields."""
    order, shards = Order(50, 7, 3, shuffle=True, seed=5), [2, 0, 3]
    whole = {epoch: order.indices(epoch, 0, order.steps_per_epoch, shards) for epoch in (1, 0, 1)}
    for epoch, step in ((1, 6), (0, 2), (1, 0)):
        batches = list(loader(50, 7, 3, epoch, step, shuffle=True, local_shards=shards))
        assert [int(batch.weight_sum) for batch in batches] == [order.examples(k) for k in range(step, 8)]
        for k, batch in enumerate(batches, start=step):
            single = order.indices(epoch, k, k + 1, shards)
            for own, found, again in zip((batch.indices, batch.weights), whole[epoch], single, strict=True):
                np.testing.assert_array_equal(own, found[k])
                np.testing.assert_array_equal(own, again[0])


def test_whole_batches_are_fetched_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made, calls = loader(64, 16, 4), []
    fetch = ArrayDataset.take
    monkeypatch.setattr(ArrayDataset, "take", lambda self, i: calls.append(i.shape) or fetch(self, i))
    list(made)
    assert calls == [(4, 4)] * 4


class Squares(torch.utils.data.Dataset[tuple[np.ndarray, int]]):
    """Importable by spawned workers."""

    def __len__(self) -> int:
        return 23

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        return np.full((2, 2), index, np.uint8), index % 5


def test_spawned_workers_give_the_same_batches() -> None:
    dataset = ItemDataset(Squares(), "squares", Classes(5))
    plain = NumpyLoader(dataset, 8, 3, shuffle=True)
    with contextlib.closing(NumpyLoader(dataset, 8, 3, shuffle=True, num_workers=1)) as spawned:
        for epoch in range(2):
            plain.set_position(epoch)
            spawned.set_position(epoch)
            for a, b in zip(plain, spawned, strict=True):
                for x, y in zip(a, b, strict=True):
                    np.testing.assert_array_equal(x, y)
                    assert x.dtype == y.dtype
    assert plain.rows.taken == spawned.rows.taken == 2 * 23  # which a watchdog sees grow
    assert not multiprocessing.active_children()
