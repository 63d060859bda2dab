"""Trains one member at a time on all devices of this process, as a run alone: where its examples are not in memory."""

import functools
from collections.abc import Callable
from contextlib import closing
from typing import Any

import jax
import numpy as np

from distmlp import training
from distmlp.errors import DivergedError
from distmlp.many.course import Course
from distmlp.parallel import backend
from distmlp.parallel.layout import Layout, make_layout
from distmlp.parallel.specs import State
from distmlp.progress import Progress, Reached


def train(
    course: Course, stop: int, beat: Callable[[], None], reading: list[Callable[[], int]] | None = None,
    aside: Callable[[Callable[[], Any]], Any] = lambda work: work(),
) -> None:
    """As Team.train, of a single member.

    Meanwhile `reading` has what says how many examples were read; `aside` does what comes before the first step, which
    may take longer than a step.
    """
    if course.diverged:
        return
    config = course.member.config
    with backend.pinned(config):
        layout = make_layout(config)
        with closing(aside(functools.partial(_program, course, layout))) as parts:
            reading = [] if reading is None else reading
            reading.append(parts.taken)
            state = aside(functools.partial(_begin, course, parts))
            progress = Progress(parts.cadence, Reached(course.step, None, course.standing), course.lines)
            best = course.best
            try:
                for moment in training.advance(parts, state, progress, beat) if course.step < stop else ():
                    state = moment.state
                    beat()
                    if moment.line is not None:
                        if progress.at_best:
                            best = _on_host(state)
                        if progress.step >= stop:
                            break
            except DivergedError:  # the state may be another's memory by now
                course.diverged = True
            reading.clear()
            course.took(progress, None if course.diverged else _on_host(state), best)


def _program(course: Course, layout: Layout) -> training.Program:
    with backend.pinned(course.member.config):  # a thread's own
        return training.Program(course.member.config, course.share.data(), layout, layout.device_memory)


def _begin(course: Course, parts: training.Program) -> State:
    """Its state before the step that comes next, once all is compiled."""
    config, last = course.member.config, course.last
    with backend.pinned(config):
        parts.compile()
        if last is None:
            return parts.initial_state(course.share.scaling(config.input_scaling))
        return parts.state_of(last.params, last.scaling, last.opt_state, course.step)


def _on_host(state: State) -> State:
    host: State = jax.tree.map(np.array, state)
    return host
