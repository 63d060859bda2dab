"""The network as GPUs run it, here on CPUs: the same training, by other sums."""

import dataclasses
from typing import Any

import jax
import numpy as np
import pytest
from conftest import make_arrays

from distmlp import Config, model, optim
from distmlp.data.batches import NumpyLoader
from distmlp.data.datasets import ArrayDataset
from distmlp.parallel import packed
from distmlp.parallel.feed import DeviceFeed
from distmlp.parallel.mesh import make_layout
from distmlp.parallel.step import State, make_train_step

SIZES, STEPS = [12, 9, 16, 4], 12
TARGETS = np.eye(4, dtype=np.float32)[np.arange(20) % 4]


def initial() -> model.Params:
    """The tutorial's, but large enough to learn fast."""
    return jax.tree.map(lambda array: 30 * array, model.init_network_params(SIZES, jax.random.key(0)))


def trained(packs: bool, **settings: Any) -> tuple[State, np.ndarray]:
    arrays = make_arrays()
    dataset = ArrayDataset(arrays["x_train"], arrays["y_train"], "small")
    config = Config(batch_size=20, matmul_precision="highest", **({"num_devices": 1} | settings))
    layout, optimizer = make_layout(config), optim.make(config, STEPS)
    loader = NumpyLoader(dataset, 20, layout.num_shards, layout.local_shards)
    step = dataclasses.replace(make_train_step(config, layout, 4, optimizer), packs=packs)
    feed = DeviceFeed(layout, loader, step, dataset, 5)
    params = initial()
    scaling = (np.full(12, 128, np.float32), np.full(12, 1 / 128, np.float32))
    state = layout.replicate(jax.tree.map(np.asarray, State(params, optimizer.init(params), np.int32(0), scaling)))
    feed.compile(state)
    losses: list[float] = []
    while len(losses) < STEPS:
        state, found, made = feed.advance(state, len(losses), STEPS)
        losses += np.asarray(found)[: len(made)].tolist()
    return jax.tree.map(np.asarray, state), np.array(losses)


@pytest.mark.parametrize(
    "settings",
    [{"learning_rate": 0.5}, {"learning_rate": 0.2, "momentum": 0.9, "clip_norm": 0.1, "num_devices": 3},
     {"optimizer": "adam", "num_devices": 2, "num_shards": 5},
     {"optimizer": "adamw", "weight_decay": 0.1, "reduction": "invariant", "num_devices": 4},
     {"weight_decay": 0.1, "schedule": "warmup_cosine", "warmup_steps": 3, "parallelism": "pmap", "num_devices": 2}],
    ids=["sgd", "momentum", "adam", "adamw", "decay"],
)  # fmt: skip
def test_a_packed_network_trains_as_the_plain_one_does(settings: dict[str, Any]) -> None:
    state, losses = trained(packs=True, **settings)
    expected, expected_losses = trained(packs=False, **settings)
    assert jax.tree.structure(state) == jax.tree.structure(expected)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-6), state, expected)
    np.testing.assert_allclose(losses, expected_losses, rtol=1e-5)
    moved = jax.tree.map(lambda new, old: np.abs(new - old).max(), state.params, initial())
    assert min(jax.tree.leaves(moved)) > 1e-3


def test_what_fills_a_packed_network_up_has_no_gradient() -> None:
    params = model.init_network_params(SIZES, jax.random.key(0))
    layers = packed.pack(params, params)
    assert [layer.shape for layer in layers] == [(16, 16), (24, 16), (4, 24)]
    inputs = packed.with_one(jax.random.normal(jax.random.key(1), (20, 12), np.float32))
    grads = jax.grad(lambda *args: packed.losses(*args)[0])(layers, inputs, TARGETS, np.ones(20, np.float32), 20.0)
    filling = packed.pack(jax.tree.map(np.ones_like, params), params)
    for grad, real in zip(grads, filling, strict=True):
        np.testing.assert_array_equal(np.where(real, 0, grad), 0)
        assert np.abs(grad[:, -1]).max() > 0


@pytest.mark.parametrize("sizes", [SIZES, [7, 2], [15, 7, 8, 3]])
def test_unpacking_gives_back_every_bit(sizes: list[int]) -> None:
    params = model.init_network_params(sizes, jax.random.key(0))
    tree = {"params": params, "moments": [jax.tree.map(lambda x: x * 3, params)], "count": np.int32(7)}
    back = packed.unpack(packed.pack(tree, params), params)
    assert jax.tree.structure(back) == jax.tree.structure(tree)
    jax.tree.map(np.testing.assert_array_equal, back, tree)


def test_only_networks_whose_kernels_are_short_are_packed() -> None:
    step = make_train_step(Config(), make_layout(Config()), 4, optim.make(Config(), 1))
    assert not step.packs  # on a CPU, where the tutorial's bits count
    wide = model.init_network_params([8, 4096, 2], jax.random.key(0))
    assert not packed.suits(wide)
    assert packed.suits(model.init_network_params([784, 512, 512, 10], jax.random.key(0)))


def test_what_is_not_finite_behind_the_first_layer_shows_in_its_first_bias() -> None:
    params = model.init_network_params(SIZES, jax.random.key(0))
    params[1] = (params[1][0], params[1][1] - 5)  # the third layer gets zeros: logits and loss are finite ...
    params[2] = (params[2][0] * 3e37, params[2][1])  # ... but what goes back through its weights is not
    inputs = packed.with_one(jax.random.normal(jax.random.key(1), (20, 12), np.float32))
    weights, weight_sum = np.ones(20, np.float32), np.float32(1e-6)
    loss, grads = jax.value_and_grad(lambda layers: packed.losses(layers, inputs, TARGETS, weights, weight_sum)[0])(
        packed.pack(params, params)
    )
    assert np.isfinite(loss)
    assert not np.isfinite(grads[0][0, -1])
