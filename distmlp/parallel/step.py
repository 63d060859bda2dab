"""One training step: the gradient of a global batch from its shards, and the update. layout.py wraps it for devices."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import optax

from distmlp import model
from distmlp.config import Config
from distmlp.data.batches import Batch
from distmlp.parallel import reduce
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import State

TrainStep = Callable[[State, Batch], tuple[State, jax.Array]]  # one update, and its loss [], inside a wrapping


def initial_state(
    sizes: Sequence[int], seed: int, optimizer: optax.GradientTransformation, scaling: Sequence[Any]
) -> State:
    """The state before the first step: the tutorial's parameters of that seed."""
    key = jax.random.key(seed - jax.config.values["jax_random_seed_offset"])  # which jax would add
    params = model.init_network_params(sizes, key)
    return State(params, optimizer.init(params), jnp.int32(0), tuple(scaling))


def gradients(
    state: State, batch: Batch, layout: Layout, num_classes: int, compute_dtype: str = "float32"
) -> tuple[jax.Array, model.Params]:
    """The global batch's mean loss [] and its gradient, from one device's shards of it: inside the wrapping.

    Each shard's loss is divided by the global batch's weight sum, so shard gradients only need adding.
    """
    params = state.params
    if layout.axis is not None:
        # Marked as differing between devices, else differentiation would already add over devices where shard_map
        # tracks replication, and not where it does not (pmap).
        params = jax.lax.pcast(params, layout.axis, to="varying")

    @jax.named_scope("shard_gradient")
    def shard_gradient(shard: Batch, params: model.Params, scaling: Any, weight_sum: jax.Array) -> Any:
        inputs, targets = model.scale_inputs(shard.images, scaling), model.one_hot(shard.labels, num_classes)
        return jax.value_and_grad(model.loss)(params, inputs, targets, shard.weights, weight_sum, compute_dtype)

    shards, shared = batch._replace(weight_sum=None), (params, state.scaling, batch.weight_sum)
    if layout.invariant:
        return reduce.invariant(shard_gradient, shards, shared, layout)
    return reduce.fast(lambda shard: shard_gradient(shard, *shared), shards, layout)


def make_train_step(
    config: Config, layout: Layout, num_classes: int, optimizer: optax.GradientTransformation, weightless: bool = False
) -> TrainStep:
    """The step of a run.

    If there may be `weightless` batches, whose weights are all 0: such a one has the loss 0, and changes neither the
    parameters nor the optimizer's state, only the number of the step.

    Its loss is NaN where it or the gradient of a bias is not finite. That costs nothing, and weights hardly ever go
    first: checking them all costs a seventh of a step, and is done where a checkpoint is saved.
    """
    compute_dtype = config.compute_dtype

    @jax.named_scope("update")
    def update(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    if layout.invariant:
        update = reduce.isolated(update, layout)

    def train_step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        some = batch.weight_sum > 0
        if weightless:
            batch = batch._replace(weight_sum=jnp.where(some, batch.weight_sum, 1))
        loss, grads = gradients(state, batch, layout, num_classes, compute_dtype)
        params, opt_state = update(grads, state.opt_state, state.params)
        if weightless:
            params, opt_state = jax.tree.map(lambda new, old: jnp.where(some, new, old), (params, opt_state),
                                             (state.params, state.opt_state))  # fmt: skip
        zero_or_nan = sum(jnp.sum(bias * 0) for _, bias in grads)
        return State(params, opt_state, state.step + 1, state.scaling), loss + zero_or_nan

    return train_step
