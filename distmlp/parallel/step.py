"""One training step: the gradient of a global batch from its shards, and the update. layout.py wraps it for devices."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from distmlp import model
from distmlp.data.batches import Batch
from distmlp.kept import kept
from distmlp.parallel import by_layer, reduce, sharded
from distmlp.parallel.digest import array_digest
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import REPLICATED, State, hashable

_ROW = 64  # numbers: several of a processor's vectors

# These are for the inside of a wrapping. One update, and its loss []; digests of all shards, uint32 [shards, arrays].
TrainStep = Callable[..., tuple[State, jax.Array]]  # of State and Batch
AuditedStep = Callable[[State, Batch], tuple[State, jax.Array, jax.Array]]
ShardDigests = Callable[[State, Batch], jax.Array]
OwnWork = Callable[[State, Batch], jax.Array]  # what a device does for a step by itself; its number [] says nothing


class Recipe(NamedTuple):
    """What a step computes, on whatever devices."""

    num_classes: int
    compute_dtype: str = "float32"  # of the matrix products' inputs
    clips: bool = False  # whether the optimizer clips the gradient, for which it needs its norm
    weightless: bool = False  # whether there may be batches whose weights are all 0
    rows: sharded.Rows = ()  # of the parameters when they are whole, where the state is sharded


def initial_state(
    sizes: Sequence[int], seed: int, optimizer: optax.GradientTransformation, scaling: Sequence[Any],
    normal: Callable[..., jax.Array] | None = None,
) -> State:
    """The state before the first step: the tutorial's parameters of that seed, which `normal` draws."""
    key = jax.random.key(seed - jax.config.values["jax_random_seed_offset"])  # which jax would add
    params = model.init_network_params(sizes, key, normal)
    opt_state = jax.jit(optimizer.init)(params)  # one program, not one for each array
    return State(params, opt_state, jnp.int32(0), tuple(scaling))


def abstract_state(sizes: Sequence[int], optimizer: optax.GradientTransformation, scaled: bool) -> State:
    """Shapes and dtypes of a state of these layers; `scaled`: whether it scales inputs."""
    scaling = (jax.ShapeDtypeStruct((sizes[0],), jnp.float32),) * 2 if scaled else ()
    state: State = jax.eval_shape(lambda scaling: initial_state(sizes, 0, optimizer, scaling), scaling)
    return state


def gradients(state: State, batch: Batch, layout: Layout, recipe: Recipe) -> tuple[jax.Array, model.Params]:
    """The global batch's mean loss [] and its gradient, from one device's shards of it: inside the wrapping.

    Each shard's loss is divided by the global batch's weight sum, so shard gradients only need adding. Where the state
    is sharded, the gradient is of this device's rows; the loss is then NaN where a gradient of a bias is not finite.
    """
    if layout.by_layer:
        return _gradients_by_layer(state, batch, layout, recipe)
    if layout.invariant:
        return add_shards(shard_gradients(state, batch, layout, recipe), layout, recipe.rows)
    function, shards, shared, checked = _work(state, batch, layout, recipe)
    specs = _specs_of_sums(state.params, layout, recipe.rows)
    return reduce.fast(lambda shard: checked(function(shard, *shared)), shards, layout, specs)


def shard_gradients(
    state: State, batch: Batch, layout: Layout, recipe: Recipe
) -> list[tuple[jax.Array, model.Params]]:
    """What each of one device's shards adds to loss and gradient, with --reduction=invariant: the gradient is whole."""
    function, shards, shared, checked = _work(state, batch, layout, recipe)
    return reduce.each(function, shards, shared, layout, checked)


def add_shards(
    parts: list[tuple[jax.Array, model.Params]], layout: Layout, rows: sharded.Rows
) -> tuple[jax.Array, model.Params]:
    """The sum of what `shard_gradients` gave on each device, as `gradients` has it."""
    return reduce.added(parts, layout, _specs_of_sums(parts[0][1], layout, rows))


