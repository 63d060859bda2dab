"""The feed advances a state: it gives each dispatch, which is a number of steps in one program, the data it needs.

The data of a dispatch come from the host, batch by batch (`HostBatches`), or each device holds the whole data set and
is told which examples to take (`DeviceBatches`). Both give the same steps the same examples; only the way of the bytes
differs.
"""

import dataclasses
import functools
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import jax
import jax.numpy as jnp
import numpy as np

from distmlp.data.batches import Batch, Batches
from distmlp.data.examples import Examples
from distmlp.errors import InputError
from distmlp.kept import kept
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import BATCH, REPLICATED, SELECTION, STATE, Selection, State, hashable, stacked
from distmlp.parallel.step import TrainStep

if TYPE_CHECKING:  # imports torch
    from distmlp.data.loader import NumpyLoader

_DISPATCH_SECONDS = 0.125  # a dispatch grows while it takes less; a signal waits for two of them
_DISPATCHES = 16  # at most, of the largest size, between two looks at the clock
_LARGEST_DISPATCH = 512  # steps, of data on the device
_ACCELERATOR_DISPATCH = 64  # steps: some milliseconds of a GPU's, each of which is a program of this very length
_LARGEST_CHUNK = 16  # steps per dispatch, of data from the host
_CHUNK_BYTES = 4 << 20  # of images per dispatch, over all processes
_PREFETCH = 2  # chunks on their way to the devices while one is worked on


class Steps(NamedTuple):
    """What a dispatch did, in n steps."""

    losses: jax.Array  # float32 [n or more]; not waited for
    sizes: list[int]  # [n]: examples in each global batch
    weight_sums: np.ndarray  # float32 [n]: what these weigh together
    indices: np.ndarray  # int64 [n, local shards, rows]: this process's examples
    real: np.ndarray  # float32 [n, local shards, rows]: 0 for rows that only fill up a shard
    paced: bool = True  # whether the first process may decide after it: some times a second, and at each audit


class Taken(NamedTuple):
    """The data of a dispatch: its steps are those from `start` on of `arrays`, which may hold more."""

    arrays: Any  # on the devices
    start: int
    sizes: list[int]  # these four as in Steps
    weight_sums: np.ndarray
    indices: np.ndarray
    real: np.ndarray


@dataclasses.dataclass
class Spent:
    """Seconds that a process has spent on the data of some steps."""

    steps: int = 0
    load: float = 0.0  # to read their examples
    send: float = 0.0  # to hand them to its devices


