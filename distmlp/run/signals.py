"""SIGTERM, SIGINT and the stall watchdog."""

import faulthandler
import math
import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

_SIGNALS = (signal.SIGTERM, signal.SIGINT)
_STDERR = 2  # the descriptor: in notebooks and under test runners sys.stderr may have none


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run at a step boundary, after its state was saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


def exit_at_once(signum: int, frame: FrameType | None = None) -> None:
    """Signal handler for when there is nothing to save."""
    message = f"distmlp: {signal.Signals(signum).name}: stopped at once; a run goes on from its newest checkpoint\n"
    os.write(_STDERR, message.encode())
    os._exit(128 + signum)


def install_exit_at_once() -> None:
    """From now on a signal ends the process quietly; `Signals` takes over while a run trains."""
    for signum in _SIGNALS:
        signal.signal(signum, exit_at_once)


class Signals:
    """Within this context the first signal only asks for a stop; the second ends the process at once.

    With several processes SIGTERM is jax's, whose coordination service makes all of them stop at the same point
    (group.stop_point); SIGINT is passed on to it.
    """

    def __init__(self, several: bool) -> None:
        self.received: int | None = None
        self._several = several
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "Signals":
        if threading.current_thread() is threading.main_thread():  # elsewhere Python delivers no signals
            mine = (signal.SIGINT,) if self._several else _SIGNALS
            self._previous = {signum: signal.signal(signum, self._handle) for signum in mine}
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        for signum, handler in self._previous.items():
            signal.signal(signum, handler)

    def _handle(self, signum: int, frame: FrameType | None) -> None:
        if self.received is not None:
            exit_at_once(signum)
        self.received = signum
        if self._several:
            os.kill(os.getpid(), signal.SIGTERM)
        message = f"\ndistmlp: {signal.Signals(signum).name}: saving at the next step; once more exits at once\n"
        os.write(_STDERR, message.encode())


class Watchdog:
    """Ends the process, with the stacks of all threads on stderr, if `beat` is not called for `seconds`.

    It is a C thread of the standard library's: it works while Python is stuck in a collective.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds, self._last = seconds, -math.inf

    def beat(self) -> None:
        now = time.monotonic()
        if self.seconds and now - self._last > self.seconds / 100:  # setting it starts a thread
            faulthandler.dump_traceback_later(self.seconds, exit=True, file=_STDERR)
            self._last = now

    def __enter__(self) -> "Watchdog":
        self.beat()
        return self

    def __exit__(self, *exception: type[BaseException] | BaseException | TracebackType | None) -> None:
        faulthandler.cancel_dump_traceback_later()
