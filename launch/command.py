"""What every command shares: signals, output that may go away, and how it ends. Imported before all that is slow."""

import contextlib
import errno
import gc
import io
import multiprocessing
import os
import select
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from distmlp import machine
from distmlp.config import Config
from distmlp.errors import STOP_SIGNALS, InputError, Interrupted
from distmlp.run.signals import ONE_PRESS, tell
from launch.help import HelpRequested

if TYPE_CHECKING:
    from distmlp.cluster.group import Group

BEGAN = time.monotonic() - machine.age()  # when the system made this process
_RANKS = {"RANK", "OMPI_COMM_WORLD_RANK", "SLURM_PROCID", "PROCESS_ID"}


def run(
    main: Callable[[list[str]], int | None], kept: str = "a run goes on from its newest checkpoint"
) -> NoReturn:
    """Runs `main` on the command line, and ends the process with the exit code that it returns.

    Args:
      kept: where what it has done so far is in a folder: how it goes on from there when it is started again.
    """
    gc.set_threshold(100_000, 50, 50)  # else it goes over the 400,000 lasting objects of the imports again and again
    _keep_standard_streams()
    _watch_signals(kept)
    try:
        code = main(sys.argv) or 0
    except (Exception, KeyboardInterrupt) as error:
        _end(error)
    sys.stdout.flush()
    sys.stderr.flush()
    group = _group()
    if multiprocessing.active_children() or (group and group.several):
        sys.exit(code)  # at its exit, Python and jax wait for them
    os._exit(code)  # Python would spend a second or two on taking its modules apart


def ending(error: BaseException) -> tuple[int, str]:
    """The exit code of a command that ends by this exception, its own if it has one, and what it says."""
    if isinstance(error, HelpRequested):
        return 0, str(error)
    if isinstance(error, Interrupted):
        return error.exit_code, f"distmlp: {error}"
    if isinstance(error, KeyboardInterrupt):
        return 130, "distmlp: SIGINT: stopped at once"
    if hasattr(error, "exit_code"):
        return error.exit_code, f"distmlp: error: {error}"
    if isinstance(error, PermissionError) and error.filename:
        return InputError.exit_code, (f"distmlp: error: {error.filename} is not for this user to read or to write "
                                      f"({error.strerror}): change its permissions, or name another")  # fmt: skip
    return 1, f"{''.join(traceback.format_exception(error))}distmlp: error: {type(error).__name__}: {error}"


def _end(error: BaseException) -> NoReturn:
    code, said = ending(error)
    group = _group()
    if group.speaks if group else _speaks_alone(error):
        print(said, file=sys.stderr if code else sys.stdout)
    sys.stdout.flush()
    sys.stderr.flush()
    if group:
        group.leave()
    os._exit(code)  # jax would wait for processes that are busy elsewhere; what libraries would still do is of no use


def _group() -> "Group | None":
    """The processes that `main` has joined, if it has.

    They are asked for here, not handed back by `main`, which may have ended anywhere; and a process joins others once.
    """
    module = sys.modules.get("distmlp.cluster.group")  # only training imports it, and with it jax
    return module.Group.joined if module else None


def _speaks_alone(error: BaseException) -> bool:
    """Whether a process that has not joined others says why it ends.

    A launcher gives all its processes the same command line: of what is wrong with that, the first one speaks; of what
    came later, each that has seen it (errors.own_errors).
    """
    if getattr(error, "own", False) or not _RANKS & os.environ.keys():
        return True
    from distmlp.cluster.place import find_place

    try:
        place = find_place(Config())
    except InputError:
        return True
    return place is None or place.process == 0


_PATIENCE = 5  # seconds for which a reader may let a process wait where writing does not block


class _Output(io.FileIO):
    """A descriptor to write to as long as somebody reads it: nothing that goes wrong there may cost a run."""

    unwritten = ""  # why a file, or a slow reader, has not got all; a pipe or a terminal that went away wants no more

    def write(self, data: object) -> int:
        deadline = time.monotonic() + _PATIENCE
        try:
            while (written := super().write(data)) is None:  # type: ignore[arg-type] # no name before 3.12: a buffer
                if (left := deadline - time.monotonic()) <= 0:
                    raise BlockingIOError(errno.EAGAIN, os.strerror(errno.EAGAIN))
                select.select([], [self], [], left)
            return written
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EAGAIN):
                self.unwritten = os.strerror(error.errno)
            return len(memoryview(data))  # type: ignore[arg-type] # as above


def check_written() -> None:
    """Raises InputError if a file to which standard output goes had no room for what this process printed."""
    sys.stdout.flush()
    raw = getattr(getattr(sys.stdout, "buffer", None), "raw", None)
    if isinstance(raw, _Output) and raw.unwritten:
        raise InputError(f"standard output could not be written ({raw.unwritten}): make room, or send it to another "
                         "file")  # fmt: skip


def _keep_standard_streams() -> None:
    """Standard output and error survive being closed or broken.

    What C libraries write to standard output, as Gloo greets each of its peers there, is lost: from here on, only
    Python writes to it.
    """
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number, before a file of the run does
    own = os.dup(1)
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1)
    os.close(null)
    for name, descriptor in (("stdout", own), ("stderr", 2)):
        given = getattr(sys, name)
        setattr(sys, name, io.TextIOWrapper(
            io.BufferedWriter(_Output(descriptor, "w", closefd=False)), line_buffering=True,
            encoding=given.encoding if given else "utf-8", errors="backslashreplace",
        ))  # fmt: skip


def _watch_signals(kept: str) -> None:
    """From now on a signal ends the process at once, unless a run is there to save (run/signals.py); then the second.

    A thread sees to it: Python's handlers wait while the main thread is in an import, a compilation or a collective.
    """
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    for signum in STOP_SIGNALS:
        if signal.getsignal(signum) is not signal.SIG_IGN:  # as under nohup
            signal.signal(signum, _nothing_to_save)
    signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
    threading.Thread(target=_end_at_once, args=(reader, kept), daemon=True).start()


def _nothing_to_save(signum: int, frame: FrameType | None) -> None:
    """Python's handler while no run has put its own there; `_end_at_once` knows it by that."""


def _end_at_once(reader: socket.socket, kept: str) -> None:
    seen: dict[int, float] = {}
    while True:
        signum = reader.recv(1)[0]
        if signum not in STOP_SIGNALS:
            continue
        now = time.monotonic()
        first = now - seen.setdefault(signum, now) < ONE_PRESS
        if not first or signal.getsignal(signum) is _nothing_to_save:
            files = sys.modules.get("distmlp.results.files")  # which only verbs that write files import
            for path in tuple(getattr(files, "begun", ())):
                with contextlib.suppress(OSError):
                    path.unlink()
            later = f"; {kept}" if kept else ""
            tell(f"{signal.Signals(signum).name}: stopped at once{later}")
            os._exit(128 + signum)
