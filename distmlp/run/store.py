"""A run's checkpoints, with Orbax: saved in the background, read and verified array by array.

A training run saves to a Store and goes on from it; results/checkpoints.py is for those who only read.
WORKDIR/checkpoints/<step> has two items: `state`, the arrays; and `meta`, JSON: what the run says of itself
(meta.py), the step, the arrays' digests by their names, and the digest of all of these.
"""

import contextlib
import errno
import gc
import logging
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from distmlp.cluster.group import Group
from distmlp.config import digest_json
from distmlp.errors import DivergedError, InputError, WriteError
from distmlp.machine import sync
from distmlp.parallel.digest import StateDigest
from distmlp.run import rows
from distmlp.run.meta import Meta
from distmlp.run.workdir import new_path, writing

if TYPE_CHECKING:  # which those who only read checkpoints do not need
    from distmlp.parallel.sharded import StateLayout

T = TypeVar("T")

_TRASH = "trash"  # a checkpoint is moved into this folder and then deleted: a crash leaves no half of one behind
_PAUSE_SECONDS = 0.25  # between two tries to read: Orbax's threads may still be busy with the first
_ABANDONED = "Event loop is closed"  # where a coroutine of a failed save was still waiting
_CAUSES = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)]
_LACKS = {  # that keep a checkpoint from being read, whatever it holds, and what to do then
    os.strerror(errno.EMFILE): "raise the limit of open files (ulimit -n)",
    os.strerror(errno.ENFILE): "let other programs close files",
    os.strerror(errno.ENOMEM): "free memory",
    os.strerror(errno.ESTALE): "see to the file system",
    os.strerror(errno.ETIMEDOUT): "see to the file system",
}


class DamageError(Exception):
    """A checkpoint does not hold what was saved."""


class LackError(InputError):
    """A checkpoint cannot be read now, for a cause that says nothing of what it holds."""


class Manager(ocp.CheckpointManager):  # type: ignore[misc]
    """Orbax's manager of a folder of checkpoints, and what each of them holds."""

    def __init__(self, folder: Path, shapes: Any = None, **options: Any) -> None:
        """`shapes`, if the states that are written and read are sharded: of their arrays when they are whole."""
        self._shapes, self.whole = shapes, shapes is None
        state_handler = ocp.StandardCheckpointHandler() if shapes is None else rows.handler(shapes)
        handlers = {"state": state_handler, "meta": ocp.JsonCheckpointHandler()}
        # Folders that are made in the background are waited for by a number that all managers of a process share: of
        # two that save at once, each would wait 300 s for the other's.
        waiting = ocp.AsyncOptions(create_directories_asynchronously=False)
        given = ocp.CheckpointManagerOptions(async_options=waiting, **options)
        super().__init__(folder.absolute(), options=given, item_handlers=handlers)

    def reached_preemption(self, step: int) -> bool:
        """Orbax would ask jax, on each save, whether a preempted job is to stop at this step.

        jax counts such questions to find a point that all processes still have before them: only the loop may ask
        (Group.stop_point), or a SIGTERM is lost now and then.
        """
        return False

    def write(self, step: int, state: Any, meta: Meta, digests: dict[str, str]) -> None:
        """Begins to save a checkpoint; `wait_until_finished` and `check_for_errors` tell how it went."""
        meta = {**meta, "step": step, "digests": digests}
        meta["digest"] = digest_json(meta)
        arrays = ocp.args.StandardSave(state) if self._shapes is None else rows.to_save(state, self._shapes)
        args = ocp.args.Composite(state=arrays, meta=ocp.args.JsonSave(meta))
        if not self.save(step, args=args):
            raise RuntimeError(f"Orbax declined to save step {step}, it holds {sorted(self.all_steps(), reverse=True)}")

    def read_meta(self, step: int) -> Meta:
        meta: Meta = dict(self.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))["meta"])
        if meta.pop("digest") != digest_json(meta) or meta["step"] != step:
            raise DamageError("its metadata is not what was saved")
        return meta

    def read_state(self, step: int, target: Any) -> Any:
        """Arrays that are still to be verified; each has the shape, type and place of the one in `target`."""
        arrays = ocp.args.StandardRestore(target) if self._shapes is None else rows.to_restore(target)
        return self.restore(step, args=ocp.args.Composite(state=arrays))["state"]


