"""The yardstick: the JAX tutorial's training of its MLP, said again in a few lines that share nothing with distmlp."""

from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def initial(sizes: list[int], seed: int = 0) -> list[tuple[jax.Array, jax.Array]]:
    """Normal weights [out, in] and biases [out] of standard deviation 0.01, from keys split as the tutorial does."""
    layers = []
    for fan_in, fan_out, key in zip(sizes[:-1], sizes[1:], jax.random.split(jax.random.key(seed), len(sizes))):  # noqa: B905 - the last key goes unused
        w_key, b_key = jax.random.split(key)
        weights, biases = (jax.random.normal(k, shape, jnp.float32) for k, shape in (
            (w_key, (fan_out, fan_in)), (b_key, (fan_out,))
        ))  # fmt: skip
        layers.append((1e-2 * weights, 1e-2 * biases))
    return layers


def _log_probabilities(params: Any, image: jax.Array) -> jax.Array:
    x = image
    for w, b in params[:-1]:
        x = jnp.maximum(0, jnp.dot(w, x) + b)
    w, b = params[-1]
    logits = jnp.dot(w, x) + b
    return logits - jax.scipy.special.logsumexp(logits)


def loss(params: Any, images: jax.Array, targets: jax.Array) -> jax.Array:
    """The mean, over examples and classes, of minus log-probability times one-hot target."""
    return -jnp.mean(jax.vmap(_log_probabilities, in_axes=(None, 0))(params, images) * targets)


gradient = jax.jit(jax.grad(loss))


@jax.jit
def update(params: Any, images: jax.Array, targets: jax.Array) -> Any:
    """One step of gradient descent at 0.01."""
    grads = jax.grad(loss)(params, images, targets)
    return [(w - 0.01 * dw, b - 0.01 * db) for (w, b), (dw, db) in zip(params, grads, strict=True)]


def one_hot(labels: np.ndarray, classes: int) -> np.ndarray:
    return np.asarray(labels[:, None] == np.arange(classes), np.float32)


def batches(
    images: np.ndarray, labels: np.ndarray, batch_size: int, classes: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """One epoch in the set's own order; the last batch may be smaller."""
    for start in range(0, len(images), batch_size):
        rows = slice(start, start + batch_size)
        yield images[rows].astype(np.float32), one_hot(labels[rows], classes)


def train_epoch(params: Any, images: np.ndarray, labels: np.ndarray, batch_size: int, classes: int) -> Any:
    for x, targets in batches(images, labels, batch_size, classes):
        params = update(params, x, targets)
    return params


def accuracy(params: Any, images: np.ndarray, labels: np.ndarray) -> float:
    predicted = jax.jit(jax.vmap(_log_probabilities, in_axes=(None, 0)))(params, images.astype(np.float32)).argmax(1)
    return float(np.mean(np.asarray(predicted) == labels))
