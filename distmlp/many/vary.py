"""What a sweep varies, and the members that it has: one for each setting, seed and fold."""

import dataclasses
import difflib
import itertools
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from distmlp.config import Config, as_text, refuse_of_members
from distmlp.errors import InputError, counted

_MOST = 100_000  # members
_TRIES = 1000  # draws of each setting, at most, until there is one that was not drawn before
# Of these a sweep has one: what members are scored on, and how.
_SCORED_BY = ("dataset", "test_fraction", "validation_fraction", "fold", "data_seed", "label_column", "num_classes",
              "choose_by", "synthetic_examples", "synthetic_features", "synthetic_classes")  # fmt: skip
_FIELDS = {field.name: field for field in dataclasses.fields(Config)}
_RANGE = re.compile(r"(log|uniform):([^:]+):([^:]+)")


@dataclasses.dataclass(frozen=True)
class Range:
    """Numbers to draw from."""

    kind: str  # log or uniform
    low: float
    high: float
    whole: bool  # whether they are whole numbers

    def draw(self, rng: np.random.Generator) -> float | int:
        share = rng.random()
        if self.whole:
            low, high = self.low - 0.5, self.high + 0.5
            value = low * (high / low) ** share if self.kind == "log" else low + share * (high - low)
            return int(min(max(round(value), self.low), self.high))
        value = self.low * (self.high / self.low) ** share if self.kind == "log" else (
            self.low + share * (self.high - self.low))
        return float(f"{value:.6g}")  # as one would write it

    def __str__(self) -> str:
        return f"{self.kind}:{self.low:g}:{self.high:g}"


Varied = Mapping[str, "list[Any] | Range"]


@dataclasses.dataclass(frozen=True)
class Member:
    """One training of a sweep."""

    number: int
    settings: dict[str, Any]  # the varied ones, as JSON values
    fold: int | None  # from 1
    config: Config  # of the same run alone

    @property
    def setting(self) -> dict[str, Any]:
        """The varied ones but the seed: members of one setting differ in seed and fold only."""
        return {name: value for name, value in self.settings.items() if name != "seed"}


def varied(vary: Mapping[str, Any]) -> dict[str, "list[Any] | Range"]:
    """What is varied, from values as Python has them, or as text where that is what a command line has.

    Raises:
      InputError: a name that is no setting, or none that can be varied; or values that cannot be.
    """
    found: dict[str, list[Any] | Range] = {}
    for name, values in vary.items():
        _check_name(name)
        if isinstance(values, str) or not isinstance(values, Iterable):
            values = [values]
        values = list(values)
        if not values:
            raise InputError(f"--vary {name}: give its values, as in --vary learning_rate 0.001 0.01")
        ranges = [value for value in values if isinstance(value, str) and _RANGE.fullmatch(value)]
        if ranges and len(values) > 1:
            raise InputError(f"--vary {name} {ranges[0]}: a range stands alone, without other values")
        if ranges:
            found[name] = _range(name, ranges[0])
            continue
        plain = [_value(name, value) for value in values]
        for at, value in enumerate(plain):
            if value in plain[:at]:
                raise InputError(f"--vary {name}: {as_text(value)} is given twice: leave one of them out")
        found[name] = plain
    return found


def _check_name(name: str) -> None:
    field = _FIELDS.get(name)
    if field is None:
        near = difflib.get_close_matches(str(name), _FIELDS, 1)
        raise InputError(f"--vary {name}: there is no such setting{f', did you mean {near[0]}' if near else ''}: "
                         "python -m launch.train --helpfull lists them all")
    if name in _SCORED_BY:
        raise InputError(f"--vary {name}: all members must be scored alike, by one set of examples: give --{name} to "
                         "each sweep, and compare their tables")
    if name == "reduction":
        raise InputError("--vary reduction: it holds for a whole process: give --reduction to each sweep")
    if field.metadata["scope"] not in ("experiment", "length"):
        raise InputError(f"--vary {name}: it does not decide the result: leave it out")


def _range(name: str, text: str) -> Range:
    kind, *bounds = _RANGE.fullmatch(text).groups()  # type: ignore[union-attr] # varied has asked
    whole = _FIELDS[name].type is int
    if _FIELDS[name].type not in (int, float):
        raise InputError(f"--vary {name} {text}: a range is of numbers: give the values themselves")
    try:
        low, high = map(float, bounds)
    except ValueError:
        raise InputError(f"--vary {name} {text}: give two numbers, as in log:1e-4:1e-1") from None
    if not (math.isfinite(low) and math.isfinite(high) and low < high) or (kind == "log" and low <= 0):
        above = " above 0" if kind == "log" else ""
        raise InputError(f"--vary {name} {text}: give two numbers{above}, the smaller one first")
    if whole and (low % 1 or high % 1):
        raise InputError(f"--vary {name} {text}: {name} is a whole number: give whole bounds")
    return Range(kind, low, high, whole)


def _value(name: str, value: Any) -> Any:
    """A value of the setting's own type; what is none stays as it is, for Config to refuse."""
    kind, value = _FIELDS[name].type, getattr(Config(**{name: value}), name)
    if not isinstance(value, str):
        value = tuple(value) if isinstance(value, list) else value
        return float(value) if kind is float and type(value) is int else value
    text = value.strip()
    try:
        if kind is bool:
            return {"true": True, "false": False}[text.lower()]
        if kind in (int, float):
            return kind(text)  # type: ignore[operator] # a class, not a name
        if name == "hidden_sizes":
            return tuple(int(size) for size in text.split(",") if size.strip())
    except (KeyError, ValueError):
        kinds: dict[Any, str] = {bool: "true or false", int: "whole numbers", float: "numbers"}
        wanted = kinds.get(kind, "whole numbers, as in 64 or 256,256")
        raise InputError(f"--vary {name} {value}: give {wanted}") from None
    return value


