"""The network with one layer whole at a time, where a device has no room for all of them (ZeRO's third stage, FSDP).

A layer's weights are gathered before it is computed, forgotten, gathered again for its gradient, and of the gradient
each device keeps its rows: half as many bytes again on the wire as if all layers were gathered once. Left to itself,
a compiler moves the gathers together and holds all layers at once; the barriers say what must be done before what.
"""

import functools
from typing import Any, NamedTuple, TypeVar, cast

import jax

from distmlp import model
from distmlp.parallel import reduce, sharded
from distmlp.parallel.layout import Layout

T = TypeVar("T")


def _in_order(values: T) -> T:
    """The same, what uses them begins when all of them are there."""
    return cast(T, jax.lax.optimization_barrier(values))  # type: ignore[no-untyped-call]


class _Layer(NamedTuple):
    rows: sharded.Rows  # of its weights and its biases, when they are whole
    compute_dtype: str
    first: bool  # its inputs are data, which have no gradient
    layout: Layout


def log_probs(
    params: model.Params, inputs: jax.Array, rows: sharded.Rows, compute_dtype: str, layout: Layout
) -> jax.Array:
    """model.batched_predict by this device's rows of the parameters, which have so many `rows` when they are whole."""
    activations = inputs
    for i, (w, b) in enumerate(params):
        layer = _Layer(rows[2 * i : 2 * i + 2], compute_dtype, i == 0, layout)
        activations = _apply(layer, model.relu(activations) if i else activations, w, b)
    return jax.vmap(model.normalized)(activations)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _apply(layer: _Layer, x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    """A layer's outputs [N, out] of its inputs [N, in]."""
    x, w, b = _in_order((x, w, b))
    return _affine(layer, x, *sharded.gather((w, b), layer.rows, layer.layout))


def _affine(layer: _Layer, x: jax.Array, w: jax.Array, b: jax.Array) -> jax.Array:
    return jax.vmap(lambda row: model.affine(w, b, row, layer.compute_dtype))(x)


def _forward(layer: _Layer, x: jax.Array, w: jax.Array, b: jax.Array) -> tuple[jax.Array, Any]:
    return _apply(layer, x, w, b), (x, w, b)


def _backward(layer: _Layer, saved: Any, dz: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
    """The gradients of inputs, weights and biases; of the latter two, this device's rows of the sum over devices."""
    x, w, b = saved
    w, b, dz = _in_order((w, b, dz))
    w, b = sharded.gather((w, b), layer.rows, layer.layout)
    dx = None
    if not layer.first:
        (dx,) = jax.vjp(lambda x: _affine(layer, x, w, b), x)[1](dz)
        dx, dz, x = _in_order((dx, dz, x))
    dw, db = jax.vjp(lambda w, b: _affine(layer, x, w, b), w, b)[1](dz)
    grads = reduce.scattered((dw, db), sharded.specs_of((dw, db), layer.rows), layer.layout)
    dx, dw, db = _in_order((dx, *grads))
    return jax.numpy.zeros_like(x) if dx is None else dx, dw, db


_apply.defvjp(_forward, _backward)
