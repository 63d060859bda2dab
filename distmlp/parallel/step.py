"""One training step, wrapped three ways: single, pmap and shard_map. The body is the same."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import PartitionSpec as P

from distmlp import model
from distmlp.config import Config
from distmlp.data.batches import Batch
from distmlp.parallel import packed, reduce
from distmlp.parallel.mesh import AXIS, Layout, partition


class State(NamedTuple):
    """What is trained and checkpointed."""

    params: model.Params
    opt_state: Any
    step: jax.Array  # int32 []: completed updates
    scaling: tuple[jax.Array, ...]  # () or (shift, scale), float32 [features]: network inputs are (x - shift) * scale


def initial_state(
    layout: Layout, sizes: Sequence[int], seed: int, optimizer: optax.GradientTransformation, scaling: Sequence[Any]
) -> State:
    """The state before the first step, on the devices: the tutorial's parameters of that seed."""
    state = _initial(sizes, seed, optimizer, scaling)
    return layout.replicate(jax.tree.map(np.asarray, state))


def abstract_state(
    layout: Layout, sizes: Sequence[int], optimizer: optax.GradientTransformation, scaling: Sequence[Any]
) -> State:
    """Types, shapes and placements of such a state's arrays: enough to compile for it, and to restore it."""
    state = jax.eval_shape(lambda scaling: _initial(sizes, 0, optimizer, scaling), scaling)
    place = layout.placement(None)
    return jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype, sharding=place), state)


def _initial(sizes: Sequence[int], seed: int, optimizer: optax.GradientTransformation, scaling: Sequence[Any]) -> State:
    key = jax.random.key(seed - jax.config.values["jax_random_seed_offset"])  # which jax would add
    params = model.init_network_params(sizes, key)
    return State(params, optimizer.init(params), jnp.int32(0), tuple(scaling))


@dataclasses.dataclass(frozen=True)
class TrainStep:
    """(state, batch) -> (state, loss): one update, to be wrapped for the devices.

    Between `enter` and `leave`, which cost as much as a step or two, a state may be packed (packed.py); the loss then
    is that of each example, [rows].
    """

    function: Callable[[State, Batch], tuple[State, jax.Array]]
    packs: bool

    def __call__(self, state: State, batch: Batch) -> tuple[State, jax.Array]:
        return self.function(state, batch)

    def enter(self, state: State) -> State:
        if not self.packs or not packed.suits(state.params):
            return state
        params, opt_state = (packed.pack(part, state.params) for part in (state.params, state.opt_state))
        return state._replace(params=params, opt_state=opt_state)

    def leave(self, state: State, params: model.Params) -> State:
        """`params` have the shapes of those that had entered."""
        if not packed.is_packed(state.params):
            return state
        new, opt_state = (packed.unpack(part, params) for part in (state.params, state.opt_state))
        return state._replace(params=new, opt_state=opt_state)


def gradients(
    state: State, batch: Batch, config: Config, layout: Layout, num_classes: int
) -> tuple[jax.Array, model.Params]:
    """The global batch's mean loss [] and its gradient, from one device's shards of it: inside the wrapping.

    Each shard's loss is divided by the global batch's weight sum, so shard gradients only need adding.
    """
    axis = None if layout.parallelism == "single" else AXIS
    params = state.params
    if axis is not None:
        # Marked as differing between devices, else differentiation would already add over devices where shard_map
        # tracks replication, and not where it does not (pmap).
        params = jax.lax.pcast(params, axis, to="varying")

    @jax.named_scope("shard_gradient")
    def shard_gradient(shard: Any, params: model.Params, scaling: Any, weight_sum: Any) -> Any:
        images, labels, weights = shard
        inputs, targets = model.scale_inputs(images, scaling), model.one_hot(labels, num_classes)
        if packed.is_packed(params):
            gradient = jax.value_and_grad(packed.losses, has_aux=True)
            (_, losses), grads = gradient(params, packed.with_one(inputs), targets, weights, weight_sum)
            return losses, grads
        return jax.value_and_grad(model.loss)(params, inputs, targets, weights, weight_sum, config.compute_dtype)

    shards = (batch.images, batch.labels, batch.weights)
    shared = (params, state.scaling, batch.weight_sum)
    if config.reduction == "invariant":
        loss, grads = reduce.invariant(
            shard_gradient, shards, axis, layout.num_shards, len(layout.devices), shared, not layout.accelerated
        )
    else:
        loss, grads = reduce.fast(
            lambda shard: shard_gradient(shard, *shared), shards, axis,
            len(layout.devices) if layout.adds_in_pairs else 0,
        )
    return loss, grads


def make_train_step(
    config: Config, layout: Layout, num_classes: int, optimizer: optax.GradientTransformation
) -> TrainStep:
    """The step of a run.

    Its loss is NaN where it or the gradient of a bias is not finite. That costs nothing, and weights hardly ever go
    first: checking them all costs a seventh of a step, and is done where a checkpoint is saved. Of a packed network,
    only each layer's first bias is looked at: what is not finite behind a layer, all biases before it show.
    """

    @jax.named_scope("update")
    def update(grads: Any, opt_state: Any, params: Any) -> tuple[Any, Any]:
        updates, opt_state = optimizer.update(grads, opt_state, params)
        return optax.apply_updates(params, updates), opt_state

    if config.reduction == "invariant":
        update = reduce.isolated(update, not layout.accelerated)

    def one_step(state: State, batch: Batch) -> tuple[State, jax.Array]:
        loss, grads = gradients(state, batch, config, layout, num_classes)
        params, opt_state = update(grads, state.opt_state, state.params)
        looked_at: list[Any] = [x[0, -1] for x in params] if packed.is_packed(params) else [bias for _, bias in grads]
        zero_or_nan = sum(jnp.sum(array * 0) for array in looked_at)
        return State(params, opt_state, state.step + 1, state.scaling), loss + zero_or_nan

    return TrainStep(one_step, layout.devices[0].platform == "gpu" and config.compute_dtype == "float32")


def wrap(
    body: Callable[..., Any], layout: Layout, axes: tuple[int | None, ...], donate: bool = True
) -> Callable[..., Any]:
    """`body(state, *arrays)`, compiled to run on every device of `layout`.

    The state and all results are replicated; `axes` says which axis of each array is dealt to the devices (None: the
    device gets it whole). The state given is donated, if `donate`.
    """
    donated = (0,) if donate else ()
    if layout.parallelism == "pmap":  # takes no compiler options
        return jax.pmap(
            body, AXIS, in_axes=(None, *axes), out_axes=None, devices=layout.devices, donate_argnums=donated
        )
    if layout.parallelism == "shard_map":
        specs = (P(), *map(partition, axes))
        # jax cannot know that sums made in pairs are the same on all devices.
        checked = not layout.adds_in_pairs
        body = jax.shard_map(body, mesh=layout.mesh, in_specs=specs, out_specs=P(), check_vma=checked)
    return jax.jit(body, donate_argnums=donated, compiler_options=layout.compiler_options)
