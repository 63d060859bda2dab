"""Weights of the training examples, by which each counts in the loss: checked, and balanced between the classes."""

from typing import Any

import numpy as np

from distmlp.errors import InputError

_SMALLEST, _LARGEST = 1e-30, 1e30  # sums of weights with which, and with classes, float32 can calculate


def check_column(column: str, table: bool, name: str) -> None:
    """Raises InputError for a --weight_column of what is no table; `name` says what."""
    if column and not table:
        raise InputError(f"--weight_column={column} goes with a table, which {name} is not: name an array of weights "
                         "w_train beside x_train, or give (x, y, weights) from Python")


def checked(weights: Any, count: int, name: str) -> np.ndarray:
    """Weights as float64 [N], if they are as many as the `count` examples, finite and not negative; else an InputError.
    `name` says whose.
    """
    weights = np.asarray(weights)
    if weights.ndim == 2 and weights.shape[1] == 1:
        weights = weights[:, 0]
    if weights.ndim != 1 or weights.dtype.kind not in "uifb":
        raise InputError(f"{name}: weights must be numbers of shape [examples], one for each, not {weights.dtype} "
                         f"{list(weights.shape)}")
    if len(weights) != count:
        raise InputError(f"{name} has {count} examples but {len(weights)} weights: give as many of both")
    weights = weights.astype(np.float64)
    with np.errstate(over="ignore"):
        bad = np.flatnonzero(~(np.isfinite(weights.astype(np.float32)) & (weights >= 0)))
    if len(bad):
        raise InputError(f"{name}: the weight {weights[bad[0]]:g} of example {bad[0]} must be a finite number from 0 "
                         "up: mend it, or remove the example")
    return weights


def of_training(weights: np.ndarray | None, labels: np.ndarray, balanced: bool, name: str) -> np.ndarray | None:
    """What the examples that are trained on count in the loss, float32 [N]; None: each 1.

    Args:
      weights: those that were given, float64 [N]; None: each 1.
      labels: the numbers of their classes, int32 [N].
      balanced: --class_weight=balanced: each weight is multiplied by W / (C * W_c), where W is the sum of all, C the
        number of classes that have any, and W_c the sum of the example's class. So each class has the same sum.
      name: of the examples, for messages.

    Raises:
      InputError: all weights are 0, or their sum is too large for float32; or there is nothing to balance.
    """
    if weights is not None and not weights.any():
        raise InputError(f"{name}: all weights are 0, so there is nothing to learn from: give some a weight above 0")
    if balanced:
        weights = np.ones(len(labels)) if weights is None else weights
        sums = np.bincount(labels, weights)
        if np.count_nonzero(sums) < 2:
            found = ("one class, or does not list its labels before they are read: give a Dataset that has .targets"
                     if np.count_nonzero(np.bincount(labels)) < 2 else
                     "weights above 0 in one class only: give another class some")
            raise InputError(f"--class_weight=balanced: {name} has {found}, or leave the flag out")
        each = weights.sum() / np.count_nonzero(sums)  # what the examples of a class are to weigh together
        weights = weights * np.divide(each, sums, out=np.zeros(len(sums)), where=sums > 0)[labels]
    if weights is None or (weights == 1).all():
        return None
    if not _SMALLEST < weights.sum() < _LARGEST:
        raise InputError(f"{name}: the weights add up to {weights.sum():g}, which float32 cannot hold: divide them all "
                         "by their mean")
    weights = weights.astype(np.float32)
    weights[weights < np.finfo(np.float32).tiny] = 0  # as XLA has them on CPUs: else a batch of such would be 0 / 0
    return weights
