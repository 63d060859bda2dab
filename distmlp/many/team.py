"""Trains members whose programs are the same: some at a time, on this process's devices."""

import dataclasses
import math
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np

from distmlp import optim
from distmlp.config import Config
from distmlp.errors import InputError
from distmlp.many.course import Course, evaluated
from distmlp.parallel import backend, members
from distmlp.parallel.layout import Layout
from distmlp.parallel.members import Members, Orders, Pool, Shape
from distmlp.parallel.specs import REPLICATED, State
from distmlp.parallel.step import initial_state
from distmlp.plan import cost
from distmlp.progress import Line, score

_CPU_SECONDS = 4.0  # about, that members of a core take together, or a dispatch of one: what shows no progress
_CPU_RATE, _CPU_STEP = 3e10, 3e-5  # FLOP/s of a core; seconds that a step takes at least
_CPU_MEMBERS = 32  # of a core at most: more win nothing
_KEPT_ORDERS = 128 << 20  # bytes of orders that are not made again

# Settings in which members of one program may differ: they enter as arrays, or as numbers of steps.
_ARRAYS = {"learning_rate", "momentum", "weight_decay", "seed", "data_seed", "shuffle", "fold", "input_scaling",
           "class_weight"}  # fmt: skip

Pools = dict[int, Pool]  # those on the devices, by the identities of NumPy's


def key(course: Course) -> Any:
    """Equal for members that one program trains."""
    config, share = course.member.config, course.share
    assert share.pool is not None
    rest = tuple(value for name, value in config.settings("experiment").items() if name not in _ARRAYS)
    length = course.cadence.total_steps if config.schedule != "constant" and not config.schedule_steps else 0
    return (tuple(map(_hashable, rest)), length, config.momentum > 0, config.weight_decay > 0,
            config.input_scaling != "none", config.patience > 0, id(share.pool))  # fmt: skip


def _hashable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _cadence(course: Course) -> Any:
    """Equal for members that are trained in one dispatch: something is due for all of them after the same steps."""
    config = course.member.config
    return (course.cadence.per_epoch, course.cadence.total_steps, config.eval_every_epochs, config.eval_every_steps)


