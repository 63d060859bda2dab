"""A run's checkpoints, with Orbax: saved in the background, read and verified array by array.

A training run saves to a Store and goes on from it. Those who only read, beside a run that is training or later, use
`steps`, `read` and `read_unverified`: they need no lock and change nothing. A checkpoint is a folder
WORKDIR/checkpoints/<step> with two items:

    state  the arrays of the training state
    meta   JSON: what the run says of itself (resume.py), `step`, `digests` of the arrays by their names, and the
           `digest` of all of these
"""

import contextlib
import errno
import gc
import logging
import os
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

from distmlp.cluster.group import Group
from distmlp.config import digest_json
from distmlp.errors import DivergedError, InputError, WriteError
from distmlp.parallel import backend
from distmlp.parallel.digest import StateDigest, host_digest
from distmlp.run.workdir import new_path, sync

T = TypeVar("T")
Meta = dict[str, Any]  # the JSON values beside the arrays

_TRASH = "trash"  # what is deleted is renamed into this folder first: a crash leaves no half of a checkpoint behind
_PAUSE_SECONDS = 0.25  # between two tries to read: Orbax's threads may still be busy with the first
_CAUSES = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)]


class DamageError(Exception):
    """A checkpoint does not hold what was saved."""


class _Manager(ocp.CheckpointManager):  # type: ignore[misc]
    """Orbax's manager of a folder of checkpoints, which knows what each of them holds."""

    def __init__(self, folder: Path, **options: Any) -> None:
        handlers = {"state": ocp.StandardCheckpointHandler(), "meta": ocp.JsonCheckpointHandler()}
        super().__init__(folder.absolute(), options=ocp.CheckpointManagerOptions(**options), item_handlers=handlers)

    def reached_preemption(self, step: int) -> bool:
        """Orbax would ask jax, on each save, whether a preempted job is to stop at this step.

        jax counts such questions to find a point that all processes still have before them: only the loop may ask
        (Group.stop_point), or a SIGTERM is lost now and then.
        """
        return False

    def write(self, step: int, state: Any, meta: Meta, digests: dict[str, str]) -> None:
        """Begins to save; `wait_until_finished` and `check_for_errors` tell how it went."""
        meta = {**meta, "step": step, "digests": digests}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({**meta, "digest": digest_json(meta)})
        )
        if not self.save(step, args=args):
            raise RuntimeError(f"Orbax declined to save step {step}, it holds {sorted(self.all_steps(), reverse=True)}")

    def read_meta(self, step: int) -> Meta:
        meta: Meta = dict(self.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])
        if meta.pop("digest") != digest_json(meta) or meta["step"] != step:
            raise DamageError("its metadata is not what was saved")
        return meta

    def read_state(self, step: int, target: Any) -> Any:
        """Arrays that are still to be verified; each has the shape, type and place of the one in `target`."""
        return self.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(target)))["state"]


def _check_digests(meta: Meta, digests: dict[str, str]) -> None:
    """Raises DamageError unless these digests, by array name, are those of the arrays that were saved."""
    wrong = [name for name, digest in digests.items() if meta["digests"].get(name) != digest]
    if wrong or digests.keys() != meta["digests"].keys():
        raise DamageError(f"{', '.join(wrong) or 'its list of arrays'} is not what was saved")


def _twice(what: str, read: Callable[[], T], group: Group) -> T:
    """What `read` returns, in all processes of the group; where it fails in one, all try once more; a collective.

    Raises:
      DamageError: the second try failed, too.
    """
    for _ in range(2):
        value: Any = None
        reason = ""
        try:
            value = read()
        except (DamageError, DivergedError) as error:
            reason = str(error)
        except Exception as error:  # damage surfaces as any of a dozen types, from Orbax, JSON and TensorStore
            if group.ended_elsewhere(error):
                raise
            reason = f"{what} cannot be read ({_brief(error)})"
        reasons = group.exchange(reason)
        if not any(reasons):
            return value
        time.sleep(_PAUSE_SECONDS)
        gc.collect()  # the coroutines that Orbax has abandoned: while `quiet` lasts, for they complain
    raise DamageError(reason or f"process {next(i for i, text in enumerate(reasons) if text)} cannot read it")