def members(config: Config, vary: Varied, folds: int, sample: int) -> list[Member]:
    """All members of a sweep, in their order: settings, and of each its seeds, and of each its folds.

    Raises:
      InputError: what is asked for makes no sense, or a member's settings do not go together.
    """
    ranges = [name for name, values in vary.items() if isinstance(values, Range)]
    for wrong, text in (
        (not vary and not folds, "nothing to vary: give --vary NAME VALUE VALUE, or --folds=5"),
        (folds < 0 or folds == 1, f"--folds={folds}: give 2 or more, or leave it out"),
        (sample < 0, f"--sample={sample}: give how many settings are to be drawn, or leave it out"),
        (ranges and not sample, f"--vary {ranges[0] if ranges else ''} has a range to draw from: say how often, as in "
                                "--sample=20"),
        (sample and not vary.keys() - {"seed"}, f"--sample={sample} draws settings: give --vary NAME VALUE ..."),
        (folds and config.validation_fraction,
         f"--folds={folds} and --validation_fraction={config.validation_fraction} both hold out examples to score by: "
         "leave one of them out"),
        (config.fold, f"--fold={config.fold} is a single run's: give --folds=5 for all of them"),
    ):  # fmt: skip
        if wrong:
            raise InputError(text)
    refuse_of_members(config)
    config.validate()
    seeds = vary.get("seed", [config.seed])
    if isinstance(seeds, Range):
        raise InputError("--vary seed: give the seeds themselves, as in --vary seed 0 1 2")
    settings = _settings(config, {name: values for name, values in vary.items() if name != "seed"}, sample)
    if len(settings) * len(seeds) * max(folds, 1) > _MOST:
        raise InputError(f"this sweep has {len(settings) * len(seeds) * max(folds, 1):,} members: give fewer than "
                         f"{_MOST:,}, with --sample=100 for instance")
    base = config
    if "seed" in vary:  # all members share their data
        base = dataclasses.replace(config, data_seed=config.drawing_seed)
    found: list[Member] = []
    for changes in settings:
        for seed, fold in itertools.product(seeds, range(1, folds + 1) if folds else [None]):
            given = changes | ({"seed": seed} if "seed" in vary else {})
            own = dataclasses.replace(base, **given, fold=f"{fold}/{folds}" if fold else "")
            own.validate()
            told = {name: list(value) if isinstance(value, tuple) else value for name, value in given.items()}
            found.append(Member(len(found), told, fold, own))
    return found


def _settings(config: Config, vary: Varied, sample: int) -> list[dict[str, Any]]:
    """The values of each setting: of a grid, some of it, or drawn."""
    if not any(isinstance(values, Range) for values in vary.values()):
        grid = [dict(zip(vary, values, strict=True)) for values in itertools.product(*vary.values())]  # type: ignore[arg-type] # lists
        if not sample:
            return grid
        if sample > len(grid):
            raise InputError(f"--sample={sample}: the grid has {counted(len(grid), 'setting')}: give fewer, "
                             "or leave it out")
        rng = np.random.default_rng(config.drawing_seed)
        return [grid[at] for at in np.sort(rng.choice(len(grid), sample, replace=False))]
    rng = np.random.default_rng(config.drawing_seed)
    drawn: dict[str, dict[str, Any]] = {}  # each once
    for _ in range(sample * _TRIES):
        found = {name: values.draw(rng) if isinstance(values, Range) else values[int(rng.integers(len(values)))]
                 for name, values in vary.items()}  # fmt: skip
        drawn.setdefault(str(found), found)
        if len(drawn) == sample:
            return list(drawn.values())
    raise InputError(f"--sample={sample}: the ranges have {counted(len(drawn), 'setting')}: give fewer, or wider "
                     "ranges")


def from_flags(arguments: Sequence[str]) -> tuple[dict[str, list[str]], list[str]]:
    """What --vary says in a command line, and the other arguments.

    Raises:
      InputError: --vary lacks a name or values, or names a setting twice.
    """
    vary: dict[str, list[str]] = {}
    rest: list[str] = []
    left = list(arguments)
    while left:
        argument = left.pop(0)
        flag, equals, _ = argument.partition("=")
        if flag.lstrip("-") != "vary" or not flag.startswith("-"):
            rest.append(argument)
            continue
        name = left.pop(0) if left and not equals and not _is_flag(left[0]) else ""
        values: list[str] = []
        while left and not _is_flag(left[0]):
            values.append(left.pop(0))
        if not name or not values:
            given = " ".join(filter(None, (argument, name)))
            raise InputError(f"{given}: give a setting and its values, as in --vary learning_rate 0.001 0.01")
        if configs := [value for value in (name, *values) if value.endswith(".flags")]:
            raise InputError(f"--vary {name}: {configs[0]} is no value: give configs before --vary")
        if name in vary:
            raise InputError(f"--vary {name} is given twice: give all its values at once")
        vary[name] = values
    return vary, rest


def _is_flag(text: str) -> bool:
    """Whether an argument begins with a dash, and is no negative number."""
    return text.startswith("-") and not re.fullmatch(r"-[\d.][\d.e+-]*", text)
