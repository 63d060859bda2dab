"""Labels of any kind that names classes -> int32 class numbers, and the classes' names."""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from distmlp.errors import InputError, listed


class Classes(NamedTuple):
    """What the numbers of the classes mean."""

    number: int
    names: list[str] | None = None  # of all classes by number; None where a label is its own number
    values: np.ndarray | None = None  # the label of each, where it is not its number

    @classmethod
    def named(cls, names: list[str]) -> "Classes":
        """Classes of which only the names are known. Names that are whole numbers were the labels themselves."""
        try:
            return cls(len(names), names, np.array([int(name) for name in names]))
        except ValueError:
            return cls(len(names), names)

    def encode(self, labels: Any, name: str) -> np.ndarray:
        """Labels as class numbers, int32 [N].

        Raises:
          InputError: a label that is none of the classes, or cannot be one; `name` says whose.
        """
        labels, values = _values(labels, name), self.values
        if values is None and self.names and labels.dtype.kind == "U":
            values = np.array(self.names)
        if values is None:
            if labels.dtype.kind not in "iu":
                labels = _whole(labels, name, "the training set's are whole numbers")
            for label in (int(labels.min()), int(labels.max())):
                if not 0 <= label < self.number:
                    raise InputError(f"{name}: label {label} is out of range for {self.number} classes; mend the labels"
                                     + (f" or give --num_classes={label + 1}" if label >= 0 else ""))
            return np.asarray(labels, np.int32)
        if (values.dtype.kind in "iu") != (labels.dtype.kind in "iu"):  # of another kind of file: compare them as text
            values, labels = np.array(_texts(values)), np.array(_texts(labels))
        order = np.argsort(values)
        found = order[np.minimum(np.searchsorted(values, labels, sorter=order), len(values) - 1)]
        strange = np.flatnonzero(values[found] != labels)
        if len(strange):
            (unseen,), where = _texts(labels[strange[:1]]), _of(strange[0], labels)
            raise InputError(f"{name}: the training set does not have the label {unseen}{where}: its classes are "
                             f"{listed(self.names or [])}; mend the label or remove the example")
        return np.asarray(found, np.int32)


def find_classes(labels: Any, name: str, known: int = 0, names: Sequence[str] | None = None) -> Classes:
    """The classes of a training set.

    Whole numbers from 0 on are their own classes, also where one in between does not occur, and so are all where
    --num_classes is given. Anything else is mapped by its sorted distinct values.

    Args:
      labels: text, bytes, booleans, whole numbers, or one-hot rows.
      known: the number of classes, if it was given.
      names: of the classes by number, where the source says them.

    Raises:
      InputError: labels that cannot be classes: fractions, NaN, soft targets, a different value for each example.
    """
    values = _values(labels, name)
    given, known = known, known or len(names or ())
    numbers = values.dtype.kind in "iu" and (np.asarray(labels).dtype.kind != "f" or np.ndim(labels) > 1)
    if values.dtype.kind in "iu" and (known or (numbers and values.min() == 0)):
        largest = int(values.max())
        if not known and largest >= max(1000, len(values)):
            raise InputError(f"{name}: label {largest} of {len(values)} examples looks damaged; "
                             f"mend the labels or give --num_classes={largest + 1}")
        columns = np.shape(labels)[1:]  # of one-hot rows
        number = known or (columns[0] if columns and columns[0] > 1 else largest + 1)
        found = Classes(number, list(names) if names and number == len(names) else None)
    else:
        distinct = np.unique(values)
        if len(distinct) > max(1000, len(values) // 2):
            raise InputError(f"{name}: {len(distinct)} different labels in {len(values)} examples look like names or "
                             "measurements of the examples, not like classes: give the column of the classes")
        if given and given != len(distinct):
            raise InputError(f"{name} has {len(distinct)} classes, not --num_classes={given}: leave it out")
        found = Classes(len(distinct), _texts(distinct), distinct)
    if found.number < 2:
        raise InputError(f"{name} has a single class: give labels of at least two, or --num_classes")
    return found


def _values(labels: Any, name: str) -> np.ndarray:
    """Labels as one value each, [N]: integers, booleans, or text; an InputError if they cannot be classes."""
    labels = np.asarray(labels)
    if labels.ndim and not len(labels):
        raise InputError(f"{name} is empty: give at least one example")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iufb":
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise InputError(f"{name}: labels of shape {list(labels.shape)} must be one-hot rows, a single 1 and else 0"
                             "; of probabilities or several classes an example, choose one: labels.argmax(axis=1)")
        labels = labels.argmax(axis=1)
    if labels.ndim != 1:
        raise InputError(f"{name}: labels must have the shape [N] or one-hot [N, classes], not {list(labels.shape)}")
    if labels.dtype.kind == "O":
        labels = _from_objects(labels, name)
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "f":
        labels = _whole(labels, name, "classes are named by whole numbers or text")
    if labels.dtype.kind not in "iubU":
        raise InputError(f"{name}: labels must name classes, by text or whole numbers, not be of type {labels.dtype}")
    return np.asarray(labels)


def _from_objects(labels: np.ndarray, name: str) -> np.ndarray:
    """Python objects as text, or as numbers if all are."""
    missing = [i for i, label in enumerate(labels) if label is None or label != label]  # noqa: PLR0124 - NaN
    if missing:
        raise InputError(f"{name}: example {missing[0]} has no label: remove or mend it")
    if all(isinstance(label, (bool, int, float, np.number, np.bool_)) for label in labels):
        return np.array(labels.tolist())
    return np.array([label.decode(errors="replace") if isinstance(label, bytes) else str(label) for label in labels])


def _whole(labels: np.ndarray, name: str, why: str) -> np.ndarray:
    """Numbers as integers; an InputError, which says why they must be, if one is NaN, a fraction or text."""
    if labels.dtype.kind == "U":
        raise InputError(f"{name}: label {str(labels[0])!r} is text, but {why}")
    labels = labels.astype(np.float64)
    bad = np.flatnonzero(~(np.isfinite(labels) & (labels == np.floor(labels)) & (np.abs(labels) < 2**53)))
    if len(bad):
        label, example = labels[bad[0]], bad[0]
        raise InputError(f"{name}: label {label}{_of(example, labels)} is no class, {why}: "
                         + ("remove or mend it" if not np.isfinite(label) else
                            "round or group the values first, as in numpy.digitize(y, bounds)"))
    return labels.astype(np.int64)


def _of(example: int, labels: np.ndarray) -> str:
    return f" of example {example}" if len(labels) > 1 else ""  # a single one has its number in the message already


def _texts(values: np.ndarray) -> list[str]:
    return [str(value) for value in values.tolist()]
