"""What a sweep says on the terminal: how far it is, and at its end the settings in their order."""

import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from distmlp.errors import printable
from distmlp.run.swept import Standing, named, within_one_error

_EVERY = 10.0  # seconds between two lines where there is no terminal
_ROWS, _WIDTH = 20, 26  # of the table; columns of a setting


def score_text(score: float | None, choose_by: str) -> str:
    """A score as people know it."""
    if score is None:
        return "diverged"
    return f"{score:.2%}" if choose_by == "accuracy" else f"{score:.5f}"


class Shown:
    """How far a sweep is; says it in the first process only."""

    def __init__(self, first: bool, members: int, steps: int, choose_by: str) -> None:
        """`members` and `steps` are what this process has to do."""
        self._first, self._members, self._steps, self._choose_by = first, members, max(steps, 1), choose_by
        self._done, self._made, self._began, self._said = 0, 0, time.monotonic(), time.monotonic()
        self._bar: Any = tqdm(total=members, unit=" members", leave=False, disable=None if first else True)

    def say(self, text: str) -> None:
        if self._first:
            tqdm.write(printable(text), file=sys.stdout)
            sys.stdout.flush()

    def add(self, members: int, steps: int, standings: Sequence[Standing]) -> None:
        """Members are done that had so many steps; `standings` are those of settings so far."""
        self._done, self._made = self._done + members, self._made + steps
        best = standings[0] if standings and standings[0].mean is not None else None
        error = "" if best is None or best.error is None else f" ± {score_text(best.error, self._choose_by)}"
        top = "" if best is None else (
            f"best {score_text(best.mean, self._choose_by)}{error} ({best.name})")
        self._bar.set_postfix_str(top, refresh=False)
        self._bar.update(members)
        now = time.monotonic()
        if self._bar.disable and now - self._said > _EVERY and self._done < self._members:
            left = (now - self._began) / self._made * (self._steps - self._made)
            self.say(f"{self._done} of {self._members} members, {_time(left)} left{', ' + top if top else ''}")
            self._said = now

    def close(self) -> None:
        self._bar.close()


def _time(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min" if seconds < 6000 else (
        f"{seconds / 3600:.1f} h")


def table(standings: Sequence[Standing], choose_by: str, scored_on: str) -> str:
    """The best settings, a line each; those within one error of the best are marked."""
    near = within_one_error(standings, choose_by)
    heading = choose_by.replace("_", " ")
    lines = [f"  {heading:>9}   ± error  members  settings (scored on {scored_on})"]
    for each in standings[:_ROWS]:
        mark = "*" if each in near and len(near) > 1 else " "
        error = "" if each.error is None else score_text(each.error, choose_by)
        halted = "" if each.halted is None else f"  (halted after {max(m['steps'] for m in each.members)} steps)"
        lines.append(f"{mark} {score_text(each.mean, choose_by):>9} {error:>9} {len(each.members):>8}  "
                     f"{each.name}{halted}")
    if len(standings) > _ROWS:
        lines.append(f"  and {len(standings) - _ROWS:,} more settings, in sweep.jsonl")
    if len(near) > 1:
        lines.append(f"* within one standard error of the best: {len(near)} settings that this does not tell apart")
    return "\n".join(lines)


def ending(final: dict[str, Any], refit: dict[str, Any] | None, folder: Path, choose_by: str, kept: int) -> str:
    """What there is to go on with."""
    lines = [f"best         {named(final['best']['settings'])}"]
    if refit is not None and "test_accuracy" in refit:
        name = f"test_{choose_by}"
        more = "" if choose_by == "accuracy" or name not in refit else (
            f", {choose_by.replace('_', ' ')} {refit[name]:.5f}")
        lines.append(f"test set     {refit['test_accuracy']:.2%} ({refit['test_correct']} of {refit['test_count']})"
                     f"{more}, trained again on all training data")
    lines.append(f"members      the best {kept} in {folder / 'members'}" if kept else "members      none kept")
    given = shlex.quote(str(folder))
    if refit is not None:
        lines.append(f"next         python -m launch.evaluate {given}")
    lines.append(f"{'' if refit is not None else 'next':<13}python -m launch.report {given}")
    lines.append(f"workdir      {folder}")
    return "\n".join(lines)
