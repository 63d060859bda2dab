"""The same gradients, updates and evaluations as the tutorial's, on 1 to 8 devices and however they are wrapped."""

from typing import Any

import jax
import numpy as np
import pytest
import tutorial
from conftest import DEVICES

from distmlp import Config, model, optim
from distmlp.data.batches import Batch
from distmlp.data.datasets import ArrayDataset
from distmlp.data.loader import NumpyLoader
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.layout import Layout, make_layout
from distmlp.parallel.specs import BATCH, STATE, State
from distmlp.parallel.step import Recipe, gradients, make_train_step

CLASSES, FEATURES = 10, 784
SIZES = [FEATURES, 64, 32, CLASSES]
# Of whole runs, tests/run/test_faults_invariance.py has every number of devices.
WRAPPINGS = [("single", 1), ("pmap", 1), ("pmap", 3), ("shard_map", 1), ("shard_map", 2), ("shard_map", 5),
             ("shard_map", DEVICES)]  # fmt: skip


def dataset(examples: int) -> ArrayDataset:
    """Pixels like MNIST's: 0..255, most of them 0."""
    rng = np.random.default_rng(1)
    images = rng.integers(0, 256, (examples, FEATURES)) * (rng.random((examples, FEATURES)) < 0.2)
    return ArrayDataset(images.astype(np.uint8), rng.integers(0, CLASSES, examples), "test data")


def params() -> Any:
    """Parameters a little away from the initial ones, so that no gradient is close to zero."""
    rng = np.random.default_rng(2)
    return jax.tree.map(lambda a: a + 0.02 * rng.standard_normal(a.shape, np.float32), tutorial.initial(SIZES))


def sharded_gradients(config: Config, data: ArrayDataset) -> list[list[np.ndarray]]:
    """The gradient arrays of each global batch of an epoch, computed by distmlp in one compiled function."""
    layout = make_layout(config)
    loader = NumpyLoader(data, config.batch_size, layout.num_shards, layout.local_shards)

    def body(state: State, batch: Batch) -> tuple[State, jax.Array]:
        loss, grads = gradients(state, batch, layout, Recipe(CLASSES))
        return state._replace(params=grads), loss  # in place of the parameters, so that donation has its use

    step, found = layout.wrap(body, (STATE, BATCH)), []
    for batch in loader:
        state = layout.put(jax.tree.map(np.asarray, State(params(), (), np.int32(0), ())), STATE)
        state, _ = step(state, layout.put(batch.on_devices(), BATCH))
        found.append([np.asarray(g) for g in jax.tree.leaves(state.params)])
    return found


def assert_close(grads: list[np.ndarray], data: ArrayDataset, rows: slice) -> None:
    targets = tutorial.one_hot(data.labels[rows], CLASSES)
    reference = tutorial.gradient(params(), data.images[rows].astype(np.float32), targets)
    for g, ref in zip(grads, jax.tree.leaves(reference), strict=True):
        assert np.linalg.norm(g - ref) / np.linalg.norm(ref) <= 1e-6


@pytest.mark.parametrize(("parallelism", "devices"), WRAPPINGS)
def test_gradients_of_a_full_and_of_an_uneven_batch(parallelism: str, devices: int) -> None:
    """128 rows, and the last 96 of 224: neither divides by 3 or 5."""
    config = Config(batch_size=128, parallelism=parallelism, num_devices=devices)
    data = dataset(224)
    full, uneven = sharded_gradients(config, data)
    assert_close(full, data, slice(0, 128))
    assert_close(uneven, data, slice(128, 224))


