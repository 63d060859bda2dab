"""What predictions are worth, by scikit-learn's metrics: the best checkpoint is chosen by it, evaluations show it."""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from distmlp.errors import InputError

_MOST_CLASSES, _MOST_SCORES = 100, 10**7  # for which metrics over all probabilities are computed
_RANGES = 10  # of probabilities, for the calibration error
_UNIT = 1 << 40  # by which probabilities become whole numbers

NEEDS = {  # by --choose_by, what an Evaluator is to be asked for
    "accuracy": "", "loss": "", "balanced_accuracy": "labels", "macro_f1": "labels", "roc_auc": "log_probs",
}  # fmt: skip


def score(
    name: str, pairs: np.ndarray, labels: np.ndarray | None, log_probs: np.ndarray | None
) -> float | None:
    """One of --choose_by's scores; higher is better. It is None where it is not defined.

    Args:
      pairs: int64 [pairs that occur, 3]: true class, predicted class, and how often.
      labels, log_probs: the classes' numbers, int32 [N], and log-probabilities [N, classes], for roc_auc.
    """
    if name == "balanced_accuracy":
        return balanced_accuracy(pairs)
    if name == "macro_f1":
        from sklearn import metrics

        true, predicted, counts = pairs.T
        return float(metrics.f1_score(true, predicted, average="macro", sample_weight=counts, zero_division=0))
    assert labels is not None
    assert log_probs is not None
    return roc_auc(labels, log_probs)


def balanced_accuracy(pairs: np.ndarray) -> float:
    """The mean recall of the classes that occur; see `score` for the pairs."""
    from sklearn import metrics

    # balanced_accuracy_score has the same number, but makes a matrix of all classes, and warns of some of them.
    true, predicted, counts = pairs.T
    return float(metrics.recall_score(true, predicted, labels=np.unique(true), average="macro", sample_weight=counts,
                                      zero_division=0))  # fmt: skip


def too_many(examples: int, classes: int) -> str:
    """Why the ranking metrics of so many are not computed; "" if they are."""
    if classes > _MOST_CLASSES:
        return f"there are more than {_MOST_CLASSES} classes"
    probabilities = examples * (classes if classes > 2 else 1)
    return f"there are more than {_MOST_SCORES:,} probabilities" if probabilities > _MOST_SCORES else ""


def undefined(counts: np.ndarray, classes: Sequence[Any]) -> str:
    """Why the ranking metrics of so many examples of each of the so-called classes are not computed; "" if they are."""
    absent = np.flatnonzero(counts == 0)
    lacking = f"no example is of class {classes[absent[0]]}" if len(absent) else ""
    return too_many(int(counts.sum()), len(classes)) or lacking


def roc_auc(labels: np.ndarray, log_probs: np.ndarray) -> float | None:
    """The area under the ROC curve of two classes, or the mean of each class's against the rest."""
    from sklearn import metrics

    return _mean_over_classes(metrics.roc_auc_score, labels, log_probs)


def average_precision(labels: np.ndarray, log_probs: np.ndarray) -> float | None:
    """The area under the curve of precision over recall, likewise."""
    from sklearn import metrics

    return _mean_over_classes(metrics.average_precision_score, labels, log_probs)


def _mean_over_classes(metric: Callable[..., float], labels: np.ndarray, log_probs: np.ndarray) -> float | None:
    """Of the metric for the second one of two classes, or for each class against the rest; None: it is not defined."""
    classes = log_probs.shape[1]
    if undefined(np.bincount(labels, minlength=classes), range(classes)):
        return None
    return statistics.fmean(metric(labels == each, odds) for each, odds in _log_odds(log_probs))


def _log_odds(log_probs: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """The second one of two classes, or each class in turn, and log(p / (1 - p)) of its probabilities, float64 [N].

    They tell apart what probabilities cannot: those are all 1 where the others are below a float32's last digit.
    """
    count = log_probs.shape[1]

    def column(each: int) -> np.ndarray:
        return np.asarray(log_probs[:, each], np.float64)

    if count == 2:
        yield 1, column(1) - column(0)
        return
    best = log_probs.argmax(axis=1)
    most, second = log_probs.max(axis=1).astype(np.float64), np.full(len(best), -np.inf)
    for each in range(count):
        second = np.where(best == each, second, np.maximum(second, column(each)))
    powers, other_powers = np.zeros((2, len(best)))  # sums, of all classes and of all but the best
    for each in range(count):
        powers += np.exp(column(each) - most)
        other_powers += np.where(best == each, 0, np.exp(np.minimum(column(each) - second, 0)))
    others = second + np.log(other_powers)
    for each in range(count):
        own = column(each)
        rest = np.where(best == each, 1, powers - np.exp(own - most))  # 1 at least, the best one's
        yield each, own - np.where(best == each, others, most + np.log(rest))


def check_outputs(outputs: np.ndarray, first: int = 0, what: str = "row") -> None:
    """Raises InputError unless probabilities or their logarithms, [N, classes], are numbers; the first is of `what`
    number `first`."""
    bad = np.flatnonzero(~np.isfinite(outputs.min(axis=1)))
    if len(bad):
        raise InputError(f"{what} {first + bad[0]} has a value so large that its probabilities are no numbers, as what "
                         "stands for no data may be: remove or mend it")


class Calibration:
    """How sure predictions are, and how often they are right, in each of ten equal ranges of probability. All of it is
    counted in whole numbers, so that in which pieces the predictions come makes no difference."""

    def __init__(self) -> None:
        self._count, self._right = np.zeros((2, _RANGES), np.int64)
        self._sure = [0] * _RANGES  # the sums of the probabilities, in units of 1 / _UNIT

    def add(self, confidence: np.ndarray, correct: np.ndarray) -> None:
        """Probabilities, float32 [rows], and whether the predictions are right."""
        ranges = np.minimum((confidence * _RANGES).astype(int), _RANGES - 1)
        units = np.rint(confidence.astype(np.float64) * _UNIT).astype(np.int64)
        for n in np.unique(ranges):
            here = ranges == n
            self._count[n] += here.sum()
            self._right[n] += correct[here].sum()
            self._sure[n] += int(units[here].sum())

    @property
    def ranges(self) -> tuple[list[float], list[float]]:
        """How sure, and how often right, in each range that occurs."""
        used = np.flatnonzero(self._count)
        sure = [self._sure[n] / _UNIT / int(self._count[n]) for n in used]
        return sure, (self._right[used] / self._count[used]).tolist()

    @property
    def error(self) -> float:
        """The expected calibration error: the mean difference of the two over all predictions."""
        differences = (abs(sure / _UNIT - int(right)) for sure, right in zip(self._sure, self._right, strict=True))
        return sum(differences) / int(self._count.sum())


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, of which `correct` of `count` were seen."""
    z = statistics.NormalDist().inv_cdf(0.975)
    share, spread = correct / count, z * z / count
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    middle = share + spread / 2
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))
