"""The order of floating-point addition: how the gradients of all shards become one sum.

`fast` leaves the order to whatever is fastest. `invariant` fixes it: shard values are added along one balanced binary
tree over the shard numbers ((0+1)+(2+3))+..., an odd one moving up unchanged, whatever devices hold them, so that the
sum has the same bits on every device count.
"""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.xla_metadata import set_xla_metadata
from jax.flatten_util import ravel_pytree

from distmlp.parallel.layout import Layout
from distmlp.parallel.sharded import Messages, filled
from distmlp.parallel.specs import REPLICATED

Shards = Any  # a tree of arrays [shards, ...]: a device's shards of a batch
Sums = Any  # a tree of float32 arrays: what is added up over all shards of all devices

_UNROLLED = 16  # shards of a device that accelerators take without a loop, which costs them a kernel for every array
_LARGE = 1 << 16  # elements of an array that is a message of its own


def fast(function: Callable[[Any], Sums], shards: Shards, layout: Layout, specs: Any = REPLICATED) -> Sums:
    """The sum of `function` over this device's shards, and over the devices, each of which gets what `specs` say.

    Where the layout says so, devices, of which there are a power of two, add in pairs at distances 1, 2, 4, ...
    (recursive doubling) instead of by XLA's all-reduce: over Gloo that takes half the time or less.
    """
    total = over_shards(function, shards)
    if layout.axis is None:
        return total
    if layout.sharded:
        return scattered(total, specs, layout)
    if not layout.adds_in_pairs:
        return jax.lax.psum(total, layout.axis)
    parts, restore = _pack(total)
    distance, count = 1, len(layout.devices)
    while distance < count:  # both of a pair add the same two numbers: all devices end with the same bits
        pairs = [(device, device ^ distance) for device in range(count)]
        parts = [part + jax.lax.ppermute(part, layout.axis, pairs) for part in parts]
        distance *= 2
    return restore(parts)


def _pack(tree: Any) -> tuple[list[jax.Array], Callable[[list[jax.Array]], Any]]:
    """The leaves as few messages: the small ones in one vector, the large ones uncopied. And the way back."""
    leaves, structure = jax.tree.flatten(tree)
    small, unpack = ravel_pytree([leaf for leaf in leaves if leaf.size < _LARGE])

    def restore(parts: list[jax.Array]) -> Any:
        large, rest = iter(parts[1:]), iter(unpack(parts[0]))
        return jax.tree.unflatten(structure, [next(rest if leaf.size < _LARGE else large) for leaf in leaves])

    return [small, *(leaf for leaf in leaves if leaf.size >= _LARGE)], restore


def over_shards(function: Callable[[Any], Sums], shards: Shards) -> Sums:
    """The sum of `function` over this device's shards, one after the other."""
    first = function(jax.tree.map(lambda x: x[0], shards))
    if jax.tree.leaves(shards)[0].shape[0] == 1:  # nothing to loop over, nor to trace once more
        return first
    rest = jax.tree.map(lambda x: x[1:], shards)
    return jax.lax.scan(lambda total, shard: (_add(total, function(shard)), None), first, rest)[0]


def scattered(total: Sums, specs: Any, layout: Layout) -> Sums:
    """Each device's part, as `specs` say, of the sum over the devices: a reduce-scatter."""
    if layout.over_gloo:  # all that goes from one device to another in one message; Gloo's own takes longer
        messages = Messages(total, specs, layout)
        return messages.unpack(jax.lax.all_to_all(messages.pack(total), layout.axis, 0, 0).sum(axis=0))

    def add(array: jax.Array, spec: Any) -> jax.Array:
        if spec == REPLICATED:
            return jax.lax.psum(array, layout.axis)
        return jax.lax.psum_scatter(filled(array, layout.filled(array.shape)[0]), layout.axis, tiled=True)

    return jax.tree.map(add, total, jax.tree.broadcast(specs, total))


def invariant(
    function: Callable[..., Sums], shards: Shards, shared: Sequence[Any], layout: Layout, specs: Any = REPLICATED,
    then: Callable[[Sums], Sums] = lambda sums: sums,
) -> Sums:
    """The same sum, to the bit, on any number of devices. Shards from num_shards on are empty and left out.

    It is of then(function(shard, *shared)); the function must close over no array.

    The exchange is an all-reduce with its middle opened up: each device receives every shard's slice of the flattened
    values (all-to-all), adds the slices along the tree, and hands its sum to all (all-gather). Where the state is
    sharded, the slices are what `specs` say, and the last step is left out: the parameters are gathered instead.
    """
    return added(each(function, shards, shared, layout, then), layout, specs)


def each(
    function: Callable[..., Sums], shards: Shards, shared: Sequence[Any], layout: Layout,
    then: Callable[[Sums], Sums] = lambda sums: sums,
) -> list[Sums]:
    """then(function(shard, *shared)) of each of this device's shards: the same bits on whatever device that is."""
    isolate = isolated(function, layout)
    return _each(lambda shard: then(isolate(shard, *shared)), shards, unrolled=layout.accelerated)


