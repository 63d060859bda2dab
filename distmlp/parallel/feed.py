"""How steps get their data: chunk by chunk from the host, or by index from a copy of the data set on each device.

Both run the same step on the same examples; only the way of the bytes differs.
"""

import itertools
from collections import deque
from collections.abc import Iterator
from typing import Any

import jax
import numpy as np

from distmlp.data.batches import Batch, NumpyLoader
from distmlp.data.examples import Examples
from distmlp.parallel.dispatch import Feed, Pace
from distmlp.parallel.mesh import Layout
from distmlp.parallel.step import State, TrainStep

_LARGEST_DISPATCH = 512  # steps
_ACCELERATOR_DISPATCH = 64  # steps: some milliseconds of a GPU's, each of which is a program of this very length
_LARGEST_CHUNK = 16  # steps per dispatch of HostFeed
_CHUNK_BYTES = 4 << 20  # of images per dispatch of HostFeed, over all processes
_PREFETCH = 2  # chunks on their way to the devices while one is worked on


class HostFeed(Feed):
    """A chunk of steps per dispatch, on batches gathered and sent while the devices work on the chunk before."""

    def __init__(
        self, layout: Layout, loader: NumpyLoader, train_step: TrainStep, total_steps: int, steps_per_dispatch: int = 0
    ) -> None:
        self._total_steps, self._empty = total_steps, loader.empty_batch()
        batch_bytes = self._empty.images.nbytes * loader.order.num_shards // len(self._empty.images)
        pace = Pace(steps_per_dispatch, max(1, min(_LARGEST_CHUNK, _CHUNK_BYTES // batch_bytes)))
        self._chunks: Iterator[tuple[list[jax.Array], list[int]]] | None = None
        self._chunk: list[jax.Array] = []
        self._counts: list[int] = []  # of the chunk's steps
        self._used = 0  # of the chunk's steps

        def batch(i: Any, *arrays: Any) -> Batch:
            return Batch(*(array[i] for array in arrays))

        super().__init__(layout, loader, train_step, pace, batch, (1, 1, 1, None, None))

    def _like(self) -> list[Any]:
        chunk = [jax.ShapeDtypeStruct((self._size, *np.shape(part)), part.dtype) for part in self._empty.arrays]
        return [*chunk, jax.ShapeDtypeStruct((2,), np.int32)]

    def advance(self, state: State, step: int, limit: int) -> tuple[State, jax.Array, list[int]]:
        if self._chunks is None:
            self._chunks = self._prefetched(step)
        self._pace.tick()
        if self._used == len(self._counts):
            (self._chunk, self._counts), self._used = next(self._chunks), 0
        start, stop = self._used, min(self._used + limit - step, len(self._counts))
        bounds = self._layout.put([np.array([start, stop], np.int32)], self._axes[-1:])
        state, losses = self._dispatch(state, self._chunk + bounds, stop - start)
        self._used = stop
        return state, losses, self._counts[start:stop]

    def _prefetched(self, step: int) -> Iterator[tuple[list[jax.Array], list[int]]]:
        queue: deque[tuple[list[jax.Array], list[int]]] = deque()
        for chunk in self._from(step):
            queue.append((self._put(chunk), [int(batch.weight_sum) for batch in chunk]))
            if len(queue) > _PREFETCH:
                yield queue.popleft()
        yield from queue

    def _from(self, step: int) -> Iterator[list[Batch]]:
        """Chunks of the steps from `step` on."""
        while step < self._total_steps:
            epoch, start = divmod(step, self._loader.order.steps_per_epoch)
            self._loader.set_position(epoch, start)
            batches = itertools.islice(self._loader, self._total_steps - step)
            while chunk := list(itertools.islice(batches, self._pace.steps)):
                for number, batch in enumerate(chunk, start=step + 1):
                    self.fetched(number, batch.indices, batch.weights)
                yield chunk
                step += len(chunk)

    def _put(self, chunk: list[Batch]) -> list[jax.Array]:
        """The chunk's arrays, of one static shape: what lies behind its last step is not read."""
        chunk = chunk + [chunk[-1]] * (self._size - len(chunk))
        arrays = [np.stack(parts) for parts in zip(*(batch.arrays for batch in chunk), strict=True)]
        return self._layout.put(arrays, self._axes[:-1])


class DeviceFeed(Feed):
    """Many steps per dispatch, on data of which each device holds a copy; `steps_per_dispatch` at most, if not 0."""

    def __init__(
        self, layout: Layout, loader: NumpyLoader, train_step: TrainStep, dataset: Examples, steps_per_dispatch: int
    ) -> None:
        self._host_data = list(dataset.resident or ())
        size = steps_per_dispatch or (_ACCELERATOR_DISPATCH if layout.accelerated else _LARGEST_DISPATCH)
        pace = Pace(steps_per_dispatch, size)

        def batch(i: Any, images: Any, labels: Any, indices: Any, weights: Any, sums: Any) -> Batch:
            # Of indices that are known to be good: looking for others costs a GPU a kernel.
            rows, found = (
                array.at[indices[i]].get(mode="promise_in_bounds", wrap_negative_indices=False)
                for array in (images, labels)
            )
            return Batch(rows, found, weights[i], sums[i])

        super().__init__(layout, loader, train_step, pace, batch, (None, None, 1, 1, None, None))

    def compile(self, state: State) -> None:
        self._data = self._layout.put(self._host_data, (None, None))
        super().compile(state)

    def _like(self) -> list[Any]:
        return [*self._host_data, *self._host_arguments(0, 0, 0, 0)]

    def advance(self, state: State, step: int, limit: int) -> tuple[State, jax.Array, list[int]]:
        order = self._loader.order
        epoch, start = divmod(step, order.steps_per_epoch)
        self._pace.tick()
        stop = min(start + self._pace.steps, start + limit - step, order.steps_per_epoch)
        arguments = [*self._data, *self._layout.put(self._host_arguments(epoch, start, stop, step), self._axes[2:])]
        state, losses = self._dispatch(state, arguments, stop - start)
        return state, losses, [order.examples(k) for k in range(start, stop)]

    def _host_arguments(self, epoch: int, start: int, stop: int, step: int) -> list[np.ndarray]:
        """The dispatch's own arguments, of one static shape: rows behind the last step are not read.

        `start` and `stop` count the epoch's steps; `step` of the run's come before.
        """
        order = self._loader.order
        indices, weights = order.indices(epoch, start, stop, self._loader.local_shards)
        for number, rows in enumerate(zip(indices, weights, strict=True), start=step + 1):
            self.fetched(number, *rows)
        sums = np.array([order.examples(k) for k in range(start, stop)], np.float32)

        def fill(array: np.ndarray) -> np.ndarray:
            full = np.zeros((self._size, *array.shape[1:]), array.dtype)
            full[: len(array)] = array
            return full

        return [fill(indices.astype(np.int32)), fill(weights), fill(sums), np.array([0, stop - start], np.int32)]
