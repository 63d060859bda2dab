"""How steps get their data: batch by batch from the host, or many steps per dispatch on data that lie on the devices.

Both run the same step on the same examples; only the way of the bytes differs.
"""

import itertools
import math
import os
import time
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from distmlp.config import Config, InputError
from distmlp.datasets import AnyDataset, ArrayDataset
from distmlp.loader import Batch, NumpyLoader
from distmlp.mesh import Layout
from distmlp.step import State, TrainStep, wrap

_LARGEST_DISPATCH = 512  # steps
_FIXED_DISPATCH = 32  # steps, where the processes cannot each go by its own clock
_DISPATCH_SECONDS = 0.125  # a dispatch grows while it takes less; a signal waits for two of them
_PREFETCH = 2  # batches on their way to the devices while a step runs


class Feed(Protocol):
    """Advances a state by one or more steps."""

    # Dispatches whose losses are still to be read. Reading late keeps the devices busy; never reading lets emulated
    # devices deadlock after some dozens.
    in_flight: int

    def compile(self, state: State) -> None:
        """Compiles ahead of the first step."""

    def advance(self, state: State, step: int, limit: int) -> tuple[State, jax.Array, list[int]]:
        """Runs steps from number `step` on, counted from 0 over the run, and not beyond `limit`.

        Returns:
          the state; the losses, float32 [n or more], not waited for; and the n steps' numbers of examples.
        """


class HostFeed:
    """One step per dispatch, on batches that the loader gathers while the devices work on the ones before."""

    in_flight = 8

    def __init__(self, layout: Layout, loader: NumpyLoader, train_step: TrainStep, total_steps: int) -> None:
        self._layout, self._loader, self._total_steps = layout, loader, total_steps
        self._step = wrap(lambda state, *batch: train_step(state, Batch(*batch)), layout, (0, 0, 0, None))
        self._batches: Iterator[tuple[list[jax.Array], int]] | None = None

    def compile(self, state: State) -> None:
        self._loader.set_position(0)
        batch = self._layout.put(next(iter(self._loader)), (0, 0, 0, None))
        self._step = self._step.lower(state, *batch).compile()  # type: ignore[attr-defined]

    def advance(self, state: State, step: int, limit: int) -> tuple[State, jax.Array, list[int]]:
        if self._batches is None:
            self._batches = self._prefetched(step)
        batch, count = next(self._batches)
        state, loss = self._step(state, *batch)
        return state, loss, [count]

    def _prefetched(self, step: int) -> Iterator[tuple[list[jax.Array], int]]:
        queue: deque[tuple[list[jax.Array], int]] = deque()
        for batch in itertools.islice(self._from(step), self._total_steps - step):
            queue.append((self._layout.put(batch, (0, 0, 0, None)), int(batch.weight_sum)))
            if len(queue) > _PREFETCH:
                yield queue.popleft()
        yield from queue

    def _from(self, step: int) -> Iterator[Batch]:
        for epoch in itertools.count(step // self._loader.steps_per_epoch):
            self._loader.set_position(epoch, step % self._loader.steps_per_epoch)
            for batch in self._loader:
                yield batch
                step += 1


class DeviceFeed:
    """Many steps per dispatch, in one loop on the devices, each of which holds a copy of the data set.

    At most `steps_per_dispatch`; if that is 0, so many as take about a quarter of a second, found out by doubling.
    """

    in_flight = 1

    def __init__(
        self, layout: Layout, loader: NumpyLoader, train_step: TrainStep, dataset: ArrayDataset, steps_per_dispatch: int
    ) -> None:
        self._layout, self._loader, self._size = layout, loader, steps_per_dispatch or _LARGEST_DISPATCH
        # Several processes must dispatch alike, whatever their clocks say.
        self._adapts = steps_per_dispatch == 0 and jax.process_count() == 1
        self._steps, self._last_advance = (1 if self._adapts else min(self._size, _FIXED_DISPATCH)), -math.inf
        self._data = layout.put((dataset.images, dataset.labels), (None, None))
        self._axes = (None, None, 1, 1, None, None)

        def run(state: State, images: Any, labels: Any, indices: Any, weights: Any, sums: Any, steps: Any) -> Any:
            def one(i: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
                state, losses = carry
                index = indices[i]
                state, loss = train_step(state, Batch(images[index], labels[index], weights[i], sums[i]))
                return state, losses.at[i].set(loss)

            return jax.lax.fori_loop(0, steps, one, (state, jnp.zeros(sums.shape)))  # traced bound: one compilation

        self._run = wrap(run, layout, self._axes)

    def compile(self, state: State) -> None:
        self._run = self._run.lower(state, *self._arguments(0, 0)).compile()  # type: ignore[attr-defined]

    def advance(self, state: State, step: int, limit: int) -> tuple[State, jax.Array, list[int]]:
        per_epoch = self._loader.steps_per_epoch
        epoch, start = divmod(step, per_epoch)
        if (epoch, start) != (self._loader.epoch, self._loader.step):
            self._loader.set_position(epoch, start)
        if self._adapts:
            self._adapt()
        stop = min(start + self._steps, start + limit - step, per_epoch)
        state, losses = self._run(state, *self._arguments(start, stop))
        return state, losses, [self._loader.weight_sum(k) for k in range(start, stop)]

    def _adapt(self) -> None:
        # The losses of the dispatch before are read in between: two calls are one dispatch apart.
        now = time.monotonic()
        if now - self._last_advance < _DISPATCH_SECONDS:
            self._steps = min(2 * self._steps, self._size)
        elif now - self._last_advance > 4 * _DISPATCH_SECONDS:
            self._steps = max(1, self._steps // 2)
        self._last_advance = now

    def _arguments(self, start: int, stop: int) -> list[jax.Array]:
        """The dispatch's arguments, of one static shape: rows behind the last step are not read."""
        indices, weights = self._loader.indices(start, stop)
        sums = np.array([self._loader.weight_sum(k) for k in range(start, stop)], np.float32)

        def fill(array: np.ndarray) -> np.ndarray:
            full = np.zeros((self._size, *array.shape[1:]), array.dtype)
            full[: len(array)] = array
            return full

        host = (fill(indices.astype(np.int32)), fill(weights), fill(sums), np.int32(stop - start))
        return [*self._data, *self._layout.put(host, self._axes[2:])]


def choose_placement(config: Config, dataset: AnyDataset, layout: Layout) -> tuple[str, str]:
    """Where the training set lies, host or device, and why.

    Raises:
      InputError: --data_placement=device for data that are read from files as they are needed.
    """
    if not isinstance(dataset, ArrayDataset) or dataset.mapped:
        if config.data_placement == "device":
            raise InputError(f"--data_placement=device needs data in memory, and {dataset.name} is read from its "
                             "files: give --data_placement=host")
        return "host", "read as needed"
    if config.data_placement != "auto":
        return config.data_placement, "asked for"
    room, size = _memory(layout) // 4, dataset.images.nbytes
    if size > room:
        return "host", f"{size / 2**20:,.0f} MiB are more than a quarter of a device's memory"
    return "device", f"{size / 2**20:,.0f} MiB fit"


def _memory(layout: Layout) -> int:
    """Bytes of memory of a device; emulated ones share the host's."""
    device = layout.devices[layout.local_positions[0]]
    stats = device.memory_stats() or {}
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(layout.local_positions)
    return int(stats.get("bytes_limit", host))
