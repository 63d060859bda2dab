"""What predictions are worth, by scikit-learn's metrics: the best checkpoint is chosen by it, evaluations show it."""

import math
import statistics
from collections.abc import Sequence
from typing import Any

import numpy as np

_MOST_CLASSES, _MOST_SCORES = 100, 10**7  # for which metrics over all probabilities are computed
_RANGES = 10  # of probabilities, for the calibration error

NEEDS = {  # by --choose_by, what an Evaluator is to be asked for
    "accuracy": "", "loss": "", "balanced_accuracy": "labels", "macro_f1": "labels", "roc_auc": "log_probs",
}  # fmt: skip


def score(name: str, labels: np.ndarray, predicted: np.ndarray, log_probs: np.ndarray | None) -> float | None:
    """One of --choose_by's scores, of class numbers int32 [N] and log-probabilities [N, classes]; higher is better. It
    is None where it is not defined."""
    if name == "balanced_accuracy":
        return balanced_accuracy(labels, predicted)
    if name == "macro_f1":
        from sklearn import metrics

        return float(metrics.f1_score(labels, predicted, average="macro", zero_division=0))
    assert log_probs is not None
    return roc_auc(labels, log_probs)


def balanced_accuracy(labels: np.ndarray, predicted: np.ndarray) -> float:
    """The mean recall of the classes that occur."""
    from sklearn import metrics

    # balanced_accuracy_score has the same number, but makes a matrix of all classes, and warns of some of them.
    return float(metrics.recall_score(labels, predicted, labels=np.unique(labels), average="macro", zero_division=0))


def too_many(examples: int, classes: int) -> str:
    """Why the ranking metrics of so many are not computed; "" if they are."""
    if classes > _MOST_CLASSES:
        return f"there are more than {_MOST_CLASSES} classes"
    probabilities = examples * (classes if classes > 2 else 1)
    return f"there are more than {_MOST_SCORES:,} probabilities" if probabilities > _MOST_SCORES else ""


def undefined(labels: np.ndarray, classes: Sequence[Any]) -> str:
    """Why the ranking metrics of these labels, int32 [N], of so-called classes are not computed; "" if they are."""
    absent = np.flatnonzero(np.bincount(labels, minlength=len(classes)) == 0)
    lacking = f"no example is of class {classes[absent[0]]}" if len(absent) else ""
    return too_many(len(labels), len(classes)) or lacking


def roc_auc(labels: np.ndarray, log_probs: np.ndarray) -> float | None:
    """The area under the ROC curve of two classes, or the mean of each class's against the rest."""
    if undefined(labels, range(log_probs.shape[1])):
        return None
    from sklearn import metrics

    return float(metrics.roc_auc_score(labels, _scores(log_probs), multi_class="ovr"))


def average_precision(labels: np.ndarray, log_probs: np.ndarray) -> float | None:
    """The area under the curve of precision over recall, likewise."""
    if undefined(labels, range(log_probs.shape[1])):
        return None
    from sklearn import metrics

    return float(metrics.average_precision_score(labels, _scores(log_probs)))


def _scores(log_probs: np.ndarray) -> np.ndarray:
    """Probabilities, [N] of the second one of two classes, or [N, classes]."""
    probabilities = np.exp(log_probs)
    return probabilities[:, 1] if log_probs.shape[1] == 2 else probabilities


def calibration(confidence: np.ndarray, correct: np.ndarray) -> tuple[list[float], list[float], float]:
    """How sure N predictions are, and how often they are right, in each of ten equal ranges of probability that occurs;
    and the expected calibration error, the mean difference of the two over all predictions.
    """
    ranges = np.minimum((confidence * _RANGES).astype(int), _RANGES - 1)
    used = [n for n in range(_RANGES) if (ranges == n).any()]
    sure = [float(confidence[ranges == n].mean()) for n in used]
    right = [float(correct[ranges == n].mean()) for n in used]
    error = sum(abs(s - r) * (ranges == n).mean() for n, s, r in zip(used, sure, right, strict=True))
    return sure, right, float(error)


def wilson(correct: int, count: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a share, of which `correct` of `count` were seen."""
    z = statistics.NormalDist().inv_cdf(0.975)
    share, spread = correct / count, z * z / count
    half = z * math.sqrt(share * (1 - share) / count + spread / (4 * count))
    middle = share + spread / 2
    return max(0.0, (middle - half) / (1 + spread)), min(1.0, (middle + half) / (1 + spread))
