"""sessions.jsonl: when, where and how each start of a run began and ended, and what its time went to until then.

A kill comes unannounced, so a start also says in between how its time has gone: once it holds the folder, when it
begins to train, after its last step, at its end, and ever less often as it goes on (`Pulse`). What such a line has:

    began    when the system made the process, in seconds since 1970
    seconds  since then, of each cause (account.py): they add up to the line's own time
    kept     of the steps that earlier starts had trained, as far as their checkpoint goes; from when it begins to train

Until it begins to train, nothing of the run is to change, for the start may be refused: its lines are in
starting.jsonl. The next start that trains takes over those of starts that were killed before.
"""

import contextlib
import operator
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distmlp.account import Account
from distmlp.errors import InputError, WriteError
from distmlp.run import lines
from distmlp.run.lines import Found, Kind

_FIRST, _SHARE = 1.0, 0.01  # a pulse comes after a second, and when this share of the start's time has passed
_WORD: Kind = {"time": str, "began": float, "seconds": dict}


def read_sessions(run: Path) -> Found:
    """The lines of a run's sessions.jsonl: the starts, which have `start`; the ends; and what is said in between."""
    start: Kind = {"time": str, "start": operator.index, "hosts": "".join, "processes": operator.index, "devices": str}
    return lines.read(run / "sessions.jsonl", start, {"time": str, "end": operator.index, "reason": str}, _WORD)


class Sessions:
    """Within this context, what a start says of itself, if it is `enabled`. A disk that is full is no error."""

    def __init__(self, workdir: Path, account: Account, enabled: bool) -> None:
        self._workdir, self._account, self._enabled = workdir, account, enabled
        self._starting = workdir / "starting.jsonl"
        self._kept: float | None = None  # None: it has not begun to train
        self._lock = threading.Lock()  # threads add to the same file
        self._pulse = ExitStack()

    def __enter__(self) -> "Sessions":
        if self._enabled:
            self.tell()
            self._pulse.enter_context(Pulse(self.tell))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._pulse.close()
        if self._enabled and self._kept is None:
            with contextlib.suppress(InputError, WriteError, OSError):
                if others := self._of_others(found := lines.read(self._starting, _WORD)):
                    lines.renew(found, others)
                else:
                    self._starting.unlink()

    def begin(self, kept: float, **facts: Any) -> None:
        """Says that training begins, with `kept` seconds of earlier starts."""
        if self._enabled:
            with self._lock, contextlib.suppress(InputError, WriteError, OSError):
                self._kept = kept
                there, early = read_sessions(self._workdir), lines.read(self._starting, _WORD)
                if there.values and not there.summed:
                    lines.renew(there, there.values)  # else their lines would look damaged beside new ones
                lines.append(there.path, map(lines.sealed, self._of_others(early)))
                self._starting.unlink()
            self.tell(**facts)

    def tell(self, **facts: Any) -> None:
        """Adds a line with these facts, and how the time has gone."""
        if self._enabled:
            with contextlib.suppress(OSError), self._lock:
                now = f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S}"
                path = self._starting if self._kept is None else self._workdir / "sessions.jsonl"
                lines.append(path, [lines.sealed({"time": now, **facts, **self.word()})])

    def word(self) -> dict[str, Any]:
        """How this start's time has gone until now."""
        seconds = {cause: round(part, 3) for cause, part in self._account.seconds.items()}
        kept = {} if self._kept is None else {"kept": round(self._kept, 3)}
        return {"began": round(self._account.began, 3), "seconds": seconds, **kept}

    def _of_others(self, found: Found) -> list[dict[str, Any]]:
        """Lines of other starts."""
        began = self.word()["began"]
        return [line for line in found.values if line["began"] != began]


class Pulse:
    """Within this context a thread calls `write` as the start goes on, ever less often: of a start that is killed, at
    most a second or a hundredth of its time is not known, and what the disk took for a line; a week has a thousand."""

    def __init__(self, write: Callable[[], None]) -> None:
        self._write, self._over, self._began = write, threading.Event(), time.monotonic()
        self._thread = threading.Thread(target=self._beat, daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._over.set()
        self._thread.join()

    def _beat(self) -> None:
        while not self._over.wait(max(_FIRST, _SHARE * (time.monotonic() - self._began))):
            self._write()
