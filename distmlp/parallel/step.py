"""One training step: the gradient of a global batch from its shards, and the update. layout.py wraps it for devices."""

from collections.abc import Callable, Sequence
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from distmlp import model
from distmlp.config import Config
from distmlp.data.batches import Batch
from distmlp.kept import kept
from distmlp.parallel import by_layer, reduce, sharded
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import REPLICATED, State

_ROW = 64  # numbers: several of a processor's vectors
TrainStep = Callable[[State, Batch], tuple[State, jax.Array]]  # one update, and its loss [], inside a wrapping


def initial_state(
    sizes: Sequence[int], seed: int, optimizer: optax.GradientTransformation, scaling: Sequence[Any],
    normal: Callable[..., jax.Array] = jax.random.normal,
) -> State:
    """The state before the first step: the tutorial's parameters of that seed, which `normal` draws."""
    key = jax.random.key(seed - jax.config.values["jax_random_seed_offset"])  # which jax would add
    params = model.init_network_params(sizes, key, normal)
    return State(params, optimizer.init(params), jnp.int32(0), tuple(scaling))


def gradients(
    state: State, batch: Batch, layout: Layout, num_classes: int, compute_dtype: str = "float32",
    rows: sharded.Rows = (),
) -> tuple[jax.Array, model.Params]:
    """The global batch's mean loss [] and its gradient, from one device's shards of it: inside the wrapping.

    Each shard's loss is divided by the global batch's weight sum, so shard gradients only need adding. Where the state
    is sharded, of parameters of so many `rows`, the gradient is of this device's rows; the loss is then NaN where a
    gradient of a bias is not finite.
    """
    params, specs = state.params, cast(Any, REPLICATED)  # of the sums
    if layout.by_layer:
        return _gradients_by_layer(state, batch, layout, num_classes, compute_dtype, rows)
    if layout.sharded:
        specs = REPLICATED, sharded.specs_of(params, rows)
        params = sharded.gather(params, rows, layout)
    elif layout.axis is not None:
        # Marked as differing between devices, else differentiation would already add over devices where shard_map
        # tracks replication, and not where it does not (pmap).
        params = jax.lax.pcast(params, layout.axis, to="varying")

    @jax.named_scope("shard_gradient")
    def shard_gradient(shard: Batch, params: model.Params, scaling: Any, weight_sum: jax.Array) -> Any:
        inputs, targets = model.scale_inputs(shard.images, scaling), model.one_hot(shard.labels, num_classes)
        return jax.value_and_grad(model.loss)(params, inputs, targets, shard.weights, weight_sum, compute_dtype)

    shards, shared = batch._replace(weight_sum=None), (params, state.scaling, batch.weight_sum)
    def checked(sums: Any) -> Any:  # here still whole
        return (_or_nan(sums[0], _biases(sums[1])), sums[1]) if layout.sharded else sums

    if layout.invariant:
        return reduce.invariant(shard_gradient, shards, shared, layout, specs, checked)
    return reduce.fast(lambda shard: checked(shard_gradient(shard, *shared)), shards, layout, specs)


def _gradients_by_layer(
    state: State, batch: Batch, layout: Layout, num_classes: int, compute_dtype: str, rows: sharded.Rows
) -> tuple[jax.Array, model.Params]:
    """The same, with one layer of the network whole at a time."""

    def shard_gradient(shard: Batch) -> Any:
        inputs, targets = model.scale_inputs(shard.images, state.scaling), model.one_hot(shard.labels, num_classes)

        def loss(params: model.Params) -> jax.Array:
            log_probs = by_layer.log_probs(params, inputs, rows, compute_dtype, layout)
            return model.mean_loss(log_probs, targets, shard.weights, batch.weight_sum)

        return jax.value_and_grad(loss)(state.params)

    loss, grads = reduce.over_shards(shard_gradient, batch._replace(weight_sum=None))
    return jax.lax.psum(_or_nan(loss, _biases(grads)), layout.axis), grads


def _in_rows(update: Callable[..., tuple[Any, Any]]) -> Callable[..., tuple[Any, Any]]:
    """The same update, to which biases are one row of numbers, and weights two, filled up with zeros to a multiple of
    _ROW.

    XLA's CPU compiler unrolls short loops, and what is left at the end of longer ones, and may round there in another
    way (with jax 0.12 it does). So bits would depend on how many rows of an array a device holds. They also would if
    all arrays came to have one shape: a number that divides arrays of one shape only may become its reciprocal.
    """

    def in_rows(grads: Any, opt_state: Any, params: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        def filled(array: jax.Array) -> jax.Array:
            if not array.ndim:
                return array
            row = jnp.pad(array.ravel(), (0, -array.size % (array.ndim * _ROW)))
            return row.reshape(2, -1) if array.ndim == 2 else row

        def cut(array: jax.Array, like: jax.Array) -> jax.Array:
            return array.ravel()[: like.size].reshape(like.shape)

        return jax.tree.map(cut, update(*jax.tree.map(filled, (grads, opt_state, params)), options),
                            (params, opt_state))  # fmt: skip

    return in_rows


def _biases(grads: model.Params) -> jax.Array:
    """In one vector."""
    return jnp.concatenate([bias for _, bias in grads])


def _or_nan(loss: jax.Array, *biases: jax.Array) -> jax.Array:
    """The loss; NaN where the gradient of a bias is not finite. A GPU has a kernel for each sum."""
    return loss + sum(jnp.sum(bias * 0) for bias in biases)


def make_train_step(
    config: Config, layout: Layout, num_classes: int, optimizer: optax.GradientTransformation, weightless: bool = False,
    rows: sharded.Rows = (),
) -> TrainStep:
    """The step of a run: the same object for the same settings. Where its state is sharded, the parameters have so many
    `rows` when they are whole.

    If there may be `weightless` batches, whose weights are all 0: such a one has the loss 0, and changes neither the
    parameters nor the optimizer's state, only the number of the step.

    Its loss is NaN where it or the gradient of a bias is not finite. That costs nothing, and weights hardly ever go
    first: checking them all costs a seventh of a step, and is done where a checkpoint is saved.
    """
    clips = config.clip_norm > 0
    return kept(_train_step, config.compute_dtype, clips, layout, num_classes, optimizer, weightless, rows)


def _train_step(
    compute_dtype: str, clips: bool, layout: Layout, num_classes: int, optimizer: optax.GradientTransformation,
    weightless: bool, rows: sharded.Rows,
) -> TrainStep:
    @jax.named_scope("update")
    def update(grads: Any, opt_state: Any, params: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(grads, opt_state, params, **options)
        return optax.apply_updates(params, updates), opt_state

    if layout.invariant:
        update = reduce.isolated(update, layout)
        update = update if layout.accelerated else _in_rows(update)

    def train_step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        some = batch.weight_sum > 0
        if weightless:
            batch = batch._replace(weight_sum=jnp.where(some, batch.weight_sum, 1))
        loss, grads = gradients(state, batch, layout, num_classes, compute_dtype, rows)
        options = {}
        if clips and (layout.invariant or layout.sharded):
            lie = sharded.specs_of(grads, rows) if layout.sharded else REPLICATED
            options["norm"] = reduce.global_norm(grads, layout, lie)
        params, opt_state = update(grads, state.opt_state, state.params, options)
        if weightless:
            params, opt_state = jax.tree.map(lambda new, old: jnp.where(some, new, old), (params, opt_state),
                                             (state.params, state.opt_state))  # fmt: skip
        loss = loss if layout.sharded else _or_nan(loss, *(bias for _, bias in grads))
        return State(params, opt_state, state.step + 1, state.scaling), loss

    return train_step
