"""What a sweep's end makes of its members: the best are kept as runs, and their settings trained again on all data."""

import dataclasses
import functools
import statistics
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from distmlp import loop
from distmlp.cluster.group import Group
from distmlp.config import flag_value
from distmlp.data.datasets import Data
from distmlp.errors import DivergedError, printable, remark
from distmlp.many import keepsakes, shown
from distmlp.many.course import Course, undefined
from distmlp.many.courses import Courses, all_of
from distmlp.many.record import Record
from distmlp.many.shares import Share
from distmlp.optim import make_for_many
from distmlp.parallel.specs import State
from distmlp.parallel.step import abstract_state
from distmlp.run import swept
from distmlp.run.lines import Value

_WRITERS = 4  # threads that write the members that are kept


class Ending:
    """The end of a sweep in a folder, which its first process makes."""

    def __init__(self, courses: Courses, record: Record, folder: Path) -> None:
        self._courses, self._record, self._folder, self._config = courses, record, folder, courses.config
        self._fingerprints: dict[int, str] = {}

    def finish(self, refit: bool) -> DivergedError | None:
        """Writes all lines in one file, the best members as runs, the refitted model, the last line.

        Returns:
          What to raise once the end is shown: the refitted model diverged. All else is there, as with --norefit.
        """
        record = self._record
        written = {value["member"] for value in record.own_values()}
        record.add_lines([record.done[number] for number in sorted(record.done.keys() - written)])
        standings = record.standings(self._config.choose_by)
        if standings[0].mean is None:
            raise DivergedError("all settings diverged: the loss or a gradient was not finite; vary a lower "
                                "learning_rate, or give --clip_norm")
        if standings[0].halted is not None:
            remark("all settings that went the full length diverged: the best is one that --halving left behind, and "
                   "none of its members is kept")
        from distmlp.run.store import quiet  # imports Orbax

        diverged: DivergedError | None = None
        with quiet(), ThreadPoolExecutor(_WRITERS) as writers:  # which wait for the disk, most of the time
            kept = [writers.submit(write) for write in self._to_keep(self._folder / "members")]
            self._courses.free()
            if refit:
                try:
                    record.add_end(self._refitted(standings[0], swept.refit_of(self._folder)))
                except DivergedError as error:
                    if type(error) is not DivergedError:  # devices disagree: that says nothing of the settings
                        raise
                    diverged = DivergedError(
                        f"all {len(self._courses.found)} members are done, but the best settings diverged when trained "
                        f"again on all training data, with seed {self._config.seed}: give --norefit to do without that "
                        f"model, or sweep lower learning rates in another --workdir ({error})")
            all_of(kept)
        record.add_end({"final": True, "best": as_json(standings[0]), "choose_by": self._config.choose_by,
                        "kept": record.best(record.done), "members": len(self._courses.found),
                        **({} if diverged is None else {"refit_diverged": True})})  # fmt: skip
        record.forget()
        return diverged

    def _to_keep(self, folder: Path) -> list[Callable[[], None]]:
        """What writes each of the best members that is not kept yet, and may go on in other threads."""
        record = self._record
        keepsakes.tidy(folder)
        best = record.best(record.done)
        for number in set(keepsakes.there(folder)) - set(best):
            keepsakes.discard(folder, number)
        there = keepsakes.there(folder)
        missing = [self._courses.ended(number) for number in best if number not in there]
        lost = [course for course in missing if course.last is None and not record.restore(course, self._like(course))]
        self._courses.train_again(lost)  # more are kept than before, or a file is damaged
        return [functools.partial(keepsakes.write, folder, course, functools.partial(self._fingerprint, course.share))
                for course in missing]  # fmt: skip

    def _like(self, course: Course) -> State:
        """Abstract: a member's state."""
        config, data = course.member.config, self._courses.whole(course.member.config)
        sizes = config.layer_sizes(data.num_features, data.num_classes)
        optimizer = make_for_many(config, course.cadence.total_steps)
        return abstract_state(sizes, optimizer, config.input_scaling != "none")

    def _fingerprint(self, share: Share, data: Data) -> str:
        if id(share) not in self._fingerprints:
            self._fingerprints[id(share)] = data.fingerprint()
        return self._fingerprints[id(share)]

    def _refitted(self, best: swept.Standing, folder: Path) -> Value:
        """The line of the best settings, trained again on all training data, as a run of its own."""
        course = self._courses.by_number[best.members[0]["member"]]
        base, member = self._config, course.member
        own = {name: getattr(member.config, name) for name in member.setting}
        config = dataclasses.replace(
            base, **own, validation_fraction=0.0, patience=0, eval_every_epochs=0, eval_every_steps=0, eval_train=False,
            workdir=str(folder),
        )  # fmt: skip
        if base.patience:
            config = dataclasses.replace(config, max_steps=max(1, round(statistics.fmean(
                line["best_step"] for line in best.members))))
            if config.schedule != "constant" and not config.schedule_steps:
                config = dataclasses.replace(config, schedule_steps=course.cadence.total_steps)
        data = self._courses.shares.whole(config)
        if data.validation is None and undefined(base.choose_by, data.test.labels, data.called):
            config = dataclasses.replace(config, choose_by="accuracy")  # there is nothing to choose, only to test
        wanted = {f"--{name}={flag_value(getattr(config, name))}" for name in (*own, "choose_by")}
        flags = folder / "run.flags"
        if flags.exists() and not wanted <= set(flags.read_text(encoding="utf-8").splitlines()):
            keepsakes.discard(folder.parent, folder.name)  # of what was once taken for the best
        history = loop.run(config, self._courses.shares.whole, silent=True, group=Group()).history
        *_, last, final = history
        tested = {name: value for name, value in (last | final).items() if name.startswith("test_")}
        return {"refit": True, "settings": best.settings, "steps": final["step"], "seconds": final["total_seconds"],
                "params_sha256": final["params_sha256"], **tested}  # fmt: skip

    def show(self, folds: int, again: bool = False) -> None:
        """Says which settings are the best, and what there is of them."""
        by = self._config.choose_by
        scored_on = f"{folds} folds" if folds else "the validation set"
        if again:
            print(f"{self._folder} holds this sweep finished: nothing to do")
        print(printable(shown.table(self._record.standings(by), by, scored_on)))
        if self._record.final is not None:
            kept = len(keepsakes.there(self._folder / "members"))
            print(printable(shown.ending(self._record.final, self._record.refit, self._folder, by, kept)))

    def is_over(self, refit: bool) -> bool:
        """Whether all of that is there; `refit`: the refitted model, too."""
        record = self._record
        if len(record.done) < len(self._courses.found) or record.final is None:
            return False
        if refit and (record.refit is None or not swept.refit_of(self._folder).is_dir()):
            return False
        best = record.standings(self._config.choose_by)[0]
        same = record.final["best"]["settings"] == best.settings  # where once a NaN won it is not
        return same and set(keepsakes.there(self._folder / "members")) == set(record.best(record.done))


def as_json(standing: swept.Standing) -> dict[str, Any]:
    """As the table of a sweep has it, and its last line."""
    return {"settings": standing.settings, "score": standing.mean, "error": standing.error}
