"""MLPClassifier: the trainer as an estimator of scikit-learn's, for its pipelines, searches and calibration.

Importing this imports neither jax nor torch, and starts nothing: `fit` does.
"""

import dataclasses
import functools
import math
import threading
import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Self, TypeVar, cast

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets, unique_labels
from sklearn.utils.validation import _check_sample_weight, check_is_fitted, validate_data

from distmlp.config import FROM_PYTHON, Config, check_named
from distmlp.errors import InputError, listed

if TYPE_CHECKING:  # they import jax
    from distmlp.data.datasets import Data
    from distmlp.progress import Line
    from distmlp.results.models import Model

T = TypeVar("T")
Fit = TypeVar("Fit", bound=Callable[..., Any])
_SEEDS = 2**31 - 1  # a seed is below
_SAVE_SECONDS = 60.0  # with a workdir, between two checkpoints that are not of a best state


def _whole(fit: Fit) -> Fit:
    """A method that leaves the estimator as it was where it raises."""

    @functools.wraps(fit)
    def whole(self: Any, *args: Any, **options: Any) -> Any:
        before = vars(self).copy()
        try:
            return fit(self, *args, **options)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return cast(Fit, whole)


class MLPClassifier(ClassifierMixin, BaseEstimator):  # type: ignore[misc] # scikit-learn has no types
    """The tutorial's network as a classifier of scikit-learn's: fit, predict, predict_proba, score and all the rest.

    It trains on all devices, or on `num_devices` of them, and gives the parameters that `train` gives for the same
    settings, bit for bit. Without `workdir`, nothing is written but the compilation cache, and no signal handler is
    set: Ctrl-C ends a fit with a warning, and the parameters are those of the steps that were done.

    The parameters are the settings of these names, see `Config`; their defaults are a good start for tables of some
    hundred to some ten thousand rows (configs/tabular.flags). Others:

    Args:
      batch_size: cut to the number of training rows, if these are fewer.
      class_weight: None; "balanced"; or a dict, a weight for each class label. It multiplies sample_weight.
      validation_fraction: of the rows, held out by the seed to choose the best parameters by, which predictions use.
      patience: stop after so many epochs without a better score of the held-out rows; 0: off.
      random_state: an int is the seed; a RandomState or None draws one.
      warm_start: another `fit` goes on from the parameters and the input scaling of the one before.
      verbose: whether to print a line for each epoch.
      workdir: folder of the run: checkpoints, metrics and all that `train` leaves there. A fit that was stopped goes on
        from there, and a finished one is read; then random_state must be an int. The folder's verbs all work on it.

    Attributes:
      classes_: [classes], the labels in order.
      n_features_in_, feature_names_in_: the number of features, and their names where X was a frame.
      n_iter_: epochs that were trained.
      loss_curve_: the mean loss of each epoch, over rows and classes as in the tutorial: times the number of classes it
        is the cross-entropy.
      validation_curve_: the score of the held-out rows after each epoch, higher is better, so minus the loss with
        choose_by="loss"; empty without validation_fraction.
      coefs_, intercepts_: of each layer, float32 [in, out] and [out].
    """

    classes_: np.ndarray
    coefs_: list[np.ndarray]
    intercepts_: list[np.ndarray]
    n_iter_: int
    loss_curve_: list[float]
    validation_curve_: list[float]
    _scaling: tuple[np.ndarray, ...]
    _opt_state: Any
    _seed: int
    _settings: Config

    def __init__(
        self,
        *,
        hidden_sizes: tuple[int, ...] = (256,),
        num_epochs: int = 40,
        max_steps: int = 0,
        batch_size: int = 32,
        optimizer: str = "adamw",
        learning_rate: float = 0.01,
        schedule: str = "warmup_cosine",
        warmup_steps: int = 0,
        schedule_steps: int = 0,
        momentum: float = 0.0,
        weight_decay: float = 0.3,
        clip_norm: float = 0.0,
        shuffle: bool = True,
        input_scaling: str = "standard",
        class_weight: "str | dict[Any, float] | None" = None,
        validation_fraction: float = 0.0,
        choose_by: str = "accuracy",
        patience: int = 0,
        compute_dtype: str = "float32",
        matmul_precision: str = "default",
        prng: str = "threefry",
        eval_batch_size: int = 500,
        random_state: "int | np.random.RandomState | None" = None,
        warm_start: bool = False,
        verbose: bool = False,
        workdir: "str | Path | None" = None,
        platform: str = "auto",
        num_devices: int = 0,
        num_shards: int = 0,
        reduction: str = "fast",
    ) -> None:
        self.hidden_sizes = hidden_sizes
        self.num_epochs = num_epochs
        self.max_steps = max_steps
        self.batch_size = batch_size
        self.optimizer = optimizer
        self.learning_rate = learning_rate
        self.schedule = schedule
        self.warmup_steps = warmup_steps
        self.schedule_steps = schedule_steps
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.clip_norm = clip_norm
        self.shuffle = shuffle
        self.input_scaling = input_scaling
        self.class_weight = class_weight
        self.validation_fraction = validation_fraction
        self.choose_by = choose_by
        self.patience = patience
        self.compute_dtype = compute_dtype
        self.matmul_precision = matmul_precision
        self.prng = prng
        self.eval_batch_size = eval_batch_size
        self.random_state = random_state
        self.warm_start = warm_start
        self.verbose = verbose
        self.workdir = workdir
        self.platform = platform
        self.num_devices = num_devices
        self.num_shards = num_shards
        self.reduction = reduction

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "coefs_")

    @_whole
    def fit(self, X: Any, y: Any, sample_weight: Any = None) -> Self:
        """Trains on rows X [N, features] with labels y [N] and, if given, weights sample_weight [N], from 0 up.

        Raises:
          ValueError: a parameter, or something in the data, is wrong; an InputError where the trainer says so.
        """
        if self.workdir is not None:
            check_named("workdir", self.workdir, "name a folder, or give None")
            if not isinstance(self.random_state, (int, np.integer)):
                raise InputError("with workdir, give an int as random_state: a fit that was stopped goes on by it")
        goes_on = self.warm_start and self.__sklearn_is_fitted__()
        X, y, weights = self._checked(X, y, sample_weight, reset=not goes_on)
        classes, codes, counts = np.unique(y, return_inverse=True, return_counts=True)
        if len(classes) < 2:
            raise ValueError(f"{type(self).__name__} needs two classes or more, and y has 1 class: {classes.tolist()}")
        if goes_on and not np.array_equal(classes, self.classes_):
            raise ValueError(f"with warm_start, y must have the classes of the fit before: "
                             f"{listed(self.classes_.tolist())}, not {listed(classes.tolist())}")
        if self.patience and not self.validation_fraction:
            raise InputError(f"patience={self.patience} goes by a validation set: give validation_fraction=0.1")
        self.classes_ = classes
        weights = self._by_class(weights, codes)
        before = _Before(self._network(), self._scaling) if goes_on else None
        seed = _drawn(self.random_state)
        config = self._config(len(X), seed=seed)
        if config.validation_fraction and counts.min() == 1:
            single = classes.tolist()[counts.argmin()]
            raise InputError(f"validation_fraction={config.validation_fraction}: label {single!r} is of a single row, "
                             "and each part needs one: remove it, or give validation_fraction=0")
        if config.workdir is None:
            ended = _trained(config, self._data(config, X, codes, weights), before, self.verbose)
        elif goes_on:
            raise InputError("warm_start goes on from what is in memory, a workdir from its checkpoints: leave one out")
        else:
            ended = _run(config, lambda config: self._data(config, X, codes, weights), self.verbose)
        self._keep(ended, seed, len(X), goes_on)
        return self

    @_whole
    def partial_fit(self, X: Any, y: Any, classes: Any = None, sample_weight: Any = None) -> Self:
        """One epoch over these rows, at the constant learning rate, in the order that this epoch of a `fit` would have.

        The first call says by `classes` which labels there are, and finds the input scaling, which stays; what is
        constant in its rows is then only shifted. After a `fit`, the optimizer begins anew. No rows are held out.

        Raises:
          ValueError: as fit; or a label is none of the classes.
        """
        first = not self.__sklearn_is_fitted__()
        if self.workdir is not None:
            raise InputError("partial_fit trains in memory: leave workdir out, or use fit")
        if isinstance(self.class_weight, str) and self.class_weight == "balanced":
            raise InputError("class_weight='balanced' goes by the labels of all rows, of which partial_fit sees some: "
                             "give a dict, of weights as compute_class_weight('balanced', classes=..., y=...) of "
                             "sklearn.utils.class_weight finds them")
        if first and classes is None:
            raise ValueError("classes must be passed on the first call to partial_fit.")
        if classes is not None and not first and not np.array_equal(unique_labels(classes), self.classes_):
            raise ValueError(f"`classes={classes!r}` is not the same as on last call to partial_fit, was: "
                             f"{self.classes_!r}")
        X, y, weights = self._checked(X, y, sample_weight, reset=first)
        known = unique_labels(classes) if first else self.classes_
        strangers = np.setdiff1d(y, known)
        if len(strangers):
            raise ValueError(f"y has labels that are none of the classes: {listed(strangers.tolist())}")
        self.classes_ = known
        codes = np.searchsorted(known, y)
        weights = self._by_class(weights, codes)
        epochs, seed = (0, _drawn(self.random_state)) if first else (self.n_iter_, self._seed)
        config = self._config(
            len(X), seed=seed, num_epochs=epochs + 1, max_steps=0, schedule="constant", warmup_steps=0,
            schedule_steps=0, validation_fraction=0.0, patience=0, eval_every_epochs=0,
        )  # fmt: skip
        before = None if first else _Before(self._network(), self._scaling, self._opt_state, epochs)
        ended = _trained(config, self._data(config, X, codes, weights), before, self.verbose)
        self._keep(ended, seed, len(X), goes_on=not first)
        self._opt_state = ended.opt_state
        if first and self._scaling:
            shift, scale = self._scaling
            self._scaling = shift, np.where(scale == 0, np.float32(1), scale)
        return self

    def predict(self, X: Any) -> np.ndarray:
        """The most probable label of each row, [N], of the labels' own type."""
        probabilities = self.predict_proba(X)
        return self.classes_[probabilities.argmax(axis=1)]

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities, float32 [N, classes], in the order of classes_."""
        check_is_fitted(self)
        return self._model().predict_proba(validate_data(self, X, reset=False))

    def predict_log_proba(self, X: Any) -> np.ndarray:
        """Their logarithms, float32 [N, classes], as the network gives them: finite where a probability is 0."""
        check_is_fitted(self)
        return self._model().predict_log_proba(validate_data(self, X, reset=False))

    def _checked(self, X: Any, y: Any, sample_weight: Any, reset: bool) -> tuple[np.ndarray, np.ndarray, Any]:
        """X, y and the rows' weights or None, as arrays of one length. A gap in a list of labels stays one."""
        from distmlp.data.arrays import as_array

        X, y = validate_data(self, X, as_array(y) if isinstance(y, (list, tuple)) else y, reset=reset)
        check_classification_targets(y)
        weights = None if sample_weight is None else _check_sample_weight(sample_weight, X)
        return X, y, weights

    def _by_class(self, weights: "np.ndarray | None", codes: np.ndarray) -> "np.ndarray | None":
        """The rows' weights times those of their classes, of these numbers; None: each 1. A class that a dict does not
        name has 1, but where it also names what is no class, as misspelt ones would."""
        given = self.class_weight
        if given is None or isinstance(given, str):
            return weights
        if not isinstance(given, dict):
            raise ValueError(f"class_weight is a {type(given).__name__}: give None, 'balanced', or a dict from each "
                             "class to its weight")
        names = self.classes_.tolist()
        unnamed = [name for name in names if name not in given]
        strangers = [name for name in given if name not in names]
        if unnamed and strangers:
            raise ValueError(f"the classes {listed(unnamed)} are not in class_weight, and its labels "
                             f"{listed(strangers)} are no classes: mend them")
        each = np.array([given.get(name, 1) for name in names], np.float64)[codes]
        return each if weights is None else weights * each

    def _config(self, rows: int, **changes: Any) -> Config:
        """The run of a fit to so many rows."""
        names = {field.name for field in dataclasses.fields(Config)}
        settings = {name: value for name, value in self.get_params(deep=False).items() if name in names}
        by_name = isinstance(self.class_weight, str)
        settings |= {
            "dataset": f"{FROM_PYTHON}arrays", "class_weight": self.class_weight if by_name else "none",
            "num_classes": len(self.classes_), "eval_every_epochs": 1 if self.validation_fraction else 0,
            "checkpoint_every_seconds": 0 if self.workdir is None else _SAVE_SECONDS,
        } | changes  # fmt: skip
        config = Config(**settings)
        config.validate()
        return dataclasses.replace(config, batch_size=max(1, min(config.batch_size, _trained_on(config, rows))))

    def _data(self, config: Config, X: np.ndarray, codes: np.ndarray, weights: "np.ndarray | None") -> "Data":
        from distmlp.data import datasets
        from distmlp.data.columns import Columns

        given = (X, codes) if weights is None else (X, codes, weights)
        data = datasets.load(config, given, tested=False)
        # As `train` calls them: 2.0 is 2; and False is not 0, though equal.
        called = [int(each) if isinstance(each, float) else each for each in self.classes_.tolist()]
        counted = [(type(each), each) for each in called] == [(int, number) for number in range(len(called))]
        names = getattr(self, "feature_names_in_", None)
        columns = Columns(tuple(names.tolist())) if names is not None else None
        return dataclasses.replace(
            data, classes=None if counted else called, table=columns,
            columns=columns.features if columns else None,
        )  # fmt: skip

    def _keep(self, ended: "_Ended", seed: int, rows: int, goes_on: bool) -> None:
        """The fitted attributes; epochs and curves go on, or begin."""
        from distmlp.progress import score

        found = [score(line) for line in ended.lines]
        epochs, losses, scores = (self.n_iter_, self.loss_curve_, self.validation_curve_) if goes_on else (0, [], [])
        per_epoch = math.ceil(_trained_on(ended.config, rows) / ended.config.batch_size)
        self.coefs_ = [weights.T for weights, _ in ended.params]
        self.intercepts_ = [biases for _, biases in ended.params]
        self.loss_curve_ = [*losses, *(line["train_loss"] for line in ended.lines if "train_loss" in line)]
        self.validation_curve_ = [*scores, *(each for each in found if each is not None)]
        self.n_iter_ = epochs + math.ceil(ended.steps / per_epoch)
        self._scaling, self._opt_state, self._seed, self._settings = ended.scaling, None, seed, ended.config

    def _network(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """Each layer's weights [out, in] and biases [out]."""
        return [(np.ascontiguousarray(weights.T), biases)
                for weights, biases in zip(self.coefs_, self.intercepts_, strict=True)]

    def _model(self) -> "Model":
        from distmlp.results.models import Model

        info = {"classes": self.classes_.tolist()}
        return Model(Path(), 0, self._network(), self._scaling, self._settings, {"data_info": info})


class _Before(NamedTuple):
    """What training goes on from."""

    params: Any
    scaling: tuple[np.ndarray, ...]
    opt_state: Any = None  # None: a new one
    epochs: int = 0  # that were trained


class _Ended(NamedTuple):
    """What training leaves, in the host's memory."""

    config: Config
    params: Any
    scaling: tuple[np.ndarray, ...]
    opt_state: Any
    lines: "list[Line]"
    steps: int


def _trained_on(config: Config, rows: int) -> int:
    """How many of so many rows are not held out: as scikit-learn divides them."""
    return rows - math.ceil(config.validation_fraction * rows)


def _drawn(random_state: Any) -> int:
    """The seed that scikit-learn's `random_state` stands for."""
    if isinstance(random_state, (int, np.integer)) and random_state <= _SEEDS:  # scikit-learn's go up to 2**32 - 1
        return int(random_state)
    return int(check_random_state(random_state).randint(_SEEDS))


def _trained(config: Config, data: "Data", before: "_Before | None", verbose: bool) -> _Ended:
    """Trains without a folder."""
    import jax

    from distmlp.parallel import backend
    from distmlp.parallel.layout import make_layout
    from distmlp.parallel.specs import State
    from distmlp.progress import Line, Progress, Reached
    from distmlp.run.log import describe, header
    from distmlp.training import Program, carry

    def show(line: Line) -> None:
        if verbose:
            print(describe(line))

    with backend.prepared(config):
        layout = make_layout(config)
        with closing(Program(config, data, layout, layout.device_memory)) as parts:
            parts.compile()
            if before is None:
                state, begin = parts.initial_state(parts.scaling()), 0
            else:
                begin = before.epochs * parts.cadence.per_epoch
                state = parts.state_of(before.params, before.scaling, before.opt_state, begin)
            progress = Progress(parts.cadence, Reached(begin), [{"step": begin}] if begin else [])

            def train(stop: Callable[[], bool]) -> tuple[State, State, bool]:
                with backend.pinned(config):  # a thread's own
                    return carry(parts, state, progress, show, stop)

            if verbose:
                print(header(config, data.validation is not None))
            last, best, _ = _until_interrupted(train)
            params, scaling, opt_state = jax.tree.map(np.array, (best.params, last.scaling, last.opt_state))
    lines = [line for line in progress.history if line["step"] > begin]
    return _Ended(config, params, scaling, opt_state, lines, progress.step - begin)


def _until_interrupted(train: Callable[[Callable[[], bool]], T]) -> T:
    """What `train` returns; Ctrl-C makes the function that it is given return True, and it then returns soon.

    It runs in a thread of its own: Python raises KeyboardInterrupt in the main thread only, between any two lines, and
    the memory of a state that a step was just taking over would be gone.
    """
    asked = threading.Event()
    with ThreadPoolExecutor(1) as trainer:
        result = trainer.submit(train, asked.is_set)
        try:
            return result.result()
        except KeyboardInterrupt:
            asked.set()
            warnings.warn("Training interrupted by user.", stacklevel=5)
            return result.result()


def _run(config: Config, load: "Callable[[Config], Data]", verbose: bool) -> _Ended:
    """Trains in a folder, or goes on there."""
    from distmlp import loop
    from distmlp.results.load import load as load_run

    history = loop.run(config, load, silent=not verbose).history
    model = load_run(str(config.workdir))
    lines = [line for line in history if not line.get("final")]
    return _Ended(model.config, model.params, model.scaling, None, lines, lines[-1]["step"])
