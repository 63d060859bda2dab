"""What lies in a sweep's folder: the lines of its sweep.jsonl, the folders of its members, and how its settings stand.

A member is one setting on one fold, with one seed. A setting is what was varied, apart from the seed: folds and seeds
are its repeats, over which its score has a mean and a standard error.
"""

import dataclasses
import json
import math
import operator
import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from distmlp.config import as_text
from distmlp.errors import InputError
from distmlp.run import lines
from distmlp.run.lines import Kind, Value

PLAN, LINES, MEMBERS, REFITTED = "sweep.json", "sweep.jsonl", "members", "refit"
_MEMBER: Kind = {"member": operator.index, "settings": dict, "steps": operator.index}
_REFIT: Kind = {"refit": bool, "settings": dict}
_FINAL: Kind = {"final": bool, "best": dict}


class Swept(NamedTuple):
    """What a sweep has written so far."""

    folder: Path
    members: list[Value]  # a line each, in the order of their numbers
    refit: Value | None  # the line of the model that was trained again on all training data
    final: Value | None  # the last line: without it, the sweep is not finished
    damage: str  # which lines are not what was written; empty if all are

    @property
    def kept(self) -> list[Path]:
        """The folders of the members whose runs were kept, the best first."""
        return [self.folder / MEMBERS / str(number) for number in (self.final or {}).get("kept", [])]


@dataclasses.dataclass(frozen=True)
class Standing:
    """How a setting stands."""

    settings: dict[str, Any]  # without the seed
    members: list[Value]  # its lines
    mean: float | None  # of their scores; None: not all of them have one, as those that diverged
    error: float | None  # the standard error of the mean; None of a single member
    halted: int | None  # after which rung of halving it was left behind; None: it went the full length

    @property
    def name(self) -> str:
        return named(self.settings)


def is_sweep(folder: Path) -> bool:
    return (folder / PLAN).is_file() or (folder / LINES).is_file()


def read(folder: Path) -> Swept:
    """Raises InputError if the sweep's lines cannot be read, or the folder holds none."""
    if not is_sweep(folder):
        raise InputError(f"{folder} holds no sweep: give the --workdir of one")
    found = lines.read(folder / LINES, _MEMBER, _REFIT, _FINAL)
    members = {line["member"]: line for line in found.values if "member" in line}
    return Swept(
        folder, [members[number] for number in sorted(members)],
        next((line for line in reversed(found.values) if line.get("refit")), None),
        next((line for line in reversed(found.values) if line.get("final")), None), found.damage,
    )  # fmt: skip


def refit_of(folder: Path) -> Path:
    """Where the run of the model lies that is trained again."""
    return folder / MEMBERS / REFITTED


def refitted(folder: Path) -> Path:
    """The folder of the refitted model's run; raises InputError if the sweep has none."""
    swept, run = read(folder), refit_of(folder)
    if swept.refit and run.is_dir():
        return run
    if swept.final is None:
        raise InputError(f"{folder} holds a sweep that is not finished: give the same command again to go on with it")
    if swept.refit:
        raise InputError(f"{folder} holds a sweep that lacks {run}: give the same command again to train it again")
    others = f"a member's run, as {(swept.kept or [run])[0]}, or --ensemble"
    if swept.final.get("refit_diverged"):
        raise InputError(f"{folder} holds a sweep whose best setting diverged when trained again: give {others}")
    raise InputError(f"{folder} holds a sweep whose best setting was not trained again (--norefit): give the same "
                     f"command without --norefit, or {others}")


def kept(folder: Path) -> list[Path]:
    """The folders of the kept members' runs, the best first; raises InputError if there are not two of them."""
    swept = read(folder)
    if swept.final is None:
        raise InputError(f"{folder} holds a sweep that is not finished: give the same command again to go on with it")
    able = sum(score(line) is not None and line.get("halted") is None for line in swept.members)
    if len(swept.kept) < 2 and able < 2:
        raise InputError(f"{folder} holds a sweep of which {'only 1 member was' if able else 'no members were'} "
                         "trained to the end with a finite score, and an ensemble needs two: give each setting several "
                         "seeds or --folds, in another --workdir")
    if len(swept.kept) < 2:
        raise InputError(f"{folder} holds a sweep of which {len(swept.kept) or 'no'} member"
                         f"{' is' if len(swept.kept) == 1 else 's are'} kept, and an ensemble needs two: sweep again "
                         "with --keep=8")
    return swept.kept


def score(line: Value) -> float | None:
    """The score in a member's line; None where there is none, as of one that diverged, or none that is finite."""
    found: float | None = line.get("score")
    return found if found is not None and math.isfinite(found) else None


def higher_is_better(choose_by: str) -> bool:
    return choose_by != "loss"


def standings(members: Iterable[Value], choose_by: str) -> list[Standing]:
    """How the settings stand by their members' scores, the best first. Those that halving left behind are behind, but
    before those without a score where all that went the full length have none."""
    by_settings: dict[str, list[Value]] = {}
    for line in members:
        settings = {name: value for name, value in line["settings"].items() if name != "seed"}
        by_settings.setdefault(json.dumps(settings, sort_keys=True), []).append(line)
    found = []
    for own in by_settings.values():
        scores = [each for line in own if (each := score(line)) is not None]
        mean = statistics.fmean(scores) if len(scores) == len(own) else None
        spread = None if mean is None or len(own) < 2 else statistics.stdev(scores, mean) / math.sqrt(len(own))
        halted = min((line["halted"] for line in own if line.get("halted") is not None), default=None)
        settings = {name: own[0]["settings"][name] for name in own[0]["settings"] if name != "seed"}
        found.append(Standing(settings, own, mean, spread, halted))
    sign = -1 if higher_is_better(choose_by) else 1
    finalist = any(each.halted is None and each.mean is not None for each in found)

    def place(standing: Standing) -> tuple[bool, bool, float, bool, float]:
        mean = standing.mean
        lost = mean is None and not finalist
        return (lost, standing.halted is not None, -(standing.halted or 0), mean is None, sign * (mean or 0.0))

    return sorted(found, key=place)


def within_one_error(found: Sequence[Standing], choose_by: str) -> list[Standing]:
    """Of settings as `standings` gives them, the best and those whose mean is no more than its standard error worse:
    which of them is better is not known. None was left behind by halving."""
    if not found or found[0].mean is None:
        return []
    best, error = found[0].mean, found[0].error or 0.0
    sign = 1 if higher_is_better(choose_by) else -1
    return [each for each in found if each.mean is not None and each.halted is None
            and sign * (best - each.mean) <= error]  # fmt: skip


def named(settings: dict[str, Any]) -> str:
    """Settings as people read them; a single setting, where only seeds or folds were varied."""
    return ", ".join(f"{name}={value_text(value)}" for name, value in settings.items()) or "as given"


def value_text(value: Any) -> str:
    """A value of a setting; of a number that was drawn, six digits."""
    return f"{value:.6g}" if isinstance(value, float) else as_text(value)
