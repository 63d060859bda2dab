"""A run's checkpoints in the host's memory, for those who only read, beside a run that is training or later.

They take no lock and change nothing.
"""

import re
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

from distmlp.cluster.group import Group
from distmlp.errors import InputError
from distmlp.parallel import backend
from distmlp.parallel.digest import host_digest
from distmlp.run.meta import Meta
from distmlp.run.store import Manager, check_digests, quiet, twice


class Stored(NamedTuple):
    """A checkpoint in the host's memory."""

    step: int
    meta: Meta
    arrays: dict[str, np.ndarray]  # by their names in meta["digests"], as ".params[0][0]"

    def verify(self) -> None:
        """Raises DamageError unless the arrays are those that were saved."""
        check_digests(self.meta, {name: host_digest(array) for name, array in self.arrays.items()})


def steps(run: Path) -> list[int]:
    """Steps of which the run has a checkpoint, intact or not, newest first.

    Raises:
      InputError: `run` is no run's folder, or has no checkpoint yet.
    """
    if not run.is_dir():
        raise InputError(f"{run} is no folder: give the --workdir of a run")
    if not (run / "run.flags").is_file():
        raise InputError(f"{run} holds no run: give the --workdir of one")
    folder = run / "checkpoints"
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
    found = sorted((int(name) for name in names if name.isdecimal()), reverse=True)
    if not found:
        raise InputError(f"{run} holds no checkpoint yet: wait, or save more often with --checkpoint_every_steps")
    return found


def read(run: Path, step: int) -> Stored:
    """The checkpoint of a step; raises DamageError unless it is what was saved."""
    stored = read_unverified(run, step)
    stored.verify()
    return stored


def read_unverified(run: Path, step: int) -> Stored:
    """The checkpoint of a step, whose arrays may be damaged; raises DamageError where it cannot be read at all."""
    backend.devices()  # starts JAX, with an error of ours if that fails; else Orbax would start it
    alone = Group()
    with quiet(), twice("its folder", lambda: Manager(run / "checkpoints", read_only=True), alone) as manager:
        meta = twice("its metadata", lambda: manager.read_meta(step), alone)
        return Stored(step, meta, twice("its arrays", lambda: _read_arrays(manager, step, meta), alone))


def _read_arrays(manager: Manager, step: int, meta: Meta) -> dict[str, np.ndarray]:
    saved = manager.item_metadata(step)["state"].tree
    target = jax.tree.map(lambda array: np.broadcast_to(np.zeros((), array.dtype), array.shape), saved)
    leaves = jax.tree.leaves_with_path(manager.read_state(step, target))
    arrays = {jax.tree_util.keystr(path): array for path, array in leaves}
    # On disk named tuples have become dictionaries: .params[0] is ['params'][0].
    return {name: arrays[re.sub(r"\.(\w+)", r"['\1']", name)] for name in meta["digests"]}
