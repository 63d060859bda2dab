"""How Orbax writes arrays that lie by rows: each process the rows of its devices, in the shape that the network knows.

On the devices such arrays are filled up, for jax deals nothing unevenly (parallel/sharded.py), and Orbax would save
them so. Here what lies behind the last row is left out: a checkpoint does not tell how its state was held.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint._src.arrays import fragments
from orbax.checkpoint._src.serialization import jax_array_handlers, replica_slices

_CHUNK_BYTES = 16 << 20  # of a chunk on disk: who reads a part of an array reads few rows beyond it


@dataclasses.dataclass
class SaveRows(ocp.SaveArgs):  # type: ignore[misc]
    """Of an array, only the first `rows` are saved."""

    rows: int = 0


@dataclasses.dataclass(frozen=True)
class _HostRows(replica_slices.ReplicaSlices):  # type: ignore[misc]
    """What this process writes of an array, in its memory: pieces that need not have as many rows, unlike Orbax's."""

    def to_fragments(self) -> fragments.ConcreteFragments:
        pieces = [fragments.ConcreteFragment(index=piece.index, value=piece.unsliced_data)
                  for piece in self.replica_slices]
        return fragments.ConcreteFragments(shape=self.global_shape, dtype=self.dtype, fragments=pieces)


class _Handler(ocp.type_handlers.ArrayHandler):  # type: ignore[misc]
    """Orbax's handler of arrays, which also knows SaveRows."""

    async def serialize(
        self, values: Sequence[jax.Array], infos: Sequence[Any], args: Sequence[ocp.SaveArgs] | None = None
    ) -> Sequence[Any]:
        args = args or [ocp.SaveArgs()] * len(values)
        here = [_rows(value, arg.rows) if isinstance(arg, SaveRows) else
                replica_slices.transfer_arrays_to_host([value], self._replica_id, self._use_replica_parallel)[0]
                for value, arg in zip(values, args, strict=True)]
        writing = jax_array_handlers._async_serialize_replica_slices(
            here, infos, args, primary_host=self._primary_host, metadata_key=self._metadata_key,
            array_metadata_store=None, enable_replica_parallel_separate_folder=False,
            use_replica_parallel=self._use_replica_parallel, ext_metadata={})  # fmt: skip
        return [ocp.future.CommitFutureAwaitingContractedSignals(writing, name="rows")]

    async def deserialize(
        self, infos: Sequence[Any], args: Sequence[ocp.RestoreArgs] | None = None
    ) -> Sequence[jax.Array]:
        """One after the other, for the memory in which one was read is free for the next one only once it is moved."""
        return [moved(*await super(_Handler, self).deserialize([info], [arg]))
                for info, arg in zip(infos, args or [], strict=True)]


def moved(array: jax.Array) -> jax.Array:
    """A copy of an array, whose own memory is freed. (Orbax's may not be donatable.)"""
    copy = jax.block_until_ready(_copy(array))
    array.delete()
    return copy


_copy = jax.jit(jnp.copy)


def _rows(array: jax.Array, rows: int) -> _HostRows:
    pieces = []
    for shard in array.addressable_shards:
        start, stop, _ = shard.index[0].indices(len(array))
        if start < rows:
            index = tuple(slice(*part.indices(size)) for part, size in zip(shard.index, array.shape, strict=True))
            data = np.asarray(shard.data)[: rows - start]
            pieces.append(replica_slices.ReplicaSlice((slice(start, min(stop, rows), 1), *index[1:]), data, None))
    shape = array.sharding.shard_shape(array.shape)
    return _HostRows((rows, *array.shape[1:]), (min(shape[0], rows), *shape[1:]), array.sharding, array.dtype, True,
                     pieces)  # fmt: skip


def handler(shapes: Any) -> ocp.PyTreeCheckpointHandler:
    """Orbax's handler of a state, for one that lies by rows and whose arrays have these shapes when they are whole.

    What it writes is as the usual one's. In between, it holds about one array in the host's memory.
    """
    largest = max(shape.size * shape.dtype.itemsize for shape in jax.tree.leaves(shapes)) + (1 << 20)
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, _Handler()))
    # Who reads a few rows may have to read all of an array: at most twice as many, as Orbax counts, with its chunks.
    return ocp.PyTreeCheckpointHandler(
        save_concurrent_gb=largest / 1e9, restore_concurrent_gb=2 * largest / 1e9, type_handler_registry=registry)


def to_save(state: Any, shapes: Any) -> ocp.args.PyTreeSave:
    """A state of arrays that have these shapes when they are whole, for `handler`."""

    def of(array: jax.Array, shape: Any) -> ocp.SaveArgs:
        if array.is_fully_replicated:
            return ocp.SaveArgs()
        return SaveRows(rows=shape.shape[0], chunk_byte_size=_CHUNK_BYTES)

    return ocp.args.PyTreeSave(state, jax.tree.map(of, state, shapes))


def to_restore(target: Any) -> ocp.args.PyTreeRestore:
    """What `handler` is to restore: like `target`, which may be abstract; what it has more rows of becomes zeros.

    It would as well cut off what `target` has fewer of: the digests show that.
    """
    args = ocp.checkpoint_utils.construct_restore_args(target)
    return ocp.args.PyTreeRestore(target, jax.tree.map(lambda arg: dataclasses.replace(arg, strict=False), args))
