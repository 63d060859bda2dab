"""Goodput: the share of a run's wall time that trained steps which were kept, and what the rest went to.

Each start says in sessions.jsonl how its time has gone until then (sessions.py). Here every moment between the first
start and the last line is given to one cause, so that they add up to that time whenever a start was killed.
"""

import textwrap
from collections import defaultdict
from collections.abc import Iterable
from datetime import datetime
from typing import Any

_NAMES = {"train": "training", "compile": "compiling", "evaluate": "evaluating", "save": "saving",
          "restore": "restoring"}  # fmt: skip


def parts(sessions: Iterable[dict[str, Any]]) -> dict[str, float]:
    """The seconds from a run's first start to the last line of its sessions, by what they went to.

    "train" is of steps that were kept, "lost" of those that a later start has made again, and "down" is the time from
    the last line of a start to the beginning of the next: no process was there, or it did not come to say so. "not
    known" is of starts of version 0.2.0, which wrote no such lines. Empty where no line says anything.
    """
    lines = list(sessions)
    starts = list({line["began"]: line for line in lines if "began" in line}.values())  # of each the last line
    if not starts:
        return {}
    found = defaultdict[str, float](float, down=0.0, train=0.0)
    if "began" not in lines[0]:
        first = datetime.fromisoformat(f"{lines[0]['time']}+00:00").timestamp()  # in whole seconds
        found["not known"] = max(0.0, starts[0]["began"] - first)
    until, reached = starts[0]["began"], 0.0  # up to when all is told; seconds of the steps that the newest start has
    for line in starts:
        seconds, gap = line["seconds"], line["began"] - until
        found["down"] += max(0.0, gap)
        if "kept" in line:
            untold = min(found["down"], max(0.0, line["kept"] - reached))  # by the last line before a kill
            found["down"] -= untold
            found["train"] += untold
            reached = line["kept"] + seconds.get("train", 0.0)
        for cause, spent in seconds.items():
            found[cause] += spent
        found["start"] -= min(seconds.get("start", 0.0), max(0.0, -gap))  # told twice: the clocks of two hosts differ
        until = max(until, line["began"] + sum(seconds.values()))
    found["lost"] = max(0.0, found["train"] - reached)
    found["train"] -= found["lost"]
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
