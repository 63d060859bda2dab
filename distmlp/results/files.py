"""Files that the verbs write."""

import contextlib
import errno
import os
import re
import secrets
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TextIO

from distmlp.errors import InputError

_OF_A_RUN = {"checkpoints", "damaged", "ledger.jsonl", "lock", "log.txt", "metrics.jsonl", "profile", "run.flags",
             "rungs.jsonl", "sessions.jsonl", "starting.jsonl", "sweep.json", "sweep.jsonl", "tensorboard"}  # fmt: skip
_SET_ASIDE = re.compile(r"(metrics|ledger)-old(-\d+)?\.jsonl")  # of a run, too
_STANDARD_OUTPUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")
begun = set[Path]()  # files that are not whole yet: a signal that ends the process deletes them


def remarks(output: Path) -> TextIO:
    """Where to say what was written: the standard output, unless --output names that."""
    return sys.stderr if str(output) in _STANDARD_OUTPUT else sys.stdout


@contextlib.contextmanager
def whole(output: Path, read: Sequence[Path] = ()) -> Iterator[Path]:
    """The file to write within this context; it becomes what --output names at the end, unless an exception comes.

    A link stays a link: the file that it leads to is replaced, and keeps its permissions.

    Args:
      read: files and folders of which nothing may be replaced, as they are read.

    Raises:
      InputError: it cannot be written, or would replace one of these, or what a run has written in its folder.
    """
    target = Path(os.path.realpath(output))
    _refuse_to_replace(target, output, read)
    # No number of a process: in containers, many that write to one folder have the same.
    new = target.with_name(f".distmlp-{secrets.token_hex(8)}.tmp") if target.name else target
    with _said(output):
        mode = _mode(output)
        if mode and not stat.S_ISREG(mode):
            raise OSError(errno.EISDIR, "") if stat.S_ISDIR(mode) else OSError("it is no file")
        begun.add(new)
        try:
            yield new
            if mode:
                new.chmod(stat.S_IMODE(mode))
            new.replace(target)
        finally:
            with contextlib.suppress(OSError):
                new.unlink()
            begun.discard(new)


def write(
    output: Path, content: bytes, beside: dict[str, bytes] | None = None, read: Sequence[Path] = ()
) -> None:
    """Writes what --output names, whole or not at all, as `whole` does. A device or a pipe stays one: it is written to.

    Args:
      beside: contents of files beside it, by what is added to its name; a device or a pipe has none.
      read: as in `whole`.

    Raises:
      InputError: as `whole`.
    """
    if str(output) in _STANDARD_OUTPUT:
        sys.stdout.buffer.write(content)  # the descriptor itself leads nowhere: see launch/command.py
        return
    with _said(output):
        mode = _mode(output)
        if mode and not stat.S_ISREG(mode):
            output.write_bytes(content)  # a device or a pipe; a folder raises
            return
    with contextlib.ExitStack() as stack:
        for ending, data in {"": content, **(beside or {})}.items():
            stack.enter_context(whole(output.with_name(output.name + ending), read)).write_bytes(data)


def _refuse_to_replace(target: Path, output: Path, read: Sequence[Path]) -> None:
    if not target.is_file():
        return
    for path in read:
        there = Path(os.path.realpath(path))
        if there in target.parents or (there.exists() and there.samefile(target)):
            raise InputError(f"--output={output} would replace what is read, {path}: give another file")
    runs = (each for each in target.parents if (each / "run.flags").exists() or (each / "sweep.json").exists())
    if not (folder := next(runs, None)):
        return
    first = target.relative_to(folder).parts[0]
    if first in _OF_A_RUN or _SET_ASIDE.fullmatch(first):
        raise InputError(f"--output={output} is a file of the run in {folder}: give another file")


class _Tried(Exception):
    """A file was begun, and is not to be."""


def check(output: Path) -> None:
    """Raises InputError if `write` cannot write what --output names, where that can be known; what is there stays."""
    with _said(output):
        mode = _mode(output)
    if str(output) not in _STANDARD_OUTPUT and (not mode or stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
        with contextlib.suppress(_Tried), whole(output) as new:
            new.touch()
            raise _Tried


@contextlib.contextmanager
def _said(output: Path) -> Iterator[None]:
    """An OSError within this context is an InputError that names --output."""
    try:
        yield
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # pyarrow's text is long
        room = ", or make room" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
        raise InputError(f"--output={output} cannot be written ({reason}): give another file{room}") from None


def _mode(path: Path) -> int:
    """Type and permissions of what a path leads to, as os.stat has them; 0 if that is not there yet."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return 0