def _specs_of_sums(params: model.Params, layout: Layout, rows: sharded.Rows) -> Any:
    return (REPLICATED, sharded.specs_of(params, rows)) if layout.sharded else REPLICATED


def _work(
    state: State, batch: Batch, layout: Layout, recipe: Recipe
) -> tuple[Callable[..., Any], Batch, tuple[Any, ...], Callable[[Any], Any]]:
    """Loss and gradient as a function of a shard and what all shards share; a device's shards; what they share; and
    what is to be done with each result."""
    params = state.params
    if layout.sharded:
        params = sharded.gather(params, recipe.rows, layout)
    elif layout.axis is not None:
        # Marked as differing between devices, else differentiation would already add over devices where shard_map
        # tracks replication, and not where it does not (pmap).
        params = jax.lax.pcast(params, layout.axis, to="varying")

    shard_gradient = _shard_gradient(recipe.num_classes, recipe.compute_dtype)
    shards, shared = batch._replace(weight_sum=None), (params, state.scaling, batch.weight_sum)

    def checked(sums: Any) -> Any:  # here still whole
        return (_or_nan(sums[0], _biases(sums[1])), sums[1]) if layout.sharded else sums

    return shard_gradient, shards, shared, checked


def _shard_gradient(num_classes: int, compute_dtype: str) -> Callable[..., tuple[jax.Array, model.Params]]:
    """What gives a shard's part of the global batch's loss [], and its gradient."""

    @jax.named_scope("shard_gradient")
    def shard_gradient(shard: Batch, params: model.Params, scaling: Any, weight_sum: jax.Array) -> Any:
        inputs, targets = model.scale_inputs(shard.images, scaling), model.one_hot(shard.labels, num_classes)
        return jax.value_and_grad(model.loss)(params, inputs, targets, shard.weights, weight_sum, compute_dtype)

    return shard_gradient


def make_own_work(recipe: Recipe, layout: Layout, params: model.Params) -> OwnWork | None:
    """What a device does for a step before it waits for others, the gradients of its shards, to be timed: the same
    object for the same settings. None where that is little by little, layer after layer.

    `params` has the shapes of the parameters when they are whole. Where others hold parts of them, made-up numbers take
    their place.
    """
    if layout.by_layer:
        return None
    return _own_work(recipe.compute_dtype, recipe.num_classes, layout.sharded, *hashable(params))


@kept
def _own_work(compute_dtype: str, num_classes: int, made_up: bool, leaves: tuple[Any, ...], structure: Any) -> OwnWork:
    shard_gradient = _shard_gradient(num_classes, compute_dtype)

    def own_work(state: State, batch: Batch) -> jax.Array:
        def some(like: Any) -> jax.Array:  # by the step's number, or XLA would compute them when it compiles
            numbers = (jax.lax.iota(jnp.int32, like.size) + state.step) % 7 - 3
            return (numbers.astype(jnp.float32) / 100).reshape(like.shape)

        params = jax.tree.unflatten(structure, map(some, leaves)) if made_up else state.params
        sums = reduce.over_shards(lambda shard: shard_gradient(shard, params, state.scaling, batch.weight_sum),
                                  batch._replace(weight_sum=None))  # fmt: skip
        return jnp.stack([jnp.max(leaf) for leaf in jax.tree.leaves(sums)]).max()  # no shortcut leads to a maximum

    return own_work


def _gradients_by_layer(
    state: State, batch: Batch, layout: Layout, recipe: Recipe
) -> tuple[jax.Array, model.Params]:
    """The same, with one layer of the network whole at a time."""

    def shard_gradient(shard: Batch) -> Any:
        inputs = model.scale_inputs(shard.images, state.scaling)
        targets = model.one_hot(shard.labels, recipe.num_classes)

        def loss(params: model.Params) -> jax.Array:
            log_probs = by_layer.log_probs(params, inputs, recipe.rows, recipe.compute_dtype, layout)
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