class Store:
    """The checkpoints of the run in a workdir: the newest `keep` of them, and the best."""

    def __init__(self, workdir: Path, digest: StateDigest, keep: int, group: Group) -> None:
        self.workdir, self.path, self._digest, self._group = workdir, workdir / "checkpoints", digest, group
        self._keep, self._best = keep, 0
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
        self._saver = ThreadPoolExecutor(1)
        self._rest_of_save: Callable[[], None] | None = None
        self._failed = False
        self._empty_trash()
        try:
            self._manager = _Manager(self.path, cleanup_tmp_directories=True, todelete_subdir=_TRASH)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written to ({error.strerror}): "
                             "make room or give another --workdir") from None

    def steps(self) -> list[int]:
        """Steps of which a checkpoint is listed, intact or not, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: Any, meta: Meta, best: int = 0) -> None:
        """Copies the state and writes the copy in the background, its digests and `meta` beside it.

        Training can go on, and donate the state, when this returns. What goes wrong shows in the next `wait` or `save`.
        Once it is on disk, all others but the newest and that of step `best` are deleted.

        Raises:
          DivergedError: a value is not finite, or the devices' copies differ; nothing was saved.
          WriteError: this or the previous save failed; the checkpoints listed before are intact.
        """
        self.wait()
        self._best = best
        if self._group.several:  # digests and Orbax exchange by collectives, which must keep their order
            self._save(step, state, meta)
            self._rest_of_save = self._finish
        else:
            self._rest_of_save = self._saver.submit(self._save, step, self._copy(state), meta).result

    def _save(self, step: int, state: Any, meta: Meta) -> None:
        digests = self._digest.check(state, step)
        with self._errors():
            self._manager.write(step, state, meta, digests)
        if not self._group.several:
            self._finish()

    def _finish(self) -> None:
        """Waits until what was saved is listed, has the disk hold it, and only then deletes others."""
        with self._errors():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        newest, *others = self._group.decide(self.steps())
        with self._errors():
            if self._group.first:
                folder = self.path / str(newest)
                for path in [*folder.rglob("*"), folder, self.path]:
                    sync(path)
            for step in others[self._keep - 1 :]:
                if step != self._best:
                    self._manager.delete(step)
            self._empty_trash()

    def _empty_trash(self) -> None:
        if self._group.first:
            shutil.rmtree(self.path / _TRASH, ignore_errors=True)

    def wait(self) -> None:
        """Waits for the save in the background, and raises what went wrong in it: see `save`."""
        rest, self._rest_of_save = self._rest_of_save, None
        if rest is not None:
            rest()

    def newest_intact(self, target: Any, check_meta: Callable[[Meta], None]) -> tuple[Any, Meta, list[str]] | None:
        """The newest checkpoint that is what was saved: its state, its meta and a line for each one that is damaged.

        The damaged ones, all newer, are moved to WORKDIR/damaged: Orbax would decline to save their steps again.
        `target` is a state of the right shapes and dtypes, placed where the restored one shall be; it may be abstract.
        `check_meta` raises InputError if a checkpoint, though intact, is not of this run. None: there is none at all.

        Raises:
          InputError: there are checkpoints, but none is intact; nothing is changed.
        """
        self.wait()
        damaged: list[tuple[int, str]] = []
        for step in self._group.decide(self.steps()):  # a network file system may show another host fewer
            try:
                state, meta = self._read(step, target, check_meta)
            except DamageError as error:
                damaged.append((step, str(error)))
            else:
                return state, meta, [self._move_away(*item) for item in damaged]
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged)
            raise InputError(f"{self.path} holds no intact checkpoint ({reasons}): "
                             "bring one back from a copy, or give another --workdir to start anew")
        return None

    def intact(self, step: int, target: Any) -> Any:
        """The state of this step's checkpoint, or None if there is none or it is damaged; see `newest_intact`."""
        self.wait()
        with contextlib.suppress(DamageError):
            return self._read(step, target)[0]
        return None

    def _read(self, step: int, target: Any, check_meta: Callable[[Meta], None] = lambda meta: None) -> tuple[Any, Meta]:
        """State and meta of a checkpoint; see `newest_intact`, and `_twice` for what it raises."""
        meta = _twice("its metadata", lambda: self._manager.read_meta(step), self._group)
        check_meta(meta)
        return _twice("it", lambda: self._read_state(step, target, meta), self._group), meta

    def _read_state(self, step: int, target: Any, meta: Meta) -> Any:
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), target)
        state = self._manager.read_state(step, abstract)
        _check_digests(meta, self._digest.check(state, step))
        return self._copy(state)  # Orbax's arrays may not be donatable

    def _move_away(self, step: int, reason: str) -> str:
        target = new_path(self.workdir / "damaged" / str(step))
        if self._group.first:
            target.parent.mkdir(exist_ok=True)
            (self.path / str(step)).rename(target)
        target = Path(self._group.decide(str(target)))
        self._manager.reload()
        return f"checkpoint {step} is damaged ({reason}): moved to {target}"

    def close(self) -> None:
        try:
            self.wait()
            with self._errors():
                self._manager.close()
        finally:
            self._saver.shutdown()
            if self._failed:
                gc.collect()  # as in `_twice`

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise a dozen types for a full or failing disk
            self._failed = True
            self._manager.reload()  # its list counts the failed one
            raise WriteError(self.path, f"a checkpoint was not saved: {_brief(error)}",
                             f"; intact checkpoints: {self.steps()[::-1]}") from None


