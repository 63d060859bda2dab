"""Exact evaluation: every example counted once, with the same result on any number of devices and processes, in memory
that does not grow with the examples."""

import dataclasses
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distmlp import model
from distmlp.data.batches import Announced, Rows, Step
from distmlp.data.examples import Readable
from distmlp.kept import kept
from distmlp.parallel import by_layer, sharded
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import DEALT, STATE, State, hashable

if TYPE_CHECKING:  # imports torch
    from distmlp.data.loader import ExampleLoader

_AHEAD = 4  # steps in flight; emulated devices can deadlock when dozens are
_ADDED = 1 << 13  # losses that NumPy adds at once; at least 128
_COUNTED = 1 << 20  # pairs of classes that are counted at once


@dataclasses.dataclass(frozen=True)
class Evaluation:
    loss: float  # mean over examples (and classes, as the tutorial's)
    correct: int
    total: int
    # If asked for: int64 [pairs that occur, 3], true and most probable class, and how often; in order
    pairs: np.ndarray | None = dataclasses.field(default=None, compare=False)
    labels: np.ndarray | None = dataclasses.field(default=None, compare=False)  # int32 [N], with log_probs
    log_probs: np.ndarray | None = dataclasses.field(default=None, compare=False)  # float32 [N, classes], if asked for

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


class Seen(NamedTuple):
    """Some examples of an evaluation, in the data set's order."""

    images: np.ndarray | None  # uint8 or float32 [rows, features]; None where other processes have some of them
    labels: np.ndarray  # int32 [rows]
    predicted: np.ndarray  # int32 [rows]: the most probable class
    log_probs: np.ndarray  # float32 [rows, classes]


