"""One cheap digest of the state, computed on the devices: checkpoints carry it, and replicas are compared by it.

The digest of an array is the sum, modulo 2^32, of its 32-bit words, each mixed with its position by a one-to-one
function (MurmurHash3's last steps). One changed word, whatever its change, always shows; damage to more words goes
unseen once in 2^32 cases. Plain weights would not do: words times 1, 3, 5, ... give 0 for 64 equal words that end in
23 zero bits.
"""

import hashlib
from typing import TYPE_CHECKING, Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils

from distmlp.errors import DivergedError, ReplicaError

if TYPE_CHECKING:  # imports torch, which those who only read checkpoints do not need
    from distmlp.parallel.layout import Layout


def array_digest(array: jax.Array) -> jax.Array:
    """The digest, uint32 [], of an array of a 32-bit type."""
    return _words_digest(jax.lax.bitcast_convert_type(array, jnp.uint32).ravel(), jnp)


def host_digest(array: np.ndarray) -> str:
    """The same of an array in the host's memory, computed there, as hexadecimal text."""
    return f"{int(_words_digest(np.ascontiguousarray(array).view(np.uint32).ravel(), np)):08x}"


def _words_digest(words: Any, xp: Any) -> Any:
    """The digest of uint32 [N], by the array module `xp`: jax.numpy or NumPy, whose uint32 arrays both wrap around."""
    mixed = words + xp.arange(words.size, dtype=np.uint32) * np.uint32(0x9E3779B9)
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        mixed = (mixed ^ (mixed >> shift)) * np.uint32(factor)
    return xp.sum(mixed ^ (mixed >> 16), dtype=np.uint32)


def array_names(state: Any) -> list[str]:
    """What the arrays of a state are called, as ".params[0][0]", in their order; it may be abstract."""
    return [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(state)]


class StateDigest:
    """Computes, on every device, the digests of a state that lies as `specs` say, and whether all values are finite."""

    def __init__(self, layout: "Layout", specs: Any) -> None:
        def body(state: Any) -> jax.Array:
            leaves = jax.tree.leaves(state)
            finite = jnp.array([jnp.isfinite(leaf).all() for leaf in leaves]).all()
            digests = jnp.stack([array_digest(leaf) for leaf in leaves])
            return jnp.append(digests, finite.astype(jnp.uint32))[None]

        self._by_device = layout.wrap_each(body, (specs,))

    def lower(self, state: Any) -> jax.stages.Lowered:
        """The program, ready to be compiled, for states like this one, which may be abstract."""
        return self._by_device.lower(state)

    def check(self, state: Any, step: int) -> dict[str, str]:
        """Each array's digest as hexadecimal text, by its name.

        Raises:
          ReplicaError: two devices' copies differ.
          DivergedError: a value is not finite.
        """
        by_device = self._by_device(state)
        if jax.process_count() > 1:
            with jax.transfer_guard("allow"):
                by_device = multihost_utils.process_allgather(by_device, tiled=True)
        digests, finite = np.split(np.asarray(by_device), [-1], axis=1)
        arrays = array_names(state)
        differing = np.argwhere(digests != digests[0])
        if len(differing):
            device, array = differing[0]
            raise ReplicaError(f"after step {step} the copies of {arrays[array]} on device 0 and device {device} "
                               "differ: a device or the memory may be faulty")
        if not finite.all():
            raise DivergedError(f"the parameters or the optimizer's state are not finite after step {step}")
        return {name: f"{int(digest):08x}" for name, digest in zip(arrays, digests[0], strict=True)}


def params_sha256(params: Any) -> str:
    """SHA-256 over the parameters' bytes, arrays in tree order."""
    return hashlib.sha256(b"".join(np.asarray(leaf).tobytes() for leaf in jax.tree.leaves(params))).hexdigest()
