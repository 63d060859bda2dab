"""Exact numbers on a data set: those that training logs, those of scikit-learn's metrics, and by class."""

import dataclasses
import textwrap
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from sklearn import metrics

from distmlp import scores
from distmlp.config import Config
from distmlp.data.examples import Readable
from distmlp.parallel import backend
from distmlp.parallel.evaluate import Evaluation, Evaluator, Seen
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import STATE, State

_WIDTH = 80  # columns of a terminal
_MATRIX = 1000  # classes of which JSON has the whole confusion matrix
_MANY = 10  # classes, from which on the three most probable ones are looked at

Watch = Callable[[Seen], None]  # is shown the examples of each step of an evaluation


@dataclasses.dataclass(frozen=True)
class ClassificationReport:
    """A model's results on a data set."""

    checkpoint_step: int
    loss: float  # mean over examples and classes, as training logs it
    accuracy: float
    correct: int
    count: int
    classes: tuple[Any, ...]
    pairs: np.ndarray  # int64 [pairs that occur, 3]: numbers of the true and the predicted class, how often; in order
    per_class: dict[str, np.ndarray]  # precision, recall, f1, support: [classes]
    accuracy_interval: tuple[float, float]  # Wilson's, 95 %
    log_loss: float
    balanced_accuracy: float
    roc_auc: float | None  # None where it is not defined, or there are too many classes or examples
    average_precision: float | None  # likewise
    top_3_accuracy: float | None  # None of fewer than ten classes
    calibration_error: float
    calibration: tuple[list[float], list[float]]  # by range of probability: how sure, and how often right
    left_out: str = ""  # why roc_auc and average_precision are None

    @property
    def confusion(self) -> np.ndarray:
        """int64 [classes, classes]: rows are true, columns predicted classes. Made anew each time."""
        matrix = np.zeros((len(self.classes),) * 2, np.int64)
        matrix[self.pairs[:, 0], self.pairs[:, 1]] = self.pairs[:, 2]
        return matrix

    def as_json(self) -> dict[str, Any]:
        """As JSON values; of many classes, the pairs instead of the confusion matrix."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["calibration"], fields["pairs"], fields["left_out"]
        many = len(self.classes) > _MATRIX
        return fields | {
            "classes": list(self.classes), "accuracy_interval": list(self.accuracy_interval),
            **({"confusion_pairs": self.pairs.tolist()} if many else {"confusion": self.confusion.tolist()}),
            "per_class": {name: values.tolist() for name, values in self.per_class.items()},
        }

    @property
    def measures(self) -> list[tuple[str, str, str]]:
        """What else there is to know: name, value, and what it means in one sentence."""
        low, high = self.accuracy_interval
        several = "" if len(self.classes) == 2 else ", the mean of each class against the rest"
        rows = [
            ("accuracy interval", f"{100 * low:.2f} to {100 * high:.2f} %",
             "Where the accuracy on endlessly many such examples is, in 95 of 100 cases (Wilson)."),
            ("log loss", f"{self.log_loss:.5f}", "The mean of -log(probability of the true class); 0 is perfect."),
            ("balanced accuracy", f"{self.balanced_accuracy:.4f}",
             "The mean of the classes' recalls, so that rare classes count like frequent ones."),
            ("ROC AUC", self.roc_auc,
             f"How often an example of a class gets a higher probability of it than another does{several}; 0.5 is "
             "guessing."),
            ("average precision", self.average_precision,
             f"The mean precision over all recalls{several}; guessing gives the class's share."),
            ("top-3 accuracy", self.top_3_accuracy, "How often the true class is among the three most probable ones."),
            ("calibration error", f"{self.calibration_error:.4f}",
             "How far the probability of the prediction is from how often it is right: the mean over ten ranges."),
        ]
        return [(name, value if isinstance(value, str) else f"{value:.4f}", text)
                for name, value, text in rows if value is not None]

    def __str__(self) -> str:
        lines = [f"{self._of}: {self.correct:,} of {self.count:,} correct, "
                 f"accuracy {100 * self.accuracy:.2f} %, loss {self.loss:.5f}", ""]
        for name, value, text in self.measures:
            lines += textwrap.wrap(f"{name:<17}  {value:<16}  {text}", _WIDTH, subsequent_indent=" " * 37)
        if self.left_out:
            lines.append(f"ROC AUC and average precision are left out: {self.left_out}")
        return "\n".join([*lines, "", *self._classes(), "", *self._confusion()])

    @property
    def _of(self) -> str:
        return f"checkpoint of step {self.checkpoint_step}"

    def _classes(self) -> list[str]:
        width = max(5, *(len(str(name)) for name in self.classes))
        lines = [f"{'class':<{width}}  precision  recall     f1  support"]
        for name, *values in zip(self.classes, *self.per_class.values(), strict=True):
            precision, recall, f1, support = values
            lines.append(f"{name!s:<{width}}  {precision:9.4f}  {recall:6.4f} {f1:6.4f}  {support:7,}")
        return lines

    def _confusion(self) -> list[str]:
        names = [str(name) for name in self.classes]
        cell = max(len(str(self.pairs[:, 2].max())), 2) + 1
        columns = [name[: cell - 1] for name in names]
        if len(set(columns)) < len(columns):  # too long, or too alike, for their columns
            columns = [str(number) for number in range(len(names))]
            names = [f"{number} {name}" for number, name in enumerate(names)]
        label = max(map(len, names))
        if label + cell * len(names) > _WIDTH:
            return self._confusions()
        rows = [f"{name:<{label}}" + "".join(f"{n:>{cell}}" for n in row)
                for name, row in zip(names, self.confusion, strict=True)]
        return ["confusion matrix (a row is a true class, a column what was predicted):",
                " " * label + "".join(f"{name:>{cell}}" for name in columns), *rows]

    def _confusions(self) -> list[str]:
        """The most frequent mistakes, where the matrix is too wide for a terminal."""
        wrong = self.pairs[self.pairs[:, 0] != self.pairs[:, 1]]
        wrong = wrong[np.argsort(-wrong[:, 2], kind="stable")[:20]]
        return ["the most frequent mistakes (--json has all of them):",
                *(f"{count:>7,}  {self.classes[true]} taken for {self.classes[predicted]}"
                  for true, predicted, count in wrong.tolist())]


@dataclasses.dataclass(frozen=True)
class EnsembleReport(ClassificationReport):
    """An ensemble's results on a data set, and its members'."""

    members: int = 0
    alone: list[float] = dataclasses.field(default_factory=list)  # the accuracy of each member by itself
    disagreement: float = 0.0  # the mean over the examples, see ensemble.py

    def as_json(self) -> dict[str, Any]:
        return {name: value for name, value in super().as_json().items() if name != "checkpoint_step"}

    @property
    def measures(self) -> list[tuple[str, str, str]]:
        mean = sum(self.alone) / self.members
        return [
            ("members alone", f"{100 * min(self.alone):.2f} to {100 * max(self.alone):.2f} %",
             f"The accuracies of the members, each by itself; their mean is {100 * mean:.2f} %."),
            ("disagreement", f"{self.disagreement:.4f}",
             "How often two of the members, drawn at random, predict different classes."),
            *super().measures,
        ]

    @property
    def _of(self) -> str:
        return f"mean of {self.members} members"


class Tally:
    """What is counted of the examples of an evaluation, some at a time; memory does not grow with them."""

    def __init__(self, examples: Readable, classes: tuple[Any, ...], watch: Watch | None = None) -> None:
        """`watch` is shown them, too."""
        self._name, self._classes, self._watch, self._kept = examples.name, classes, watch, list[Seen]()
        self._looked_at = 0
        self._calibration = scores.Calibration()
        self._among_3, self._many = 0, len(classes) >= _MANY
        self._few = not scores.too_many(len(examples), len(classes))

    def look(self, seen: Seen) -> None:
        log_probs = seen.log_probs
        scores.check_outputs(log_probs, self._looked_at, f"{self._name}: example")
        self._looked_at += len(log_probs)
        self._calibration.add(np.exp(log_probs.max(axis=1)), seen.labels == seen.predicted)
        if self._few:
            self._kept.append(seen._replace(images=None))
        if self._many:
            own = np.take_along_axis(log_probs, seen.labels[:, None], axis=1)
            self._among_3 += int(((log_probs > own).sum(axis=1) < 3).sum())  # scikit-learn would sort all classes
        if self._watch is not None:
            self._watch(seen)

    def fields(self, step: int, result: Evaluation) -> dict[str, Any]:
        """Those of a ClassificationReport, once all examples were seen, of which `result` has the pairs."""
        classes = self._classes
        pairs = np.zeros((0, 3), np.int64) if result.pairs is None else result.pairs
        true, predicted, counts = pairs.T
        *values, support = metrics.precision_recall_fscore_support(
            true, predicted, labels=range(len(classes)), sample_weight=counts, zero_division=0)
        support = support.astype(np.int64)
        left_out = scores.undefined(support, classes)
        roc_auc = average_precision = None
        if not left_out:
            labels, log_probs = (np.concatenate([getattr(seen, name) for seen in self._kept])
                                 for name in ("labels", "log_probs"))  # fmt: skip
            roc_auc, average_precision = scores.roc_auc(labels, log_probs), scores.average_precision(labels, log_probs)
        return {
            "checkpoint_step": step, "loss": result.loss, "accuracy": result.accuracy, "correct": result.correct,
            "count": result.total, "classes": classes, "pairs": pairs,
            "per_class": dict(zip(("precision", "recall", "f1", "support"), (*values, support), strict=True)),
            "accuracy_interval": scores.wilson(result.correct, result.total), "log_loss": result.loss * len(classes),
            "balanced_accuracy": scores.balanced_accuracy(pairs), "roc_auc": roc_auc,
            "average_precision": average_precision,
            "top_3_accuracy": self._among_3 / result.total if self._many else None,
            "calibration_error": self._calibration.error, "calibration": self._calibration.ranges,
            "left_out": left_out,
        }  # fmt: skip


def evaluate(
    config: Config, state: State, classes: tuple[Any, ...], dataset: Readable, watch: Watch | None = None,
    together: bool = False,
) -> ClassificationReport:
    """Evaluates a state, of which the optimizer's part may be empty and the arrays are NumPy's, by the program that
    training evaluates with, on all devices of this process, or of all of several processes, which then do this
    `together`.

    On the same kind of processor, the numbers that training logs are the same to the last digit, on any number of
    devices and processes. Each example is read once; `watch` is called for some hundred at a time, in the data set's
    order. Memory does not grow with the examples.
    """
    tally = Tally(dataset, classes, watch)
    with backend.prepared(config):
        devices = tuple(jax.devices() if together else jax.local_devices())
        layout = Layout(devices, "shard_map" if len(devices) > 1 else "single", len(devices))
        placed = layout.put(state, STATE)
        evaluator = Evaluator(layout, config.eval_batch_size, config.compute_dtype, config.num_workers)
        try:
            result = evaluator(placed, dataset, watch=tally.look)
        finally:
            evaluator.close()
    return ClassificationReport(**tally.fields(int(state.step), result))
