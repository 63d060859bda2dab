"""The core: what a run compiles, and how it advances a state; no file, no signal handler, no other process."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distmlp import notebook, optim
from distmlp.config import Config
from distmlp.data.batches import Batches
from distmlp.data.datasets import Data, ItemDataset, input_scaling
from distmlp.data.order import check_batch_size
from distmlp.errors import DivergedError, InputError
from distmlp.kept import kept
from distmlp.model import Params
from distmlp.parallel import backend
from distmlp.parallel.audit import Audit
from distmlp.parallel.digest import StateDigest, params_sha256
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.feed import Feed, Steps, choose_placement, in_dispatches
from distmlp.parallel.layout import Layout
from distmlp.parallel.own_time import OwnTime
from distmlp.parallel.sharded import StateLayout, rows_of
from distmlp.parallel.specs import REPLICATED, STATE, State
from distmlp.parallel.step import (
    Recipe,
    abstract_state,
    initial_state,
    make_audited_step,
    make_own_work,
    make_train_step,
)
from distmlp.progress import Cadence, Line, Measures, Poll, Progress


class Program:
    """A run's parts; nothing is compiled or placed by making them.

    Attributes:
      sizes: of the layers, input and output included.
      held: how the state lies on the devices.
      state: abstract: shapes, dtypes and placements; enough to compile for it, and to restore it.
      state_why: why it is held so.
      placement: where the training set lies, host or device, and why.
    """

    def __init__(
        self, config: Config, data: Data, layout: Layout, memory: int, lead: Callable[[int], int] = lambda steps: steps,
        state_why: str = "",
    ) -> None:
        """Raises InputError where settings do not go with the data.

        `memory`: bytes of the smallest of the devices. `lead`: gives several processes the first one's whole number.
        """
        check_batch_size(config.batch_size, len(data.train))
        if config.patience and data.validation is None:
            raise InputError(f"--patience={config.patience} goes by a validation set: give --validation_fraction=0.1, "
                             "or x_val and y_val beside the training set")
        self._config, self._data, self.layout, self.state_why = config, data, layout, state_why
        self.placement = choose_placement(config.data_placement, data.train, memory)
        self.sizes = config.layer_sizes(data.num_features, data.num_classes)
        self.loader = self._batches()
        self.cadence = Cadence(config, self.loader.order.steps_per_epoch, len(data.chooser) > 0)
        self._optimizer = optim.make(config, self.cadence.total_steps)
        scaled = config.input_scaling != "none"
        self.held = _held(layout, self.sizes, self._optimizer, scaled)
        self.state: State = self.held.abstract
        rows, specs = rows_of(self.held.shapes.params), self.held.specs
        weightless = data.weights is not None and not data.weights.all()  # then a batch may be without any
        recipe = Recipe(data.num_classes, config.compute_dtype, config.clip_norm > 0, weightless, rows)
        train_step = make_train_step(recipe, layout, self._optimizer)
        own_work = make_own_work(recipe, layout, self.held.shapes.params) if jax.process_count() > 1 else None
        given = in_dispatches(layout, self.loader, self.placement[0], self.cadence.total_steps,
                              config.steps_per_dispatch, lead)  # fmt: skip
        self.feed = Feed(layout, train_step, given, specs, keeps_newest=own_work is not None)
        self.own_time = OwnTime(layout, self.feed, own_work, specs)
        self.audit: Audit | None = None
        if config.audit_every:
            audited = make_audited_step(recipe, layout, self._optimizer)
            python = isinstance(data.train, ItemDataset) and data.train.files is None
            self.audit = Audit(layout, *audited, self.feed.batches, specs, data.train.name if python else "")
        self.evaluator = Evaluator(layout, config.eval_batch_size, config.compute_dtype, config.num_workers, specs,
                                   rows)  # fmt: skip
        self.measures = Measures(data, self.evaluator, config.choose_by, config.eval_train)
        self.digest = StateDigest(layout, specs, self.held.shapes)

    def _batches(self) -> Batches:
        """Of the training set: for its examples torch is needed where they do not lie on the devices."""
        config, layout, data = self._config, self.layout, self._data
        settings: dict[str, Any] = {
            "num_shards": layout.num_shards, "local_shards": layout.local_shards, "shuffle": config.shuffle,
            "seed": config.seed, "weights": data.weights}  # fmt: skip
        if self.placement[0] == "device":
            return Batches(data.train, config.batch_size, **settings)
        from distmlp.data.loader import NumpyLoader

        return NumpyLoader(data.train, config.batch_size, **settings, num_workers=config.num_workers)

    def compile(self) -> None:
        """Compiles the steps, also in a thread beside other work."""
        with backend.pinned(self._config):  # a thread's own
            self.feed.compile(self.state)
            self.own_time.compile(self.state)
            if self.audit:
                self.audit.compile(self.state)

    @property
    def bytes_needed(self) -> int:
        """What the compiled programs need of a device's memory."""
        audit = self.audit.bytes_needed if self.audit else 0
        return max(self.feed.bytes_needed, self.own_time.bytes_needed, audit)

    def surely_fits(self, memory: int) -> bool:
        """Whether devices of so many bytes have room by a rough, large estimate, which needs no compilation."""
        params = sum(array.size * 4 for array in jax.tree.leaves(self.held.shapes.params))
        examples = self.loader.order.rows * self.layout.shards_per_device
        sums = self.layout.shards_per_device if self.layout.invariant else 1
        states = 2 if self.audit is None else 3  # an audited step keeps the one before
        needed = 2 * (states * self.held.bytes + (1 + sums) * params + 12 * examples * sum(self.sizes))
        return needed < memory - self.feed.resident_bytes

    def scaling(self) -> tuple[np.ndarray, ...]:
        """By what inputs are scaled: of the training set, all of which is read for it."""
        return input_scaling(self._config.input_scaling, self._data)

    def initial_state(self, scaling: Sequence[np.ndarray]) -> State:
        """The state before the first step, on the devices; if sharded, each makes its part."""
        if not self.layout.sharded:
            return self._placed(initial_state(self.sizes, self._config.seed, self._optimizer, scaling))
        placed = jax.tree.map(lambda array: array.sharding, self.state.opt_state)
        optimizer = self._optimizer._replace(init=jax.jit(self._optimizer.init, out_shardings=placed))
        state = initial_state(self.sizes, self._config.seed, optimizer, scaling, self.held.normal)
        rest = self.layout.put({"step": np.int32(0), "scaling": tuple(scaling)}, REPLICATED)
        return state._replace(**rest)

    def state_of(self, params: Any, scaling: Any, opt_state: Any = None, step: int = 0) -> State:
        """The state of these arrays after `step` steps, on the devices; without opt_state the optimizer begins."""
        opt_state = self._optimizer.init(params) if opt_state is None else opt_state
        state = State(params, opt_state, jnp.int32(step), scaling)

        def form(part: Any) -> Any:
            return jax.tree.structure(part), list(map(np.shape, jax.tree.leaves(part)))

        differing = [name for name, given, wanted in zip(State._fields, state, self.state, strict=True)
                     if form(given) != form(wanted)]  # fmt: skip
        if differing:
            flags = ("--optimizer, --momentum, --weight_decay and --clip_norm" if differing == ["opt_state"] else
                     "--hidden_sizes, --optimizer and --input_scaling")
            raise InputError(f"what is to be trained on is not of these {flags}: give those that it began with, or "
                             "begin anew")
        return self._placed(state)

    def _placed(self, state: State) -> State:
        return self.layout.put(jax.tree.map(np.asarray, state), STATE)

    def taken(self) -> int:
        """How many examples were read so far, where they are read one by one; from any thread."""
        return self.loader.rows.taken + self.evaluator.taken

    def close(self) -> None:
        """Ends the processes that load data."""
        self.loader.close()
        self.evaluator.close()