def added(parts: list[Sums], layout: Layout, specs: Any = REPLICATED) -> Sums:
    """The sum, along the tree, of what each device's shards have given; see `invariant`."""
    axis = layout.axis
    per_device, num_shards, num_devices = len(parts), layout.num_shards, len(layout.devices)
    if num_devices == 1:
        total = _tree_sum(parts[:num_shards])
        return total if axis is None else jax.lax.psum(total, axis)  # over one device: marks it as replicated
    if per_device & (per_device - 1) == 0 and num_shards % per_device == 0:
        parts = [_tree_sum(parts)]  # a whole subtree of the tree: this device can add it by itself
        num_shards //= per_device
    if layout.sharded:
        messages = Messages(parts[0], specs, layout)
        slices = jnp.stack([messages.pack(part) for part in parts])
        return messages.unpack(_add_slices(slices, num_shards, axis))
    restore = ravel_pytree(parts[0])[1]
    flat = jnp.stack([ravel_pytree(part)[0] for part in parts])
    size = flat.shape[1]
    flat = jnp.pad(flat, ((0, 0), (0, -size % num_devices)))
    total = _add_slices(flat.reshape(len(parts), num_devices, -1), num_shards, axis)
    return restore(jax.lax.all_gather(total, axis, tiled=True, to="invarying")[:size])


def _add_slices(slices: jax.Array, num_shards: int, axis: str | None) -> jax.Array:
    """[parts, devices, n]: what this device's shards add to each device's slice -> [n], the sum of this one's."""
    parts, devices, _ = slices.shape
    # [parts, devices, n] -> [devices, parts, n]: every device's parts of this device's slice, in shard order
    slices = jax.lax.all_to_all(slices, axis, split_axis=1, concat_axis=0, tiled=False)
    slices = slices.reshape(devices * parts, -1)
    return _tree_sum([slices[i] for i in range(num_shards)])


def global_norm(tree: Any, layout: Layout, specs: Any = REPLICATED) -> jax.Array:
    """The Euclidean norm [] of a tree of arrays, of which a device holds what `specs` say: all, or its rows.

    Its squares are added block by block (sharded.py), and the blocks along the tree.
    """
    num_blocks = layout.num_blocks if not layout.sharded else layout.blocks_per_device

    def blocks(array: jax.Array, spec: Any) -> jax.Array:
        """[blocks of this device, rows of a block, ...]"""
        if spec == REPLICATED:
            rows = layout.block_rows(array.shape) * num_blocks
            start = jax.lax.axis_index(layout.axis) * rows if layout.sharded else 0
            array = jax.lax.dynamic_slice_in_dim(filled(array, layout.filled(array.shape)[0]), start, rows)
        return array.reshape(num_blocks, -1, *array.shape[1:])

    def sum_of_squares(block: Any) -> jax.Array:
        return jnp.stack([jnp.sum(array * array) for array in jax.tree.leaves(block)]).sum()

    tree = jax.tree.map(blocks, tree, jax.tree.broadcast(specs, tree))
    sums = _each(isolated(sum_of_squares, layout), tree, unrolled=layout.accelerated)
    if layout.sharded:
        sums = list(jax.lax.all_gather(jnp.stack(sums), layout.axis, tiled=True)[: layout.num_blocks])
    return jnp.sqrt(_tree_sum(sums))


def _each(function: Callable[[Any], Sums], shards: Shards, unrolled: bool) -> list[Sums]:
    """`function` of each shard, one after the other: a batched vmap gives other bits."""
    count = jax.tree.leaves(shards)[0].shape[0]

    def pick(tree: Any, i: int) -> Any:
        return jax.tree.map(lambda x: x[i], tree)

    if unrolled and count <= _UNROLLED:
        return [function(pick(shards, i)) for i in range(count)]
    values = jax.lax.map(function, shards)
    return [pick(values, i) for i in range(count)]


def isolated(function: Callable[..., Any], layout: Layout) -> Callable[..., Any]:
    """`function` as a computation that XLA does not fuse with what is around it.

    What is around it depends on the device count: a loop over one shard, for instance, is no loop. Fused differently,
    the same arithmetic has other bits, because a multiplication and an addition in one kernel may be rounded once.
    XLA's CPU compiler drops optimization_barrier before it fuses, but not a call that it may not inline; on a GPU
    every operation in such a call would be a kernel of its own. There two products of one array become one: what the
    function uses must be among its arguments.
    """

    def call(*args: Any) -> Any:
        with set_xla_metadata(inlineable="false"):
            return jax.jit(function)(*args)

    def between_barriers(*args: Any) -> Any:
        return jax.lax.optimization_barrier(function(*jax.lax.optimization_barrier(args)))

    return between_barriers if layout.accelerated else call


def _tree_sum(parts: list[Sums]) -> Sums:
    while len(parts) > 1:
        odd = parts[-1:] if len(parts) % 2 else []
        parts = [_add(a, b) for a, b in zip(parts[0::2], parts[1::2], strict=False)] + odd
    return parts[0]


def _add(a: Sums, b: Sums) -> Sums:
    return jax.tree.map(jnp.add, a, b)
