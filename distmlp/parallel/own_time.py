"""What a step takes a process by itself: to read its examples, to send them to its devices, and to compute."""

import math
import time
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distmlp.kept import kept
from distmlp.parallel.feed import Feed, Spent, Taken, bytes_needed
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import REPLICATED, State, hashable
from distmlp.parallel.step import OwnWork


class OwnSeconds(NamedTuple):
    """What a step takes this process by itself: none of this is waiting for another one."""

    load: float  # to read its examples
    send: float  # to hand them to its devices
    compute: float  # its devices, all at once: the gradients of their shards; NaN where that was not measured


class OwnTime:
    """Measures it for the steps of a feed, which keeps its newest data for that.

    Attributes:
      computes: whether it can be measured how long a step's computing takes.
    """

    def __init__(self, layout: Layout, feed: Feed, own_work: OwnWork | None, specs: State) -> None:
        """`own_work`, if it is to be measured: what a device does for a step before it waits for others."""
        self._layout, self._feed, self.computes = layout, feed, own_work is not None
        self._granted, self._shortest = 0.0, math.inf  # seconds left to compute again; and what a step takes at best
        self._computed, self._compute = 0, 0.0  # steps, and the seconds that they took
        self._program: Any = own_work and _program(layout, own_work, type(feed.batches), *hashable(specs))

    def compile(self, state: State) -> None:
        """For states like this one, which may be abstract. The second time it does nothing."""
        if self._program and not isinstance(self._program, jax.stages.Compiled):
            lowered = self._program.lower(state, *self._feed.arguments())
            self._program = lowered.compile(self._layout.compiler_options)

    @property
    def bytes_needed(self) -> int:
        """What the compiled program needs of a device's memory."""
        return bytes_needed(self._program) if self._program else 0

    def seconds(self, state: State, granted: float) -> OwnSeconds:
        """What a step takes this process by itself, the mean since `forget`; the devices are to be idle.

        To measure it, steps of the newest dispatch are computed again, as many as fit into the seconds that were
        granted so far and not used; at first one, in any case. All processes call this equally often, for a TPU wants
        the same programs from all; none waits for another.
        """
        if self._program and self._feed.newest:
            self._granted += granted
            count = max(0, int(min(self._granted / self._shortest, len(self._feed.newest.sizes))))
            if self._shortest == math.inf:
                self._compute_again(state, self._feed.newest, 1)  # programs and memory are still to be found
                self._granted, count = 0.0, 1
            seconds = self._compute_again(state, self._feed.newest, count)
            if count:
                self._granted -= seconds
                self._shortest = min(self._shortest, seconds / count)
                self._compute += seconds
                self._computed += count
        spent = self._feed.batches.spent
        loaded = max(spent.steps, 1)  # short lines may be of steps that were loaded before
        return OwnSeconds(spent.load / loaded, spent.send / loaded,
                          self._compute / self._computed if self._computed else math.nan)  # fmt: skip

    def forget(self) -> None:
        self._feed.batches.spent = Spent()
        self._computed, self._compute = 0, 0.0

    def _compute_again(self, state: State, taken: Taken, count: int) -> float:
        """How many seconds this process's devices take for its part of so many of these steps, without an exchange."""
        bounds = self._layout.put(np.array([0, count], np.int32) + taken.start, REPLICATED)
        jax.block_until_ready(bounds)
        started = time.monotonic()
        jax.block_until_ready(self._program(state, taken.arrays, bounds))
        return time.monotonic() - started


@kept
def _program(layout: Layout, own_work: OwnWork, kind: Any, leaves: tuple[Any, ...], structure: Any) -> Any:
    """Of the steps bounds[0]..bounds[1]-1 of a dispatch, what the devices do without waiting for one another."""

    def run(state: State, arrays: Any, bounds: Any) -> jax.Array:
        def body(i: jax.Array, found: jax.Array) -> jax.Array:
            return jnp.maximum(found, own_work(state, kind.batch(arrays, i)))

        return jax.lax.fori_loop(bounds[0], bounds[1], body, jnp.float32(0))[None]

    return layout.wrap_each(run, (jax.tree.unflatten(structure, leaves), kind.specs, REPLICATED))
