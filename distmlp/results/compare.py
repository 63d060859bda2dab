"""Where two runs part: by their ledgers, step by step, and by the metrics and checkpoints that both have."""

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.config import Config
from distmlp.errors import InputError, listed
from distmlp.results import checkpoints
from distmlp.results.load import run_of
from distmlp.run import ledger
from distmlp.run.ledger import examples_sum
from distmlp.run.log import read_lines
from distmlp.run.store import DamageError

_METRICS = ("train_loss", "train_accuracy", "validation_loss", "validation_accuracy", "test_loss", "test_accuracy",
            "test_correct", "test_count", "params_sha256")
_PLACES = ("workdir", "compilation_cache_dir")  # other ones change nothing
_NAMED = 4  # arrays in a line


@dataclasses.dataclass
class Comparison:
    """What was found, line by line, and the first step at which the runs part; None: nowhere."""

    lines: list[str] = dataclasses.field(default_factory=list)
    parted_at: int | None = None

    def say(self, subject: str, text: str, step: int | None = None) -> None:
        """Adds a line; `step` is where the runs part in this."""
        self.lines.append(f"{subject:<12} {text}")
        if step is not None:
            self.parted_at = step if self.parted_at is None else min(step, self.parted_at)


def compare(a: Path, b: Path) -> Comparison:
    """Compares two runs, which may still be training, as far as both go; of a sweep's folder, the refitted model's.

    Raises:
      InputError: one is no run, or they have no step in common to compare.
    """
    found, runs = Comparison(), (run_of(a), run_of(b))
    steps = [checkpoints.steps(run) for run in runs]
    for name, run, have in zip("AB", runs, steps, strict=True):
        found.say(name, f"{run}: checkpoints of step {', '.join(map(str, sorted(have)))}")
    _settings(found, runs, steps)
    ledgers, histories = [ledger.read(run) for run in runs], [read_lines(run) for run in runs]
    for name, (header, lines, file), history in zip("AB", ledgers, histories, strict=True):
        for damage in filter(None, (file.damage, history.damage)):
            found.say("damage", damage)
        _epochs(found, name, header, lines)
    compared = {
        *_ledgers(found, ledgers[0][1], ledgers[1][1]),
        *_metrics(found, [history.values for history in histories]),
        *_checkpoints(found, runs, sorted(set(steps[0]) & set(steps[1]))),
    }
    if not compared:
        raise InputError(f"{a} and {b} have no step in common, neither in metrics nor in checkpoints: "
                         "train with --ledger, or evaluate at the same steps")
    if found.parted_at is None:
        found.say("verdict", f"the runs are the same as far as they go: up to step {max(compared)}")
    else:
        before = max((step for step in compared if step < found.parted_at), default=0)
        maybe = "" if before == found.parted_at - 1 else f", or earlier: nothing was compared after step {before}"
        found.say("verdict", f"the runs part at step {found.parted_at}{maybe}")
    return found


def _settings(found: Comparison, runs: tuple[Path, Path], steps: list[list[int]]) -> None:
    """Settings and data, as the newest checkpoints know them: they explain, and decide nothing."""
    try:
        metas = [checkpoints.read_unverified(run, have[0]).meta for run, have in zip(runs, steps, strict=True)]
    except DamageError:
        return
    first, second = (meta["settings"] for meta in metas)
    decides = {field.name: field.metadata["scope"] in ("experiment", "length") for field in dataclasses.fields(Config)}
    for subject, wanted in (("settings", True), ("how it ran", False)):
        changed = [f"--{name}={first[name]} / {second[name]}" for name in sorted(first.keys() & second.keys())
                   if first[name] != second[name] and decides.get(name) is wanted and name not in _PLACES]
        if changed or wanted:
            found.say(subject, f"A / B: {', '.join(changed)}" if changed else "the same")
    same = metas[0]["data"] == metas[1]["data"]
    found.say("data", "the same" if same else "other data: their fingerprints differ")


