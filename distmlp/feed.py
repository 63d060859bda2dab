"""How steps get their data: batch by batch from the host, or many steps per dispatch on data that lie on the devices.

Both run the same step on the same examples; only the way of the bytes differs.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np

from distmlp.datasets import ArrayDataset
from distmlp.loader import Batch, NumpyLoader
from distmlp.mesh import Layout
from distmlp.step import State, TrainStep, wrap

_PREFETCH = 2  # batches on their way to the devices while a step runs


class Feed(Protocol):
    """Advances a state by one or more steps."""

    def compile(self, state: State) -> None:
        """Compiles ahead of the first step."""

    def advance(self, state: State, step: int, limit: int) -> tuple[State, jax.Array, list[int]]:
        """Runs steps from number `step` on, counted from 0 over the run, and not beyond `limit`.

        Returns:
          the state; the losses, float32 [n or more], not waited for; and the n steps' numbers of examples.
        """


class HostFeed:
    """One step per dispatch, on batches that the loader gathers while the devices work on the ones before."""

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
    """Up to `steps_per_dispatch` steps in one loop on the devices, each of which holds a copy of the data set."""

    def __init__(
        self, layout: Layout, loader: NumpyLoader, train_step: TrainStep, dataset: ArrayDataset, steps_per_dispatch: int
    ) -> None:
        self._layout, self._loader, self._size = layout, loader, steps_per_dispatch
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
        stop = min(start + self._size, start + limit - step, per_epoch)
        state, losses = self._run(state, *self._arguments(start, stop))
        return state, losses, [self._loader.weight_sum(k) for k in range(start, stop)]

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
