"""sweep(config, {...}): members are trained, the best settings chosen by them, and trained again on all data."""

import dataclasses
import functools
import importlib
import json
import math
import statistics
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any

from distmlp import loop, machine
from distmlp.cluster.group import Group
from distmlp.cluster.place import Place, find_place, own_gpus
from distmlp.config import FROM_PYTHON, Config, flag_value, resolve_paths
from distmlp.data import datasets, given
from distmlp.data.datasets import Data
from distmlp.errors import DivergedError, InputError, ProcessEnded, counted, own_errors, printable, remark
from distmlp.many import alone, keepsakes, shown
from distmlp.many.course import Course, undefined
from distmlp.many.record import SCORED_WHEN, Record
from distmlp.many.shares import Share, Shares
from distmlp.many.team import Pools, Team, teams
from distmlp.many.vary import Member, members, varied
from distmlp.optim import make_for_many
from distmlp.parallel import backend
from distmlp.parallel.members import layout_of, pool_room
from distmlp.parallel.specs import State
from distmlp.parallel.step import abstract_state
from distmlp.run import swept
from distmlp.run.lines import Value
from distmlp.run.signals import Watchdog
from distmlp.run.workdir import Workdir

_WRITERS = 4  # threads that write the members that are kept
_LOOK_SECONDS = 0.2  # between two looks at what other processes have written
_STATES = 4  # such a part of the memory may have the states of members that wait for a stage's end
_STALLED = 1.5  # times --stall_seconds: by then a process that does not go on has ended itself
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
      refit: whether the best settings are trained again on all training data, and the test set is read for that.
      train_set: data to use instead of config.dataset, as `train` takes them.
      test_set: the same.
      validation_set: the same.

    Raises:
      InputError: something given is wrong; nothing was trained.
      DivergedError: all settings diverged; or the best did when trained again, and all else is in the folder.
      WriteError: a file could not be written.
      ProcessEnded: another one of several processes has ended.
    """
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
        return _Sweep(config, found, what, load, place).run(halving, keep, refit)


def _json(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


class _Sweep:
    """A sweep in this process, one of `place.processes`."""

    def __init__(
        self, config: Config, found: Sequence[Member], what: dict[str, Any], load: Callable[[Config], Data],
        place: Place | None,
    ) -> None:
        self._config, self._found, self._what, self._place = config, found, what, place
        self._process, self._processes = (place.process, place.processes) if place else (0, 1)
        self._layout = layout = layout_of(config)
        devices, on_host = len(layout.devices), place.local_size if place else 1
        # On a CPU, a program of one member after the other takes one core for each device.
        self._lanes = 1 if layout.accelerated else max(1, machine.cores() // (devices * on_host))
        self._shares = Shares(load, pool_room(config, layout))
        self._courses: dict[int, Course] = {}
        checked: set[Any] = set()
        for member in found:
            member = dataclasses.replace(member, config=resolve_paths(member.config))
            share = self._shares.of(member.config)
            self._courses[member.number] = Course(member, share, self._shards_of(member))
            asked = (member.config.choose_by, id(share))
            if share.pool is not None and asked not in checked:
                data = self._shares.whole(self._of_data(member.config))
                if why := undefined(member.config.choose_by, share.pool.labels[share.held], data.called):
                    raise InputError(f"--choose_by={member.config.choose_by} is not defined for the examples that "
                                     f"member {member.number} is scored by, for {why}: give another of its values")
                checked.add(asked)
            make_for_many(member.config, self._courses[member.number].cadence.total_steps)
        if part := what["halving"]:
            for course in sorted(self._courses.values(), key=lambda course: course.cadence.total_steps):
                course.rungs(part)  # an InputError says what all need
        self._fingerprints: dict[int, str] = {}
        self._pools: Pools = {}
        self._room = machine.memory() // (_STATES * on_host)
        self._stopping = threading.Event()
        self._waits = False  # for other processes
        self._reading: list[Callable[[], int]] = []  # how many examples a member has read that are not in memory

    def _shards_of(self, member: Member) -> int:
        return member.config.num_shards or self._layout.num_shards

    @staticmethod
    def _of_data(config: Config) -> Config:
        """By which the data are asked for that a fold is a part of."""
        return dataclasses.replace(config, class_weight="none") if config.fold else config

    def _num_classes(self, config: Config) -> int:
        return self._shares.whole(self._of_data(config)).num_classes

    def run(self, halving: int, keep: int, refit: bool) -> Sweep:
        with closing(self._workdir()) as workdir:
            folder = workdir.path if self._process == 0 else workdir.path.parents[1]
            record = Record(folder, self._process, keep)
            data = self._shares.whole(self._of_data(self._courses[self._found[0].number].member.config))
            settings = {name: value for name, value in self._config.settings("experiment", "length").items()
                        if name not in _NOT_TOLD}  # fmt: skip
            settings |= {name: getattr(self._config, name) for name in SCORED_WHEN}
            record.describe(self._what | {"settings": settings, "data": data.fingerprint()})
            record.read()
            refit = refit or (self._ends(record)[0] is not None and swept.refit_of(folder).is_dir())  # it stays
            if self._is_over(record, refit, folder):
                record.leave()
                self._show_end(record, folder, again=True)
                return self._result(record, folder)
            for line in (*record.done.values(), *record.rungs.values()):
                own = self._found[line["member"]].settings
                if line["settings"] != own:  # --vary in another order; or once a setting could be drawn twice
                    raise InputError(f"--workdir={folder} holds another sweep (member {line['member']} was "
                                     f"{swept.named(line['settings'])}, is {swept.named(own)}): give the same flags in "
                                     "the same order, or another --workdir")
            record.begin()
            self._train(record, halving, data, folder)
            if self._process == 0:
                diverged = self._finish(record, folder, refit)
                self._show_end(record, folder)
                if diverged is not None:
                    raise diverged
            return self._result(record, folder)

    def _workdir(self) -> Workdir:
        """Each process locks a folder of its own."""
        config = self._config
        if self._process:
            config = dataclasses.replace(config, workdir=f"{config.workdir}/processes/{self._process}")
        return Workdir(config, Group())

    # Training

    def _train(self, record: Record, halving: int, data: Data, folder: Path) -> None:
        own = list(self._courses.values())[self._process :: self._processes]
        left = [course for course in own if course.member.number not in record.done]
        halves = halving and len(record.done) < len(self._found)
        groups = self._teams(own if halves else left)  # of one that is done the line of a stage may be lost
        self._say_begin(data, folder, len(record.done))
        show = shown.Shown(self._process == 0, len(left), sum(c.cadence.total_steps for c in left),
                           self._config.choose_by)  # fmt: skip
        signs = (machine.mebibytes_moved, lambda: sum(taken() for taken in tuple(self._reading)))
        with closing(show), Watchdog(self._config.stall_seconds, signs, self._pulse_of(record)) as watchdog:
            if halves:
                self._halve(record, halving, own, groups, show, watchdog)
            else:
                self._train_to(record, left, groups, lambda course: course.cadence.total_steps, None, show, watchdog)
            if self._process == 0:
                self._wait_for(lambda: len(record.done) == len(self._found), record, watchdog)

    def _pulse_of(self, record: Record) -> Callable[[int], int]:
        """What a Watchdog calls with its pulse: the other processes are told of it, unless this one waits for them."""
        last = -1

        def told(pulse: int) -> int:
            nonlocal last
            if self._processes > 1 and not self._waits and pulse != last:
                record.beat(pulse)
            last = pulse
            return pulse

        return told

    def _teams(self, courses: Sequence[Course]) -> list[Team]:
        in_memory = [course for course in courses if course.share.pool is not None]
        return list(teams(in_memory, self._layout, self._num_classes, self._lanes, self._pools))

    def _halve(
        self, record: Record, part: int, own: Sequence[Course], groups: Sequence[Team], show: shown.Shown,
        watchdog: Watchdog,
    ) -> None:
        playing = {member.number for member in self._found}
        for stage in range(2):
            def stop(course: Course, stage: int = stage) -> int:
                return course.rungs(part)[stage]

            def ready(stage: int = stage, among: Collection[int] = playing) -> bool:
                return all((number, stage) in record.rungs for number in among)

            todo = [c for c in own if c.member.number in playing and (c.member.number, stage) not in record.rungs]
            self._train_to(record, todo, groups, stop, stage, show, watchdog)
            self._wait_for(ready, record, watchdog)
            told = {number: record.rungs[number, stage] for number in sorted(playing)}
            standings = swept.standings(told.values(), self._config.choose_by)
            standings = standings[: math.ceil(len(standings) / part)]
            playing = {line["member"] for standing in standings for line in standing.members}
            over = [c for c in own if c.member.number in told and c.member.number not in playing]
            record.add_lines([{name: value for name, value in told[c.member.number].items() if name != "rung"}
                              | {"halted": stage} for c in over if c.member.number not in record.done])  # fmt: skip
            for course in over:
                course.last = course.best = None
            show.add(len(over), sum(c.cadence.total_steps for c in over), [])
        for course in own:
            if course.member.number in record.done:  # it may have been trained up to a stage again
                course.begin_again()
        left = [c for c in own if c.member.number in playing and c.member.number not in record.done]
        self._train_to(record, left, groups, lambda course: course.cadence.total_steps, None, show, watchdog)

    def _train_to(
        self, record: Record, todo: Sequence[Course], groups: Sequence[Team], stop: Callable[[Course], int],
        stage: int | None, show: shown.Shown, watchdog: Watchdog,
    ) -> None:
        """Trains these members up to a step of each; they are done then, unless this is a `stage`."""
        def beat() -> None:
            watchdog.beat()
            if self._stopping.is_set():
                raise KeyboardInterrupt

        def done(courses: Sequence[Course]) -> None:
            record.add(courses, stage)
            if stage is not None and sum(course.bytes for course in self._courses.values()) > self._room:
                for course in courses:
                    course.begin_again()
            if stage is None:
                best = set(record.best(record.done))
                ended.update((course.member.number, course) for course in courses)
                for number in ended.keys() - best:  # the others' states are written at the end
                    course = ended.pop(number)
                    course.last = course.best = None
                show.add(len(courses), sum(c.cadence.total_steps for c in courses), self._standings(record))

        def patiently(work: Future[Any]) -> Any:
            while not work.done():  # a compilation, or all that is read before the first step
                wait([work], timeout=1)
                watchdog.beat()
            return work.result()

        ended: dict[int, Course] = {}
        wanted = {course.member.number for course in todo}
        busy = [(team, own) for team in groups if (own := [c for c in team.courses if c.member.number in wanted])]
        written: list[Future[None]] = []
        with (ThreadPoolExecutor(1) as compiler, ThreadPoolExecutor(self._lanes) as lanes,
              ThreadPoolExecutor(1) as writer):  # for which no core is to wait
            compiled = [compiler.submit(team.compile) for team, _ in busy]
            for late in ("keeping", "tensorboard"):  # with Orbax and more: long, and needed at the end
                compiler.submit(importlib.import_module, f"distmlp.run.{late}")

            def train(team: Team, courses: Sequence[Course]) -> None:
                for each in written:
                    if each.done():
                        each.result()  # raises what went wrong
                team.train(courses, max(map(stop, courses)), beat)
                written.append(writer.submit(done, courses))

            try:
                for (team, own), ready in zip(busy, compiled, strict=True):
                    patiently(ready)
                    _all([lanes.submit(train, team, chunk) for chunk in team.chunks(own)])
                _all(written)
                for course in todo:
                    if course.share.pool is None:
                        alone.train(course, stop(course), beat, self._reading,
                                    lambda work: patiently(compiler.submit(work)))  # fmt: skip
                        done([course])
            except BaseException:
                self._stopping.set()
                compiler.shutdown(cancel_futures=True)
                lanes.shutdown(cancel_futures=True)
                raise

    def _wait_for(self, ready: Callable[[], bool], record: Record, watchdog: Watchdog) -> None:
        """Waits until other processes have written what is asked for."""
        if self._processes == 1:
            return
        seen: Any = None
        since, stall = time.monotonic(), self._config.stall_seconds
        self._waits = True
        while not ready():
            record.read()
            known = len(record.done), len(record.rungs), record.pulses()
            if known != seen:
                seen, since = known, time.monotonic()
            watchdog.beat()
            if stall and time.monotonic() - since > _STALLED * stall:
                left = [m.number for m in self._found if m.number not in record.done]
                which = f", with {counted(len(left), 'member')} left, from member {left[0]} on" if left else ""
                raise ProcessEnded(f"for --stall_seconds={stall:g} no other process has gone on{which}: start again, "
                                   "and what is missing is trained")
            time.sleep(_LOOK_SECONDS)
        self._waits = False

    def _say_begin(self, data: Data, folder: Path, done: int) -> None:
        if self._process:
            return
        for text in (*data.remarks, *datasets.training_remarks(self._config, data)):
            remark(text)
        if text := data.description():
            print(printable(text))
        devices, members = self._layout.devices, len(self._found)
        settings = len({json.dumps(member.setting) for member in self._found})
        way = "one after the other" if self._lanes == 1 else f"{self._lanes} at a time"
        way = way if self._layout.invariant or not self._layout.accelerated else "together"
        each = "" if members == settings else f", {members} members"
        processes = f", {self._processes} processes" if self._processes > 1 else ""
        print(f"{settings} settings{each} on {len(devices)} x {devices[0].device_kind}, {way}{processes}; {folder}")
        if done:
            print(f"going on: {done} of {members} members are done")

    # What is made of it

    def _finish(self, record: Record, folder: Path, refit: bool) -> DivergedError | None:
        """In the first process: all lines in one file, the best members as runs, the refitted model, the last line.

        Returns:
          What to raise once the end is shown: the refitted model diverged. All else is there, as with --norefit.
        """
        written = {value["member"] for value in record.own_values()}
        record.add_lines([record.done[number] for number in sorted(record.done.keys() - written)])
        standings = self._standings(record)
        if standings[0].mean is None:
            raise DivergedError("all settings diverged: the loss or a gradient was not finite; vary a lower "
                                "learning_rate, or give --clip_norm")
        if standings[0].halted is not None:
            remark("all settings that went the full length diverged: the best is one that --halving left behind, and "
                   "none of its members is kept")
        from distmlp.run.store import quiet  # imports Orbax

        diverged: DivergedError | None = None
        with quiet(), ThreadPoolExecutor(_WRITERS) as writers:  # which wait for the disk, most of the time
            kept = [writers.submit(write) for write in self._to_keep(record, folder / "members")]
            self._pools.clear()
            if refit:
                try:
                    record.add_end(self._refitted(standings[0], swept.refit_of(folder)))
                except DivergedError as error:
                    if type(error) is not DivergedError:  # devices disagree: that says nothing of the settings
                        raise
                    diverged = DivergedError(
                        f"all {len(self._found)} members are done, but the best settings diverged when trained again "
                        f"on all training data, with seed {self._config.seed}: give --norefit to do without that "
                        f"model, or sweep lower learning rates in another --workdir ({error})")
            _all(kept)
        record.add_end({"final": True, "best": _as_json(standings[0]), "choose_by": self._config.choose_by,
                        "kept": record.best(record.done), "members": len(self._found),
                        **({} if diverged is None else {"refit_diverged": True})})  # fmt: skip
        record.forget()
        return diverged

    def _to_keep(self, record: Record, folder: Path) -> list[Callable[[], None]]:
        """What writes each of the best members that is not kept yet, and may go on in other threads."""
        keepsakes.tidy(folder)
        best = record.best(record.done)
        for number in set(keepsakes.there(folder)) - set(best):
            keepsakes.discard(folder, number)
        there = keepsakes.there(folder)
        missing = [self._ended(number) for number in best if number not in there]
        lost = [course for course in missing if course.last is None and not record.restore(course, self._like(course))]
        for team in self._teams(lost):  # more are kept than before, or a file is damaged
            team.compile()
            for chunk in team.chunks(team.courses):
                team.train(chunk, max(course.cadence.total_steps for course in chunk), lambda: None)
        for course in lost:
            if course.share.pool is None:
                alone.train(course, course.cadence.total_steps, lambda: None)
        return [functools.partial(keepsakes.write, folder, course, functools.partial(self._fingerprint, course.share))
                for course in missing]  # fmt: skip

    def _ended(self, number: int) -> Course:
        """That member, as this process has trained it; or as it begins, if another one or an earlier command has."""
        course = self._courses[number]
        if course.last is not None:
            return course
        return Course(course.member, course.share, self._shards_of(course.member))

    def _like(self, course: Course) -> State:
        """Abstract: a member's state."""
        config, data = course.member.config, self._shares.whole(self._of_data(course.member.config))
        sizes = config.layer_sizes(data.num_features, data.num_classes)
        optimizer = make_for_many(config, course.cadence.total_steps)
        return abstract_state(sizes, optimizer, config.input_scaling != "none")

    def _fingerprint(self, share: Share, data: Data) -> str:
        if id(share) not in self._fingerprints:
            self._fingerprints[id(share)] = data.fingerprint()
        return self._fingerprints[id(share)]

    def _refitted(self, best: swept.Standing, folder: Path) -> Value:
        """The line of the best settings, trained again on all training data, as a run of its own."""
        course = self._courses[best.members[0]["member"]]
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
        data = self._shares.whole(config)
        if data.validation is None and undefined(base.choose_by, data.test.labels, data.called):
            config = dataclasses.replace(config, choose_by="accuracy")  # there is nothing to choose, only to test
        wanted = {f"--{name}={flag_value(getattr(config, name))}" for name in (*own, "choose_by")}
        flags = folder / "run.flags"
        if flags.exists() and not wanted <= set(flags.read_text(encoding="utf-8").splitlines()):
            keepsakes.discard(folder.parent, folder.name)  # of what was once taken for the best
        history = loop.run(config, self._shares.whole, silent=True, group=Group()).history
        *_, last, final = history
        tested = {name: value for name, value in (last | final).items() if name.startswith("test_")}
        return {"refit": True, "settings": best.settings, "steps": final["step"], "seconds": final["total_seconds"],
                "params_sha256": final["params_sha256"], **tested}  # fmt: skip

    def _show_end(self, record: Record, folder: Path, again: bool = False) -> None:
        if self._process:
            return
        by = self._config.choose_by
        refit, final = self._ends(record)
        folds = self._what["folds"]
        scored_on = f"{folds} folds" if folds else "the validation set"
        if again:
            print(f"{folder} holds this sweep finished: nothing to do")
        print(printable(shown.table(self._standings(record), by, scored_on)))
        if final is not None:
            kept = len(keepsakes.there(folder / "members"))
            print(printable(shown.ending(final, refit, folder, by, kept)))

    @staticmethod
    def _ends(record: Record) -> tuple[Value | None, Value | None]:
        """The line of the refitted model, and the last one."""
        refit = next((value for value in record.ended if value.get("refit")), None)
        return refit, next((value for value in record.ended if value.get("final")), None)

    def _is_over(self, record: Record, refit: bool, folder: Path) -> bool:
        refitted, final = self._ends(record)
        if len(record.done) < len(self._found) or final is None:
            return False
        if refit and (refitted is None or not swept.refit_of(folder).is_dir()):
            return False
        same = final["best"]["settings"] == self._standings(record)[0].settings  # where once a NaN won it is not
        return same and set(keepsakes.there(folder / "members")) == set(record.best(record.done))

    def _result(self, record: Record, folder: Path) -> Sweep:
        standings, lines = self._standings(record), [record.done[number] for number in sorted(record.done)]
        return Sweep(standings[0].settings if standings else {}, [_as_json(each) for each in standings], lines,
                     self._ends(record)[0], folder)  # fmt: skip

    def _standings(self, record: Record) -> list[swept.Standing]:
        lines = [record.done[number] for number in sorted(record.done)]
        return swept.standings(lines, self._config.choose_by)


def _as_json(standing: swept.Standing) -> dict[str, Any]:
    return {"settings": standing.settings, "score": standing.mean, "error": standing.error}


def _all(futures: "Iterable[Future[None]]") -> None:
    """Waits for all; raises what the first to fail has raised."""
    futures = list(futures)
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