def check_digests(meta: Meta, digests: dict[str, str]) -> None:
    """Raises DamageError unless these digests, by array name, are those of the arrays that were saved."""
    wrong = [name for name, digest in digests.items() if meta["digests"].get(name) != digest]
    if wrong or digests.keys() != meta["digests"].keys():
        raise DamageError(f"{', '.join(wrong) or 'its list of arrays'} is not what was saved")


def twice(what: str, read: Callable[[], T], group: Group, check: Callable[[T], None] = lambda value: None) -> T:
    """What `read` returns; if it fails in any process, all try again, then raise Damage- or LackError; a collective.

    `read` is each process's own: it must not wait for the others, who do not come if it fails in one of them. `check`,
    which may, is called once all have read something. It raises in all processes, or in none.
    """
    for _ in range(2):  # an error of the moment is no damage
        value: Any = None
        reason = lack = ""
        try:
            value = read()
        except DamageError as error:
            reason = str(error)
        except Exception as error:  # damage surfaces as any of a dozen types, from Orbax, JSON and TensorStore
            if group.ended_elsewhere(error):
                raise
            reason, lack = f"{what} cannot be read ({_brief(error)})", _lack(error)
        reasons, lacks = zip(*group.exchange((reason, lack)), strict=True)
        if not any(reasons):
            try:
                check(value)
                return value
            except (DamageError, DivergedError) as error:
                reason = str(error)
            except Exception as error:
                if lack := _lack(error):
                    raise LackError(lack) from None
                raise
        time.sleep(_PAUSE_SECONDS)
        gc.collect()  # coroutines that Orbax has abandoned warn when they are freed: here `quiet` hides that
    if lack := next(filter(None, lacks), ""):
        raise LackError(lack)
    raise DamageError(reason or f"process {next(i for i, text in enumerate(reasons) if text)} cannot read it")


