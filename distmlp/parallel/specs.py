"""How each part of a State and of a Batch lies on the devices: the only place that says replicated, dealt, or sharded.

Each is a jax PartitionSpec: which axis of an array is divided among the devices. A tree of specs has the form of the
tree of arrays, or stops earlier: a spec then holds for all arrays below its place. Placing arrays, compiling for them,
shard_map's in_specs and out_specs and pmap's axes all follow from these trees (layout.py).
"""

from typing import Any, NamedTuple

import jax
from jax.sharding import PartitionSpec

from distmlp import model
from distmlp.data.batches import Batch

AXIS = "data"  # the one axis of the mesh of devices
REPLICATED = PartitionSpec()  # every device holds the whole array
DEALT = PartitionSpec(AXIS)  # the first axis, which counts shards, rows or devices, is divided among the devices
BY_ROWS = DEALT  # of an array of the state, its rows: filled up, for each device to hold as many (sharded.py)


class State(NamedTuple):
    """What is trained and checkpointed."""

    params: model.Params
    opt_state: Any  # optax's
    step: jax.Array  # int32 []: completed updates
    scaling: tuple[jax.Array, ...]  # () or (shift, scale), float32 [features]: network inputs are (x - shift) * scale


class Selection(NamedTuple):
    """Batches of a data set that lies on the devices, by the positions of their examples; [steps] is of a dispatch."""

    images: Any  # uint8 or float32 [N, features]: the whole data set
    labels: Any  # int32 [N]
    indices: Any  # int32 [steps, shards, rows]
    weights: Any  # float32 [steps, shards, rows]: 0 for rows that only fill up a shard
    weight_sums: Any  # float32 [steps]


STATE = State(params=REPLICATED, opt_state=REPLICATED, step=REPLICATED, scaling=REPLICATED)  # type: ignore[arg-type] # specs
BATCH = Batch(images=DEALT, labels=DEALT, weights=DEALT, weight_sum=REPLICATED)
SELECTION = Selection(
    images=REPLICATED, labels=REPLICATED, indices=PartitionSpec(None, AXIS), weights=PartitionSpec(None, AXIS),
    weight_sums=REPLICATED,
)  # fmt: skip


def of_state(state: State, sharded: bool) -> State:
    """The specs of a state like this one, which may be abstract: as STATE, or each array of parameters and optimizer,
    but no single number, by rows."""
    if not sharded:
        return STATE

    def by_rows(part: Any) -> Any:
        return jax.tree.map(lambda array: BY_ROWS if array.size > 1 else REPLICATED, part)

    return STATE._replace(params=by_rows(state.params), opt_state=by_rows(state.opt_state))


def hashable(tree: Any) -> tuple[tuple[Any, ...], Any]:
    """The leaves and the structure of a tree of specs, or of abstract arrays: what jax.tree.unflatten makes it of."""
    leaves, structure = jax.tree.flatten(tree)
    return tuple(leaves), structure


def stacked(specs: Any) -> Any:
    """The specs of arrays with one axis more in front, which counts steps and is not divided."""
    return jax.tree.map(lambda spec: PartitionSpec(None, *spec), specs)


def dealt_axis(spec: PartitionSpec) -> int | None:
    """The number of the axis that is divided among the devices; None if the array is replicated."""
    return tuple(spec).index(AXIS) if AXIS in tuple(spec) else None
