"""The core: what a run compiles, and how it advances a state; no file, no signal handler, no other process."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distmlp import optim
from distmlp.config import Config
from distmlp.data.batches import NumpyLoader
from distmlp.data.datasets import Data, input_scaling
from distmlp.errors import InputError
from distmlp.model import Params
from distmlp.parallel import backend
from distmlp.parallel.digest import StateDigest, params_sha256
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.feed import Steps, choose_placement, make_feed
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import STATE, State
from distmlp.parallel.step import initial_state, make_train_step
from distmlp.progress import Cadence, Line, Measures, Poll, Progress


class Program:
    """A run's parts; nothing is compiled or placed by making them.

    Attributes:
      sizes: of the layers, input and output included.
      state: abstract: shapes, dtypes and placements; enough to compile for it, and to restore it.
      placement: where the training set lies, host or device, and why.
    """

    def __init__(
        self, config: Config, data: Data, layout: Layout, memory: int, lead: Callable[[int], int] = lambda steps: steps
    ) -> None:
        """Raises InputError where settings do not go with the data.

        `memory`: bytes of the smallest of the devices. `lead`: gives several processes the first one's whole number.
        """
        if config.batch_size > len(data.train):
            raise InputError(f"--batch_size={config.batch_size}: give at most {len(data.train)}, the training examples")
        self._config, self._data, self.layout = config, data, layout
        self.placement = choose_placement(config, data.train, memory)
        self.sizes = [data.num_features, *config.hidden_sizes, data.num_classes]
        self.loader = NumpyLoader(data.train, config.batch_size, layout.num_shards, layout.local_shards,
                                  config.shuffle, config.seed, config.num_workers, data.weights)  # fmt: skip
        self._optimizer = optim.make(config, config.total_steps(self.loader.order.steps_per_epoch))
        self.cadence = Cadence(config, self.loader.order.steps_per_epoch)
        weightless = data.weights is not None and not data.weights.all()  # then a batch may be without any
        train_step = make_train_step(config, layout, data.num_classes, self._optimizer, weightless)
        self.feed = make_feed(config, layout, self.loader, train_step, self.placement[0], self.cadence.total_steps,
                              lead)  # fmt: skip
        self.evaluator = Evaluator(config, layout)
        self.measures = Measures(config, data, self.evaluator)
        self.digest = StateDigest(layout, STATE)
        scaled = config.input_scaling != "none"
        scaling = (jax.ShapeDtypeStruct((data.num_features,), np.float32),) * 2 if scaled else ()
        self.state: State = layout.abstract(jax.eval_shape(self._initial_state, scaling), STATE)

    def compile(self) -> None:
        """Compiles the steps, also in a thread beside other work."""
        with backend.pinned(self._config):  # a thread's own
            self.feed.compile(self.state)

    def scaling(self) -> tuple[np.ndarray, ...]:
        """By what inputs are scaled: of the training set, all of which is read for it."""
        return input_scaling(self._config, self._data)

    def initial_state(self, scaling: Sequence[np.ndarray]) -> State:
        """The state before the first step, on the devices."""
        return self.layout.put(jax.tree.map(np.asarray, self._initial_state(scaling)), STATE)

    def _initial_state(self, scaling: Sequence[Any]) -> State:
        return initial_state(self.sizes, self._config.seed, self._optimizer, scaling)

    def taken(self) -> int:
        """How many examples were read so far, where they are read one by one; from any thread."""
        return self.loader.taken + self.evaluator.taken

    def close(self) -> None:
        """Ends the processes that load data."""
        self.loader.close()
        self.evaluator.close()


@dataclasses.dataclass(frozen=True)
class Result:
    """What a training leaves: `params, history = result` takes the first two."""

    params: Params  # after the last step, on the devices
    history: list[Line]  # the lines of metrics.jsonl
    best_params: Params | None = None  # of the best evaluation, where no folder has them

    def __iter__(self) -> Iterator[Any]:
        return iter((self.params, self.history))


class Moment(NamedTuple):
    """A state between two steps, and what has just been done, if anything; the next step takes its memory over."""

    state: State
    steps: Steps | None = None  # made by a dispatch
    digests: dict[str, str] | None = None  # of the state's arrays, by which the devices' copies were compared
    line: Line | None = None  # of the progress, with an evaluation if that was due


def advance(parts: Program, state: State, progress: Progress, poll: Poll) -> Iterator[Moment]:
    """Trains until the last step is done, or --patience is at its end; evaluations call `poll`.

    Yields a moment before each dispatch, where one can stop; another after it, before anything is evaluated; and
    where a line is due, a third one with it.

    Raises:
      DivergedError: a value is not finite, or the devices no longer agree.
    """
    cadence = progress.cadence
    if not progress.logged and progress.step and cadence.line(progress.step):
        yield _with_line(parts, state, progress, poll)
    while not progress.at_end:
        yield Moment(state)
        progress.begin_steps()
        with jax.transfer_guard("disallow"):
            state, steps = parts.feed.advance(state, progress.step, cadence.next(progress.step))
        progress.add(steps)
        compared = cadence.comparison(progress.step)
        yield Moment(state, steps, parts.digest.check(state, progress.step) if compared else None)
        if cadence.line(progress.step):
            progress.settle()
            yield _with_line(parts, state, progress, poll)


def _with_line(parts: Program, state: State, progress: Progress, poll: Poll) -> Moment:
    due = progress.cadence.evaluation(progress.step)
    return Moment(state, line=progress.add_line(parts.measures.evaluated(state, poll) if due else {}))


def in_memory(parts: Program, state: State, show: Callable[[Line], None] = lambda line: None) -> Result:
    """Trains from an initial state, keeping the best one in memory; `show` gets each line but the final one."""
    progress = Progress(parts.cadence)
    best_state = state
    for moment in advance(parts, state, progress, poll=lambda: None):
        state = moment.state
        if moment.line is not None:
            show(moment.line)
            if progress.at_best:
                best_state = jax.tree.map(jnp.copy, state)
    tested = parts.measures.tested(state, best_state, poll=lambda: None)
    progress.add_final_line(params_sha256(state.params), tested)
    return Result(state.params, progress.history, best_state.params)
