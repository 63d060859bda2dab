"""The tutorial's multilayer perceptron: initialisation, prediction for one example, and loss.

From the JAX documentation's "Training a simple neural network, with PyTorch data loading". Nothing here knows of
devices.
"""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax import random
from jax.scipy.special import logsumexp

Params = list[tuple[jax.Array, jax.Array]]


def init_network_params(
    sizes: Sequence[int], key: jax.Array, normal: Callable[..., jax.Array] | None = None, scale: float = 1e-2
) -> Params:
    """Parameters of a network whose layers have the given sizes, input and output included: weights [out, in] and
    biases [out], float32, normal with standard deviation `scale`. `normal` draws them, instead of jax.random's."""
    drawn = _drawn(tuple(sizes), key) if normal is None else _standard_normal(sizes, key, normal)
    return _scaled(drawn, scale)


def _standard_normal(sizes: Sequence[int], key: jax.Array, normal: Callable[..., jax.Array] = random.normal) -> Params:
    """Parameters of standard deviation 1."""
    keys = random.split(key, len(sizes))
    return [_layer(m, n, k, normal) for m, n, k in zip(sizes[:-1], sizes[1:], keys, strict=False)]


def _layer(m: int, n: int, key: jax.Array, normal: Callable[..., jax.Array]) -> tuple[jax.Array, jax.Array]:
    w_key, b_key = random.split(key)
    return normal(w_key, (n, m), jnp.float32), normal(b_key, (n,), jnp.float32)


# Two programs for all layers, where jax alone would make four a layer. One would not do: XLA joins `scale` with a
# factor within random.normal, and the tutorial's numbers are then rounded otherwise.
_drawn = jax.jit(_standard_normal, static_argnums=0)


@functools.partial(jax.jit, donate_argnums=0)
def _scaled(params: Params, scale: float) -> Params:
    return jax.tree.map(lambda values: scale * values, params)


def relu(x: jax.Array) -> jax.Array:
    return jnp.maximum(0, x)


def affine(w: jax.Array, b: jax.Array, x: jax.Array, compute_dtype: str = "float32") -> jax.Array:
    """What a layer makes of one example, before the ReLU: float32 [out]; compute_dtype as of `predict`."""
    return jnp.dot(w.astype(compute_dtype), x.astype(compute_dtype)).astype(jnp.float32) + b


def predict(params: Params, image: jax.Array, compute_dtype: str = "float32") -> jax.Array:
    """Log-probabilities [classes], float32, of one example [features].

    compute_dtype is the type of the matrix products, their gradients' included; all else is float32.
    """
    activations = image
    for w, b in params[:-1]:
        activations = relu(affine(w, b, activations, compute_dtype))
    return normalized(affine(*params[-1], activations, compute_dtype))


def normalized(logits: jax.Array) -> jax.Array:
    """Log-probabilities [classes] of one example's logits."""
    return logits - logsumexp(logits)


def scale_inputs(images: jax.Array, scaling: tuple[jax.Array, ...]) -> jax.Array:
    """uint8 or float32 features [..., features] as the network's float32 inputs; `scaling` is () or (shift, scale)."""
    images = images.astype(jnp.float32)
    if not scaling:
        return images
    shift, scale = (jnp.expand_dims(each, range(images.ndim - 1)) for each in scaling)
    return (images - shift) * scale


def batched_predict(params: Params, images: jax.Array, compute_dtype: str = "float32") -> jax.Array:
    """Log-probabilities [N, classes] of examples [N, features]."""
    return jax.vmap(lambda image: predict(params, image, compute_dtype))(images)


def one_hot(labels: jax.Array, num_classes: int) -> jax.Array:
    """Float32 [N, classes] of integer labels [N]."""
    return jnp.array(labels[:, None] == jnp.arange(num_classes, dtype=labels.dtype)[None], jnp.float32)


def loss(
    params: Params,
    images: jax.Array,
    targets: jax.Array,
    weights: jax.Array | None = None,
    weight_sum: jax.Array | None = None,
    compute_dtype: str = "float32",
) -> jax.Array:
    """The tutorial's loss, -mean(log-probabilities * targets) over examples and classes.

    Args:
      params: the network.
      images: float32 [N, features].
      targets: one-hot float32 [N, classes].
      weights: float32 [N], 1 for an example and 0 for a row that only fills up the batch; all 1 if absent.
      weight_sum: what the weights of the whole global batch add up to, where these rows are a shard of it. Dividing
        by it here, before the gradient is taken, makes shard gradients simply add up to the batch's gradient.
      compute_dtype: see `predict`.
    """
    return mean_loss(batched_predict(params, images, compute_dtype), targets, weights, weight_sum)


def mean_loss(
    log_probs: jax.Array, targets: jax.Array, weights: jax.Array | None = None, weight_sum: jax.Array | None = None
) -> jax.Array:
    """The same of log-probabilities [N, classes]."""
    if weights is None:
        return -jnp.mean(log_probs * targets)
    total = jnp.sum(weights) if weight_sum is None else weight_sum
    # The weights join the targets, so that the gradient is the tutorial's to the bit where all of them are 1.
    return -jnp.sum(log_probs * (targets * weights[:, None])) / (total * targets.shape[1])