class Team:
    """Members of one program, and this program; nothing is compiled or placed by making it."""

    def __init__(
        self, courses: Sequence[Course], layout: Layout, num_classes: int, lanes: int, pools: Pools
    ) -> None:
        """`lanes`: how many calls of `train` there may be at once; `pools`: which teams share."""
        first = courses[0]
        self.courses, self._layout, self._lanes, self._config = courses, layout, lanes, first.member.config
        config, pool = self._config, first.share.pool
        assert pool is not None
        self._host_pool: Pool = pool
        self._pools = pools
        self._one_by_one = members.one_by_one(layout)
        self._orders: dict[Any, tuple[np.ndarray, ...]] = {}
        self._initial: dict[int, Any] = {}
        self._making = threading.Lock()
        self._compiled = False
        held = max(len(course.share.held) for course in courses)
        rows = config.eval_batch_size if layout.invariant else min(config.eval_batch_size, held)
        dispatch = members.largest_dispatch(config, layout)
        weights = [course.share.weights for course in courses]
        sizes = config.layer_sizes(pool.images.shape[1], num_classes)
        self._step_seconds = max(_CPU_STEP, cost.flops(sizes, config.batch_size) / _CPU_RATE)  # of a core, about
        if not layout.accelerated:
            dispatch = max(1, min(dispatch, int(_CPU_SECONDS / self._step_seconds)))
        cadences = {_cadence(course): course.cadence for course in courses}.values()
        self._shape = Shape(
            sizes=sizes, scaled=config.input_scaling != "none", members=1,
            steps=max(cadence.longest_dispatch(dispatch) for cadence in cadences),
            shards=first.order.num_shards, rows=first.order.rows,
            blocks=-(-held // rows), block_rows=rows, weightless=any(w is not None and not w.all() for w in weights),
            pauses=config.patience > 0 and not self._one_by_one, log_probs=config.choose_by == "roc_auc",
        )  # fmt: skip

    def _made(self, count: int) -> Members:
        """The programs of so many members on each device."""
        shape, total = dataclasses.replace(self._shape, members=count), self.courses[0].cadence.total_steps
        return Members(self._config, self._layout, shape, self._host_pool, total)

    def compile(self) -> None:
        """Compiles the programs, of as many members as there is room and use for.

        Raises:
          InputError: not even one has room.
        """
        if self._compiled:
            return
        memory = self._layout.device_memory
        count = max(1, math.ceil(len(self.courses) / (len(self._layout.devices) * self._lanes)))
        if self._one_by_one:  # as many in each turn: no core waits for the last one
            count = math.ceil(count / math.ceil(count / self._most_in_turn(memory)))
        with backend.pinned(self._config), ThreadPoolExecutor(1) as beginner:
            while True:
                self._members = self._made(count)
                begun = beginner.submit(self._begin_pinned, self.courses[0])  # what else there is before the first step
                self._members.compile()
                begun.result()
                if self._layout.accelerated:
                    needed = self._members.bytes_needed
                    if needed > members.FREE * memory and count > 1:
                        count = max(1, min(count - 1, int(count * members.FREE * memory / needed)))
                        continue
                    if needed > memory:
                        raise InputError(f"a member needs {needed / 2**30:,.1f} GiB, and a device has "
                                         f"{memory / 2**30:,.1f}: train it alone, with launch.train")
                break
            if id(self._host_pool) not in self._pools:
                self._pools[id(self._host_pool)] = self._layout.put(Pool(*self._host_pool), REPLICATED)
            self._pool = self._pools[id(self._host_pool)]
        self._compiled = True

    def _most_in_turn(self, memory: int) -> int:
        """How many members, one after the other, are worth a program."""
        longest = max(course.cadence.total_steps for course in self.courses)
        useful = int(_CPU_SECONDS / (self._step_seconds * longest))
        fits = memory // (8 * self._lanes * self._made(1).bytes)
        return max(1, min(_CPU_MEMBERS, useful, fits))

    def chunks(self, courses: Sequence[Course]) -> list[list[Course]]:
        """These members, as many together as are trained at a time."""
        alike: dict[Any, list[Course]] = {}
        for course in courses:
            alike.setdefault((_cadence(course), course.step), []).append(course)
        size = self._members.count
        return [found[at : at + size] for found in alike.values() for at in range(0, len(found), size)]

    def train(self, courses: Sequence[Course], stop: int, beat: Callable[[], None]) -> None:
        """Trains these, which `chunks` has put together, up to a step after which they are evaluated. `beat` is called
        now and then, and may raise.

        Their last and best states are then in the host's memory.
        """
        with backend.pinned(self._config):  # a thread's own
            self._train(courses, stop, beat)

    def _train(self, courses: Sequence[Course], stop: int, beat: Callable[[], None]) -> None:
        team, devices = self._members, len(self._layout.devices)
        placed = [(at % devices * (team.count // devices) + at // devices, course) for at, course in enumerate(courses)]
        slots: list[Course] = [courses[0]] * team.count  # those of no member are like the first one's
        for place, course in placed:
            slots[place] = course
        states = team.placed(self._stacked([course.last or self._begin(course) for course in slots]))
        best = team.placed(self._stacked([course.best or course.last or self._begin(course) for course in slots]))
        rates = team.placed(optim.Rates(*(np.array(values, np.float32) for values in zip(
            *(optim.rates(course.member.config) for course in slots), strict=True))))  # fmt: skip
        judged = team.placed(np.stack([self._blocks(course.share.held)[0] for course in slots]))
        cadence, step = courses[0].cadence, courses[0].step
        while any(not course.ended for course in courses) and step < stop:
            began = time.monotonic()
            until = min(cadence.dispatch(step, self._shape.steps), stop)
            playing = [(place, course) for place, course in placed if not course.ended]
            orders = self._taken(slots, step, until, [place for place, _ in playing])
            states, losses = team.advance(states, rates, self._pool, orders)
            told = np.asarray(losses)
            spent = (time.monotonic() - began) / len(playing) / (until - step)
            beat()
            first = step
            while step < until:
                end = min(cadence.next(step), until)
                part = slice(step - first, end - first)
                for place, course in playing:
                    if not course.diverged:
                        course.add(told[place, part], orders.weight_sums[place, part], spent * (end - step))
                step = end
                if cadence.line(step):  # an evaluation is due at the dispatch's end only
                    best = self._with_lines(step, playing, states, best, judged)
                    beat()
        last, top = (jax.tree.map(np.asarray, tree) for tree in (states, best))
        for place, course in placed:
            course.last, course.best = (
                jax.tree.map(lambda leaf, at=place: leaf[at].copy(), tree) for tree in (last, top))  # fmt: skip

    def _with_lines(
        self, step: int, playing: Sequence[tuple[int, Course]], states: State, best: State, judged: jax.Array
    ) -> State:
        """Writes the lines that are due after this step, of the members at their places; returns the best states."""
        config, better = self._config, np.zeros(self._members.count, bool)
        due = playing[0][1].cadence.evaluation(step)
        found = np.asarray(self._members.evaluate(states, self._pool, judged)) if due else None
        trained = self._train_accuracies(playing, states) if due and config.eval_train else {}
        for place, course in playing:
            if course.diverged:
                continue
            line: Line = {}
            if found is not None:
                labels = self._host_pool.labels[course.share.held]
                line = trained.get(place, {}) | evaluated(found[place], labels, config.choose_by)
                if not math.isfinite(line["validation_loss"]):
                    course.diverged = True
                    continue
                if score(line) is None:
                    raise InputError(f"--choose_by={config.choose_by} is not defined for the examples of member "
                                     f"{course.member.number}: give another of its values")
            better[place] = course.add_line(line)
        return self._members.choose(best, states, better) if better.any() else best

    def _train_accuracies(self, playing: Sequence[tuple[int, Course]], states: State) -> dict[int, Line]:
        """By place."""
        blocks = {place: self._blocks(course.share.rows) for place, course in playing}
        right = dict.fromkeys(blocks, 0)
        for turn in range(max(map(len, blocks.values()))):
            rows = np.zeros((self._members.count, self._shape.blocks, self._shape.block_rows), np.int32)
            for place, parts in blocks.items():
                rows[place] = parts[min(turn, len(parts) - 1)]
            found = np.asarray(self._members.evaluate(states, self._pool, self._members.placed(rows)))
            for place, course in playing:
                if turn < len(blocks[place]):
                    left = len(course.share.rows) - turn * rows[0].size
                    right[place] += int(found[place][:, 1].reshape(-1)[:left].sum())
        return {place: {"train_accuracy": right[place] / len(course.share.rows)}
                for place, course in playing}

    def _blocks(self, positions: np.ndarray) -> np.ndarray:
        """Positions in the pool as evaluations take them, int32 [times, blocks, rows], filled up."""
        size = self._shape.blocks * self._shape.block_rows
        filled = np.zeros(-(-len(positions) // size) * size, np.int32)
        filled[: len(positions)] = positions
        return filled.reshape(-1, self._shape.blocks, self._shape.block_rows)

    def _taken(self, slots: Sequence[Course], start: int, stop: int, going: Sequence[int]) -> Orders:
        """What all are trained on in steps start..stop-1; those at other places than `going` make none."""
        counts = np.zeros(len(slots), np.int32)
        counts[list(going)] = stop - start
        orders = [self._order(course, start, stop) for course in slots]
        return Orders(counts, *(np.stack(parts) for parts in zip(*orders, strict=True)))

    def _order(self, course: Course, start: int, stop: int) -> tuple[np.ndarray, ...]:
        """Of one member, as Orders has it: positions, weights and their sums."""
        order, share = course.order, course.share
        known = (order, id(share), start if order.shuffle else start % order.steps_per_epoch, stop - start)
        if (found := self._orders.get(known)) is not None:
            return found
        behind, parts = self._shape.steps - (stop - start), []
        while start < stop:
            epoch, first = divmod(start, order.steps_per_epoch)
            last = min(first + stop - start, order.steps_per_epoch)
            indices, real = order.indices(epoch, first, last, range(order.num_shards))
            weights = real if share.weights is None else real * share.weights[indices]
            sums = order.weight_sums(share.weights, epoch, first, last)
            parts.append((share.rows[indices].astype(np.int32), weights, sums))
            start += last - first
        made = tuple(
            np.concatenate([*each, np.zeros((behind, *each[0].shape[1:]), each[0].dtype)])
            for each in zip(*parts, strict=True)
        )
        if sum(part.nbytes for part in made) * (len(self._orders) + 1) > _KEPT_ORDERS:
            self._orders = {}
        self._orders[known] = made
        return made

    def _begin_pinned(self, course: Course) -> None:
        with backend.pinned(self._config):  # a thread's own
            self._begin(course)

    def _begin(self, course: Course) -> State:
        """Its state before the first step, NumPy's."""
        config, optimizer = course.member.config, self._members.optimizer
        with self._making:  # what one thread makes, the others use
            if config.seed not in self._initial:
                state = initial_state(self._shape.sizes, config.seed, optimizer, ())
                self._initial[config.seed] = jax.tree.map(np.asarray, state)
        return self._initial[config.seed]._replace(scaling=course.share.scaling(config.input_scaling))

    @staticmethod
    def _stacked(states: Sequence[State]) -> State:
        return jax.tree.map(lambda *leaves: np.stack(leaves), *states)


def teams(
    courses: Sequence[Course], layout: Layout, num_classes: Callable[[Config], int], lanes: int, pools: Pools
) -> Iterator[Team]:
    """The members that are trained by the same program together."""
    alike: dict[Any, list[Course]] = {}
    for course in courses:
        alike.setdefault(key(course), []).append(course)
    for found in alike.values():
        yield Team(found, layout, num_classes(found[0].member.config), lanes, pools)
