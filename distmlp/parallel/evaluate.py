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
from distmlp.parallel import by_layer, sharded
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import DEALT, STATE, State

_AHEAD = 4  # steps in flight; emulated devices can deadlock when dozens are


@dataclasses.dataclass(frozen=True)
class Evaluation:
    loss: float  # mean over examples (and classes, as the tutorial's)
    correct: int
    total: int
    predicted: np.ndarray = dataclasses.field(compare=False)  # int32 [N]: each example's most probable class

    @property
    def accuracy(self) -> float:
        return self.correct / self.total


class Evaluator:
    """Evaluates a state on a data set, config.eval_batch_size rows per device and step whatever the device count.

    So an example's loss comes from the same program on the same shapes everywhere; the host adds the losses in index
    order in float64.
    """

    def __init__(self, config: Config, layout: Layout, specs: State = STATE, rows: sharded.Rows = ()) -> None:
        """`specs` say how the state lies; where it is sharded, the parameters have so many `rows` when they are whole.
        """
        self.rows, self.layout, self.workers = config.eval_batch_size, layout, config.num_workers
        self._loaders: dict[Examples, ExampleLoader] = {}  # each keeps its workers
        compute_dtype = config.compute_dtype

        def body(state: State, images: jax.Array, labels: jax.Array) -> Any:
            inputs = model.scale_inputs(images, state.scaling)
            if layout.by_layer:
                log_probs = by_layer.log_probs(state.params, inputs, rows, compute_dtype, layout)
            else:
                params = sharded.gather(state.params, rows, layout) if layout.sharded else state.params
                log_probs = model.batched_predict(params, inputs, compute_dtype)
            losses = -jnp.mean(log_probs * model.one_hot(labels, log_probs.shape[1]), axis=1)
            predicted = jax.lax.argmax(log_probs, 1, jnp.int32)
            result = jnp.stack([losses, *(n.astype(jnp.float32) for n in (predicted == labels, predicted))])
            if layout.axis is None:
                return result
            return jax.lax.all_gather(result, layout.axis, axis=1, tiled=True, to="invarying")

        self._losses: Any = layout.wrap(body, (specs, DEALT, DEALT), donate=False)

    def lower(self, state: State, dataset: Examples) -> jax.stages.Lowered:
        """The program of a step, ready to be compiled, for states like this one, which may be abstract."""
        rows = self.rows * len(self.layout.local_positions)
        images = jax.ShapeDtypeStruct((rows, dataset.num_features), dataset.dtype)
        labels = jax.ShapeDtypeStruct((rows,), np.int32)
        return self._losses.lower(state, *self.layout.abstract((images, labels), DEALT))

    def close(self) -> None:
        """Ends the workers."""
        for loader in self._loaders.values():
            loader.close()

    def __call__(
        self, state: State, dataset: Examples, poll: Callable[[], None] = lambda: None,
        watch: Callable[[np.ndarray, np.ndarray], None] | None = None,
    ) -> Evaluation:
        """Calls `poll` before each step, which may raise to stop the evaluation, and `watch` with the images and labels
        that this process read for it."""
        if dataset not in self._loaders:
            self._loaders[dataset] = ExampleLoader(dataset, _Steps(self.layout, self.rows, len(dataset)), self.workers)
        pending: deque[jax.Array] = deque()
        results = []
        for images, labels, weights, _ in self._loaders[dataset]:
            poll()
            if watch is not None:
                watch(images[weights > 0], labels[weights > 0])
            pending.append(self._losses(state, *self.layout.put((images, labels), DEALT)))
            if len(pending) > _AHEAD:
                results.append(np.asarray(pending.popleft()))
        results += [np.asarray(result) for result in pending]
        losses, correct, predicted = np.concatenate(results, axis=1)[:, : len(dataset)].astype(np.float64)
        mean = float(losses.sum() / len(dataset))
        return Evaluation(mean, int(correct.sum()), len(dataset), predicted.astype(np.int32))


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