@kept
def _held(layout: Layout, sizes: tuple[int, ...], optimizer: Any, scaled: bool) -> StateLayout:
    return StateLayout(layout, abstract_state(sizes, optimizer, scaled))


def fitting(
    config: Config, data: Data, layouts: Sequence[Layout], memory: int,
    lead: Callable[[int], int] = lambda steps: steps,
) -> Program:
    """The program of a run with the first of the layouts that leaves room for the state and for the copy of it that is
    saved, or the last of all; other arguments are as Program's."""
    why = "it fits" if config.state == "auto" else "asked for"
    *others, last = layouts
    for candidate in others:
        parts = Program(config, data, candidate, memory, lead, why)
        if parts.surely_fits(memory):
            return parts
        parts.compile()
        needed = parts.bytes_needed + parts.held.bytes
        if needed <= memory:
            return parts
        parts.close()
        why = f"{candidate.state}, a device would need {needed / 2**30:,.1f} of its {memory / 2**30:,.1f} GiB"
    return Program(config, data, last, memory, lead, why)


class Result:
    """What a training leaves: `params, history = result` takes the first two.

    Attributes:
      history: the lines of metrics.jsonl.
    """

    def __init__(self, held: StateLayout, last: State, history: list[Line], best: State | None = None) -> None:
        """Of the last state and, where no folder has it, the best by the evaluations, lying on the devices as `held`
        says."""
        self._held, self._last, self._best, self.history = held, last, best, history

    @functools.cached_property
    def params(self) -> Params:
        """The parameters after the last step, on the devices.

        Where rows of a sharded array are filled up, this makes it whole on every device: then only if it is asked for,
        which several processes do together.
        """
        return self._held.whole(self._last.params)

    @functools.cached_property
    def best_params(self) -> Params | None:
        """Those of the best evaluation; None where a folder has them."""
        return self._best and self._held.whole(self._best.params)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.params, self.history))

    def _repr_html_(self) -> str:
        """What a notebook shows."""
        return notebook.html(self.history)


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
      AuditError: they did not find the same gradient.
    """
    cadence = progress.cadence
    if not progress.logged and progress.step and cadence.line(progress.step):
        yield _with_line(parts, state, progress, poll)
    while not progress.at_end:
        yield Moment(state)
        progress.begin_steps()
        with jax.transfer_guard("disallow"):
            if parts.audit and cadence.audit(progress.step + 1):
                state, steps = parts.audit.advance(state, progress.step)
            else:
                state, steps = parts.feed.advance(state, progress.step, cadence.next(progress.step))
        progress.add(steps)
        compared = cadence.comparison(progress.step)
        yield Moment(state, steps, parts.digest.check(state, progress.step) if compared else None)
        if cadence.line(progress.step):
            progress.settle()
            yield _with_line(parts, state, progress, poll)


def _with_line(parts: Program, state: State, progress: Progress, poll: Poll) -> Moment:
    evaluated: Line = {}
    if progress.cadence.evaluation(progress.step):
        with progress.account.of("evaluate"):
            evaluated = parts.measures.evaluated(state, poll)
    return Moment(state, line=progress.add_line(evaluated))


OnLine = Callable[[Line], object]


def ends(on_line: OnLine, line: Line) -> bool:
    """Shows a line to the caller's function; whether it says that training shall end here: it returns True."""
    said = on_line(dict(line))
    return isinstance(said, (bool, np.bool_)) and bool(said)


