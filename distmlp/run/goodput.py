"""Goodput: the share of a run's wall time that trained steps which were kept, and what the rest went to.

Each start writes lines to sessions.jsonl that say how its time went until then: when it begins to train, at its end,
and in between (`Pulse`), for a kill comes unannounced. What a line has:

    began    when the start began, in seconds since 1970
    seconds  since then, of each cause (account.py): they add up to the line's own time
    kept     of the steps that earlier starts had trained, as far as their checkpoint goes
"""

import textwrap
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from datetime import datetime
from typing import Any

_FIRST, _SHARE = 1.0, 0.01  # a pulse comes after a second, and when this share of the start's time has passed
_NAMES = {"train": "training", "compile": "compiling", "evaluate": "evaluating", "save": "saving",
          "restore": "restoring"}  # fmt: skip


class Pulse:
    """Within this context a thread calls `write` as the start goes on, ever less often: of a start that is killed, at
    most a second or a hundredth of its time is not known, and a week has a thousand lines."""

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


def parts(sessions: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The seconds from a run's first start to the last line of its sessions, by what they went to.

    "train" is of steps that were kept, "lost" of those that a later start has made again, and "down" of no start: until
    a kill comes to be known, or the next start begins to train or is killed before. "not known" is of starts of version
    0.2.0, which wrote no such lines. Empty where no line says anything.
    """
    lines = list(sessions)
    starts = list({line["began"]: line for line in lines if "began" in line}.values())  # of each the last line
    if not starts:
        return {}
    found: Counter[str] = Counter()
    if "began" not in lines[0]:
        first = datetime.fromisoformat(f"{lines[0]['time']}+00:00").timestamp()  # in whole seconds
        found["not known"] = max(0.0, starts[0]["began"] - first)
    until = starts[0]["began"]
    for line in starts:
        found["down"] += max(0.0, line["began"] - until)
        found.update(line["seconds"])
        until = line["began"] + sum(line["seconds"].values())
    kept = starts[-1]["kept"] + starts[-1]["seconds"].get("train", 0.0)
    found["lost"], found["train"] = max(0.0, found["train"] - kept), kept
    return dict(found)


def described(found: dict[str, float]) -> str:
    """One or two lines of a summary; empty where nothing is known."""
    wall = sum(found.values())
    if not wall:
        return ""
    rest = sorted(((seconds, name) for name, seconds in found.items() if name != "train"), reverse=True)
    texts = [f"{100 * seconds / wall:.1f}\u00a0%\u00a0{_NAMES.get(name, name)}" for seconds, name in rest
             if seconds >= 0.0005 * wall]  # fmt: skip
    text = f"{100 * found['train'] / wall:.1f}\u00a0% of {wall:,.1f}\u00a0s trained steps that were kept"
    text = f"{'goodput':<12} {'; '.join(filter(None, (text, ', '.join(texts))))}"
    return textwrap.fill(text, 80, subsequent_indent=" " * 13).replace("\u00a0", " ")
