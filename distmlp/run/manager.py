"""Orbax as we want it: what it keeps, what it does not ask, and its errors in a few words."""

import dataclasses
import errno
import functools
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import preservation_policy

# A checkpoint is deleted by renaming it into this folder, so that a crash leaves no half of one behind.
TRASH = "trash"

# What Orbax logs it also raises: one line is enough.
logging.getLogger("absl").addFilter(lambda record: "orbax" not in record.pathname)
_CAUSES = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)]


@dataclasses.dataclass
class _NewestAndBest:
    """Orbax preservation policy: the newest `keep`, and the one that `best_step` names."""

    keep: int
    best_step: Callable[[Sequence[int]], int | None]

    def should_preserve(
        self, checkpoints: Sequence[Any], *, context: preservation_policy.PreservationContext
    ) -> Sequence[bool]:
        steps = [checkpoint.step for checkpoint in checkpoints]
        kept = {*sorted(steps)[-self.keep :], self.best_step(steps)}
        return [step in kept for step in steps]


class Manager(ocp.CheckpointManager):  # type: ignore[misc]
    """Orbax's manager of the checkpoints in `path`: the newest `keep`, and the best.

    On each save it would ask jax whether a preempted job is to stop at this step. jax counts such questions to find a
    point that all processes still have before them: only the loop may ask (group.stop_point), or a SIGTERM is lost
    now and then.
    """

    def __init__(self, path: Path, keep: int, best_step: Callable[[Sequence[int]], int | None]) -> None:
        options = ocp.CheckpointManagerOptions(
            preservation_policy=_NewestAndBest(keep, best_step), todelete_subdir=TRASH
        )
        super().__init__(path, options=options, item_names=("state", "meta"))

    def reached_preemption(self, step: int) -> bool:
        return False


def brief(error: BaseException) -> str:
    """An error in a few words; TensorStore's and Orbax's have hundreds of lines."""
    for cause in _CAUSES:
        if cause in str(error):
            return cause
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].split('. See ')[0][:200]}" if lines else type(error).__name__


def _unraisable(hook: Callable[[Any], Any], unraisable: Any) -> None:
    """As `hook`, but for what Orbax abandons when a save or restore fails: coroutines, with pages of text each."""
    code = getattr(unraisable.object, "cr_code", None)
    from_orbax = code is not None and "orbax" in code.co_filename
    if not from_orbax and str(unraisable.exc_value) != "Event loop is closed":
        hook(unraisable)


sys.unraisablehook = functools.partial(_unraisable, sys.unraisablehook)
