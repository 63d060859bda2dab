"""What the report shows of a sweep."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.errors import InputError, counted
from distmlp.results import charts, run_data
from distmlp.results.evaluation import EnsembleReport
from distmlp.results.load import load
from distmlp.run import swept
from distmlp.run.lines import Value
from distmlp.run.swept import Standing, Swept, value_text

_ROWS = 20  # of the table of settings that are shown at once
_NAMED = 8  # settings within the best one's error
_POINTS = 60  # of a member's curve
_VALUES = 30  # of a setting, of which each has its bar
_LOG = 20  # a setting's values have a logarithmic axis if the largest is so many times the smallest
_FAR = 4  # a score is an outlier that is so many times as far from the best as half of them are at most


@dataclasses.dataclass
class Gain:
    """What the mean of the kept members is worth on the test set."""

    name: str
    accuracy: str
    loss: str


@dataclasses.dataclass
class Sweep:
    """What the page shows of one sweep."""

    name: str
    path: str
    colour: str
    choose_by: str
    varied: list[str]
    found: Swept
    standings: list[Standing]
    within: list[Standing]  # the best setting, and those within its error
    figures: list[tuple[str, str, str]] = dataclasses.field(default_factory=list)  # title, SVG, note
    gains: list[Gain] = dataclasses.field(default_factory=list)
    gain_note: str = ""
    rows: int = _ROWS

    @property
    def label(self) -> str:
        """What the scores are."""
        return self.choose_by.replace("_", " ")

    @property
    def settings(self) -> list[str]:
        """The names of what was varied, without the seed."""
        return [name for name in self.varied if name != "seed"]

    @property
    def size(self) -> str:
        """How many members it has, and of what."""
        members = self.found.members
        parts = [counted(len(self.standings), "setting")]
        folds = {line["fold"] for line in members if line.get("fold") is not None}
        seeds = {line["settings"]["seed"] for line in members if "seed" in line["settings"]}
        parts += [counted(len(folds), "fold")] * bool(folds) + [counted(len(seeds), "seed")] * bool(seeds)
        halted = sum(line.get("halted") is not None for line in members)
        left = f"; halving left {halted:,} of them behind" if halted else ""
        return f"{counted(len(members), 'member')}: {', '.join(parts)}{left}"

    @property
    def equals(self) -> str:
        """The settings that may be as good as the best one."""
        names = [each.name for each in self.within[1:]]
        return "; ".join(names[:_NAMED]) + (f"; and {len(names) - _NAMED} more" if len(names) > _NAMED else "")

    def cells(self, standing: Standing) -> list[str]:
        return [value_text(standing.settings.get(name, "")) for name in self.settings]

    def remark(self, standing: Standing) -> str:
        if standing.halted is not None:
            return "left behind by halving"
        if self.within and standing is self.within[0]:
            return "best"
        return "within one error" if standing in self.within else ""

    def score(self, value: float | None) -> str:
        return "none" if value is None else f"{value:.4f}"

    def member(self, line: Value) -> list[str]:
        fold = line.get("fold")
        return [str(line["member"]), *(value_text(line["settings"].get(name, "")) for name in self.varied),
                "" if fold is None else str(fold), self.score(line.get("score")), f"{line['steps']:,}",
                f"{line.get('seconds', 0):.2f}"]  # fmt: skip


def show(path: Path, name: str, colour: str) -> Sweep:
    """What there is of the sweep in this folder; raises InputError if its lines cannot be read, or there are none."""
    found = swept.read(path)
    if not found.members:
        raise InputError(f"{path} holds a sweep of which no member is finished: wait for it")
    choose_by = (found.final or {}).get("choose_by") or found.members[0].get("choose_by", "accuracy")
    varied = [*dict.fromkeys(setting for line in found.members for setting in line["settings"])]
    standings = swept.standings(found.members, choose_by)
    sweep = Sweep(name, str(path.absolute()), colour, choose_by, varied, found, standings,
                  swept.within_one_error(standings, choose_by))  # fmt: skip
    sweep.figures = [*_against_settings(sweep, colour), *_curves(sweep, colour)]
    if found.final is not None:
        try:
            sweep.gains, sweep.gain_note = _gains(path, found)
        except InputError as error:
            sweep.gain_note = f"What an ensemble of the kept members gains is not shown: {error}."
    return sweep


def _against_settings(sweep: Sweep, colour: str) -> list[tuple[str, str, str]]:
    scored = [line for line in sweep.found.members if swept.score(line) is not None]
    if not scored:
        return []
    limits = _limits([line["score"] for line in scored], sweep.choose_by)
    figures = []
    for name in sweep.varied:
        own = [line for line in scored if name in line["settings"]]
        values = _ordered([line["settings"][name] for line in own])
        if len(values) < 2:
            continue
        numbers = None if name == "seed" else _numbers(values)
        places = dict(zip(map(json.dumps, values), range(len(values)) if numbers is None else numbers, strict=True))
        x = np.array([places[json.dumps(line["settings"][name])] for line in own], np.float64)
        if numbers is None and len(values) < len(own):  # side by side, evenly
            x += 0.6 * ((np.arange(len(own)) * 0.618034) % 1 - 0.5)
        shown = len(values) <= _VALUES and len(values) < len(own)  # else a dot says it all
        bars = _bars(sweep, name, places) if shown else []
        log = numbers is not None and min(numbers) > 0 and max(numbers) >= _LOG * min(numbers)
        dots = charts.Dots(x.tolist(), [line["score"] for line in own], bars, log,
                           [value_text(value) for value in values] if numbers is None else [])  # fmt: skip
        svg, note = charts.scores(dots, name, sweep.label, colour, *limits), _note(name, own, bool(bars), limits)
        figures.append((f"{sweep.label.capitalize()} by {name}", svg, note))
    return figures


def _note(name: str, own: Sequence[Value], bars: bool, limits: tuple[float | None, float | None]) -> str:
    of = "all members with that seed" if name == "seed" else "the best setting with that value"
    text = "A dot is a member."
    if bars:
        text += f" The line joins the mean of {of}, with its standard error."
    low, high = (np.inf * sign if limit is None else limit for limit, sign in zip(limits, (-1, 1), strict=True))
    beyond = sum(not low <= line["score"] <= high for line in own)
    return text + (f" Triangles: {beyond:,} far worse than the others." if beyond else "")


def _bars(sweep: Sweep, name: str, places: dict[str, float]) -> list[tuple[float, float, float]]:
    """Place, mean and error, for each value: of the best setting that has it; of a seed, of all members with it. There
    is none where a member has no score."""
    standings, of = sweep.standings, name
    if name == "seed":  # as if it was what is varied, and all else were repeats
        standings, of = swept.standings([{**line, "settings": {"of": line["settings"]["seed"]}}
                                         for line in sweep.found.members if "seed" in line["settings"]],
                                        sweep.choose_by), "of"  # fmt: skip
    bars: dict[str, tuple[float, float, float]] = {}
    for standing in standings:  # the best first
        if standing.mean is not None and of in standing.settings:
            value = json.dumps(standing.settings[of])
            bars.setdefault(value, (places[value], standing.mean, standing.error or 0.0))
    return [*bars.values()]


def _ordered(values: Sequence[Any]) -> list[Any]:
    """The different values: numbers by size, others as they came."""
    different = list({json.dumps(value): value for value in values}.values())
    return sorted(different) if _numbers(different) is not None else different


def _numbers(values: Sequence[Any]) -> list[float] | None:
    """The values as numbers, lists of a single one included; None if one is none."""
    plain = [value[0] if isinstance(value, list) and len(value) == 1 else value for value in values]
    if any(isinstance(value, bool) or not isinstance(value, (int, float)) for value in plain):
        return None
    return [float(value) for value in plain]


def _limits(scores: Sequence[float], choose_by: str) -> tuple[float | None, float | None]:
    """The lowest and the highest score that a chart shows in its place: where few are far worse, the others would not
    be told apart."""
    higher = swept.higher_is_better(choose_by)
    best, worst = (max(scores), min(scores)) if higher else (min(scores), max(scores))
    far = best + _FAR * (float(np.median(scores)) - best)
    if far == best or abs(worst - best) <= 1.5 * abs(far - best):
        return None, None
    return (far, None) if higher else (None, far)


def _curves(sweep: Sweep, colour: str) -> list[tuple[str, str, str]]:
    chosen = {line["member"] for standing in sweep.within for line in standing.members}
    label, figures = sweep.label, []
    for title, column, name, log in (
        ("Training loss of all members", 1, "training loss", True),
        (f"{label.capitalize()} of all members", 2, label, sweep.choose_by == "loss"),
    ):
        curves, picked = [], []
        for line in sweep.found.members:
            points = [(point[0], point[column]) for point in line.get("curve") or []
                      if point[column] is not None and (point[column] > 0 or not log)]  # fmt: skip
            if len(points) > 1:
                some = np.unique(np.linspace(0, len(points) - 1, min(len(points), _POINTS)).astype(int))
                steps, values = zip(*(points[place] for place in some), strict=True)
                curves.append((steps, values))
                picked.append(line["member"] in chosen)
        if curves:
            note = "In colour: the best setting, and those within one standard error of it."
            figures.append((title, charts.bundle(curves, picked, name, colour, log=log), note))
    return figures


def _gains(path: Path, found: Swept) -> tuple[list[Gain], str]:
    """The refitted model, the members and their mean on the test set; and what there is to say of it."""
    ensemble = load(path, ensemble=True)
    whole = run_data.evaluate(ensemble)
    assert isinstance(whole, EnsembleReport)
    rows = []
    if found.refit:
        single = run_data.evaluate(load(path))
        rows.append(Gain("the refitted model", f"{100 * single.accuracy:.2f} %", f"{single.loss:.5f}"))
    alone = whole.alone
    rows += [Gain(f"each of the {whole.members} members", f"{100 * min(alone):.2f} to {100 * max(alone):.2f} %, "
                  f"mean {100 * np.mean(alone):.2f} %", ""),
             Gain("the mean of their probabilities", f"{100 * whole.accuracy:.2f} %", f"{whole.loss:.5f}")]  # fmt: skip
    low, high = whole.accuracy_interval
    return rows, (f"On {whole.count:,} test examples; the accuracy of the mean on endlessly many is between "
                  f"{100 * low:.2f} and {100 * high:.2f} % in 95 of 100 cases. Two members, drawn at random, predict "
                  f"different classes for {100 * whole.disagreement:.2f} % of them.")  # fmt: skip
