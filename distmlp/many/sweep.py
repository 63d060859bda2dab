"""sweep(config, {...}): members are trained, the best settings chosen by them, and trained again on all data."""

import dataclasses
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.cluster.group import Group
from distmlp.cluster.place import find_place, own_gpus
from distmlp.config import FROM_PYTHON, Config, resolve_paths
from distmlp.data import datasets, given
from distmlp.data.datasets import Data
from distmlp.errors import InputError, own_errors
from distmlp.many import keepsakes
from distmlp.many.courses import Courses
from distmlp.many.ending import Ending, as_json
from distmlp.many.record import SCORED_WHEN, Record
from distmlp.many.vary import members, varied
from distmlp.parallel import backend
from distmlp.run import swept
from distmlp.run.lines import Value
from distmlp.run.workdir import Workdir

_NOT_TOLD = ("state", "workdir", "data_dir", "num_devices")


@dataclasses.dataclass(frozen=True)
class Sweep:
    """What a sweep has found: `best, table = result` takes the first two.

    Attributes:
      best: the settings of the highest mean score, as JSON values: those that were varied, but the seed.
      table: a dict for each setting, the best first: settings, score (the mean over folds and seeds), error (its
        standard error).
      members: the lines of sweep.jsonl that are of members.
      refit: the line of the model that was trained again, with its test accuracy; None if there is none.
      folder: where all of it is.
    """

    best: dict[str, Any]
    table: list[dict[str, Any]]
    members: list[Value]
    refit: Value | None
    folder: Path

    def __iter__(self) -> Iterator[Any]:
        return iter((self.best, self.table))


def sweep(
    config: Config, vary: Mapping[str, Any] | None = None, *, folds: int = 0, sample: int = 0, halving: int = 0,
    keep: int = 8, refit: bool = True, train_set: Any = None, test_set: Any = None, validation_set: Any = None,
) -> Sweep:
    """Trains a member for each setting, seed and fold; the same as the command line. It goes on with what
    config.workdir holds. Of several processes, only process 0 waits for all members: what the others return lacks
    those that were not done by then.

    Args:
      config: what the members have in common.
      vary: values by the names of settings; or text as log:1e-4:1e-1 or uniform:0.1:0.9, a range to draw from.
      folds: each member is scored on one of so many parts of the training set, and learns from the others.
      sample: so many settings are drawn; 0: all there are.
      halving: after 1/R^2 and 1/R of the steps only the best 1/R of the settings go on; 0: all do.
      keep: so many of the best members are kept, as runs in members/ of the folder; what is kept already stays.
      refit: whether the best settings are trained again on all training data, and the test set is read for that. A
        member's score is that of its best evaluation; the training again goes the full length, or with patience that of
        the members' best evaluations on average.
      train_set: data to use instead of config.dataset, as `train` takes them.
      test_set: the same.
      validation_set: the same.

    Raises:
      InputError: something given is wrong; nothing was trained.
      DivergedError: all settings diverged; or the best did when trained again, and all else is in the folder.
      WriteError: a file could not be written.
      ProcessEnded: another one of several processes has ended.
    """
    for name, value in (("folds", folds), ("sample", sample), ("halving", halving), ("keep", keep)):
        if not isinstance(value, (int, np.integer)):
            raise InputError(f"{name}={value!r}: give a whole number")
    if not isinstance(vary or {}, Mapping):
        raise InputError(f"vary is a {type(vary).__name__}: give a dict from each setting's name to its values")
    for wrong, text in (
        (keep < 0, f"--keep={keep}: give how many members are to be kept, 0 for none"),
        (halving < 0 or halving == 1, f"--halving={halving}: give 2 or more, as in --halving=3, or leave it out"),
        (config.workdir is None, "a sweep needs a folder: give a workdir"),
    ):
        if wrong:
            raise InputError(text)
    if train_set is not None:
        config = dataclasses.replace(config, dataset=FROM_PYTHON + given.title(train_set))
    values = varied(vary or {})
    found = members(config, values, folds, sample)
    if halving and not values.keys() - {"seed"}:
        raise InputError(f"--halving={halving} needs several settings to choose from: vary more than the seed")
    what = {
        "vary": {name: str(each) if not isinstance(each, list) else [_json(value) for value in each]
                 for name, each in values.items()},
        "folds": folds, "sample": sample, "halving": halving,
    }  # fmt: skip

    def load(config: Config) -> Data:
        return datasets.load(config, train_set, test_set, validation_set)

    config = resolve_paths(config)
    place = find_place(config)
    if place is not None and not config.workdir:
        raise InputError("--workdir must be given with several processes: a folder that all of them see")
    # Processes do not join one another: one that dies costs the others nothing.
    with backend.prepared(config), backend.settings(own_gpus(place, config)), own_errors():
        return _run(Courses(config, found, halving, load, place), what, keep, refit)


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _run(courses: Courses, what: dict[str, Any], keep: int, refit: bool) -> Sweep:
    """The sweep in this process; `what` says what it is."""
    config, first = courses.config, courses.process == 0
    with closing(_workdir(config, courses.process)) as workdir:
        folder = workdir.path if first else workdir.path.parents[1]
        keep = max(keep, len(keepsakes.there(folder / "members")))  # what is kept already stays
        record = Record(folder, courses.process, keep)
        settings = {name: value for name, value in config.settings("experiment", "length").items()
                    if name not in _NOT_TOLD}  # fmt: skip
        settings |= {name: getattr(config, name) for name in SCORED_WHEN}
        record.describe(what | {"settings": settings, "data": courses.data.fingerprint()})
        record.read()
        ending = Ending(courses, record, folder)
        refit = refit or (record.refit is not None and swept.refit_of(folder).is_dir())  # it stays
        again = ending.is_over(refit)
        if again:
            record.leave()
        else:
            for line in (*record.done.values(), *record.rungs.values()):
                own = courses.found[line["member"]].settings
                if line["settings"] != own:  # --vary in another order; or once a setting could be drawn twice
                    raise InputError(f"--workdir={folder} holds another sweep (member {line['member']} was "
                                     f"{swept.named(line['settings'])}, is {swept.named(own)}): give the same flags in "
                                     "the same order, or another --workdir")
            record.begin()
            courses.train(record, folder)
        diverged = ending.finish(refit) if first and not again else None
        if first:
            ending.show(what["folds"], again)
        if diverged is not None:
            raise diverged
        standings, lines = record.standings(config.choose_by), [record.done[number] for number in sorted(record.done)]
        return Sweep(standings[0].settings if standings else {}, [as_json(each) for each in standings], lines,
                     record.refit, folder)  # fmt: skip


def _workdir(config: Config, process: int) -> Workdir:
    """Each process locks a folder of its own."""
    if process:
        config = dataclasses.replace(config, workdir=f"{config.workdir}/processes/{process}")
    return Workdir(config, Group())