@pytest.mark.parametrize("devices", [2, 8])
def test_gradients_added_in_pairs(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What several CPU processes do."""
    monkeypatch.setattr(Layout, "adds_in_pairs", True)
    test_gradients_of_a_full_and_of_an_uneven_batch("shard_map", devices)


@pytest.mark.parametrize(("shards", "counts"), [
    (8, range(1, 9)), pytest.param(11, (2, 3), marks=pytest.mark.full_xla),
])  # fmt: skip
def test_invariant_gradients_are_the_same_bits_everywhere_and_the_tutorials(shards: int, counts: list[int]) -> None:
    data, found = dataset(224), set()
    for parallelism, devices in WRAPPINGS:
        if devices in counts:
            config = Config(
                batch_size=128, parallelism=parallelism, num_devices=devices, num_shards=shards, reduction="invariant"
            )
            full, uneven = sharded_gradients(config, data)
            found.add(b"".join(g.tobytes() for g in full + uneven))
    assert len(found) == 1
    assert_close(full, data, slice(0, 128))
    assert_close(uneven, data, slice(128, 224))


@pytest.mark.parametrize("reduction", ["fast", "invariant"])
@pytest.mark.parametrize(
    ("parallelism", "devices", "rows", "shards"),
    [
        # 96 rows on 7 devices
        ("pmap", 7, 96, 0), ("shard_map", 7, 96, 0),
        # a batch smaller than the device count
        ("pmap", 8, 3, 0), ("shard_map", 5, 1, 0), ("single", 1, 3, 8),
        # accumulation; 8 shards on 3 devices and 5 on 4 leave the last devices with empty ones
        ("single", 1, 50, 5), ("pmap", 4, 50, 8), ("shard_map", 3, 50, 8),
    ],
)  # fmt: skip
def test_gradients_of_batches_that_do_not_divide(
    parallelism: str, devices: int, rows: int, shards: int, reduction: str
) -> None:
    config = Config(
        batch_size=rows, parallelism=parallelism, num_devices=devices, num_shards=shards, reduction=reduction
    )
    (found,) = sharded_gradients(config, dataset(rows))
    assert_close(found, dataset(rows), slice(0, rows))


@pytest.mark.full_xla
def test_one_device_is_the_tutorial_to_the_bit() -> None:
    """Two epochs of three steps, the last batch of each 80 rows of 128."""
    data, config = dataset(336), Config(num_devices=1)
    layout, optimizer = make_layout(config), optim.make(config, 6)
    loader = NumpyLoader(data, config.batch_size)
    step = layout.wrap(make_train_step(Recipe(CLASSES), layout, optimizer), (STATE, BATCH))
    initial = model.init_network_params(SIZES, jax.random.key(0))
    state = layout.put(jax.tree.map(np.asarray, State(initial, optimizer.init(initial), np.int32(0), ())), STATE)
    expected = tutorial.initial(SIZES)
    for epoch in range(2):
        loader.set_position(epoch)
        for batch in loader:
            state, _ = step(state, layout.put(batch.on_devices(), BATCH))
        expected = tutorial.train_epoch(expected, data.images, data.labels, 128, CLASSES)
    assert int(state.step) == 6
    for array, reference in zip(jax.tree.leaves(state.params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(array, reference)


@pytest.mark.parametrize("examples", [1, 3, 7, pytest.param(1000, marks=pytest.mark.full_xla)])
def test_evaluation_is_the_same_on_1_to_8_devices(examples: int) -> None:
    """Sets smaller than the device count, and one that no step size divides."""
    data, results = dataset(examples), set()
    for parallelism, devices in WRAPPINGS:
        config = Config(parallelism=parallelism, num_devices=devices)
        layout = make_layout(config)
        state = layout.put(jax.tree.map(np.asarray, State(params(), (), np.int32(0), ())), STATE)
        results.add(Evaluator(layout, 64)(state, data))
    assert len(results) == 1
    result = results.pop()
    assert result.total == examples
    assert result.correct == round(tutorial.accuracy(params(), data.images, data.labels) * examples)
    expected = tutorial.loss(params(), data.images.astype(np.float32), tutorial.one_hot(data.labels, CLASSES))
    np.testing.assert_allclose(result.loss, expected, rtol=1e-5)
