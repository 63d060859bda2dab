"""The network as a GPU runs it where starting kernels takes longer than computing: fewer arrays, so fewer kernels.

A layer's bias is the last column of its weights, the last of each layer's inputs is 1, and products bring all of it. So
there are half as many arrays to update, no bias gradients to add up, and a product can end with ReLU. Rows and columns
are filled up with zeros to a width that suits the tensor cores; as their gradients are 0, they stay 0 under every
optimizer. Biases are then rounded as the products' other inputs are, to TF32 by default.
"""

import math
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import logsumexp

from distmlp import model

_WIDTH = 8  # widths are multiples of it
_LARGEST = 2048  # the widest layer that this is for: beyond it products take the time

Packed = list[jax.Array]  # [outputs, inputs] of each layer, filled up


def suits(params: model.Params) -> bool:
    return max(max(weights.shape) for weights, _ in params) <= _LARGEST


def is_packed(params: model.Params | Packed) -> bool:
    return not isinstance(params[0], tuple)


def pack(tree: Any, params: model.Params) -> Any:
    """`tree` with each of its parts that is like `params` packed."""
    like = jax.tree.structure(params)
    return _replace(tree, like, lambda part: [
        _pack(weights, bias, last=at == len(part) - 1) for at, (weights, bias) in enumerate(part)
    ])  # fmt: skip


def unpack(tree: Any, params: model.Params) -> Any:
    """The way back; `params` has the shapes that there were."""
    like = jax.tree.structure([0] * len(params))
    return _replace(tree, like, lambda part: [
        (packed[: bias.size, : weights.shape[1]], packed[: bias.size, -1])
        for packed, (weights, bias) in zip(part, params, strict=True)
    ])  # fmt: skip


def _replace(tree: Any, like: Any, function: Any) -> Any:
    def is_like(part: Any) -> bool:
        return bool(jax.tree.structure(part) == like)

    return jax.tree.map(lambda part: function(part) if is_like(part) else part, tree, is_leaf=is_like)


def _pack(weights: jax.Array, bias: jax.Array, last: bool) -> jax.Array:
    outputs, inputs = weights.shape
    rows = 0 if last else _filled(outputs) - outputs
    return jnp.pad(
        jnp.concatenate([jnp.pad(weights, ((0, 0), (0, _filled(inputs) - inputs - 1))), bias[:, None]], axis=1),
        ((0, rows), (0, 0)),
    )


def _filled(width: int) -> int:
    return math.ceil((width + 1) / _WIDTH) * _WIDTH


def with_one(inputs: jax.Array) -> jax.Array:
    """Inputs [N, features], filled up; the last is 1."""
    rows, width = inputs.shape
    zeros = jnp.zeros((rows, _filled(width) - width - 1), inputs.dtype)
    return jnp.concatenate([inputs, zeros, jnp.ones((rows, 1), inputs.dtype)], axis=1)


def losses(params: Packed, inputs: jax.Array, targets: jax.Array, weights: jax.Array, weight_sum: jax.Array) -> Any:
    """What each example [N] adds to `model.loss`, and the sum of it; `inputs` are from `with_one`."""
    for layer in params[:-1]:
        last = np.arange(layer.shape[0]) == layer.shape[0] - 1  # NumPy: a constant, not a kernel
        outputs = model.relu(inputs @ layer.T + last.astype(np.float32)[None])
        inputs = jnp.where(last[None], jax.lax.stop_gradient(outputs), outputs)
    logits = inputs @ params[-1].T
    log_probs = logits - logsumexp(logits, axis=1, keepdims=True)
    each = -jnp.sum(log_probs * (targets * weights[:, None]), axis=1) / (weight_sum * targets.shape[1])
    return jnp.sum(each), each
