"""Sharded state (ZeRO): each device holds, updates and saves its rows of every array, and the whole is gathered.

An array of n rows is filled up with rows of zeros and cut into V blocks of ceil(n / V) rows each. Device d of D holds
blocks [d*k, (d+1)*k) with k = ceil(V / D), as it computes shards of a batch; blocks from V on are empty. With
--reduction=invariant V is the number of shards, which no device changes, so that a sum over blocks along one tree has
the same bits anywhere; else there is a block for each device.

Rows, rather than parts of a flattened array: then a filled-up array is the array itself with rows behind it, which
every compiler gathers and scatters as such, and a place in it is the same number in both.
"""

import dataclasses
import functools
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from distmlp import model
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import BY_ROWS, REPLICATED, State, of_state

_SMALL, _SHORT = 1 << 20, 64  # numbers of an array, and of a row
Rows = tuple[int, ...]  # of each array of a tree, in its leaves' order; 0: a single number, which all devices hold


def rows_of(tree: Any) -> Rows:
    """How many rows the arrays of a tree have when they are whole."""
    return tuple(array.shape[0] if array.size > 1 else 0 for array in jax.tree.leaves(tree))


def specs_of(tree: Any, rows: Rows) -> Any:
    """The specs of a tree of arrays that have so many rows when they are whole."""
    return jax.tree.unflatten(jax.tree.structure(tree), [BY_ROWS if n else REPLICATED for n in rows])


def filled(array: jax.Array, rows: int) -> jax.Array:
    """The array with rows of zeros behind it, so many in all."""
    return jnp.pad(array, [(0, rows - len(array)), *[(0, 0)] * (array.ndim - 1)])


def gather(parts: Any, rows: Rows, layout: Layout) -> Any:
    """Whole arrays of so many rows, on every device, from each device's part of them: inside the wrapping."""
    all_leaves, structure = jax.tree.flatten(parts)
    leaves = [leaf for leaf, n in zip(all_leaves, rows, strict=True) if n]
    if not layout.over_gloo:
        whole = [jax.lax.all_gather(leaf, layout.axis, tiled=True) for leaf in leaves]
    else:  # one message, which costs two copies
        flat = jnp.concatenate([leaf.ravel() for leaf in leaves])
        table = jax.lax.all_gather(flat, layout.axis)  # [devices, elements]
        columns = jnp.split(table, np.cumsum([leaf.size for leaf in leaves])[:-1].tolist(), axis=1)
        whole = [column.reshape(-1, *leaf.shape[1:]) for column, leaf in zip(columns, leaves, strict=True)]
    gathered = iter(whole)
    return jax.tree.unflatten(structure, [next(gathered)[:n] if n else leaf
                                          for leaf, n in zip(all_leaves, rows, strict=True)])  # fmt: skip


class Messages:
    """What devices send one another for each to add up its part of a sum: a vector for every device.

    Args:
      like: a tree of arrays as they are summed.
      specs: of the sums: REPLICATED ones go whole to every device, of others each device gets its rows.
    """

    def __init__(self, like: Any, specs: Any, layout: Layout) -> None:
        self._layout, (self._leaves, self._structure) = layout, jax.tree.flatten(like)
        self._by_rows = [spec == BY_ROWS for spec in jax.tree.leaves(jax.tree.broadcast(specs, like))]

    def pack(self, tree: Any) -> jax.Array:
        """[devices, elements]"""
        count = len(self._layout.devices)
        parts = [filled(leaf, self._layout.filled(leaf.shape)[0]) if by_rows else
                 jnp.broadcast_to(leaf, (count, *leaf.shape))
                 for leaf, by_rows in zip(jax.tree.leaves(tree), self._by_rows, strict=True)]
        return jnp.concatenate([part.reshape(count, -1) for part in parts], axis=1)

    def unpack(self, total: jax.Array) -> Any:
        """The tree of this device's sums, from its vector of [elements]."""
        count = len(self._layout.devices)
        shapes = [(self._layout.filled(leaf.shape)[0] // count, *leaf.shape[1:]) if by_rows else leaf.shape
                  for leaf, by_rows in zip(self._leaves, self._by_rows, strict=True)]
        ends = np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1].tolist()
        parts = [part.reshape(shape) for part, shape in zip(jnp.split(total, ends), shapes, strict=True)]
        return jax.tree.unflatten(self._structure, parts)


