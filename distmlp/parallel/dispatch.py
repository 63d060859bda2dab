"""A dispatch: so many training steps in one program, and how many steps that should be."""

import abc
import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distmlp.data.batches import Batch, NumpyLoader
from distmlp.parallel.mesh import Layout
from distmlp.parallel.step import State, TrainStep, wrap

_FIXED_DISPATCH = 32  # steps, where the processes cannot each go by its own clock
_DISPATCH_SECONDS = 0.125  # a dispatch grows while it takes less; a signal waits for two of them

# Called with a step's number, counted from 1 over the run, when its examples have been fetched, ahead of their use:
# this process's indices and weights.
Fetched = Callable[[int, np.ndarray, np.ndarray], None]


class Pace:
    """How many steps a dispatch has: so many as take about a quarter of a second, found out by doubling.

    Several processes must dispatch alike, whatever their clocks say: there, and where it is given, a fixed number.
    """

    def __init__(self, given: int, largest: int) -> None:
        self._adapts = given == 0 and jax.process_count() == 1
        self.largest, self._last = largest, -math.inf
        self.steps = 1 if self._adapts else min(given or _FIXED_DISPATCH, largest)

    def tick(self) -> None:
        """To be called once per dispatch. The losses of the one before are read in between: ticks are one apart."""
        now = time.monotonic()
        if self._adapts and now - self._last < _DISPATCH_SECONDS:
            self.steps = min(2 * self.steps, self.largest)
        elif self._adapts and now - self._last > 4 * _DISPATCH_SECONDS:
            self.steps = max(1, self.steps // 2)
        self._last = now


def loop(train_step: TrainStep, batch: Callable[[Any], Batch], state: State, bounds: Any, size: int) -> Any:
    """Steps bounds[0]..bounds[1]-1, step i on batch(i), and their losses, float32 [size].

    Traced bounds: one compilation for any number.
    """
    entered = train_step.enter(state)
    losses = jnp.zeros((size, *jax.eval_shape(train_step, entered, batch(0))[1].shape), jnp.float32)

    def body(i: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
        state, losses = carry
        state, loss = train_step(state, batch(i))
        return state, jax.lax.dynamic_update_index_in_dim(losses, loss, i - bounds[0], 0)

    left, losses = jax.lax.fori_loop(bounds[0], bounds[1], body, (entered, losses))
    return train_step.leave(left, state.params), losses if losses.ndim == 1 else losses.sum(axis=1)


class Feed(abc.ABC):
    """Advances a state by dispatches of up to `pace.largest` steps; what these are given is the affair of its kinds.

    In a loop whose length is not known a GPU waits for the host at every turn: there, whole dispatches have a program
    of their own. (A loop of a single turn would be none, and could round differently.)

    Args:
      batch: (i, *arrays) -> the dispatch's batch i.
      axes: of the arrays, as for `Layout.put`; the last is of the bounds of the steps.
    """

    # Dispatches whose losses are still to be read. Reading late keeps the devices busy; never reading lets emulated
    # devices deadlock after some dozens.
    in_flight = 1

    def __init__(
        self, layout: Layout, loader: NumpyLoader, train_step: TrainStep, pace: Pace, batch: Callable[..., Batch],
        axes: tuple[int | None, ...],
    ) -> None:
        self._layout, self._loader, self._pace, self._axes = layout, loader, pace, axes
        self._size = size = pace.largest
        self.fetched: Fetched = lambda step, indices, weights: None  # to be set by who wants to know

        def run(state: State, *arguments: Any) -> Any:
            *arrays, bounds = arguments
            return loop(train_step, lambda i: batch(i, *arrays), state, bounds, size)

        def run_whole(state: State, *arrays: Any) -> Any:
            return run(state, *arrays, (0, size))

        self._any: Any = wrap(run, layout, axes)
        self._whole: Any = wrap(run_whole, layout, axes[:-1]) if layout.accelerated and size > 1 else None

    def lower(self, state: State) -> jax.stages.Lowered:
        """The program of a whole dispatch, for states like this one, which may be abstract, ready to be compiled."""
        arguments = self._layout.abstract(self._like(), self._axes)
        return self._whole.lower(state, *arguments[:-1]) if self._whole else self._any.lower(state, *arguments)

    def compile(self, state: State) -> None:
        """Compiles ahead of the first step, for states like this one, which may be abstract; reads no batch."""
        arguments, options = self._layout.abstract(self._like(), self._axes), self._layout.compiler_options
        if self._whole:
            self._whole = self._whole.lower(state, *arguments[:-1]).compile(options)
        self._any = self._any.lower(state, *arguments).compile(options)

    @abc.abstractmethod
    def advance(self, state: State, step: int, limit: int) -> tuple[State, jax.Array, list[int]]:
        """Runs steps from number `step` on, counted from 0 over the run, and not beyond `limit`.

        Returns:
          the state; the losses, float32 [n or more], not waited for; and the n steps' numbers of examples.
        """

    @abc.abstractmethod
    def _like(self) -> list[Any]:
        """Arrays, or their shapes and dtypes, like those of a dispatch."""

    def _dispatch(self, state: State, arguments: list[Any], steps: int) -> tuple[State, jax.Array]:
        if self._whole and steps == self._size:
            return self._whole(state, *arguments[:-1])
        return self._any(state, *arguments)
