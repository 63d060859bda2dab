"""The model is the tutorial's: same initial parameters, predictions, loss and gradients, to the bit."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tutorial

from distmlp import model

SIZES = [20, 16, 5]


@pytest.fixture
def batch() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (6, 20)).astype(np.float32), tutorial.one_hot(rng.integers(0, 5, 6), 5)


def same(a: Any, b: Any) -> None:
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


@pytest.mark.parametrize("seed", [0, 3])
def test_initial_parameters(seed: int) -> None:
    params = model.init_network_params(SIZES, jax.random.key(seed))
    assert [(w.shape, b.shape) for w, b in params] == [((16, 20), (16,)), ((5, 16), (5,))]
    same(params, tutorial.initial(SIZES, seed))
    assert 0.008 < float(jnp.std(params[0][0])) < 0.012


def test_predict_is_for_one_example_and_gives_log_probabilities(batch: tuple[np.ndarray, np.ndarray]) -> None:
    params = model.init_network_params(SIZES, jax.random.key(0))
    one = model.predict(params, jnp.asarray(batch[0][0]))
    assert one.shape == (5,)
    np.testing.assert_allclose(jnp.exp(one).sum(), 1, rtol=1e-6)
    many = model.batched_predict(params, jnp.asarray(batch[0]))
    np.testing.assert_allclose(many[0], one, rtol=1e-5)
    (w1, b1), (w2, b2) = [(np.float64(w), np.float64(b)) for w, b in params]
    logits = np.maximum(0, batch[0] @ w1.T + b1) @ w2.T + b2
    expected = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(many, expected, rtol=1e-4)


def test_loss_and_gradient_are_the_tutorials_to_the_bit(batch: tuple[np.ndarray, np.ndarray]) -> None:
    """Also as the step computes it: weighted, with a known weight sum, and rows of weight 0 behind."""
    params, (images, targets) = model.init_network_params(SIZES, jax.random.key(0)), batch
    value, grads = jax.jit(jax.value_and_grad(tutorial.loss))(params, images, targets)
    same(jax.jit(jax.value_and_grad(model.loss))(params, images, targets), (value, grads))
    filled = np.concatenate([images, images[:2]]), np.concatenate([targets, targets[:2]])
    weights = np.array([1] * 6 + [0] * 2, np.float32)
    for weight_sum in (None, np.float32(6)):
        weighted = jax.jit(jax.value_and_grad(model.loss))(params, *filled, weights, weight_sum)
        jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-9), weighted, (value, grads))


def test_rows_of_weight_zero_have_no_influence(batch: tuple[np.ndarray, np.ndarray]) -> None:
    params, (images, targets) = model.init_network_params(SIZES, jax.random.key(0)), batch
    weights = np.array([1, 1, 1, 1, 0, 0], np.float32)
    other = images.copy()
    other[4:] = 255 - other[4:]
    step = jax.jit(jax.value_and_grad(model.loss))
    same(step(params, images, targets, weights), step(params, other, targets, weights))


def test_bfloat16_is_for_the_matrix_products_only(batch: tuple[np.ndarray, np.ndarray]) -> None:
    params, (images, targets) = model.init_network_params(SIZES, jax.random.key(0)), batch
    low = model.batched_predict(params, images, "bfloat16")
    assert low.dtype == jnp.float32
    high = model.batched_predict(params, images)
    assert 0 < float(jnp.abs(low - high).max()) < 0.05
    grads = jax.grad(model.loss)(params, images, targets, compute_dtype="bfloat16")
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    text = str(jax.make_jaxpr(lambda p, x: model.batched_predict(p, x, "bfloat16"))(params, images))
    products = [line for line in text.splitlines() if "dot_general" in line]
    assert products
    assert all("bf16" in line for line in products)
    assert all("bf16" not in line for line in text.splitlines() if " exp " in line or " log " in line)
