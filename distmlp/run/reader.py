"""A run's checkpoints for those who only read: verified as in training, beside it, without the folder's lock."""

import contextlib
import gc
import re
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
import orbax.checkpoint as ocp

from distmlp.errors import InputError
from distmlp.parallel import backend
from distmlp.parallel.digest import host_digest
from distmlp.run.damage import PAUSE_SECONDS, DamageError, Meta, brief, check_digests, quiet, read_meta
from distmlp.run.metrics import Metrics, best

_ATTEMPTS = 10  # a training run may delete a checkpoint while it is read


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


def read(run: Path, checkpoint: str = "") -> Stored:
    """A checkpoint of a run, whose training may be going on; nothing in the folder is changed.

    Args:
      run: its folder.
      checkpoint: best (by metrics.jsonl), newest, or a step's number; empty: best if the run knows one, else newest.

    Raises:
      InputError: there is no such run or checkpoint, or it is damaged.
    """
    for _ in range(_ATTEMPTS):
        step = _choose(run, checkpoint)
        try:
            stored = read_unverified(run, step)
            stored.verify()
            return stored
        except DamageError as error:
            if (run / "checkpoints" / str(step)).is_dir():
                others = [str(other) for other in steps(run) if other != step]
                remedy = f"give --checkpoint={' or '.join(others)}" if others else "bring it back from a copy"
                raise InputError(f"checkpoint {step} of {run} is damaged ({error}): {remedy}") from None
    raise InputError(f"the checkpoints of {run} are deleted faster than they can be read: "
                     "try again, or train with a larger --keep_checkpoints")


def _choose(run: Path, checkpoint: str) -> int:
    found = steps(run)
    if checkpoint == "newest":
        return found[0]
    if checkpoint in ("", "best"):
        history = Metrics(run / "metrics.jsonl", quiet=True).history
        step = best([line for line in history if line["step"] in found])["step"]
        if not step and checkpoint:
            raise InputError(f"--checkpoint=best: no checkpoint of {run} was evaluated; give --checkpoint=newest")
        return int(step) or found[0]
    if not checkpoint.isdecimal():
        raise InputError(f"--checkpoint={checkpoint}: give best, newest or a step's number")
    if int(checkpoint) not in found:
        raise InputError(f"--checkpoint={checkpoint}: {run} has those of step {', '.join(map(str, found))}")
    return int(checkpoint)


def read_unverified(run: Path, step: int) -> Stored:
    """The checkpoint of a step, whose arrays may be damaged; raises DamageError where it cannot be read at all.

    That is what fails twice: Orbax looks at all checkpoints, of which the run may delete one meanwhile.
    """
    with quiet():
        with contextlib.suppress(DamageError):
            return _attempt(run / "checkpoints", step)
        return _attempt(run / "checkpoints", step)


def _attempt(folder: Path, step: int) -> Stored:
    try:
        return _read(folder, step)
    except DamageError:
        time.sleep(PAUSE_SECONDS)
        gc.collect()  # what Orbax abandons: within `quiet`, for it complains
        raise


def _read(folder: Path, step: int) -> Stored:
    backend.devices()  # before Orbax starts JAX and fails as JAX does
    handlers = {"state": ocp.PyTreeCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
    options = ocp.CheckpointManagerOptions(read_only=True)
    try:
        manager = ocp.CheckpointManager(folder.absolute(), options=options, item_handlers=handlers)
    except Exception as error:  # the folder may change meanwhile
        raise DamageError(brief(error)) from error
    with manager:
        meta = read_meta(manager, step)
        try:
            tree = manager.item_metadata(step)["state"].tree
            host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
            args = ocp.args.Composite(state=ocp.args.PyTreeRestore(restore_args=host))
            state = manager.restore(step, args=args)["state"]
            return Stored(step, meta, {name: _leaf(state, name) for name in meta["digests"]})
        except Exception as error:  # damage surfaces as any of a dozen types, from Orbax and TensorStore
            raise DamageError(f"its arrays cannot be read ({brief(error)})") from error


def _leaf(tree: Any, name: str) -> np.ndarray:
    """The array with a name as of jax.tree_util.keystr, in a tree of lists and dictionaries."""
    for attribute, index, key in re.findall(r"\.(\w+)|\[(\d+)\]|\['(.+?)'\]", name):
        tree = tree[int(index)] if index else tree[attribute or key]
    return np.asarray(tree)