class Pace:
    """How many steps a dispatch has: so many as take about a quarter of a second, found out by doubling.

    Several processes must dispatch alike, whatever their clocks say: `lead` gives all of them what the first decides.
    It is asked so often only as dispatches take about that time together: a GPU may make dozens in it.
    """

    def __init__(self, given: int, largest: int, lead: Callable[[int], int]) -> None:
        self._adapts, self._lead, self.largest = given == 0, lead, largest
        self.steps = min(given or 1, largest)
        self._goal, self._left, self._last = 1, 1, -math.inf  # steps of a quarter of a second; dispatches until then

    def tick(self) -> bool:
        """To be called once per dispatch, before it; says whether the first process has decided now.

        The losses of the dispatch before are read in between: ticks are one apart.
        """
        self._left -= 1
        if self._left:
            return False
        if self._adapts:
            now = time.monotonic()
            if now - self._last < _DISPATCH_SECONDS:
                self._goal = min(2 * self._goal, self.largest * _DISPATCHES)
            elif now - self._last > 4 * _DISPATCH_SECONDS:
                self._goal = max(1, self._goal // 2)
            self._goal, self._last = self._lead(self._goal), now
            self.steps = min(self._goal, self.largest)
        self._left = max(1, self._goal // self.steps)
        return True


class Feed:
    """Advances a state by dispatches of up to `largest` steps.

    In a loop whose length is not known a GPU waits for the host at every turn: there, whole dispatches have a program
    of their own. (A loop of a single turn would be none, and could round differently.)
    """

    def __init__(
        self, layout: Layout, train_step: TrainStep, batches: "HostBatches | DeviceBatches", specs: State = STATE,
        keeps_newest: bool = False,
    ) -> None:
        """The state lies as `specs` say. `keeps_newest`: whether the data of the newest dispatch stay, to be computed
        with again."""
        self._layout, self.batches, self._pace, self._keeps_newest = layout, batches, batches.pace, keeps_newest
        self.newest: Taken | None = None
        self.resident_bytes, self.held = batches.resident_bytes, batches.held  # on each device, for the plan
        self.largest = batches.pace.largest  # of a dispatch, in steps
        kind: Any = type(batches)
        self._any, self._whole = _programs(layout, train_step, kind, self.largest, *hashable(specs))

    def lower(self, state: State, whole: bool = True) -> jax.stages.Lowered:
        """The program of a whole dispatch, or of any other, for states like this one, which may be abstract."""
        arrays, bounds = self.arguments()
        return self._whole.lower(state, arrays) if whole and self._whole else self._any.lower(state, arrays, bounds)

    def arguments(self) -> tuple[Any, Any]:
        """The data of a dispatch and which of its steps are meant, abstract."""
        arrays = self._layout.abstract(self.batches.like(), self.batches.specs)
        return arrays, self._layout.abstract(jax.ShapeDtypeStruct((2,), np.int32), REPLICATED)

    def compile(self, state: State) -> None:
        """Compiles ahead of the first step, for states like this one, which may be abstract; reads no batch. The second
        time it does nothing."""
        if isinstance(self._any, jax.stages.Compiled):
            return
        options = self._layout.compiler_options
        lowered = [self.lower(state, whole) for whole in ((True, False) if self._whole else (False,))]
        *whole, self._any = [each.compile(options) for each in lowered]
        self._whole = whole[0] if whole else None

    @property
    def bytes_needed(self) -> int:
        """What the compiled programs need of a device's memory."""
        return max(bytes_needed(each) for each in (self._any, self._whole) if each)

    def advance(self, state: State, step: int, limit: int) -> tuple[State, Steps]:
        """Runs steps from number `step` on, counted from 0 over the run, and not beyond `limit`."""
        paced = self._pace.tick()
        taken = self.batches.take(step, limit)
        self.newest = taken if self._keeps_newest else None
        arrays, start, count = taken.arrays, taken.start, len(taken.sizes)
        if self._whole and count == self.largest:
            state, losses = self._whole(state, arrays)
        else:
            bounds = self._layout.put(np.array([start, start + count], np.int32), REPLICATED)
            state, losses = self._any(state, arrays, bounds)
        return state, Steps(losses, *taken[2:], paced)


@kept
def _programs(
    layout: Layout, train_step: TrainStep, kind: Any, size: int, leaves: tuple[Any, ...], structure: Any
) -> tuple[Any, Any]:
    """Of dispatches of up to `size` steps: the program of any of them; and that of a whole one, or None.

    `kind` is HostBatches or DeviceBatches. The leaves are those of the state's specs.
    """
    specs = jax.tree.unflatten(structure, leaves)

    def run(state: State, arrays: Any, bounds: Any) -> tuple[State, jax.Array]:
        """Steps bounds[0]..bounds[1]-1 and their losses; traced bounds: one compilation for any number."""

        def body(i: jax.Array, carry: tuple[State, jax.Array]) -> tuple[State, jax.Array]:
            state, losses = carry
            state, loss = train_step(state, kind.batch(arrays, i))
            return state, jax.lax.dynamic_update_index_in_dim(losses, loss, i - bounds[0], 0)

        return jax.lax.fori_loop(bounds[0], bounds[1], body, (state, jnp.zeros(size, jnp.float32)))

    def run_whole(state: State, arrays: Any) -> tuple[State, jax.Array]:
        return run(state, arrays, (0, size))

    results: Any = {"out_specs": (specs, REPLICATED)}
    whole = layout.wrap(run_whole, (specs, kind.specs), **results) if layout.accelerated and size > 1 else None
    return layout.wrap(run, (specs, kind.specs, REPLICATED), **results), whole


def bytes_needed(compiled: jax.stages.Compiled) -> int:
    """What a compiled program needs of a device's memory, its arguments included."""
    sizes: Any = compiled.memory_analysis()
    own = sizes.temp_size_in_bytes + sizes.output_size_in_bytes - sizes.alias_size_in_bytes
    return int(sizes.argument_size_in_bytes + own)


class HostBatches:
    """Batches that the loader yields, in chunks: sent while the devices work on the chunks before."""

    specs = stacked(BATCH)
    resident_bytes, held = 0, _PREFETCH + 2  # of data that stay; dispatches whose arrays are there at once, at most

    def __init__(self, layout: Layout, loader: "NumpyLoader", pace: Pace, total_steps: int) -> None:
        self._layout, self._loader, self.pace, self._total_steps = layout, loader, pace, total_steps
        self.spent = Spent()
        self._chunks: Iterator[Taken] = iter(())
        self._chunk = Taken(None, 0, [], *[np.empty(0)] * 3)  # of whose steps the first `start` are used up
        self._next = -1  # the step that comes next

    def like(self) -> Batch:
        """Shapes and dtypes like this process's part of a dispatch's arrays."""
        empty, size = self._loader.empty_batch(), self.pace.largest
        return jax.tree.map(lambda part: jax.ShapeDtypeStruct((size, *np.shape(part)), part.dtype), empty)

    @staticmethod
    def batch(arrays: Batch, i: Any) -> Batch:
        """Inside the program: batch i of a dispatch's arrays."""
        return jax.tree.map(lambda array: array[i], arrays)

    def take(self, step: int, limit: int) -> Taken:
        """The data of the steps from number `step` on, counted from 0 over the run, and not beyond `limit`."""
        if step != self._next:
            self._chunks, self._chunk = self._sent_ahead(step), self._chunk._replace(start=len(self._chunk.sizes))
        if self._chunk.start == len(self._chunk.sizes):
            self._chunk = next(self._chunks)
        told: list[Any]
        arrays, start, *told = self._chunk
        stop = min(start + limit - step, len(told[0]))
        self._chunk, self._next = self._chunk._replace(start=stop), step + stop - start
        return Taken(arrays, start, *(each[start:stop] for each in told))

    def again(self, step: int, shards: Sequence[int]) -> Batch:
        """A dispatch's arrays of this step alone, in which this process has other shards than its own; they are read
        here and now."""
        batch = self._loader.read(*divmod(step, self._loader.order.steps_per_epoch), shards)
        return self._layout.put(jax.tree.map(lambda part: np.asarray(part)[None], batch.on_devices()), self.specs)

    def like_again(self) -> Batch:
        """Shapes and dtypes like this process's part of what `again` gives."""
        return jax.tree.map(lambda part: jax.ShapeDtypeStruct((1, *part.shape[1:]), part.dtype), self.like())

    def _sent_ahead(self, step: int) -> Iterator[Taken]:
        queue: deque[Taken] = deque()
        while step < self._total_steps:
            epoch, first = divmod(step, self._loader.order.steps_per_epoch)
            self._loader.set_position(epoch, first)
            batches = enumerate(itertools.islice(self._loader, self._total_steps - step), first)
            while chunk := self._loaded(batches):
                queue.append(self._send(chunk))
                if len(queue) > _PREFETCH:
                    yield queue.popleft()
                step += len(chunk)
        yield from queue

    def _loaded(self, batches: Iterator[tuple[int, Batch]]) -> list[tuple[int, Batch]]:
        """Those of the next dispatch, by the numbers of their steps."""
        started = time.monotonic()
        chunk = list(itertools.islice(batches, self.pace.steps))
        self.spent.load += time.monotonic() - started
        self.spent.steps += len(chunk)
        return chunk

    def _send(self, chunk: list[tuple[int, Batch]]) -> Taken:
        """The arrays of an epoch's steps, by their numbers, of one static shape: what lies behind them is not read."""
        started = time.monotonic()
        steps, batches = zip(*chunk, strict=True)
        filled = [batch.on_devices() for batch in (*batches, *[batches[-1]] * (self.pace.largest - len(batches)))]
        arrays = self._layout.put(jax.tree.map(lambda *parts: np.stack(parts), *filled), self.specs)
        told = zip(*((batch.weight_sum, batch.indices, batch.real) for batch in batches), strict=True)
        self.spent.send += time.monotonic() - started
        return Taken(arrays, 0, [self._loader.order.examples(step) for step in steps], *map(np.stack, told))


class DeviceBatches:
    """Batches that each device gathers from its own copy of the data set. Methods are as HostBatches'."""

    specs, held = SELECTION, 2

    def __init__(self, layout: Layout, batches: Batches, pace: Pace, data: tuple[np.ndarray, np.ndarray]) -> None:
        self._layout, self.pace, self._host_data, self.spent = layout, pace, data, Spent()
        self._batches, self._order, self._shards = batches, batches.order, batches.local_shards
        self.resident_bytes = sum(array.nbytes for array in data)

    @functools.cached_property
    def _data(self) -> tuple[jax.Array, jax.Array]:
        """The data set on the devices."""
        return self._layout.put(self._host_data, (SELECTION.images, SELECTION.labels))

    def like(self) -> Selection:
        nothing = *self._order.indices(0, 0, 0, self._shards), np.empty(0)
        return Selection(*self._host_data, *self._chosen(*nothing, self.pace.largest))

    @staticmethod
    def batch(arrays: Selection, i: Any) -> Batch:
        # Of indices that are known to be good: looking for others costs a GPU a kernel.
        images, labels = (
            array.at[arrays.indices[i]].get(mode="promise_in_bounds", wrap_negative_indices=False)
            for array in (arrays.images, arrays.labels)
        )
        return Batch(images, labels, arrays.weights[i], arrays.weight_sums[i])

    def take(self, step: int, limit: int) -> Taken:
        data, started = self._data, time.monotonic()
        epoch, start = divmod(step, self._order.steps_per_epoch)
        stop = min(start + self.pace.steps, start + limit - step, self._order.steps_per_epoch)
        indices, real = self._order.indices(epoch, start, stop, self._shards)
        sizes = [self._order.examples(k) for k in range(start, stop)]
        sums = self._order.weight_sums(self._batches.weights, epoch, start, stop)
        loaded = time.monotonic()
        chosen = self._layout.put(self._chosen(indices, real, sums, self.pace.largest), tuple(SELECTION[2:]))
        self.spent.steps += stop - start
        self.spent.load += loaded - started
        self.spent.send += time.monotonic() - loaded
        return Taken(Selection(*data, *chosen), 0, sizes, sums, indices, real)

    def again(self, step: int, shards: Sequence[int]) -> Selection:
        epoch, at = divmod(step, self._order.steps_per_epoch)
        sums = self._order.weight_sums(self._batches.weights, epoch, at, at + 1)
        chosen = self._chosen(*self._order.indices(epoch, at, at + 1, shards), sums, 1)
        return Selection(*self._data, *self._layout.put(chosen, tuple(SELECTION[2:])))

    def like_again(self) -> Selection:
        nothing = *self._order.indices(0, 0, 0, self._shards), np.empty(0)
        return Selection(*self._host_data, *self._chosen(*nothing, 1))

    def _chosen(self, indices: np.ndarray, real: np.ndarray, sums: np.ndarray, size: int) -> tuple[np.ndarray, ...]:
        """The own arrays of a dispatch of up to `size` steps: rows behind the last one are not read."""
        arrays = indices.astype(np.int32), self._batches.weigh(indices, real), sums.astype(np.float32)
        return tuple(
            np.concatenate([array, np.zeros((size - len(array), *array.shape[1:]), array.dtype)])
            for array in arrays
        )


def in_dispatches(
    layout: Layout, batches: Batches, placement: str, total_steps: int, steps_per_dispatch: int = 0,
    lead: Callable[[int], int] = lambda steps: steps,
) -> HostBatches | DeviceBatches:
    """The data of a run whose training set lies on the `device` or the `host`, as `choose_placement` says.

    `lead` gives several processes the first one's number of steps.
    """
    given, examples = min(steps_per_dispatch, batches.order.steps_per_epoch), batches.examples
    if placement == "device" and examples.resident is not None:
        largest = given or (_ACCELERATOR_DISPATCH if layout.accelerated else _LARGEST_DISPATCH)
        return DeviceBatches(layout, batches, Pace(given, largest, lead), examples.resident)
    batch_bytes = batches.order.num_shards * batches.order.rows * examples.num_features * examples.dtype.itemsize
    pace = Pace(given, max(1, min(_LARGEST_CHUNK, _CHUNK_BYTES // batch_bytes)), lead)
    return HostBatches(layout, cast("NumpyLoader", batches), pace, total_steps)


def choose_placement(asked: str, examples: Examples, memory: int) -> tuple[str, str]:
    """Where the training set lies, host or device, and why: as is `asked` for by --data_placement; `memory` is that of
    a device, in bytes.

    Raises:
      InputError: --data_placement=device for data that are read from files as they are needed.
    """
    if asked == "host":
        return "host", "asked for"
    if examples.resident is None:
        if asked == "device":
            raise InputError(f"--data_placement=device needs data in memory, and {examples.name} is read from its "
                             "files: give --data_placement=host")
        return "host", "read as needed"
    if asked != "auto":
        return asked, "asked for"
    room, size = memory // 4, examples.resident[0].nbytes
    if size > room:
        return "host", f"{size / 1e6:,.1f} MB are more than a quarter of a device's memory"
    return "device", f"{size / 1e6:,.1f} MB fit"