class Evaluator:
    """Evaluates a state on a data set, `batch_size` rows per device and step whatever the device count.

    So an example's loss comes from the same program on the same shapes everywhere; the host adds the losses in index
    order in float64. More than that comes from programs of its own, for these numbers must not depend on what is asked.
    """

    held = _AHEAD + 1  # steps whose arrays lie on the devices at once, at most

    def __init__(
        self, layout: Layout, batch_size: int, compute_dtype: str = "float32", num_workers: int = 0,
        specs: State = STATE, rows: sharded.Rows = (),
    ) -> None:
        """`num_workers` processes read what is read item by item. `specs` say how the state lies; where it is sharded,
        the parameters have so many `rows` when they are whole."""
        self.rows, self.layout, self.workers = batch_size, layout, num_workers
        self._loaders: dict[Readable, ExampleLoader] = {}  # of what is read one by one; each keeps its workers
        programs = _programs(compute_dtype, layout, rows, *hashable(specs))
        self._losses, self._labels, self._log_probs = programs

    def lower(self, state: State, dataset: Readable) -> jax.stages.Lowered:
        """The program of a step, ready to be compiled, for states like this one, which may be abstract."""
        rows = self.rows * len(self.layout.local_positions)
        images = jax.ShapeDtypeStruct((rows, dataset.num_features), dataset.dtype)
        labels = jax.ShapeDtypeStruct((rows,), np.int32)
        return self._losses.lower(state, *self.layout.abstract((images, labels), DEALT))

    @property
    def taken(self) -> int:
        """How many examples were read so far, where they are read one by one; from any thread."""
        return sum(loader.rows.taken for loader in tuple(self._loaders.values()))

    def close(self) -> None:
        """Ends the workers."""
        for loader in self._loaders.values():
            loader.close()

    def _read(self, dataset: Readable) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images and labels of each step. Arrays are indexed, a step at a time; items are for torch to read."""
        steps: Any = _Steps(self.layout, self.rows, len(dataset))
        if not dataset.one_by_one:
            found: Iterable[Any] = map(Rows(dataset).read, Announced(steps, dataset))
        else:
            from distmlp.data.loader import ExampleLoader

            if dataset not in self._loaders:
                self._loaders[dataset] = ExampleLoader(dataset, steps, self.workers)
            found = self._loaders[dataset]
        for images, labels, _, _ in found:
            yield images, labels

    def __call__(
        self, state: State, dataset: Readable, poll: Callable[[], None] = lambda: None, ask: str = "",
        watch: Callable[[Seen], None] | None = None,
    ) -> Evaluation:
        """Calls `poll` before each step, which may raise to stop the evaluation.

        It may `ask` for "labels", and gets the pairs; or for "log_probs", too, which are kept with the labels. `watch`
        is shown each step's examples, which are then not kept.
        """
        asked = {"": (), "labels": (self._labels,), "log_probs": (self._log_probs,)}["log_probs" if watch else ask]
        pending: deque[tuple[np.ndarray, list[jax.Array]]] = deque()
        loss, pairs, kept = Sum(len(dataset)), _Pairs(), list[Seen]()
        done = correct = 0
        whole = len(self.layout.local_positions) == len(self.layout.devices)

        def read() -> None:
            nonlocal done, correct
            images, results = pending.popleft()
            left = len(dataset) - done  # behind them are rows that are no examples
            (losses, right, predicted), *more = (np.asarray(result)[:, :left] for result in results)
            loss.add(losses.astype(np.float64))
            done, correct = done + len(losses), correct + int(right.sum(dtype=np.int64))
            for labels, *log_probs in more:
                seen = Seen(images[:left] if whole else None, labels.astype(np.int32), predicted.astype(np.int32),
                            np.array(log_probs, np.float32).T)  # fmt: skip
                pairs.add(seen.labels, seen.predicted)
                if watch is not None:
                    watch(seen)
                elif log_probs:
                    kept.append(seen._replace(images=None))

        for images, labels in self._read(dataset):
            poll()
            sent = self.layout.put((images, labels), DEALT)
            pending.append((images, [program(state, *sent) for program in (self._losses, *asked)]))
            if len(pending) > (1 if asked else _AHEAD):  # log-probabilities of many classes are large
                read()
        while pending:
            read()
        assert done == len(dataset), "examples are missing"
        return Evaluation(
            loss.value / len(dataset), correct, len(dataset), pairs.counted() if asked else None,
            *(np.concatenate(parts) for parts in zip(*((seen.labels, seen.log_probs) for seen in kept), strict=True)),
        )


class Sum:
    """The sum of `count` float64 numbers that come in pieces: to the last digit NumPy's of all at once, which adds by
    halves. It holds some thousands of them."""

    def __init__(self, count: int) -> None:
        self.value = 0.0  # once all have come
        self._pieces: list[np.ndarray] = []
        self._adding = _by_halves(count)
        self._wanted = next(self._adding)

    def add(self, numbers: np.ndarray) -> None:
        self._pieces.append(numbers)
        if sum(map(len, self._pieces)) < self._wanted:
            return
        there = np.concatenate(self._pieces)
        try:
            while len(there) >= self._wanted:
                now, there = there[: self._wanted], there[self._wanted :]
                self._wanted = self._adding.send(now)
        except StopIteration as ended:
            self.value = ended.value
        self._pieces = [there]


def _by_halves(count: int) -> Generator[int, np.ndarray, float]:
    """Yields how many numbers are to be sent next; returns the sum of `count` in all."""
    if count <= _ADDED:
        return float((yield count).sum())
    half = count // 2 // 8 * 8
    first = yield from _by_halves(half)
    return first + (yield from _by_halves(count - half))


class _Pairs:
    """How often each pair of a true and a predicted class occurs."""

    def __init__(self) -> None:
        self._codes, self._counts = np.zeros((2, 0), np.int64)
        self._more: list[np.ndarray] = []  # that are not counted yet
        self._waiting = 0

    def add(self, labels: np.ndarray, predicted: np.ndarray) -> None:
        self._more.append((labels.astype(np.int64) << 32) + predicted)
        self._waiting += len(labels)
        if self._waiting >= _COUNTED:
            self._count()

    def _count(self) -> None:
        codes, counts = np.unique(np.concatenate([self._codes[:0], *self._more]), return_counts=True)
        self._codes, places = np.unique(np.concatenate([self._codes, codes]), return_inverse=True)
        before, self._counts = self._counts, np.zeros(len(self._codes), np.int64)
        np.add.at(self._counts, places, np.concatenate([before, counts]))
        self._more, self._waiting = [], 0

    def counted(self) -> np.ndarray:
        """int64 [pairs that occur, 3]: true class, predicted class, how often; in order."""
        self._count()
        return np.stack([self._codes >> 32, self._codes & 0xFFFFFFFF, self._counts], axis=1)


@kept
def _programs(
    compute_dtype: str, layout: Layout, rows: sharded.Rows, leaves: tuple[Any, ...], structure: Any
) -> tuple[Any, Any, Any]:
    """The programs of a step: losses, what is predicted and whether it is right; labels; labels and log-probabilities.
    Each gives one row for each of these, float32 [rows, examples]. The leaves are those of the state's specs."""
    specs = jax.tree.unflatten(structure, leaves)

    def predict(state: State, images: jax.Array) -> jax.Array:
        inputs = model.scale_inputs(images, state.scaling)
        if layout.by_layer:
            return by_layer.log_probs(state.params, inputs, rows, compute_dtype, layout)
        params = sharded.gather(state.params, rows, layout) if layout.sharded else state.params
        return model.batched_predict(params, inputs, compute_dtype)

    def losses(state: State, images: jax.Array, labels: jax.Array) -> Any:
        return of_all(judged(predict(state, images), labels))

    def only_labels(state: State, images: jax.Array, labels: jax.Array) -> Any:
        return of_all(labels[None].astype(jnp.float32))

    def with_log_probs(state: State, images: jax.Array, labels: jax.Array) -> Any:
        return of_all(jnp.concatenate([labels[None].astype(jnp.float32), predict(state, images).T]))

    def of_all(result: jax.Array) -> Any:
        if layout.axis is None:
            return result
        return jax.lax.all_gather(result, layout.axis, axis=1, tiled=True, to="invarying")

    one, two, three = (
        layout.wrap(function, (specs, DEALT, DEALT), donate=False)
        for function in (losses, only_labels, with_log_probs)
    )  # fmt: skip
    return one, two, three


def judged(log_probs: jax.Array, labels: jax.Array) -> jax.Array:
    """Of log-probabilities [N, classes] and labels int32 [N]: each example's loss, whether what is predicted is right,
    and what that is; float32 [3, N]."""
    losses = -jnp.mean(log_probs * model.one_hot(labels, log_probs.shape[1]), axis=1)
    predicted = jax.lax.argmax(log_probs, 1, jnp.int32)
    return jnp.stack([losses, *(n.astype(jnp.float32) for n in (predicted == labels, predicted))])


@dataclasses.dataclass
class _Steps:
    """This process's rows of each step, in index order over the devices; those behind the end have weight 0."""

    layout: Layout
    rows: int  # per device
    size: int  # of the data set

    def __iter__(self) -> Iterator[Step]:
        local = np.concatenate([np.arange(self.rows) + self.rows * at for at in self.layout.local_positions])
        for start in range(0, self.size, self.rows * len(self.layout.devices)):
            yield start + local, (start + local < self.size).astype(np.float32)
