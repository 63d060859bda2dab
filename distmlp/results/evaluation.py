"""Exact numbers on a data set: those that training logs, and by class."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from sklearn import metrics

from distmlp.config import Config
from distmlp.data import datasets
from distmlp.parallel import backend
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import STATE, State

_WIDTH = 80  # columns of a terminal
_MATRIX = 1000  # classes of which JSON has the whole confusion matrix

Watch = Callable[[np.ndarray, np.ndarray], None]  # is shown the images and labels of each step of an evaluation


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
    predicted: np.ndarray  # int32 [N]: the number of each example's most probable class

    @property
    def confusion(self) -> np.ndarray:
        """int64 [classes, classes]: rows are true, columns predicted classes. Made anew each time."""
        matrix = np.zeros((len(self.classes),) * 2, np.int64)
        matrix[self.pairs[:, 0], self.pairs[:, 1]] = self.pairs[:, 2]
        return matrix

    def as_json(self) -> dict[str, Any]:
        """All but the predictions, as JSON values; of many classes, the pairs instead of the confusion matrix."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        del fields["predicted"], fields["pairs"]
        many = len(self.classes) > _MATRIX
        return fields | {
            "classes": list(self.classes),
            **({"confusion_pairs": self.pairs.tolist()} if many else {"confusion": self.confusion.tolist()}),
            "per_class": {name: values.tolist() for name, values in self.per_class.items()},
        }

    def __str__(self) -> str:
        lines = [f"checkpoint of step {self.checkpoint_step}: {self.correct:,} of {self.count:,} correct, "
                 f"accuracy {100 * self.accuracy:.2f} %, loss {self.loss:.5f}", "", *self._classes(), ""]
        return "\n".join([*lines, *self._confusion()])

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


def evaluate(
    config: Config, params: Any, scaling: Any, step: int, classes: tuple[Any, ...], dataset: datasets.Examples,
    watch: Watch | None = None,
) -> ClassificationReport:
    """Evaluates parameters after `step` steps by the program that training evaluates with.

    On the same kind of processor, the numbers are the same to the last digit. Each example is read once; `watch` is
    called with the images and the labels of some hundred at a time, in the data set's order.
    """
    seen: list[np.ndarray] = []

    def keep(images: np.ndarray, labels: np.ndarray) -> None:
        seen.append(labels)
        if watch is not None:
            watch(images, labels)

    with backend.prepared(config):
        layout = Layout((jax.devices()[0],), "single", 1)
        state = layout.put(State(params, (), jnp.int32(step), scaling), STATE)
        evaluator = Evaluator(config, layout)
        try:
            result = evaluator(state, dataset, watch=keep)
        finally:
            evaluator.close()
    labels, numbers = np.concatenate(seen), range(len(classes))
    pairs, counts = np.unique(labels.astype(np.int64) * len(classes) + result.predicted, return_counts=True)
    values = metrics.precision_recall_fscore_support(labels, result.predicted, labels=numbers, zero_division=0)
    return ClassificationReport(
        step, result.loss, result.accuracy, result.correct, result.total, classes,
        np.stack([*np.divmod(pairs, len(classes)), counts], axis=1),
        dict(zip(("precision", "recall", "f1", "support"), values, strict=True)), result.predicted,
    )

