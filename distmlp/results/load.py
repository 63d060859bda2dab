"""load(RUN): a run's model in the host's memory, or a sweep's, for predictions and evaluations."""

import dataclasses
import os
from pathlib import Path
from typing import Literal, overload

from distmlp.config import Config, check_named
from distmlp.errors import InputError, remark
from distmlp.progress import best
from distmlp.results import checkpoints
from distmlp.results.ensemble import Ensemble
from distmlp.results.models import Model
from distmlp.run import swept
from distmlp.run.log import read_lines
from distmlp.run.meta import unknown
from distmlp.run.store import DamageError

_CHOICES = 10  # of a checkpoint: a training run may delete the one that was chosen before it is read


@overload
def load(run: "str | Path", checkpoint: "str | int" = "", ensemble: Literal[False] = False) -> Model: ...
@overload
def load(run: "str | Path", checkpoint: "str | int" = "", *, ensemble: Literal[True]) -> Ensemble: ...
@overload
def load(run: "str | Path", checkpoint: "str | int" = "", ensemble: bool = False) -> "Model | Ensemble": ...


def load(run: "str | Path", checkpoint: str | int = "", ensemble: bool = False) -> "Model | Ensemble":
    """The model of a run, which may still be training: its folder is only read. One device must hold all
    parameters, whatever the run trained on.

    Args:
      run: the run's folder, its --workdir. Of a sweep's it is the model that was trained again on all training data.
      checkpoint: "best" (by the score that metrics.jsonl knows, see --choose_by), "newest", or a step; empty: best if
        the run knows one, else newest.
      ensemble: of a sweep's folder, the mean of the members that it has kept, instead.

    Raises:
      InputError: there is no such run or checkpoint, or the checkpoint is damaged; a sweep has no such model.
    """
    check_named("run", run)
    path = Path(os.path.expanduser(run))
    if ensemble:
        return Ensemble.of(path, [_load(member, str(checkpoint)) for member in swept.kept(path)])
    return _load(run_of(path), str(checkpoint))


def run_of(folder: Path) -> Path:
    """A run's folder as it is; of a sweep's, that of the refitted model's run."""
    return swept.refitted(folder) if swept.is_sweep(folder) else folder


def _load(path: Path, checkpoint: str) -> Model:
    stored = _read(path, checkpoint)
    if text := unknown(stored.meta):
        remark(text)
    known = {field.name for field in dataclasses.fields(Config)}
    config = Config(**{name: value for name, value in stored.meta["settings"].items() if name in known})
    layers = sum(name.startswith(".params") for name in stored.arrays) // 2
    params = [(stored.arrays[f".params[{i}][0]"], stored.arrays[f".params[{i}][1]"]) for i in range(layers)]
    scaling = tuple(stored.arrays[name] for name in (".scaling[0]", ".scaling[1]") if name in stored.arrays)
    return Model(path, stored.step, params, scaling, config, stored.meta)


def _read(run: Path, checkpoint: str) -> checkpoints.Stored:
    for _ in range(_CHOICES):
        step = _choose(run, checkpoint)
        try:
            return checkpoints.read(run, step)
        except DamageError as error:
            if (run / "checkpoints" / str(step)).is_dir():
                others = [str(other) for other in checkpoints.steps(run) if other != step]
                remedy = f"give --checkpoint={' or '.join(others)}" if others else "bring it back from a copy"
                raise InputError(f"checkpoint {step} of {run} is damaged ({error}): {remedy}") from None
    raise InputError(f"the checkpoints of {run} are deleted faster than they can be read: "
                     "try again, or train with a larger --keep_checkpoints")


def _choose(run: Path, checkpoint: str) -> int:
    """The step of the checkpoint that `load` is asked for; raises InputError if there is none."""
    found = checkpoints.steps(run)
    if checkpoint == "newest":
        return found[0]
    if checkpoint in ("", "best"):
        lines = read_lines(run)
        if lines.damaged:
            remark(lines.damage)
        step = best(line for line in lines.values if line["step"] in found)["step"]
        if not step and checkpoint:
            raise InputError(f"--checkpoint=best: no checkpoint of {run} was evaluated; give --checkpoint=newest")
        return int(step) or found[0]
    if not checkpoint.isdecimal():
        raise InputError(f"--checkpoint={checkpoint}: give best, newest or a step's number")
    if int(checkpoint) not in found:
        raise InputError(f"--checkpoint={checkpoint}: {run} has those of step {', '.join(map(str, found))}")
    return int(checkpoint)