def _epochs(found: Comparison, name: str, header: dict[str, Any], lines: dict[int, dict[str, Any]]) -> None:
    """Whether each example counted once in the epochs of which a ledger has all steps."""
    if not lines:
        found.say("ledger", f"{name} has none (--ledger keeps one)")
        return
    last = max(lines)
    if gaps := last - len(lines):
        found.say("ledger", f"{name} lacks {gaps:,} of its {last:,} steps: they ran without --ledger, or are lost")
    if not header:
        found.say("ledger", f"{name}: whether each example counts once is not known, for the first line is lost")
        return
    size, length = header["examples"], header["steps_per_epoch"]
    expected, whole = (size, examples_sum(np.arange(size))), 0
    for epoch in range(last // length):
        steps = [lines[step] for step in range(epoch * length + 1, (epoch + 1) * length + 1) if step in lines]
        total = sum(int(line["examples"], 16) for line in steps) % 2**64
        whole += len(steps) == length
        if len(steps) == length and (sum(line["count"] for line in steps), total) != expected:
            found.say("ledger", f"{name}: epoch {epoch + 1} did not have each training example once",
                      (epoch + 1) * length)
            return
    found.say("ledger", f"{name}: each whole epoch has all {size:,} training examples, each once" if whole else
              f"{name} has no whole epoch: whether each example counts once is not known")


def _ledgers(found: Comparison, a: dict[int, Any], b: dict[int, Any]) -> list[int]:
    common = sorted(a.keys() & b.keys())
    part = {name: next((step for step in common if a[step][name] != b[step][name]), None)
            for name in ("examples", "loss")}
    for subject, step in part.items() if common else ():
        if step is None:
            found.say(subject, f"the same in all {len(common):,} steps")
        elif subject == "loss":
            found.say(subject, f"parts at step {step}: {_hex(a[step]['loss'])} / {_hex(b[step]['loss'])}", step)
        else:
            found.say(subject, f"part at step {step}: {a[step]['count']} / {b[step]['count']} of them, not the same",
                      step)
    digests = [step for step in common if "digests" in a[step] and "digests" in b[step]]
    for before, step in itertools.pairwise([0, *digests]):
        arrays = _different(a[step]["digests"], b[step]["digests"])
        if arrays:
            found.say("parameters", f"part between step {before} and step {step}: {listed(arrays, _NAMED)}", step)
            return common
    if digests:
        found.say("parameters", f"the same at all {len(digests):,} steps of which both have digests")
    return common


def _different(a: dict[str, str], b: dict[str, str]) -> list[str]:
    return [name for name in a | b if a.get(name) != b.get(name)]


def _hex(text: str) -> str:
    return f"{float.fromhex(text):.9g} ({text})"


def _metrics(found: Comparison, histories: list[list[dict[str, Any]]]) -> list[int]:
    a, b = map(_measured, histories)
    common = sorted(at for at in a.keys() & b.keys() if a[at].keys() & b[at].keys())
    for at in common:
        names = [name for name in _METRICS if name in a[at] and name in b[at] and a[at][name] != b[at][name]]
        if names:
            values = f"{str(a[at][names[0]])[:20]} / {str(b[at][names[0]])[:20]}"
            found.say("metrics", f"part at step {at[0]}: {names[0]} is {values}", at[0])
            break
    else:
        steps = {step for step, *_ in common}
        found.say("metrics", f"the same at all {len(steps):,} steps that both logged" if steps else
                  "none that both logged at the same steps")
    return [step for step, *_ in common]


def _measured(history: list[dict[str, Any]]) -> dict[tuple[int, bool, int], dict[str, Any]]:
    """What both ends of a comparison can have in common, by the step that it is of, whether it is of the run's last
    line, and the step since which it is a mean.

    The training loss is the mean of the steps since the line before: a run that evaluated more often has another.
    """
    found: dict[tuple[int, bool, int], dict[str, Any]] = {}
    since = 0
    for line in history:
        step, final = line["step"], bool(line.get("final"))
        found[step, final, step] = {name: line[name] for name in _METRICS if name in line and name != "train_loss"}
        if "train_loss" in line:
            found[step, final, since] = {"train_loss": line["train_loss"]}
        since = since if final else step
    return found


def _checkpoints(found: Comparison, runs: tuple[Path, Path], common: list[int]) -> list[int]:
    compared, parted = [], False
    for step in common:
        pair = [_read(found, name, run, step) for name, run in zip("AB", runs, strict=True)]
        if pair[0] is None or pair[1] is None:
            continue
        compared.append(step)
        a, b = (stored.arrays for stored in pair if stored is not None)
        names = [name for name in a | b if name not in a or name not in b or not _same(a[name], b[name])]
        if not names:
            found.say("checkpoint", f"{step}: all {len(a)} arrays are the same")
        elif parted:
            found.say("checkpoint", f"{step}: {len(names)} arrays differ", step)
        else:
            found.say("checkpoint", f"{step}: {len(names)} arrays differ; {_element(names[0], a, b)}", step)
        parted = parted or bool(names)
    return compared


def _read(found: Comparison, name: str, run: Path, step: int) -> checkpoints.Stored | None:
    """A checkpoint with what is wrong with it told; None if it cannot be read, or was deleted by its run meanwhile."""
    stored = None
    try:
        stored = checkpoints.read_unverified(run, step)
        stored.verify()
    except DamageError as error:
        if (run / "checkpoints" / str(step)).is_dir():
            found.say("checkpoint", f"{step} of {name} is damaged: {error}", step)
    return stored


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and a.tobytes() == b.tobytes()


def _element(name: str, a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> str:
    """In which elements two arrays of a name differ, by their bits."""
    if name not in a or name not in b:
        return f"only {'A' if name in a else 'B'} has {name}"
    x, y = a[name], b[name]
    if x.shape != y.shape or x.dtype != y.dtype:
        return f"{name} is {x.dtype} {list(x.shape)} / {y.dtype} {list(y.shape)}"
    words = [np.ascontiguousarray(array).reshape(-1).view(np.uint32) for array in (x, y)]
    places = np.flatnonzero(words[0] != words[1])
    index = [int(i) for i in np.unravel_index(places[0], x.shape)]
    return (f"{name} in {len(places):,} of {x.size:,} elements, first at {index}: "
            f"{x.reshape(-1)[places[0]]:.9g} / {y.reshape(-1)[places[0]]:.9g}")
