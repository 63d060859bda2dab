"""What a checkpoint must hold to be used, and what Orbax says of one that does not."""

import contextlib
import errno
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import orbax.checkpoint as ocp

from distmlp.config import digest_json

Meta = dict[str, Any]  # JSON values beside the arrays: step, settings, digests, sums for the log
PAUSE_SECONDS = 0.25  # after what could not be read: Orbax's threads are still at it
_CAUSES = [os.strerror(number) for number in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EIO)]


class DamageError(Exception):
    """A checkpoint does not hold what was saved."""


def read_meta(manager: ocp.CheckpointManager, step: int) -> Meta:
    """What lies beside the arrays of a checkpoint; raises DamageError unless it is what was saved."""
    try:
        restored = manager.restore(step, args=ocp.args.Composite(meta=ocp.args.JsonRestore()))
        meta: Meta = dict(restored["meta"])
        digest = meta.pop("digest")
    except Exception as error:  # damage surfaces as any of a dozen types, from Orbax, JSON and TensorStore
        raise DamageError(f"its metadata cannot be read ({brief(error)})") from error
    if digest != digest_json(meta) or meta["step"] != step:
        raise DamageError("its metadata is not what was saved")
    return meta


def check_digests(meta: Meta, digests: dict[str, str]) -> None:
    """Raises DamageError unless these digests, by array name, are those of the arrays that were saved."""
    wrong = [name for name, digest in digests.items() if meta["digests"].get(name) != digest]
    if wrong or digests.keys() != meta["digests"].keys():
        raise DamageError(f"{', '.join(wrong) or 'its list of arrays'} is not what was saved")


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


def brief(error: BaseException) -> str:
    """An error in a few words; TensorStore's and Orbax's have hundreds of lines."""
    for cause in _CAUSES:
        if cause in str(error):
            return cause
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0].split('. See ')[0][:200]}" if lines else type(error).__name__
