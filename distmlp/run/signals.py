"""Signals that ask a run to stop, and the stall watchdog."""

import contextlib
import faulthandler
import os
import signal
import threading
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from distmlp.errors import STOP_SIGNALS

ONE_PRESS = 0.1  # seconds within which a repeated signal counts once: `timeout` sends it to a process and its group
_STDERR = 2  # a descriptor: the sys.stderr of notebooks and test runners may have none


def tell(text: str) -> None:
    """A line on standard error, from signal handlers and threads; it is lost where the descriptor is closed."""
    with contextlib.suppress(OSError):
        os.write(_STDERR, f"distmlp: {text}\n".encode())


class Signals:
    """Within this context the first of STOP_SIGNALS only asks for a stop: `received` is its number, `notify` is called.

    The same signal once more has the effect it has outside; in a notebook Ctrl-C raises KeyboardInterrupt. A signal
    that is ignored, as SIGHUP is under nohup, stays ignored.
    """

    def __init__(self, notify: Callable[[], None]) -> None:
        self.received: int | None = None
        self._notify = notify
        self._previous: dict[int, Any] = {}
        self._seen: dict[int, float] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python delivers no signals
            for signum in STOP_SIGNALS:
                if signal.getsignal(signum) not in (signal.SIG_IGN, None):  # None: a handler set in C
                    self._previous[signum] = signal.signal(signum, self._handle)
        return self

    def __exit__(self, *exception: Any) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._seen.setdefault(signum, now) < ONE_PRESS:
            if self.received is None:
                self.received = signum
                tell(f"{signal.Signals(signum).name}: saving at the next step; once more stops at once")
                self._notify()
        elif callable(previous := self._previous[signum]):
            previous(signum, frame)
        else:
            signal.signal(signum, previous)
            signal.raise_signal(signum)


class Watchdog:
    """Within this context, ends the process with a message if nothing goes on for `seconds`; 0: never.

    A thread does this, for what may hang lets other threads run: collectives and the reading of files.

    Args:
      seconds: how long.
      signs: functions whose whole numbers change while work goes on, beside the calls of `beat`.
      shared: makes of this process's number one that also changes while another goes on, for which this one may wait.
    """

    _TICKS = 10

    def __init__(
        self, seconds: float, signs: Sequence[Callable[[], int]] = (), shared: Callable[[int], int] = lambda own: own
    ) -> None:
        self.seconds, self._signs, self._shared = seconds, signs, shared
        self._beats, self._over = 0, threading.Event()

    def beat(self) -> None:
        self._beats += 1

    def __enter__(self) -> "Watchdog":
        if self.seconds:
            threading.Thread(target=self._watch, daemon=True).start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._over.set()

    def _watch(self) -> None:
        idle, last = 0, -1  # ticks without a sign: a process stopped for hours (SIGSTOP) has missed one when it goes on
        while not self._over.wait(self.seconds / self._TICKS):
            pulse = self._beats + sum(sign() for sign in self._signs)
            with contextlib.suppress(Exception):  # jax's service of several processes may be gone
                pulse = self._shared(pulse)
            idle, last = 0 if pulse != last else idle + 1, pulse
            if idle >= self._TICKS:
                tell(f"error: for --stall_seconds={self.seconds:g} no step, no evaluation and no file went on: what "
                     "each thread is doing follows; a new start goes on from the newest checkpoint")
                faulthandler.dump_traceback(_STDERR)
                os._exit(1)
