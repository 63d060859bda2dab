"""Checkpoints with Orbax: saved in the background, verified array by array when restored."""

import contextlib
import gc
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from distmlp.cluster.group import Group
from distmlp.config import digest_json
from distmlp.errors import DivergedError, InputError, WriteError
from distmlp.parallel.digest import StateDigest
from distmlp.run.damage import PAUSE_SECONDS, DamageError, Meta, brief, check_digests, read_meta
from distmlp.run.workdir import new_path, sync

_TRASH = "trash"  # what is deleted is renamed into this folder first: a crash leaves no half of a checkpoint behind


class _Manager(ocp.CheckpointManager):  # type: ignore[misc]
    """Orbax's, which on each save would ask jax whether a preempted job is to stop at this step.

    jax counts such questions to find a point that all processes still have before them: only the loop may ask
    (Group.stop_point), or a SIGTERM is lost now and then.
    """

    def reached_preemption(self, step: int) -> bool:
        return False


class Checkpoints:
    """The checkpoints of one workdir, in WORKDIR/checkpoints/<step>: the newest `keep` of them, and the best."""

    def __init__(self, workdir: Path, digest: StateDigest, keep: int, group: Group) -> None:
        self.workdir, self.path, self._digest, self._group = workdir, workdir / "checkpoints", digest, group
        self._keep, self._best = keep, 0
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
        self._saver = ThreadPoolExecutor(1)
        self._rest_of_save: Callable[[], None] | None = None
        self._abandoned = False
        options = ocp.CheckpointManagerOptions(cleanup_tmp_directories=True, todelete_subdir=_TRASH)
        self._empty_trash()
        try:
            self._manager = _Manager(self.path, options=options, item_names=("state", "meta"))
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
        meta = {**meta, "step": step, "digests": self._digest.check(state, step)}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave({**meta, "digest": digest_json(meta)})
        )
        with self._errors():
            if not self._manager.save(step, args=args):
                raise RuntimeError(f"Orbax declined to save step {step}, it holds {self.steps()}")
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
        """Restores the newest checkpoint that is what was saved; None if there is none at all.

        Damaged ones, and whatever is newer than the one restored, are moved to WORKDIR/damaged: Orbax would decline
        to save their steps again. Damaged is what was twice found to be: an error of the moment is not.

        Args:
          target: a state of the right shapes and dtypes, placed where the restored one shall be; it may be abstract.
          check_meta: raises InputError if the checkpoint, though intact, is not of this run.

        Returns:
          the state, its meta, and a line for each checkpoint that was moved.

        Raises:
          InputError: there are checkpoints, but none is intact; nothing is changed.
        """
        self.wait()
        damaged: list[tuple[int, str]] = []
        for step in self._group.decide(self.steps()):  # a network file system may show another host fewer
            meta, reason = self._attempt(read_meta, self._manager, step)
            if meta is not None:
                check_meta(meta)
                state, reason = self._attempt(self._read_state, step, target, meta)
                if state is not None:
                    return state, meta, [self._move_away(*item) for item in damaged]
            damaged.append((step, reason))
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged)
            raise InputError(f"{self.path} holds no intact checkpoint ({reasons}): "
                             "bring one back from a copy, or give another --workdir to start anew")
        return None

    def intact(self, step: int, target: Any) -> Any:
        """The state of this step's checkpoint, or None if there is none or it is damaged; see `newest_intact`."""
        self.wait()
        meta, _ = self._attempt(lambda: read_meta(self._manager, step))
        return meta and self._attempt(lambda: self._read_state(step, target, meta))[0]

    def close(self) -> None:
        try:
            self.wait()
            with self._errors():
                self._manager.close()
        finally:
            self._saver.shutdown()
            if self._abandoned:
                gc.collect()  # coroutines of Orbax's failures, while `quiet` lasts

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise a dozen types for a full or failing disk
            self._abandoned = True
            self._manager.reload()  # its list counts the failed one
            raise WriteError(self.path, f"a checkpoint was not saved: {brief(error)}",
                             f"; intact checkpoints: {self.steps()[::-1]}") from None

    def _attempt(self, read: Callable[..., Any], *args: Any) -> tuple[Any, str]:
        """What `read` returns, if at the first or second try no process finds damage; else None and the reason."""
        for _ in range(2):
            value, reason = None, ""
            try:
                value = read(*args)
            except (DamageError, DivergedError) as error:
                reason = str(error)
            except Exception as error:  # damage surfaces as any of a dozen types, from Orbax, JSON and TensorStore
                if self._group.ended_elsewhere(error):
                    raise
                reason = f"it cannot be read ({brief(error)})"
            reasons = self._group.exchange(reason)
            if not any(reasons):
                return value, ""
            self._abandoned = True
            time.sleep(PAUSE_SECONDS)
        return None, reason or f"process {next(i for i, text in enumerate(reasons) if text)} cannot read it"

    def _read_state(self, step: int, target: Any, meta: Meta) -> Any:
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), target)
        state = self._manager.restore(step, args=ocp.args.Composite(state=ocp.args.StandardRestore(abstract)))["state"]
        check_digests(meta, self._digest.check(state, step))
        return self._copy(state)  # Orbax's arrays may not be donatable

    def _move_away(self, step: int, reason: str) -> str:
        target = new_path(self.workdir / "damaged" / str(step))
        if self._group.first:
            target.parent.mkdir(exist_ok=True)
            (self.path / str(step)).rename(target)
        target = Path(self._group.decide(str(target)))
        self._manager.reload()
        return f"checkpoint {step} is damaged ({reason}): moved to {target}"
