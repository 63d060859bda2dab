"""Trains one member at a time on all devices of this process, as a run alone: where its examples are not in memory."""

from collections.abc import Callable
from contextlib import closing

import jax
import numpy as np

from distmlp import training
from distmlp.errors import DivergedError
from distmlp.many.course import Course
from distmlp.parallel import backend
from distmlp.parallel.layout import make_layout
from distmlp.parallel.specs import State
from distmlp.progress import Progress


def train(course: Course, stop: int, beat: Callable[[], None]) -> None:
    """As Team.train, of a single member."""
    if course.diverged:
        return
    config = course.member.config
    with backend.pinned(config):
        layout = make_layout(config)
        data = course.share.data()
        with closing(training.Program(config, data, layout, layout.device_memory)) as parts:
            parts.compile()
            begin = course.last
            if begin is None:
                state = parts.initial_state(parts.scaling())
            else:
                state = parts.state_of(begin.params, begin.scaling, begin.opt_state, course.step)
            progress = Progress(parts.cadence, course.step, history=course.lines, standing=course.standing)
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
            course.took(progress, None if course.diverged else _on_host(state), best)


def _on_host(state: State) -> State:
    host: State = jax.tree.map(np.array, state)
    return host
