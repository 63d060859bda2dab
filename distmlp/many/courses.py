"""How far all members of a sweep are, and how a process trains its part of them."""

import dataclasses
import importlib
import json
import math
import threading
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor, wait
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

from distmlp import machine
from distmlp.cluster.place import Place
from distmlp.config import Config, resolve_paths
from distmlp.data import datasets
from distmlp.data.datasets import Data
from distmlp.errors import InputError, ProcessEnded, counted, printable, remark
from distmlp.many import alone, shown
from distmlp.many.course import Course, undefined
from distmlp.many.record import Record
from distmlp.many.shares import Shares
from distmlp.many.team import Pools, Team, teams
from distmlp.many.vary import Member
from distmlp.optim import make_for_many
from distmlp.parallel.members import layout_of, pool_room
from distmlp.run import swept
from distmlp.run.signals import Watchdog

_LOOK_SECONDS = 0.2  # between two looks at what other processes have written
_STATES = 4  # such a part of the memory may have the states of members that wait for a stage's end
_STALLED = 1.5  # times --stall_seconds: by then a process that does not go on has ended itself


class _Work(NamedTuple):
    """One training of members, and who is told of it."""

    record: Record
    groups: Sequence[Team]
    show: shown.Shown
    watchdog: Watchdog


class Courses:
    """The courses of all members of a sweep; this process, one of `place.processes`, trains its own."""

    def __init__(
        self, config: Config, found: Sequence[Member], halving: int, load: Callable[[Config], Data],
        place: Place | None,
    ) -> None:
        """Raises InputError where the members cannot be trained on these data; `config` is what they have in common."""
        self.config, self.found, self._halving = config, found, halving
        self.process, self._processes = (place.process, place.processes) if place else (0, 1)
        self._layout = layout = layout_of(config)
        devices, on_host = len(layout.devices), place.local_size if place else 1
        # On a CPU, a program of one member after the other takes one core for each device.
        self._lanes = 1 if layout.accelerated else max(1, machine.cores() // (devices * on_host))
        self.shares = Shares(load, pool_room(config, layout))
        self.by_number: dict[int, Course] = {}
        checked: set[Any] = set()
        for member in found:
            member = dataclasses.replace(member, config=resolve_paths(member.config))
            share = self.shares.of(member.config)
            self.by_number[member.number] = Course(member, share, self._shards_of(member))
            asked = (member.config.choose_by, id(share))
            if share.pool is not None and asked not in checked:
                data = self.whole(member.config)
                if why := undefined(member.config.choose_by, share.pool.labels[share.held], data.called):
                    raise InputError(f"--choose_by={member.config.choose_by} is not defined for the examples that "
                                     f"member {member.number} is scored by, for {why}: give another of its values")
                checked.add(asked)
            make_for_many(member.config, self.by_number[member.number].cadence.total_steps)
        if halving:
            for course in sorted(self.by_number.values(), key=lambda course: course.cadence.total_steps):
                course.rungs(halving)  # an InputError says what all need
        self._pools: Pools = {}
        self._room = machine.memory() // (_STATES * on_host)
        self._stopping = threading.Event()
        self._waits = False  # for other processes
        self._reading: list[Callable[[], int]] = []  # how many examples a member has read that are not in memory

    @property
    def data(self) -> Data:
        """Those of the first member, of which a fold is a part."""
        return self.whole(self.by_number[self.found[0].number].member.config)

    def whole(self, config: Config) -> Data:
        """What a member reads, of which a fold is a part."""
        return self.shares.whole(dataclasses.replace(config, class_weight="none") if config.fold else config)

    def ended(self, number: int) -> Course:
        """That member, as this process has trained it; or as it begins, if another one or an earlier command has."""
        course = self.by_number[number]
        if course.last is not None:
            return course
        return Course(course.member, course.share, self._shards_of(course.member))

    def train_again(self, lost: Sequence[Course]) -> None:
        """Trains members to their end whose states are lost; no line is written."""
        for team in self._teams(lost):
            team.compile()
            for chunk in team.chunks(team.courses):
                team.train(chunk, max(course.cadence.total_steps for course in chunk), lambda: None)
        for course in lost:
            if course.share.pool is None:
                alone.train(course, course.cadence.total_steps, lambda: None)

    def free(self) -> None:
        """Gives back the devices' memory that the examples have."""
        self._pools.clear()

    def _shards_of(self, member: Member) -> int:
        return member.config.num_shards or self._layout.num_shards

    def train(self, record: Record, folder: Path) -> None:
        """Trains this process's members to their end, as far as they are not done; process 0 waits for all others."""
        own = list(self.by_number.values())[self.process :: self._processes]
        left = [course for course in own if course.member.number not in record.done]
        halves = self._halving and len(record.done) < len(self.found)
        groups = self._teams(own if halves else left)  # of one that is done the line of a stage may be lost
        self._say_begin(folder, len(record.done))
        show = shown.Shown(self.process == 0, len(left), sum(c.cadence.total_steps for c in left),
                           self.config.choose_by)  # fmt: skip
        signs = (machine.mebibytes_moved, lambda: sum(taken() for taken in tuple(self._reading)))
        with closing(show), Watchdog(self.config.stall_seconds, signs, self._pulse_of(record)) as watchdog:
            work = _Work(record, groups, show, watchdog)
            if halves:
                self._halve(work, own)
            else:
                self._train_to(work, left, lambda course: course.cadence.total_steps)
            if self.process == 0:
                self._wait_for(lambda: len(record.done) == len(self.found), record, watchdog)

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
        def num_classes(config: Config) -> int:
            return self.whole(config).num_classes

        in_memory = [course for course in courses if course.share.pool is not None]
        return list(teams(in_memory, self._layout, num_classes, self._lanes, self._pools))

    def _halve(self, work: _Work, own: Sequence[Course]) -> None:
        record, show = work.record, work.show
        playing = {member.number for member in self.found}
        for stage in range(2):
            def stop(course: Course, stage: int = stage) -> int:
                return course.rungs(self._halving)[stage]

            def ready(stage: int = stage, among: Collection[int] = playing) -> bool:
                return all((number, stage) in record.rungs for number in among)

            todo = [c for c in own if c.member.number in playing and (c.member.number, stage) not in record.rungs]
            self._train_to(work, todo, stop, stage)
            self._wait_for(ready, record, work.watchdog)
            told = {number: record.rungs[number, stage] for number in sorted(playing)}
            standings = swept.standings(told.values(), self.config.choose_by)
            standings = standings[: math.ceil(len(standings) / self._halving)]
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
        self._train_to(work, left, lambda course: course.cadence.total_steps)

    def _train_to(
        self, work: _Work, todo: Sequence[Course], stop: Callable[[Course], int], stage: int | None = None
    ) -> None:
        """Trains these members up to a step of each; they are done then, unless this is a `stage`."""
        record, groups, show, watchdog = work

        def beat() -> None:
            watchdog.beat()
            if self._stopping.is_set():
                raise KeyboardInterrupt

        def done(courses: Sequence[Course]) -> None:
            record.add(courses, stage)
            if stage is not None and sum(course.bytes for course in self.by_number.values()) > self._room:
                for course in courses:
                    course.begin_again()
            if stage is None:
                best = set(record.best(record.done))
                ended.update((course.member.number, course) for course in courses)
                for number in ended.keys() - best:  # the others' states are written at the end
                    course = ended.pop(number)
                    course.last = course.best = None
                standings = record.standings(self.config.choose_by)
                show.add(len(courses), sum(c.cadence.total_steps for c in courses), standings)

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
                    all_of([lanes.submit(train, team, chunk) for chunk in team.chunks(own)])
                all_of(written)
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
        since, stall = time.monotonic(), self.config.stall_seconds
        self._waits = True
        while not ready():
            record.read()
            known = len(record.done), len(record.rungs), record.pulses()
            if known != seen:
                seen, since = known, time.monotonic()
            watchdog.beat()
            if stall and time.monotonic() - since > _STALLED * stall:
                left = [m.number for m in self.found if m.number not in record.done]
                which = f", with {counted(len(left), 'member')} left, from member {left[0]} on" if left else ""
                raise ProcessEnded(f"for --stall_seconds={stall:g} no other process has gone on{which}: start again, "
                                   "and what is missing is trained")
            time.sleep(_LOOK_SECONDS)
        self._waits = False

    def _say_begin(self, folder: Path, done: int) -> None:
        if self.process:
            return
        data = self.data
        for text in (*data.remarks, *datasets.training_remarks(self.config, data)):
            remark(text)
        if text := data.description():
            print(printable(text))
        devices, members = self._layout.devices, len(self.found)
        settings = len({json.dumps(member.setting) for member in self.found})
        way = "one after the other" if self._lanes == 1 else f"{self._lanes} at a time"
        way = way if self._layout.invariant or not self._layout.accelerated else "together"
        each = "" if members == settings else f", {members} members"
        processes = f", {self._processes} processes" if self._processes > 1 else ""
        print(f"{settings} settings{each} on {len(devices)} x {devices[0].device_kind}, {way}{processes}; {folder}")
        if done:
            print(f"going on: {done} of {members} members are done")


def all_of(futures: "Iterable[Future[None]]") -> None:
    """Waits for all; raises what the first to fail has raised."""
    futures = list(futures)
    done, _ = wait(futures, return_when=FIRST_EXCEPTION)
    for future in done:
        future.result()