def carry(
    parts: Program, state: State, progress: Progress, on_line: OnLine, stop: Callable[[], bool] = lambda: False
) -> tuple[State, State, bool]:
    """Trains in memory until all is done, or `on_line` or `stop`, which is asked between two dispatches, returns True.

    Returns:
      the last state, the best one by the evaluations, and whether all was done.

    Raises:
      DivergedError: as `advance`; or the last state, of which no loss has told yet, is not finite.
    """
    best_state: State | None = None
    done = True
    for moment in advance(parts, state, progress, poll=lambda: None):
        state = moment.state
        if moment.line is not None:
            if progress.at_best:
                best_state = jax.tree.map(jnp.copy, state)
            done = not ends(on_line, moment.line)
        elif moment.steps is None:
            done = not stop()
        if not done:
            break
    _check_finite(state, progress.step)
    return state, best_state or state, done


def _check_finite(state: State, step: int) -> None:
    """Raises DivergedError where a value is not; on the host, as a digest's program would have to be compiled first."""
    shards = (shard for leaf in jax.tree.leaves(state) for shard in leaf.addressable_shards if not shard.replica_id)
    if not all(np.isfinite(shard.data).all() for shard in shards):
        raise DivergedError(f"the parameters or the optimizer's state are not finite after step {step}: try a lower "
                            "--learning_rate or --clip_norm")


def in_memory(parts: Program, state: State, on_line: OnLine = lambda line: None) -> Result:
    """Trains from an initial state, keeping the best one in memory; see `carry`."""
    progress = Progress(parts.cadence)
    state, best_state, done = carry(parts, state, progress, on_line)
    if done:
        tested = parts.measures.tested(state, best_state, poll=lambda: None)
        on_line(dict(progress.add_final_line(params_sha256(parts.held.arrays(state.params)), tested)))
    return Result(parts.held, state, progress.history, best_state)
