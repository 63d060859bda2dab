"""load(RUN): a run's model in the host's memory, for predictions and evaluations on one device."""

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

from distmlp import model
from distmlp.config import Config
from distmlp.data import columnar, tables
from distmlp.data.columns import Columns
from distmlp.data.labels import Classes
from distmlp.errors import InputError, remark
from distmlp.kept import kept
from distmlp.parallel import backend
from distmlp.progress import best
from distmlp.results import checkpoints
from distmlp.run.log import read_lines
from distmlp.run.meta import unknown
from distmlp.run.store import DamageError

if TYPE_CHECKING:  # imports torch and scikit-learn, which predictions do not need
    from distmlp.data.datasets import Examples
    from distmlp.results.evaluation import ClassificationReport, Watch

_ROWS = 512  # at most so many rows at a time
_AHEAD = 2  # blocks of rows in flight
_CHOICES = 10  # of a checkpoint: a training run may delete the one that was chosen before it is read


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
    def config_here(self) -> Config:
        """The settings with which to use it on this machine: what was trained on accelerators can do without any."""
        return self.config if self.config.platform == "cpu" else dataclasses.replace(self.config, platform="auto")

    def in_float32(self) -> "Model":
        """The same network, its matrix products in float32."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, compute_dtype="float32"))

    @property
    def columns(self) -> Columns | None:
        """What training has learned of the columns of its table; None where the features had no names."""
        return Columns.of_checkpoint(self.data_info)

    def predict(self, x: Any) -> Predictions:
        """Classes and probabilities of the rows of `x`, numbers of shape [N, ...], scaled as the run scaled its data;
        or of a frame, whose columns are found by the names that training knew, and become what they were there.

        Raises:
          InputError: another width, columns that are missing, or values that are no finite numbers.
        """
        probabilities = self.predict_proba(x)
        return Predictions(np.array(self.classes)[probabilities.argmax(axis=1)], probabilities)

    def predict_proba(self, x: Any) -> np.ndarray:
        """Their probabilities alone, float32 [N, classes], as scikit-learn's estimators give them; see `predict`."""
        return self._outputs(x, logarithms=False)

    def predict_log_proba(self, x: Any) -> np.ndarray:
        """The logarithms of the probabilities, float32 [N, classes]: finite where a probability is 0; see `predict`."""
        return self._outputs(x, logarithms=True)

    def _outputs(self, x: Any, logarithms: bool) -> np.ndarray:
        x = self.check(x)
        with backend.prepared(self.config_here):
            self._check_room()
            program = kept(_program, self.config.compute_dtype, logarithms)
            network = jax.device_put((self.params, self.scaling))
            parts = [np.asarray(program(*network, block))[:rows] for block, rows in _blocks(x)]
        return np.concatenate(parts) if parts else np.zeros((0, len(self.classes)), np.float32)

    def probabilities(self, blocks: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
        """Those of blocks of rows, which `check` has returned: float32 [rows, classes] each, in their order, on all
        devices of this machine. While one is worked on, the next are asked for.
        """
        pending: deque[list[tuple[jax.Array, int]]] = deque()

        def result() -> np.ndarray:
            return np.concatenate([np.asarray(block)[:rows] for block, rows in pending.popleft()])

        with backend.prepared(self.config_here):
            self._check_room()
            program = kept(_program, self.config.compute_dtype, False)
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
        from distmlp.data import given
        from distmlp.data.datasets import ArrayDataset

        known = Classes.of(self.data_info, len(self.classes))
        return self.evaluate_set(ArrayDataset(self.check(x), known.encode(given.as_array(y), "y"), "x, y"))

    def evaluate_set(self, dataset: "Examples", watch: "Watch | None" = None) -> "ClassificationReport":
        """The same on a data set whose labels are the classes' numbers, as `datasets.load` gives it."""
        from distmlp.results import evaluation

        with backend.prepared(self.config_here):
            self._check_room()
        return evaluation.evaluate(self.config_here, self.params, self.scaling, self.step, self.classes, dataset, watch)

    def _check_room(self) -> None:
        """Raises InputError where a device has no room for all parameters, and the outputs of some rows."""
        device, rows = jax.local_devices()[0], max(_ROWS, self.config.eval_batch_size)
        needed = sum(weights.nbytes + biases.nbytes * (1 + 2 * rows) for weights, biases in self.params)
        memory = backend.device_memory(device)
        if memory and needed > memory:
            raise InputError(f"the network of {self.run} needs {needed / 2**30:,.1f} GiB, and a {device.platform} "
                             f"device has {memory / 2**30:,.1f}: set JAX_PLATFORMS=cpu to compute in the host's memory")

    def check(self, x: Any) -> np.ndarray:
        """`x` as uint8 or float32 [N, features]; see `predict` for what it raises."""
        if columnar.is_frame(x):
            x, remarks = tables.features(x, "the frame", self.columns, self.config, self.num_features)
            for text in remarks:
                remark(text)
        columnar.refuse_sparse(x)
        x = np.asarray(x)
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
            raise InputError(f"row {bad[0]} has a value that is NaN or infinite (or beyond float32): remove or mend it")
        return np.asarray(x)


def _program(compute_dtype: str, logarithms: bool) -> Any:
    """A network's parameters, its scaling and rows [N, features] -> probabilities [N, classes], or their logarithms."""

    @jax.jit
    def outputs(params: Any, scaling: Any, x: jax.Array) -> jax.Array:
        log_probs = model.batched_predict(params, model.scale_inputs(x, scaling), compute_dtype)
        return log_probs if logarithms else jnp.exp(log_probs)

    return outputs


def load(run: "str | Path", checkpoint: str | int = "") -> Model:
    """The model of a run, which may still be training: its folder is only read, on one device whatever it ran on.

    Args:
      run: the run's folder, its --workdir.
      checkpoint: "best" (by the score that metrics.jsonl knows, see --choose_by), "newest", or a step; empty: best if
        the run knows one, else newest.

    Raises:
      InputError: there is no such run or checkpoint, or the checkpoint is damaged.
    """
    path = Path(os.path.expanduser(run))
    stored = _read(path, str(checkpoint))
    if text := unknown(stored.meta):
        remark(text)
    known = {field.name for field in dataclasses.fields(Config)}
    config = Config(**{name: value for name, value in stored.meta["settings"].items() if name in known})
    layers = sum(name.startswith(".params") for name in stored.arrays) // 2
    params = [(stored.arrays[f".params[{i}][0]"], stored.arrays[f".params[{i}][1]"]) for i in range(layers)]
    scaling = tuple(stored.arrays[name] for name in (".scaling[0]", ".scaling[1]") if name in stored.arrays)
    return Model(path, stored.step, params, scaling, config, stored.meta)


def _read(run: Path, checkpoint: str) -> checkpoints.Stored:
    for _ in range(_CHOICES):
        step = _choose(run, checkpoint)
        try:
            return checkpoints.read(run, step)
        except DamageError as error:
            if (run / "checkpoints" / str(step)).is_dir():
                others = [str(other) for other in checkpoints.steps(run) if other != step]
                remedy = f"give --checkpoint={' or '.join(others)}" if others else "bring it back from a copy"
                raise InputError(f"checkpoint {step} of {run} is damaged ({error}): {remedy}") from None
    raise InputError(f"the checkpoints of {run} are deleted faster than they can be read: "
                     "try again, or train with a larger --keep_checkpoints")


def _choose(run: Path, checkpoint: str) -> int:
    """The step of the checkpoint that `load` is asked for; raises InputError if there is none."""
    found = checkpoints.steps(run)
    if checkpoint == "newest":
        return found[0]
    if checkpoint in ("", "best"):
        lines = read_lines(run)
        if lines.damaged:
            remark(lines.damage)
        step = best(line for line in lines.values if line["step"] in found)["step"]
        if not step and checkpoint:
            raise InputError(f"--checkpoint=best: no checkpoint of {run} was evaluated; give --checkpoint=newest")
        return int(step) or found[0]
    if not checkpoint.isdecimal():
        raise InputError(f"--checkpoint={checkpoint}: give best, newest or a step's number")
    if int(checkpoint) not in found:
        raise InputError(f"--checkpoint={checkpoint}: {run} has those of step {', '.join(map(str, found))}")
    return int(checkpoint)


def _blocks(x: np.ndarray) -> Iterator[tuple[np.ndarray, int]]:
    """Blocks of few different shapes, each of which is compiled once; and how many of their rows count."""
    for start in range(0, len(x), _ROWS):
        block = x[start : start + _ROWS]
        rows = 1 << (len(block) - 1).bit_length()
        yield np.concatenate([block, np.zeros((rows - len(block), x.shape[1]), x.dtype)]), len(block)