@dataclasses.dataclass(frozen=True, eq=False)
class StateLayout:
    """How a state lies on the devices: the same to all who place, save, compare or gather it, sharded or replicated."""

    layout: Layout
    shapes: State  # abstract: the arrays as the network knows them, not filled up

    @functools.cached_property
    def specs(self) -> State:
        return of_state(self.shapes, self.layout.sharded)

    @property
    def bytes(self) -> int:
        """Of a device's part of it."""
        return sum(math.prod(array.sharding.shard_shape(array.shape)) * array.dtype.itemsize
                   for array in jax.tree.leaves(self.abstract))  # fmt: skip

    @functools.cached_property
    def abstract(self) -> State:
        """Shapes, dtypes and placements of the arrays on the devices: enough to compile for them, and to restore."""

        def place(array: Any, spec: Any) -> jax.ShapeDtypeStruct:
            shape = self.layout.filled(array.shape) if spec == BY_ROWS else array.shape
            return jax.ShapeDtypeStruct(shape, array.dtype, sharding=self.layout.sharding(spec))

        return jax.tree.map(place, self.shapes, jax.tree.broadcast(self.specs, self.shapes))

    def normal(self, key: jax.Array, shape: tuple[int, ...], dtype: Any) -> jax.Array:
        """jax.random.normal's numbers, of an array that lies by rows: of a large one each device makes its own."""
        if math.prod(shape) == 1:
            return self.layout.put(np.asarray(jax.random.normal(key, shape, dtype)), REPLICATED)
        size, sharding = self.layout.filled(shape), self.layout.sharding(BY_ROWS)
        short = math.prod(shape[1:]) < _SHORT and len(shape) > 1
        by_position = jax.config.jax_threefry_partitionable  # type: ignore[attr-defined] # of this thread
        if not by_position or str(jax.random.key_impl(key)) != "threefry2x32" or math.prod(shape) < _SMALL or short:
            # Numbers that depend on all of the shape: made whole, one array at a time, and cut. Those of small arrays
            # and of short rows do, for XLA unrolls short loops, and may round there otherwise: with jax 0.12 it does.
            behind = [(0, size[0] - shape[0]), *[(0, 0)] * (len(shape) - 1)]
            whole = np.pad(jax.random.normal(key, shape, dtype), behind)
            return jax.make_array_from_callback(size, sharding, lambda index: whole[index])

        def draw(key: jax.Array) -> jax.Array:  # a number depends on its position only: more rows change none
            counted = jax.lax.broadcasted_iota(jnp.int32, size, 0) < shape[0]
            return jnp.where(counted, jax.random.normal(key, size, dtype), jnp.zeros((), dtype))

        return jax.block_until_ready(jax.jit(draw, out_shardings=sharding)(key))  # one at a time in memory

    def whole(self, params: model.Params) -> model.Params:
        """The parameters as the network knows them: those of which rows are filled up become whole on all devices."""

        def cut(array: jax.Array, shape: Any) -> jax.Array:
            if array.shape == shape.shape:
                return array
            sharding = self.layout.sharding(REPLICATED)
            return jax.jit(lambda array: array[: shape.shape[0]], out_shardings=sharding)(array)

        return jax.tree.map(cut, params, self.shapes.params)

    def arrays(self, params: model.Params) -> Iterator[np.ndarray]:
        """The parameters' arrays in the host's memory, one after the other; a collective of all processes."""
        for array, shape in zip(jax.tree.leaves(params), jax.tree.leaves(self.shapes.params), strict=True):
            if not array.is_fully_addressable and not array.is_fully_replicated:
                array = multihost_utils.process_allgather(array, tiled=True)
            yield np.asarray(array)[: shape.shape[0]]
