"""A dispatch: so many training steps in one program, and how many steps that should be."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from distmlp.data.loader import Batch
from distmlp.parallel.mesh import Layout
from distmlp.parallel.step import State, TrainStep, wrap

_FIXED_DISPATCH = 32  # steps, where the processes cannot each go by its own clock
_DISPATCH_SECONDS = 0.125  # a dispatch grows while it takes less; a signal waits for two of them


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


class Programs:
    """A dispatch of up to `size` steps, compiled: run(state, *arrays of size steps, bounds of the steps).

    In a loop whose length is not known a GPU waits for the host at every turn: there, whole dispatches have a program
    of their own. (A loop of a single turn would be none, and could round differently.)
    """

    def __init__(self, run: Callable[..., Any], layout: Layout, axes: tuple[int | None, ...], size: int) -> None:
        self._size, self._options = size, layout.compiler_options

        def run_whole(state: State, *arrays: Any) -> Any:
            return run(state, *arrays, (0, size))

        self._any: Any = wrap(run, layout, axes)
        self._whole: Any = None
        if layout.accelerated and size > 1:
            self._whole = wrap(run_whole, layout, axes[:-1])

    def lower(self, state: State, arguments: list[Any]) -> jax.stages.Lowered:
        """Of a whole dispatch."""
        lowered = self._whole.lower(state, *arguments[:-1]) if self._whole else self._any.lower(state, *arguments)
        return lowered  # type: ignore[no-any-return]

    def compile(self, state: State, arguments: list[Any]) -> None:
        whole = self._whole and self.lower(state, arguments).compile(self._options)
        self._any = self._any.lower(state, *arguments).compile(self._options)
        self._whole = whole

    def __call__(self, state: State, arguments: list[Any], steps: int) -> tuple[State, jax.Array]:
        if self._whole and steps == self._size:
            return self._whole(state, *arguments[:-1])  # type: ignore[no-any-return]
        return self._any(state, *arguments)  # type: ignore[no-any-return]
