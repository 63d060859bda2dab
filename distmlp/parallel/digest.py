"""One cheap digest of the state, computed on the devices: checkpoints carry it, and replicas are compared by it.

The digest of an array is the sum, modulo 2^32, of its 32-bit words, each mixed with its position by a one-to-one
function (MurmurHash3's last steps). One changed word, whatever its change, always shows; damage to more words goes
unseen once in 2^32 cases. Plain weights would not do: words times 1, 3, 5, ... give 0 for 64 equal words that end in
23 zero bits.
"""

import hashlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from distmlp.errors import DivergedError, ReplicaError
from distmlp.kept import kept

if TYPE_CHECKING:  # which those who only read checkpoints do not need
    from distmlp.parallel.layout import Layout


def array_digest(array: jax.Array) -> jax.Array:
    """The digest, uint32 [], of an array of a 32-bit type."""
    return jnp.sum(_mixed(jax.lax.bitcast_convert_type(array, jnp.uint32).ravel(), jnp), dtype=jnp.uint32)


def part_digest(part: jax.Array, start: jax.Array, rows: int, one_by_one: bool) -> tuple[jax.Array, jax.Array]:
    """What a part adds to the digest of an array of so many rows, and whether all its values are finite.

    Its own rows are those from number `start` on; behind the last one they do not count. `one_by_one`: they are taken
    so where XLA would write down, for all arrays at once, what it then adds up.
    """
    size = part.size // len(part)

    def of(some: jax.Array, first: jax.Array) -> tuple[jax.Array, jax.Array]:
        words = jax.lax.bitcast_convert_type(some, jnp.uint32).ravel()
        mixed = _mixed(words, jnp, first.astype(jnp.uint32) * jnp.uint32(size))
        count = jnp.clip(rows - first, 0, words.size // size) * size
        digest = jnp.sum(jnp.where(jnp.arange(words.size) < count, mixed, jnp.uint32(0)), dtype=jnp.uint32)
        return digest, jnp.isfinite(some).all()

    def add(i: jax.Array, total: tuple[jax.Array, jax.Array]) -> tuple[jax.Array, jax.Array]:
        digest, finite = of(part[i], start + i)
        return total[0] + digest, total[1] & finite

    if not one_by_one or part.ndim == 1:
        return of(part, start)
    return jax.lax.fori_loop(0, len(part), add, (jnp.uint32(0), jnp.array(True)))


def host_digest(array: np.ndarray) -> str:
    """The same of an array in the host's memory, computed there, as hexadecimal text."""
    return f"{int(_mixed(np.ascontiguousarray(array).view(np.uint32).ravel(), np).sum(dtype=np.uint32)):08x}"


def _mixed(words: Any, xp: Any, start: Any = 0) -> Any:
    """uint32 [N], each mixed with its position, which is counted from `start`; by the array module `xp`: jax.numpy or
    NumPy, whose uint32 arrays both wrap around."""
    mixed = words + (xp.arange(words.size, dtype=np.uint32) + xp.uint32(start)) * np.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    return mixed ^ (mixed >> 16)


def array_names(state: Any) -> list[str]:
    """What the arrays of a state are called, as ".params[0][0]", in their order; it may be abstract."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


class StateDigest:
    """Computes, on every device, the digests of a state that lies as `specs` say, and whether all values are finite.

    Of an array that lies by rows, each device computes what its rows add; `shapes` are then those of the whole arrays.
    """

    def __init__(self, layout: "Layout", specs: Any, shapes: Any = None) -> None:
        from distmlp.parallel.specs import BY_ROWS, hashable

        self._specs, self._by_rows = specs, BY_ROWS
        self._by_device = _digests(layout, *hashable((specs, shapes)))

    def lower(self, state: Any) -> jax.stages.Lowered:
        """The program, ready to be compiled, for states like this one, which may be abstract."""
        return self._by_device.lower(state)

    def check(self, state: Any, step: int) -> dict[str, str]:
        """Each array's digest as hexadecimal text, by its name.

        Raises:
          ReplicaError: two devices' copies differ, of what they all hold.
          DivergedError: a value is not finite.
        """
        by_device = self._by_device(state)
        if jax.process_count() > 1:
            with jax.transfer_guard("allow"):
                by_device = multihost_utils.process_allgather(by_device, tiled=True)
        digests, finite = np.split(np.asarray(by_device), [-1], axis=1)
        by_rows = [spec == self._by_rows for spec in jax.tree.leaves(jax.tree.broadcast(self._specs, state))]
        digests = np.where(by_rows, digests.sum(axis=0, dtype=np.uint32), digests)
        arrays = array_names(state)
        differing = np.argwhere(digests != digests[0])
        if len(differing):
            device, array = differing[0]
            raise ReplicaError(f"after step {step} the copies of {arrays[array]} on device 0 and device {device} "
                               "differ: a device or the memory may be faulty")
        if not finite.all():
            raise DivergedError(f"the parameters or the optimizer's state are not finite after step {step}")
        return {name: f"{int(digest):08x}" for name, digest in zip(arrays, digests[0], strict=True)}


@kept
def _digests(layout: "Layout", leaves: tuple[Any, ...], structure: Any) -> Any:
    """The program: a state -> uint32 [devices, arrays + 1], the last of which says whether all values are finite.

    The leaves are those of its specs and shapes.
    """
    from distmlp.parallel.specs import AXIS, BY_ROWS

    specs, shapes = jax.tree.unflatten(structure, leaves)

    def digest(leaf: jax.Array, spec: Any, shape: Any) -> tuple[jax.Array, jax.Array]:
        if spec == BY_ROWS:
            start = jax.lax.axis_index(AXIS) * len(leaf)
            return part_digest(leaf, start, shape.shape[0], one_by_one=not layout.accelerated)
        return array_digest(leaf), jnp.isfinite(leaf).all()

    def body(state: Any) -> jax.Array:
        trees = (state, jax.tree.broadcast(specs, state), state if shapes is None else shapes)
        digests, finite = zip(*map(digest, *map(jax.tree.leaves, trees)), strict=True)
        return jnp.append(jnp.stack(digests), jnp.array(finite).all().astype(jnp.uint32))[None]

    return layout.wrap_each(body, (specs,))


def params_sha256(params: Any) -> str:
    """SHA-256 over the parameters' bytes, arrays in tree order, which an iterator may give."""
    digest = hashlib.sha256()
    for leaf in params if isinstance(params, Iterator) else jax.tree.leaves(params):
        digest.update(np.asarray(leaf).ravel().data)
    return digest.hexdigest()