class Stored(NamedTuple):
    """A checkpoint in the host's memory."""

    step: int
    meta: Meta
    arrays: dict[str, np.ndarray]  # by their names in meta["digests"], as ".params[0][0]"

    def verify(self) -> None:
        """Raises DamageError unless the arrays are those that were saved."""
        _check_digests(self.meta, {name: host_digest(array) for name, array in self.arrays.items()})


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
    backend.devices()  # before Orbax starts JAX and fails as JAX does
    alone = Group()
    with quiet(), _twice("its folder", lambda: _Manager(run / "checkpoints", read_only=True), alone) as manager:
        meta = _twice("its metadata", lambda: manager.read_meta(step), alone)
        return Stored(step, meta, _twice("its arrays", lambda: _read_arrays(manager, step, meta), alone))


def _read_arrays(manager: _Manager, step: int, meta: Meta) -> dict[str, np.ndarray]:
    saved = manager.item_metadata(step)["state"].tree
    target = jax.tree.map(lambda array: np.broadcast_to(np.zeros((), array.dtype), array.shape), saved)
    leaves = jax.tree.leaves_with_path(manager.read_state(step, target))
    arrays = {jax.tree_util.keystr(path): array for path, array in leaves}
    # On disk a tree of named tuples is one of dictionaries: .params[0] is ['params'][0].
    return {name: arrays[re.sub(r"\.(\w+)", r"['\1']", name)] for name in meta["digests"]}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silences, while it lasts, what Orbax logs, for it raises that, too, and the coroutines that it abandons then."""
    hook, absl = sys.unraisablehook, logging.getLogger("absl")

    def unraisable(found: Any) -> None:
        code = getattr(found.object, "cr_code", None)
        from_orbax = code is not None and "orbax" in code.co_filename
        if not from_orbax and str(found.exc_value) != "Event loop is closed":
            hook(found)

    def from_others(record: logging.LogRecord) -> bool:
        return "orbax" not in record.pathname

    sys.unraisablehook = unraisable
    absl.addFilter(from_others)
    try:
        yield
    finally:
        sys.unraisablehook = hook
        absl.removeFilter(from_others)


def _brief(error: BaseException) -> str:
    """An error in a few words; TensorStore's and Orbax's have hundreds of lines."""
    for cause in _CAUSES:
        if cause in str(error):
            return cause
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].split('. See ')[0][:200]}" if lines else type(error).__name__
