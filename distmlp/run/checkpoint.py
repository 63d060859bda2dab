"""Checkpoints with Orbax: saved in the background, verified array by array when restored."""

import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from distmlp.cluster import group
from distmlp.config import InputError, digest_json
from distmlp.parallel.digest import DivergedError, StateDigest
from distmlp.run.manager import TRASH, Manager, brief
from distmlp.run.workdir import WriteError

Meta = dict[str, Any]  # JSON values beside the arrays: step, settings, digests, sums for the log


class CheckpointError(WriteError):
    """A checkpoint could not be written; the earlier ones are intact."""


class DamageError(Exception):
    """A checkpoint does not hold what was saved."""


class Checkpoints:
    """The checkpoints of one workdir, in WORKDIR/checkpoints/<step>.

    Args:
      workdir: the run's folder; this process holds its lock.
      digest: computes and checks the state's digests.
      keep: how many of the newest to keep.
      best_step: which of some steps is the best one, if any is known to be; kept besides.
    """

    def __init__(
        self, workdir: Path, digest: StateDigest, keep: int, best_step: Callable[[Sequence[int]], int | None]
    ) -> None:
        self.workdir, self.path, self._digest = workdir, workdir / "checkpoints", digest
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
        self._saver = ThreadPoolExecutor(1)
        self._saving: Future[None] | None = None
        try:
            if group.is_first():
                self.path.mkdir(exist_ok=True)
                for leftover in self.path.glob("*.orbax-checkpoint-tmp*"):  # of a save that a crash cut short
                    shutil.rmtree(leftover)
                self._empty_trash()
            group.decide(True)
            self._manager = Manager(self.path, keep, best_step)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written to ({error.strerror}): "
                             "make room or give another --workdir") from None

    def steps(self) -> list[int]:
        """Steps of which a checkpoint is listed, intact or not, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: Any, meta: Meta) -> None:
        """Copies the state and writes the copy in the background, its digests and `meta` beside it.

        Training can go on, and donate the state, when this returns. What goes wrong shows in the next `wait` or `save`.

        Raises:
          DivergedError: a value is not finite, or the devices' copies differ; nothing was saved.
          CheckpointError: this or the previous save failed.
        """
        self.wait()
        if jax.process_count() > 1:  # digests and Orbax exchange by collectives, which must keep their order
            self._save(step, state, meta)
        else:
            self._saving = self._saver.submit(self._save, step, self._copy(state), meta)

    def _save(self, step: int, state: Any, meta: Meta) -> None:
        meta = {**meta, "step": step, "digests": self._digest.check(state, step)}
        meta["digest"] = digest_json(meta)
        failed: CheckpointError | None = None
        try:
            saved = self._manager.save(
                step, args=ocp.args.Composite(state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta))
            )
        except Exception as error:  # Orbax and TensorStore raise a dozen types for a full or failing disk
            saved, failed = False, self._failed(error)
        if not saved:
            raise failed or CheckpointError(self.path, f"Orbax declined to save step {step}, it holds {self.steps()}")

    def wait(self) -> None:
        """Waits for the save in the background, and raises what went wrong in it: see `save`."""
        saving, self._saving = self._saving, None
        if saving is not None:
            saving.result()
        self._finish(self._manager.wait_until_finished, self._manager.check_for_errors)
        if group.is_first():
            self._empty_trash()

    def newest_intact(self, target: Any, check_meta: Callable[[Meta], None]) -> tuple[Any, Meta, list[str]] | None:
        """Restores the newest checkpoint that is what was saved; None if there is none at all.

        Damaged ones, and whatever is newer than the one restored, are moved to WORKDIR/damaged: Orbax would decline
        to save their steps again.

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
        for step in self.steps():
            meta, reason = self._attempt(lambda step=step: self._read_meta(step))  # type: ignore[misc]
            if meta is not None:
                check_meta(meta)
                state, reason = self._attempt(lambda step=step, m=meta: self._read_state(step, target, m))  # type: ignore[misc]
                if state is not None:
                    return state, meta, [self._move_away(*item) for item in damaged]
            damaged.append((step, reason))
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged)
            raise InputError(f"{self.path} holds no intact checkpoint ({reasons}): "
                             "bring one back from a copy, or give another --workdir to start anew")
        return None

    def close(self) -> None:
        self.wait()
        self._finish(self._manager.close)
        self._saver.shutdown()

    def _finish(self, *actions: Callable[[], Any]) -> None:
        failed: CheckpointError | None = None
        try:
            for action in actions:
                action()
        except Exception as error:  # Orbax and TensorStore raise a dozen types for a full or failing disk
            failed = self._failed(error)
        if failed is not None:
            raise failed

    def _attempt(self, read: Callable[[], Any]) -> tuple[Any, str]:
        """What `read` returns, if no process finds damage; else None and the reason."""
        try:
            value, reason = read(), ""
        except DamageError as error:
            value, reason = None, str(error)
        intact = group.gather(not reason)
        if intact.all():
            return value, ""
        return None, reason or f"process {intact.argmin()} cannot read it"

    def _read_meta(self, step: int) -> Meta:
        try:
            restored = self._manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
            meta: Meta = dict(restored["meta"])
            digest = meta.pop("digest")
        except Exception as error:  # damage surfaces as any of a dozen types, from Orbax, JSON and TensorStore
            raise DamageError(f"its metadata cannot be read ({brief(error)})") from error
        if digest != digest_json(meta) or meta["step"] != step:
            raise DamageError("its metadata is not what was saved")
        return meta

    def _read_state(self, step: int, target: Any, meta: Meta) -> Any:
        abstract = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype, sharding=a.sharding), target)
        try:
            args = ocp.args.Composite(state=ocp.args.StandardRestore(abstract))
            state = self._manager.restore(step, args=args)["state"]
        except Exception as error:  # as above
            raise DamageError(f"its arrays cannot be read ({brief(error)})") from error
        try:
            digests = self._digest.check(state, step)
        except DivergedError as error:
            raise DamageError(str(error)) from error
        wrong = [name for name, digest in digests.items() if meta["digests"].get(name) != digest]
        if wrong or digests.keys() != meta["digests"].keys():
            raise DamageError(f"{', '.join(wrong) or 'its list of arrays'} is not what was saved")
        return self._copy(state)  # Orbax's arrays may not be donatable

    def _move_away(self, step: int, reason: str) -> str:
        folder = self.workdir / "damaged"
        target, n = folder / str(step), 1
        while target.exists():
            n += 1
            target = folder / f"{step}-{n}"
        group.decide(True)  # all have chosen the name
        if group.is_first():
            folder.mkdir(exist_ok=True)
            (self.path / str(step)).rename(target)
        group.decide(True)
        self._manager.reload()
        return f"checkpoint {step} is damaged ({reason}): moved to {target}"

    def _empty_trash(self) -> None:
        shutil.rmtree(self.path / TRASH, ignore_errors=True)

    def _failed(self, error: Exception) -> CheckpointError:
        reason = f"a checkpoint was not saved: {brief(error)}"
        self._manager.reload()  # its list counts the failed one, and lacks those that would have been deleted for it
        return CheckpointError(self.path, reason, f"; intact checkpoints: {sorted(self._manager.all_steps())}")