def make_train_step(recipe: Recipe, layout: Layout, optimizer: optax.GradientTransformation) -> TrainStep:
    """The step of a run: the same object for the same arguments.

    A batch whose weights are all 0, if there may be such, has the loss 0, and changes neither the parameters nor the
    optimizer's state, only the number of the step.

    Its loss is NaN where it or the gradient of a bias is not finite. That costs nothing, and weights hardly ever go
    first: checking them all costs a seventh of a step, and is done where a checkpoint is saved.
    """
    return cast(TrainStep, _train_step(recipe, layout, optimizer))


def make_audited_step(
    recipe: Recipe, layout: Layout, optimizer: optax.GradientTransformation
) -> tuple[AuditedStep, ShardDigests]:
    """The same step, which also tells the digests of its shards; and these digests alone. Both with
    --reduction=invariant."""
    return cast(AuditedStep, _train_step(recipe, layout, optimizer, audited=True)), _shard_digests(recipe, layout)


@kept
def _shard_digests(recipe: Recipe, layout: Layout) -> ShardDigests:
    def digests(state: State, batch: Batch) -> jax.Array:
        batch = _weighing(batch, recipe.weightless)
        return _digests(batch, shard_gradients(state, batch, layout, recipe), layout)

    return digests


def _digests(batch: Batch, parts: list[tuple[jax.Array, model.Params]], layout: Layout) -> jax.Array:
    """Of the shards of all devices, on each of them: uint32 [shards, arrays], of images, labels, weights, the loss and
    the arrays of the gradient."""

    def of(shard: int) -> jax.Array:
        given = batch.images[shard].astype(jnp.float32), batch.labels[shard], batch.weights[shard]
        return jnp.stack([array_digest(array) for array in (*given, *jax.tree.leaves(parts[shard]))])

    own = jnp.stack([of(shard) for shard in range(len(parts))])
    return jax.lax.all_gather(own, cast(str, layout.axis), tiled=True, to="invarying")


def _weighing(batch: Batch, weightless: bool) -> Batch:
    """The batch; if there may be weightless ones, by what it is divided is not 0."""
    return batch._replace(weight_sum=jnp.where(batch.weight_sum > 0, batch.weight_sum, 1)) if weightless else batch


@kept
def _train_step(
    recipe: Recipe, layout: Layout, optimizer: optax.GradientTransformation, audited: bool = False
) -> TrainStep | AuditedStep:
    @jax.named_scope("update")
    def update(grads: Any, opt_state: Any, params: Any, options: dict[str, Any]) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(grads, opt_state, params, **options)
        return optax.apply_updates(params, updates), opt_state

    if layout.invariant:
        update = reduce.isolated(update, layout)
        update = update if layout.accelerated else _in_rows(update)

    def train_step(state: State, batch: Batch, **options: Any) -> Any:  # options: the optimizer's
        some = batch.weight_sum > 0
        batch = _weighing(batch, recipe.weightless)
        if audited:
            parts = shard_gradients(state, batch, layout, recipe)
            loss, grads = add_shards(parts, layout, recipe.rows)
        else:
            loss, grads = gradients(state, batch, layout, recipe)
        if recipe.clips and (layout.invariant or layout.sharded):
            lie = sharded.specs_of(grads, recipe.rows) if layout.sharded else REPLICATED
            options["norm"] = reduce.global_norm(grads, layout, lie)
        params, opt_state = update(grads, state.opt_state, state.params, options)
        if recipe.weightless:
            params, opt_state = jax.tree.map(lambda new, old: jnp.where(some, new, old), (params, opt_state),
                                             (state.params, state.opt_state))  # fmt: skip
        loss = loss if layout.sharded else _or_nan(loss, *(bias for _, bias in grads))
        state = State(params, opt_state, state.step + 1, state.scaling)
        return (state, loss, _digests(batch, parts, layout)) if audited else (state, loss)

    return train_step
