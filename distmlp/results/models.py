"""A run's network in the host's memory: predictions and evaluations."""

import dataclasses
import functools
import itertools
import math
import os
from collections import deque
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distmlp import model, scores
from distmlp.config import Config, is_path
from distmlp.data import columnar
from distmlp.data.arrays import as_array
from distmlp.data.columns import Columns
from distmlp.data.given import label_array
from distmlp.data.labels import Classes
from distmlp.data.streams import NOT_FINITE
from distmlp.data.tables import Reader
from distmlp.errors import InputError, remark
from distmlp.kept import kept
from distmlp.parallel import backend
from distmlp.parallel.specs import State

if TYPE_CHECKING:  # imports scikit-learn, which predictions do not need
    from distmlp.data.examples import Readable
    from distmlp.results.evaluation import ClassificationReport, Watch

_ROWS = 512  # at most so many rows at a time
_AHEAD = 2  # blocks of rows in flight


class Predictions(NamedTuple):
    """What a model says of N rows."""

    classes: np.ndarray  # [N]: the most probable class, as the labels call it: text, whole numbers or booleans
    probabilities: np.ndarray  # float32 [N, classes]


@dataclasses.dataclass(frozen=True)
class Model:
    """A trained network, as one checkpoint of a run has it."""

    run: Path  # the run's folder
    step: int  # updates that the checkpoint has seen
    params: list[tuple[np.ndarray, np.ndarray]]  # a layer's weights float32 [out, in] and biases float32 [out]
    scaling: tuple[np.ndarray, ...]  # () or (shift, scale), float32 [features]: inputs are (x - shift) * scale
    config: Config  # of the run
    meta: dict[str, Any]  # what lies beside the checkpoint's arrays

    @property
    def num_features(self) -> int:
        return int(self.params[0][0].shape[1])

    @functools.cached_property
    def classes(self) -> tuple[Any, ...]:
        """What the labels call the classes, in the order of the network's outputs."""
        return tuple(self.data_info.get("classes") or range(len(self.params[-1][1])))

    @property
    def data_info(self) -> dict[str, Any]:
        """What is known of the training data: classes, columns, shape, dtype, largest, name; {} for older runs."""
        return dict(self.meta.get("data_info") or {})

    @property
    def sources(self) -> list[Path]:
        """Where the data lie that it was trained on, if they have a path."""
        return [Path(self.config.dataset)] if is_path(self.config.dataset) else []

    @property
    def reading(self) -> Config:
        """The settings by which files are read as the training set's were: also those that its pack was made with."""
        return dataclasses.replace(self.config, **self.data_info.get("packed", {}))

    @property
    def config_here(self) -> Config:
        """The settings with which to use it on this machine, as this user: what was trained on accelerators can do
        without any, and programs are kept where that is allowed."""
        cache = self.config.compilation_cache_dir
        return dataclasses.replace(
            self.config, platform="cpu" if self.config.platform == "cpu" else "auto",
            compilation_cache_dir=cache if not cache or os.access(cache, os.W_OK) else Config().compilation_cache_dir,
        )

    def in_float32(self) -> "Model":
        """The same network, its matrix products in float32."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, compute_dtype="float32"))

    @property
    def columns(self) -> Columns | None:
        """What training has learned of the columns of its table; None where the features had no names."""
        return Columns.of_checkpoint(self.data_info)

    def reader(self, header: str = "") -> Reader:
        """Reads tables as the model takes them; --header, if it is said of these."""
        config = dataclasses.replace(self.reading, header=header) if header else self.reading
        return Reader(config, self.columns, self.num_features)

    def predict(self, x: Any) -> Predictions:
        """Classes and probabilities of the rows of `x`, numbers of shape [N, ...], scaled as the run scaled its data;
        or of a frame, whose columns are found by the names that training knew, and become what they were there.

        Raises:
          InputError: another width, columns that are missing, or values that are no finite numbers, or too large ones.
        """
        probabilities = self.predict_proba(x)
        return Predictions(np.array(self.classes)[probabilities.argmax(axis=1)], probabilities)

    def predict_proba(self, x: Any) -> np.ndarray:
        """Their probabilities alone, float32 [N, classes], as scikit-learn's estimators give them; see `predict`."""
        return self.outputs(x, logarithms=False)

    def predict_log_proba(self, x: Any) -> np.ndarray:
        """The logarithms of the probabilities, float32 [N, classes]: finite where a probability is 0; see `predict`."""
        return self.outputs(x, logarithms=True)

    def outputs(self, x: Any, logarithms: bool, first: int = 0) -> np.ndarray:
        """The probabilities of the rows of `x`, or their logarithms. Its first row is number `first`, a frame's 1."""
        first = 1 if columnar.is_frame(x) else first
        x = self.check(x, first)
        with backend.prepared(self.config_here):
            self._check_room()
            program = _program(self.config.compute_dtype, logarithms)
            network = jax.device_put((self.params, self.scaling))
            parts = [np.asarray(program(*network, block))[:rows] for block, rows in _blocks(x)]
        found = np.concatenate(parts) if parts else np.zeros((0, len(self.classes)), np.float32)
        scores.check_outputs(found, first)
        return found

    def probabilities(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Those of blocks of rows, which `check` has returned: float32 [rows, classes] each, in their order, on all
        devices of this machine. While one is worked on, the next are asked for.
        """
        pending: deque[list[tuple[jax.Array, int]]] = deque()

        def result() -> np.ndarray:
            return np.concatenate([np.asarray(block)[:rows] for block, rows in pending.popleft()])

        with backend.prepared(self.config_here):
            self._check_room()
            program = _program(self.config.compute_dtype, False)
            networks = [(jax.device_put((self.params, self.scaling), device), device) for device in jax.local_devices()]
            turns = itertools.cycle(networks)
            for x in blocks:
                pending.append([(program(*network, jax.device_put(block, device)), rows)
                                for (block, rows), (network, device) in zip(_blocks(x), turns, strict=False)])
                if len(pending) > _AHEAD:
                    yield result()
            while pending:
                yield result()

    def evaluate(self, x: Any, y: Any) -> "ClassificationReport":
        """Exact loss, accuracy and confusions on rows `x` [N, ...] with labels `y` [N] of the training set's kind.

        Raises:
          InputError: as `predict`; or a label that is none of the classes.
        """
        from distmlp.data.datasets import ArrayDataset

        known = Classes.of(self.data_info, len(self.classes))
        return self.evaluate_set(ArrayDataset(self.check(x), known.encode(label_array(y), "y"), "x, y"))

    def evaluate_set(
        self, dataset: "Readable", watch: "Watch | None" = None, together: bool = False
    ) -> "ClassificationReport":
        """The same on a data set whose labels are the classes' numbers, as `datasets.load` gives it; see evaluation.py
        for `watch` and `together`."""
        from distmlp.results import evaluation

        with backend.prepared(self.config_here):
            self._check_room()
        arrays: Any = self.params, (), np.asarray(self.step, np.int32), self.scaling  # NumPy's
        return evaluation.evaluate(self.config_here, State(*arrays), self.classes, dataset, watch, together)

    def _check_room(self) -> None:
        """Raises InputError where a device has no room for all parameters, and the outputs of some rows."""
        device, rows = jax.local_devices()[0], max(_ROWS, self.config.eval_batch_size)
        needed = sum(weights.nbytes + biases.nbytes * (1 + 2 * rows) for weights, biases in self.params)
        memory = backend.device_memory(device)
        if memory and needed > memory:
            raise InputError(f"the network of {self.run} needs {needed / 2**30:,.1f} GiB, and a {device.platform} "
                             f"device has {memory / 2**30:,.1f}: set JAX_PLATFORMS=cpu, "
                             "to compute in the host's memory")

    def check(self, x: Any, first: int = 0) -> np.ndarray:
        """`x` as uint8 or float32 [N, features]; see `predict` for what it raises. Its first row is number `first`."""
        if columnar.is_frame(x):
            x, remarks = self.reader().features(x, "the frame")
            for text in remarks:
                remark(text)
        x = as_array(x)
        if x.ndim < 2 or x.dtype.kind not in "uifb":
            raise InputError(f"rows to predict must be numbers of shape [N, ...], not {x.dtype} {list(x.shape)}")
        x = x.reshape(len(x), math.prod(x.shape[1:]))
        if x.shape[1] != self.num_features:
            raise InputError(f"rows have {x.shape[1]} values, but the run was trained on {self.num_features}")
        if x.dtype != np.uint8:
            with np.errstate(over="ignore"):
                x = x.astype(np.float32, copy=False)
        bad = np.flatnonzero(~np.isfinite(x).all(axis=1))
        if len(bad):
            raise InputError(f"row {first + bad[0]} {NOT_FINITE}")
        return np.asarray(x)


@kept
def _program(compute_dtype: str, logarithms: bool) -> Any:
    """A network's parameters, its scaling and rows [N, features] -> probabilities [N, classes], or their logarithms."""

    @jax.jit
    def outputs(params: Any, scaling: Any, x: jax.Array) -> jax.Array:
        log_probs = model.batched_predict(params, model.scale_inputs(x, scaling), compute_dtype)
        return log_probs if logarithms else jnp.exp(log_probs)

    return outputs


def _blocks(x: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of few different shapes, each of which is compiled once; and how many of their rows count."""
    for start in range(0, len(x), _ROWS):
        block = x[start : start + _ROWS]
        rows = 1 << (len(block) - 1).bit_length()
        yield np.concatenate([block, np.zeros((rows - len(block), x.shape[1]), x.dtype)]), len(block)
