"""The folder of a sweep: which members are done, and the states of those that may be kept.

FOLDER/sweep.json says what the sweep is. FOLDER/sweep.jsonl has a line for each member, once it is done, in the form of
run/lines.py; with --halving, FOLDER/rungs.jsonl has one for each stage of each. Of several processes, each but the
first has such files of its own in FOLDER/processes/N, where each has one that changes while it goes on, too.
FOLDER/candidates has the states of the best members so far.
"""

import contextlib
import json
import operator
import os
import shutil
import threading
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distmlp.config import as_text, differences
from distmlp.errors import InputError, remark
from distmlp.machine import sync
from distmlp.many.course import Course
from distmlp.parallel.specs import State
from distmlp.progress import Standing
from distmlp.run import lines, swept
from distmlp.run.lines import Kind, Value
from distmlp.run.workdir import writing

_MEMBER: Kind = {"member": operator.index, "settings": dict, "steps": operator.index}
_REFIT: Kind = {"refit": bool, "settings": dict}
_FINAL: Kind = {"final": bool, "best": dict}
# Beside the settings of an experiment: they decide a member's score and length, too. Older folders lack them.
SCORED_WHEN = ("patience", "eval_every_epochs", "eval_every_steps")


class Record:
    """What this process writes of a sweep, and what all of them have written."""

    def __init__(self, folder: Path, process: int, keep: int) -> None:
        """`process`: its number; `keep`: how many of the best members are kept."""
        self.folder, self._keep, self._first = folder, keep, process == 0
        self._own = folder if self._first else folder / "processes" / str(process)
        self._own.mkdir(parents=True, exist_ok=True)
        self._pulse = folder / "processes" / str(process) / "pulse"
        self._candidates = folder / "candidates"
        self._lock = threading.Lock()
        self.done: dict[int, Value] = {}  # the members' lines, by their numbers
        self.rungs: dict[tuple[int, int], Value] = {}  # with --halving: by number and stage
        self._ended: list[Value] = []  # the lines behind those of the members, if they are there

    def describe(self, what: dict[str, Any]) -> None:
        """Writes what the sweep is, unless that is written.

        Raises:
          InputError: the folder holds another sweep, or a run.
        """
        path, text = self.folder / "sweep.json", lines.sealed(what) + "\n"
        if not path.exists():
            if (self.folder / "run.flags").exists():
                raise InputError(f"--workdir={self.folder} holds a run: give another --workdir")
            temporary = self._own / f"sweep.json.tmp{os.getpid()}"
            with writing(path):
                temporary.write_text(text, encoding="utf-8")
                sync(temporary)
                try:
                    os.link(temporary, path)  # of several processes, one succeeds
                except FileExistsError:
                    pass
                except OSError:  # a file system without links
                    temporary.replace(path)
                temporary.unlink(missing_ok=True)
                sync(self.folder)
        there = lines.read(path, {}).values
        if not there:
            raise InputError(f"{path} is damaged: bring it back from a copy, or give another --workdir")
        own = json.loads(text)
        before, after = ({name: value for name, value in each.items() if name not in ("crc32", "settings")}
                         for each in (there[0], own))  # fmt: skip
        changed = [f"{name} was {_told(before.get(name))}, is {_told(after[name])}" for name in after
                   if before.get(name) != after[name]]  # fmt: skip
        saved = there[0].get("settings", {})
        lacking = {name: own["settings"].get(name) for name in SCORED_WHEN}
        changed += differences(lacking | saved, own["settings"])
        if changed:
            raise InputError(f"--workdir={self.folder} holds another sweep ({'; '.join(changed)}): give the same "
                             "flags, or another --workdir")

    def read(self) -> None:
        """Takes over what all processes have written so far."""
        for folder in (self.folder, *sorted(self.folder.glob("processes/*"))):
            for value in lines.read(folder / "sweep.jsonl", _MEMBER, _REFIT, _FINAL).values:
                if "member" in value:
                    self.done.setdefault(value["member"], value)
                elif folder == self.folder:
                    self._ended.append(value)
            for value in lines.read(folder / "rungs.jsonl", _MEMBER | {"rung": operator.index}).values:
                self.rungs.setdefault((value["member"], value["rung"]), value)

    def begin(self) -> None:
        """Mends this process's files where a crash has torn a line, or the last one was written too early."""
        for name in ("sweep.jsonl", "rungs.jsonl"):
            found = lines.read(self._own / name, _MEMBER, _REFIT, _FINAL)
            once: dict[Any, Value] = {}
            for value in found.values:
                once.setdefault((value["member"], value.get("rung")) if "member" in value else len(once), value)
            kept = [value for value in once.values() if "member" in value]
            changes = found.torn or found.damaged or len(kept) != len(found.values)
            if changes and (text := lines.renew(found, kept)):
                remark(text)
        self._ended = []

    def beat(self, pulse: int) -> None:
        """Tells the other processes that this one goes on, by a number that changes."""
        self._pulse.parent.mkdir(parents=True, exist_ok=True)
        self._pulse.write_text(str(pulse), encoding="utf-8")

    def pulses(self) -> list[str]:
        """What all processes tell so."""
        found = []
        for path in sorted(self.folder.glob("processes/*/pulse")):
            with contextlib.suppress(OSError):  # it is being replaced
                found.append(path.read_text(encoding="utf-8"))
        return found

    def add(self, courses: Iterable[Course], rung: int | None = None) -> None:
        """Writes the lines of members that are done, or with a stage's number of those that have come so far. They are
        on disk when this returns, and before them the states of those that may be kept."""
        with self._lock:
            values = {course.member.number: course.told() for course in courses}
            if rung is not None:
                self._append("rungs.jsonl", [{**value, "rung": rung} for value in values.values()])
                self.rungs |= {(number, rung): value for number, value in values.items()}
                return
            best = self.best(self.done | values)
            with writing(self._candidates):
                for course in courses:
                    if course.member.number in best:
                        self._save(course)
            self._append("sweep.jsonl", values.values())
            self.done |= values
            for number in self._saved() & self.done.keys() - set(best):  # other processes' may be better
                self._path(number).unlink(missing_ok=True)

    def add_lines(self, values: Sequence[Value]) -> None:
        """Writes lines as they are, at the end of sweep.jsonl."""
        self._append("sweep.jsonl", values)
        self.done |= {value["member"]: value for value in values if "member" in value}

    def add_end(self, value: Value) -> None:
        """Writes one of the lines behind those of the members."""
        self._append("sweep.jsonl", [value])
        self._ended.append(value)

    @property
    def refit(self) -> Value | None:
        """The line of the refitted model."""
        return next((value for value in self._ended if value.get("refit")), None)

    @property
    def final(self) -> Value | None:
        """The last line, once all is done."""
        return next((value for value in self._ended if value.get("final")), None)

    def standings(self, choose_by: str) -> list[swept.Standing]:
        """How the settings stand by the members that are done, the best first."""
        return swept.standings([self.done[number] for number in sorted(self.done)], choose_by)

    def own_values(self) -> list[Value]:
        """The members' lines in this process's file."""
        return lines.read(self._own / "sweep.jsonl", _MEMBER).values

    def _append(self, name: str, values: Iterable[Value]) -> None:
        with writing(self._own / name):
            lines.append(self._own / name, [lines.sealed(value) for value in values], durable=True)

    def best(self, done: dict[int, Value]) -> list[int]:
        """The numbers of the members to keep, the best first: of those that were trained to their end."""
        scored = [(-score if swept.higher_is_better(value["choose_by"]) else score, number)
                  for number, value in done.items()
                  if (score := swept.score(value)) is not None and value.get("halted") is None]
        return [number for _, number in sorted(scored)[: self._keep]]

    def _path(self, number: int) -> Path:
        return self._candidates / f"{number}.npz"

    def _saved(self) -> set[int]:
        return {int(path.stem) for path in self._candidates.glob("*.npz") if path.stem.isdecimal()}

    def _save(self, course: Course) -> None:
        self._candidates.mkdir(exist_ok=True)
        path = self._path(course.member.number)
        told = {"lines": course.lines, "standing": course.standing._asdict(), "step": course.step,
                "seconds": course.seconds}  # fmt: skip
        arrays: dict[str, Any] = {"told": np.frombuffer(json.dumps(told).encode(), np.uint8)}
        for name, state in (("last", course.last), ("best", course.best)):
            arrays |= {f"{name}{at}": leaf for at, leaf in enumerate(jax.tree.leaves(state))}
        temporary = path.with_suffix(f".tmp{os.getpid()}")
        with temporary.open("wb") as file:
            np.savez(file, **arrays)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)

    def restore(self, course: Course, like: State) -> bool:
        """Gives a course the states that were saved of it; whether there are any. `like` is a state, maybe abstract."""
        try:
            with np.load(self._path(course.member.number)) as saved:
                told = json.loads(bytes(saved["told"]))
                wanted = jax.tree.leaves(like)
                states = [[saved[f"{name}{at}"] for at in range(len(wanted))] for name in ("last", "best")]
        except (OSError, KeyError, ValueError, zipfile.BadZipFile):
            return False
        if any(a.shape != b.shape for leaves in states for a, b in zip(leaves, wanted, strict=True)):
            return False
        last, best = (jax.tree.unflatten(jax.tree.structure(like), leaves) for leaves in states)
        course.restored(told["step"], told["lines"], Standing(**told["standing"]), told["seconds"], last, best)
        return True

    def leave(self) -> None:
        """Deletes what is left where all was finished already: the first process's, if it was stopped before it did,
        or the folder of one that came later."""
        if self._first:
            self.forget()
        else:
            shutil.rmtree(self._own, ignore_errors=True)
            with contextlib.suppress(OSError):  # it holds another's
                self._own.parent.rmdir()

    def forget(self) -> None:
        """Deletes what is of no use once all is done."""
        shutil.rmtree(self._candidates, ignore_errors=True)
        shutil.rmtree(self.folder / "processes", ignore_errors=True)


def _told(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {as_text(each)}" for name, each in value.items()) or "nothing"
    return as_text(value) if value not in (None, "") else "nothing"