class Store:
    """The checkpoints of the run in a workdir: the newest `keep` of them, and the best."""

    def __init__(
        self, workdir: Path, digest: StateDigest, keep: int, group: Group, held: "StateLayout | None" = None
    ) -> None:
        """`held`: how the states lie on the devices; None: replicated."""
        self.workdir, self.path, self._digest, self._group = workdir, workdir / "checkpoints", digest, group
        shapes = held.shapes if held and held.layout.sharded else None
        self._keep, self._best, self._begun = keep, 0, 0
        self._failed = ""  # why the last save did
        self.synced = 0  # files and folders so far: a save that goes on
        self._copy = jax.jit(lambda state: jax.tree.map(jnp.copy, state))
        self._saver = ThreadPoolExecutor(1)
        self._rest_of_save: Callable[[], None] | None = None
        self._empty_trash()
        mine = jax.process_index()
        alone = ocp.options.MultiprocessingOptions(primary_host=mine, active_processes={mine})
        self._open = partial(Manager, self.path, shapes, cleanup_tmp_directories=True, todelete_subdir=_TRASH)
        try:
            self._manager = self._open()
            # Orbax's restore ends with a barrier, at which a process whose disk fails would be missed for ever.
            self._reader = Manager(self.path, shapes, read_only=True, multiprocessing_options=alone)
        except OSError as error:
            raise InputError(f"{self.path} cannot be written to ({error.strerror}): "
                             "make room or give another --workdir") from None

    def steps(self) -> list[int]:
        """Steps of which a checkpoint is listed, intact or not, newest first."""
        return sorted(self._manager.all_steps(), reverse=True)

    def save(self, step: int, state: Any, meta: Meta, best: int = 0) -> str:
        """Copies the state and writes the copy, its digests and `meta` in the background.

        Training can go on, and donate the state, when this returns. The next `wait` or `save` raises what went wrong:
        a DivergedError, with nothing saved, or a WriteError; the checkpoints listed before are intact. Once the new one
        is on disk, all others but the newest `keep` and that of step `best` are deleted.

        In one process, a WriteError of the save before is not raised if this one, then waited for, does better: it is a
        remark, which is returned.
        """
        remark = ""
        try:
            self.wait()
        except WriteError:
            if self._group.several:  # it may be the error of one of them, and the others do not save again
                raise
        if self._failed:
            saved = "the second time it" if step == self._begun else f"checkpoint {step}"
            remark = f"checkpoint {self._begun} was not saved ({self._failed}); {saved} was"
            self._reopen()
        self._best, self._begun = best, step
        if self._group.several:  # digests and Orbax exchange by collectives, which must keep their order
            self._save(step, state, meta)
            self._rest_of_save = self._finish
        else:
            self._rest_of_save = self._saver.submit(self._save, step, self._copy(state), meta).result
        if remark:
            self.wait()
        return remark

    def _reopen(self) -> None:
        """Begins with Orbax anew after a save that failed, whose files and copy of the state are removed."""
        with contextlib.suppress(Exception):  # of that save, and known
            self._manager.close()
        with self._errors():
            self._manager = self._open()
        self._failed = ""
        gc.collect()  # for the reason given in `twice`, too

    def _save(self, step: int, state: Any, meta: Meta) -> None:
        digests = self._digest.check(state, step)
        with self._errors():
            self._manager.write(step, state if self._group.several else self._of_one_device(state), meta, digests)
        if not self._group.several:
            self._finish()
            _delete(state)  # a copy

    def _of_one_device(self, state: Any) -> Any:
        """A replicated state as its first device holds it. Of all copies, which are known to be equal, Orbax would take
        a part each, and compile a program for every part."""
        return jax.tree.map(lambda array: array.addressable_data(0), state) if self._manager.whole else state

    def _finish(self) -> None:
        """Waits until the new checkpoint is listed, syncs it to disk, and only then deletes older ones."""
        with self._errors():
            self._manager.wait_until_finished()
            self._manager.check_for_errors()
        newest, *others = self._group.decide(self.steps())
        with self._errors():
            if self._group.first:
                folder = self.path / str(newest)
                for path in [*folder.rglob("*"), folder, self.path]:
                    sync(path)
                    self.synced += 1
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

    def last_checkpoint(self) -> str:
        """What the run can go on from, as a part of a message."""
        with contextlib.suppress(WriteError, DivergedError):  # the message is already that of an error
            self.wait()
        steps = self.steps()
        return f"the newest checkpoint is of step {steps[0]}" if steps else "there is no checkpoint yet"

    def newest_intact(self, target: Any, check_meta: Callable[[Meta], None]) -> tuple[Any, Meta, list[str]] | None:
        """The newest checkpoint that is what was saved: its state, its meta and a line for each one that is damaged.

        The damaged ones, all newer, are moved to WORKDIR/damaged: Orbax would decline to save their steps again.
        `target` is a state of the right shapes and dtypes, placed where the restored one shall be; it may be abstract.
        `check_meta` raises InputError if a checkpoint, though intact, is not of this run. None: there is none at all.
        Where there are some, but none is intact, nothing is changed and an InputError says so; as where one cannot be
        read for want of memory and the like. A WriteError says that a damaged one could not be moved.
        """
        self.wait()
        damaged: list[tuple[int, str]] = []
        for step in self._group.decide(self.steps()):  # a network file system may show another host fewer
            try:
                state, meta = self._read(step, target, check_meta)
            except DamageError as error:
                damaged.append((step, str(error)))
            except LackError as error:
                raise InputError(f"{self.path / str(step)}: {error}") from None
            else:
                state = jax.tree.map(rows.moved, state) if self._manager.whole else state
                return state, meta, [f"checkpoint {step} is damaged ({reason}): moved to {self._move_away(step)}"
                                     for step, reason in damaged]  # fmt: skip
        if damaged:
            reasons = "; ".join(f"{step}: {reason}" for step, reason in damaged)
            raise InputError(f"{self.path} holds no intact checkpoint ({reasons}): "
                             "bring one back from a copy, or give another --workdir to start anew")
        return None

    def intact(self, step: int, target: Any) -> Any:
        """The state of this step's checkpoint, or None if there is none or it cannot be read; see `newest_intact`."""
        self.wait()
        with contextlib.suppress(DamageError, LackError):
            return self._read(step, target)[0]
        return None

    def _read(self, step: int, target: Any, check_meta: Callable[[Meta], None] = lambda meta: None) -> tuple[Any, Meta]:
        """State and meta of a checkpoint; see `newest_intact`, and `twice` for what it raises."""
        meta = twice("its metadata", lambda: self._reader.read_meta(step), self._group)
        check_meta(meta)

        def check(state: Any) -> None:
            check_digests(meta, self._digest.check(state, step))

        state = twice("it", lambda: self._reader.read_state(step, target), self._group, check)
        return state, meta

    def set_aside(self, after: int) -> list[int]:
        """Moves the checkpoints of the steps after this one to WORKDIR/damaged; returns their steps.

        Raises:
          WriteError: one of them could not be moved.
        """
        with contextlib.suppress(WriteError, DivergedError):  # what is saved by now is listed
            self.wait()
        steps = [step for step in self._group.decide(self.steps()) if step > after]
        for step in steps:
            self._move_away(step)
        return steps[::-1]

    def _move_away(self, step: int) -> Path:
        target = new_path(self.workdir / "damaged" / str(step))
        if self._group.first:
            with writing(target):
                target.parent.mkdir(exist_ok=True)
                shutil.move(self.path / str(step), target)  # where it is on another file system, by a copy
        target = Path(self._group.decide(str(target)))
        self._manager.reload()
        return target

    def close(self) -> None:
        try:
            self.wait()
            with self._errors():
                self._manager.close()
                self._reader.close()
        finally:
            self._saver.shutdown()
            if self._failed:
                gc.collect()  # for the reason given in `twice`

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Makes any error of a save a WriteError."""
        try:
            yield
        except Exception as error:  # Orbax and TensorStore raise a dozen types for a full or failing disk
            self._failed = _brief(error)
            self._manager.reload()  # Orbax has already listed the checkpoint that failed
            raise WriteError(self.path, f"a checkpoint was not saved: {self._failed}",
                             f"; intact checkpoints: {self.steps()[::-1]}") from None


def _delete(state: Any) -> None:
    """Frees the memory of arrays that Orbax may still hold on to, until Python's collector comes by."""
    jax.tree.map(lambda array: array.delete(), state)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Hides what Orbax logs of errors, which it also raises, and what the coroutines that it then abandons complain of.

    TensorStore's threads print errors of these by sys.excepthook, as if the program had failed. They may do so until
    the process ends; so that filter stays where the context ends with a WriteError.
    """
    hook, printing = sys.unraisablehook, sys.excepthook
    loggers = logging.getLogger("absl"), logging.getLogger("asyncio")

    def unraisable(found: Any) -> None:
        code = getattr(found.object, "cr_code", None)
        if "orbax" not in getattr(code, "co_filename", "") and str(found.exc_value) != _ABANDONED:
            hook(found)

    def printed(kind: Any, error: BaseException, traceback: Any) -> None:
        if str(error) != _ABANDONED:
            printing(kind, error, traceback)

    def from_others(record: logging.LogRecord) -> bool:
        return "orbax" not in (record.getMessage() if record.name == "asyncio" else record.pathname)

    sys.unraisablehook, sys.excepthook = unraisable, printed
    for logger in loggers:
        logger.addFilter(from_others)
    afterwards = printing
    try:
        yield
    except WriteError:
        afterwards = printed
        raise
    finally:
        sys.unraisablehook, sys.excepthook = hook, afterwards
        for logger in loggers:
            logger.removeFilter(from_others)


@contextlib.contextmanager
def suited(locks: bool, syncs_folders: bool) -> Iterator[None]:
    """Within this context TensorStore does without what a file system cannot do, or each save would fail.

    Orbax has no setting for that. What TensorStore then does not sync, `Store` does before a checkpoint counts.
    """
    changes: dict[str, Any] = {} if locks else {"file_io_locking": {"mode": "none"}}
    changes |= {} if syncs_folders else {"file_io_sync": False}
    if not changes:
        yield
        return
    from orbax.checkpoint._src.serialization import tensorstore_utils

    contexts = (tensorstore_utils._BASE_TS_CONTEXT, tensorstore_utils._DEFAULT_OCDBT_TS_CONTEXT)
    before = [dict(context) for context in contexts]
    try:
        for context in contexts:
            context.update(changes)
        yield
    finally:
        for context, values in zip(contexts, before, strict=True):
            context.clear()
            context.update(values)


def _brief(error: BaseException) -> str:
    """An error in a few words; the texts of TensorStore and Orbax have hundreds of lines."""
    for cause in _CAUSES:
        if cause in str(error):
            return cause
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].split('. See ')[0][:200]}" if lines else type(error).__name__


def _lack(error: Exception) -> str:
    """Why nothing can be read now, and the remedy, where an error says only that; else empty."""
    text, remedy = _brief(error), ""
    if isinstance(error, MemoryError):
        remedy = "free memory"
    elif isinstance(error, jax.errors.JaxRuntimeError) and "RESOURCE_EXHAUSTED" in text:  # which no full disk is
        remedy = "free the memory of the device, or give --platform=cpu"
    for cause, known in _LACKS.items():
        if cause in str(error):
            text, remedy = cause, known
    return f"the checkpoint cannot be read now ({text}): {remedy}, then start again" if remedy else ""
