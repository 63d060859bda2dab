"""Where the time of one start of a run goes. run/goodput.py adds up what all its starts have written of it."""

import contextlib
import threading
import time
from collections.abc import Iterator


class Account:
    """Where the time of one start goes: at each instant one cause has it, so that the seconds of all add up.

    Causes are start, restore, compile, train, evaluate, save and other. Another thread may read it.
    """

    def __init__(self, began: float | None = None) -> None:
        """`began`: when, by time.monotonic; None: now."""
        self._cause, self._since = "start", time.monotonic() if began is None else began
        self.began = time.time() - (time.monotonic() - self._since)  # in seconds since 1970
        self._seconds: dict[str, float] = {}
        self._lock = threading.Lock()

    @property
    def seconds(self) -> dict[str, float]:
        """Of each cause until now."""
        with self._lock:
            self._count()
            return dict(self._seconds)

    def to(self, cause: str) -> str:
        """From now on the time is this cause's; returns whose it was."""
        with self._lock:
            self._count()
            before, self._cause = self._cause, cause
        return before

    @contextlib.contextmanager
    def of(self, cause: str) -> Iterator[None]:
        """Within this context the time is this cause's."""
        before = self.to(cause)
        try:
            yield
        finally:
            self.to(before)

    def _count(self) -> None:
        now = time.monotonic()
        self._seconds[self._cause] = self._seconds.get(self._cause, 0.0) + now - self._since
        self._since = now
