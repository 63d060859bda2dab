"""Exact evaluation: every example counted once, with the same result on any number of devices."""

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distmlp import model
from distmlp.config import Config
from distmlp.data.batches import ExampleLoader, Step
from distmlp.data.examples import Examples
from distmlp.kept import kept
from distmlp.parallel import by_layer, sharded
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import DEALT, STATE, State, hashable

_AHEAD = 4  # steps in flight; emulated devices can deadlock when dozens are


@dataclasses.dataclass(frozen=True)
class Evaluation:
    loss: float  # mean over examples (and classes, as the tutorial's)
    correct: int
    total: int
    predicted: np.ndarray = dataclasses.field(compare=False)  # int32 [N]: each example's most probable class
    labels: np.ndarray | None = dataclasses.field(default=None, compare=False)  # int32 [N], if asked for
    log_probs: np.ndarray | None = dataclasses.field(default=None, compare=False)  # float32 [N, classes], if asked for

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


class Evaluator:
    """Evaluates a state on a data set, config.eval_batch_size rows per device and step whatever the device count.

    So an example's loss comes from the same program on the same shapes everywhere; the host adds the losses in index
    order in float64. More than that comes from programs of its own, for these numbers must not depend on what is asked.
    """

    held = _AHEAD + 1  # steps whose arrays lie on the devices at once, at most

    def __init__(self, config: Config, layout: Layout, specs: State = STATE, rows: sharded.Rows = ()) -> None:
        """`specs` say how the state lies; where it is sharded, the parameters have so many `rows` when they are whole.
        """
        self.rows, self.layout, self.workers = config.eval_batch_size, layout, config.num_workers
        self._loaders: dict[Examples, ExampleLoader] = {}  # each keeps its workers
        programs = kept(_programs, config.compute_dtype, layout, rows, *hashable(specs))
        self._losses, self._labels, self._log_probs = programs

    def lower(self, state: State, dataset: Examples) -> jax.stages.Lowered:
        """The program of a step, ready to be compiled, for states like this one, which may be abstract."""
        rows = self.rows * len(self.layout.local_positions)
        images = jax.ShapeDtypeStruct((rows, dataset.num_features), dataset.dtype)
        labels = jax.ShapeDtypeStruct((rows,), np.int32)
        return self._losses.lower(state, *self.layout.abstract((images, labels), DEALT))

    @property
    def taken(self) -> int:
        """As ExampleLoader's, of all its data sets; from any thread."""
        return sum(loader.taken for loader in tuple(self._loaders.values()))

    def close(self) -> None:
        """Ends the workers."""
        for loader in self._loaders.values():
            loader.close()

    def __call__(
        self, state: State, dataset: Examples, poll: Callable[[], None] = lambda: None, ask: str = "",
        watch: Callable[[np.ndarray, np.ndarray, np.ndarray], None] | None = None,
    ) -> Evaluation:
        """Calls `poll` before each step, which may raise to stop the evaluation.

        It may `ask` for "labels", or for "log_probs", too. `watch`, in a single process, asks for both: it is called
        with the images, labels and log-probabilities of each step's examples, which are then not kept.
        """
        if dataset not in self._loaders:
            self._loaders[dataset] = ExampleLoader(dataset, _Steps(self.layout, self.rows, len(dataset)), self.workers)
        asked = {"": (), "labels": (self._labels,), "log_probs": (self._log_probs,)}["log_probs" if watch else ask]
        pending: deque[tuple[np.ndarray, list[jax.Array]]] = deque()
        losses: list[np.ndarray] = []
        answers: list[np.ndarray] = []

        def read() -> None:
            images, results = pending.popleft()
            left = len(dataset) - sum(found.shape[1] for found in losses)  # behind them are rows that are no examples
            found, *more = (np.asarray(result)[:, :left] for result in results)
            losses.append(found)
            if watch is None:
                answers.extend(more)
            else:
                watch(images[:left], more[0][0].astype(np.int32), more[0][1:].T)

        for images, labels, _, _ in self._loaders[dataset]:
            poll()
            sent = self.layout.put((images, labels), DEALT)
            pending.append((images, [program(state, *sent) for program in (self._losses, *asked)]))
            if len(pending) > (1 if asked else _AHEAD):  # log-probabilities of many classes are large
                read()
        while pending:
            read()
        each, correct, predicted = np.concatenate(losses, axis=1).astype(np.float64)
        told, *log_probs = np.concatenate(answers, axis=1) if answers else (None,)
        return Evaluation(
            float(each.sum() / len(dataset)), int(correct.sum()), len(dataset), predicted.astype(np.int32),
            None if told is None else told.astype(np.int32), np.stack(log_probs, axis=1) if log_probs else None,
        )


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
