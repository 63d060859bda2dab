"""The training step: one update of the tutorial's kind; a loss that tells of values that are not finite."""

import itertools
from typing import Any

import jax
import numpy as np
import pytest
import tutorial
from conftest import make_arrays

from distmlp import Config, model, optim
from distmlp.data.datasets import ArrayDataset
from distmlp.data.loader import NumpyLoader
from distmlp.parallel.layout import make_layout
from distmlp.parallel.specs import BATCH, STATE, State
from distmlp.parallel.step import Recipe, make_train_step

SIZES = [12, 8, 4]


def one_step(config: Config, images: np.ndarray, scaling: Any = (), params: Any = None) -> tuple[State, float]:
    layout, optimizer = make_layout(config), optim.make(config, 5)
    loader = NumpyLoader(ArrayDataset(images, make_arrays()["y_train"], "x"), config.batch_size, layout.num_shards,
                         layout.local_shards)  # fmt: skip
    params = params or model.init_network_params(SIZES, jax.random.key(0))
    state = State(params, optimizer.init(params), np.int32(4), scaling)
    state = layout.put(jax.tree.map(np.asarray, state), STATE)
    step = layout.wrap(make_train_step(Recipe(4, clips=config.clip_norm > 0), layout, optimizer), (STATE, BATCH))
    state, loss = step(state, layout.put(next(iter(loader)).on_devices(), BATCH))
    return jax.tree.map(np.asarray, state), float(loss)


@pytest.mark.parametrize(("parallelism", "devices"), [("single", 1), ("pmap", 3), ("shard_map", 8)])
def test_an_update_is_the_parameters_less_the_rate_times_the_gradient(parallelism: str, devices: int) -> None:
    arrays = make_arrays()
    config = Config(batch_size=96, learning_rate=0.5, parallelism=parallelism, num_devices=devices)
    scaling = (np.full(12, 100, np.float32), np.linspace(0.001, 0.01, 12, dtype=np.float32))
    state, loss = one_step(config, arrays["x_train"], scaling)
    assert state.step == 5
    inputs = (arrays["x_train"].astype(np.float32) - scaling[0]) * scaling[1]
    targets, params = tutorial.one_hot(arrays["y_train"], 4), tutorial.initial(SIZES)
    grads = tutorial.gradient(params, inputs, targets)
    jax.tree.map(
        lambda p, g, new: np.testing.assert_allclose(new, p - 0.5 * g, rtol=1e-5, atol=1e-8),
        params, grads, state.params,
    )  # fmt: skip
    assert loss == pytest.approx(float(tutorial.loss(params, inputs, targets)), rel=1e-6)
    np.testing.assert_array_equal(state.scaling, scaling)  # carried, not trained


@pytest.mark.parametrize("devices", [1, 8])
@pytest.mark.parametrize("where", ["parameter", "input"])
def test_the_loss_is_nan_where_the_gradient_is(where: str, devices: int) -> None:
    images = make_arrays()["x_train"].astype(np.float32)
    params = jax.tree.map(np.array, model.init_network_params(SIZES, jax.random.key(0)))
    if where == "parameter":
        params[0][0][3, 2] = np.nan
    else:
        images[50] = 3e38  # finite; the sums over it are not
        params[0][0][:] = 1
    _, loss = one_step(Config(batch_size=96, num_devices=devices), images, (), params)
    assert not np.isfinite(loss)


def test_a_gradient_that_overflows_shows_though_the_loss_is_finite() -> None:
    """All activations are 0, so that the loss is log(4) / 4; the first biases' gradient is a product of weights."""
    sizes = [12, 64, 64, 4]
    params = [(np.zeros((n, m), np.float32), np.zeros(n, np.float32)) for m, n in itertools.pairwise(sizes)]
    for weights, _ in params[1:]:
        weights[:] = 1e30
    params[-1][0][0] = -1e30  # equal weights of all classes would give gradients of 0
    _, loss = one_step(Config(batch_size=96, num_devices=1), make_arrays()["x_train"], (), params)
    assert not np.isfinite(loss)


def test_scale_inputs_casts_uint8_and_applies_shift_and_scale() -> None:
    images = np.array([[0, 128, 255]], np.uint8)
    plain = model.scale_inputs(images, ())
    assert plain.dtype == np.float32
    np.testing.assert_array_equal(plain, [[0, 128, 255]])
    scaled = model.scale_inputs(images, (np.float32([1, 2, 3]), np.float32([2, 0.5, 0])))
    np.testing.assert_array_equal(scaled, [[-2, 63, 0]])
