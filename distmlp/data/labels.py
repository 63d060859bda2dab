"""Labels of any kind that names classes -> int32 class numbers; and what the classes are called.

The kinds are text, whole numbers and booleans. Words are no numbers: where one kind is given for the other, the labels
have to be what the other's classes are as text, so that "1" is 1, but "01" is another class.
"""

import contextlib
import dataclasses
import functools
import re
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import numpy as np

from distmlp.errors import InputError, listed

_WHOLE = re.compile(r"-?(0|[1-9]\d{0,17})(\.0+)?")  # without what int() drops, so that a class is called as in the file
_NUMBERS = (bool, int, float, Decimal, np.number, np.bool_)
_SMALL = 1 << 12  # whole numbers below it are told apart without sorting them
# What stands for an absent value in text; in a column of labels, an empty cell does, and each of them among numbers.
ABSENT = ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "N/A", "NA",
          "NULL", "NaN", "n/a", "nan", "null")  # fmt: skip
_BOOLEANS = {"True", "False", "true", "false", "TRUE", "FALSE"}


class Written(str):
    """A label as a text file has it: what it is, is for all of them together to say. See read_texts."""


@dataclasses.dataclass(frozen=True)
class Classes:
    """The classes, in the order of their numbers."""

    number: int
    names: list[Any] | None = None  # what the labels call each: all text, whole numbers or booleans; None: by number
    numbered: bool = False  # labels may also be the numbers of these names
    of_model: bool = False  # they are a trained model's, and cannot change

    @classmethod
    def of(cls, info: dict[str, Any], number: int) -> "Classes":
        """A model's classes, from what its checkpoint says of the data."""
        names = info.get("classes") or None
        # Checkpoints of version 0.2 have all names as text, and do not say whether the labels were their numbers.
        unsaid = names is not None and not all(_WHOLE.fullmatch(str(name)) for name in names)
        return cls(len(names) if names else number, names, bool(info.get("numbered", unsaid)), True)

    @property
    def called(self) -> Sequence[Any]:
        """What the labels call each class, in order."""
        return range(self.number) if self.names is None else self.names

    @functools.cached_property
    def _by_label(self) -> dict[Any, int]:
        return {called: number for number, called in enumerate(self.called)}

    @functools.cached_property
    def _by_text(self) -> dict[Any, int]:
        return {str(called): number for number, called in enumerate(self.called)}

    def encode(self, labels: Any, name: str) -> np.ndarray:
        """Labels as class numbers, int32 [N]; an InputError for one that is none of the classes. `name` says whose."""
        columns = _columns(labels)
        self.check_columns(columns, name)
        if columns and not self.numbered and [*self.called] != [*range(self.number)]:
            raise InputError(f"{name}: one-hot labels say classes by number, and these are called "
                             f"{listed(self.called)}: give each label as one of them")
        if self.texts and _is_written(labels):
            words, codes = _distinct(labels)
            found = [self.written(word, value) for word, value in zip(words, read_texts(words).tolist(), strict=True)]
            if -1 in found:
                raise self._stranger(words[next(code for code in codes if found[code] == -1)], labels, name)
            return np.asarray(found, np.int32)[codes]
        values = _values(labels, name)
        text = values.dtype.kind == "O"
        if not text and (self.names is None or self.numbered):
            for label in (int(values.min()), int(values.max())):
                if not 0 <= label < self.number:
                    raise self._stranger(label, values, name)
            return np.asarray(values, np.int32)
        if text and self.names is None and not self.of_model:
            raise InputError(f"{name}: label {values[0]!r} is text, but the training set's are whole numbers: give "
                             "both as numbers, or both as text")
        distinct, codes = _distinct(values)
        if text or isinstance(self.called[0], str):
            found = [self._by_text.get(str(value), -1) for value in distinct]
        else:
            found = [self._by_label.get(value, -1) for value in distinct]
        if -1 in found:
            code = next(code for code in codes if found[code] == -1)
            raise self._stranger(distinct[code], values, name)
        return np.asarray(found, np.int32)[codes]

    def check_columns(self, columns: int, name: str) -> None:
        """Raises InputError for one-hot labels of another number of columns than there are classes."""
        if columns not in (0, self.number):
            raise InputError(f"{name}: one-hot labels have {columns} columns, but there are {self.number} classes: "
                             "give a column for each class, or each label as a number or text")

    @property
    def texts(self) -> bool:
        """Whether the classes are text, and not by number."""
        return not self.numbered and isinstance(self.called[0], str)

    def written(self, word: str, value: Any) -> int:
        """The number of the class that is called as a text file has it, or else as what it was read as; -1 if none."""
        read = -1 if isinstance(value, float) else self._by_text.get(str(value), -1)
        return self._by_text.get(word, read)

    def _stranger(self, label: Any, values: np.ndarray, name: str) -> InputError:
        """The error for a label that is none of the classes."""
        at = int(np.flatnonzero(values == label)[0])
        where = f" of example {at}" if len(values) > 1 else ""  # `name` has the number of a single one
        if self.of_model:
            return InputError(f"{name}: label {label!r} is none of the classes {listed(self.called)}, on which the run "
                              f"was trained: mend the label{where}, or remove the example")
        if self.names is None or (self.numbered and not isinstance(label, str)):
            return InputError(f"{name}: label {label} is out of range for {self.number} classes; mend the labels"
                              + (f" or give --num_classes={label + 1}" if label >= 0 and self.names is None else ""))
        return InputError(f"{name}: the training set does not have the label {label}{where}: its classes are "
                          f"{listed(self.called)}; mend the label or remove the example")


def find_classes(
    labels: Any, name: str, known: int = 0, names: Sequence[str] | None = None, examples: int = 0
) -> Classes:
    """The classes of a training set, whose labels are text, bytes, booleans, whole numbers, or one-hot rows.

    Whole numbers from 0 on are their own classes, also where one in between does not occur, and so are all where
    --num_classes is given (`known`) or the source says the names of the classes by number. Anything else is mapped by
    its sorted distinct values. Labels that cannot be classes are an InputError: fractions, NaN, soft targets, a
    different value for each example. `examples` says how many have these labels, where each is given once only.
    """
    values = _values(labels, name)
    examples = examples or len(values)
    given, known = known, known or len(names or ()) or _columns(labels)
    numbers = values.dtype.kind in "iu" and np.asarray(labels).dtype.kind != "f"
    if values.dtype.kind in "iu" and (known or (numbers and values.min() == 0)):
        largest = int(values.max())
        if not known and largest >= max(1000, examples):
            raise InputError(f"{name}: label {largest} of {examples} examples looks damaged; "
                             f"mend the labels or give --num_classes={largest + 1}")
        number = known or largest + 1
        named = bool(names) and number == len(names or ())
        found = Classes(number, list(names or ()) if named else None, named)
    else:
        distinct = sorted(_distinct(values)[0])
        if (absent := _absent(distinct)) is not None:
            where = "" if examples > len(values) else f" of example {int(np.argmax(values == absent))}"
            raise InputError(f"{name}: label {str(absent)!r}{where} stands for an absent value among numbers, not a "
                             "class: remove or mend it")
        if len(distinct) > max(1000, examples // 2):
            raise InputError(f"{name}: {len(distinct)} different labels in {examples} examples look like names or "
                             "measurements of the examples, not like classes: give the column of the classes")
        if given and given != len(distinct):
            raise InputError(f"{name} has {len(distinct)} classes, not --num_classes={given}: leave it out")
        found = Classes(len(distinct), distinct)
    if found.number < 2:
        raise InputError(f"{name} has a single class: give labels of at least two, or --num_classes")
    return found


class Seen:
    """The distinct labels of a set, whose labels come block by block; each has a code, its place among them."""

    _MOST = 1_000_000  # more are no classes, and would not fit in memory

    def __init__(self, name: str) -> None:
        """`name`: of the set, for messages."""
        self._name, self.examples = name, 0
        self._codes: dict[Any, int] = {}  # a cell of a text file as a tuple of one
        self._first: list[int] = []  # the example where each was seen first
        self._columns, self._fractions = 0, False

    def add(self, labels: np.ndarray) -> np.ndarray:
        """The codes of the next labels of any kind, int32 [rows]."""
        self._fractions |= labels.dtype.kind == "f"
        columns = _columns(labels)
        if self._columns and columns not in (0, self._columns):
            raise InputError(f"{self._name}, from example {self.examples} on: one-hot labels have {columns} columns, "
                             f"but before {self._columns}: give a column for each class in all")
        self._columns = self._columns or columns
        distinct, places = _distinct(_values(labels, f"{self._name}, from example {self.examples} on"))
        return self._add(distinct, places)

    def add_words(self, places: np.ndarray, words: Sequence[str], written: bool) -> np.ndarray:
        """The same of text, given as places among its words; `written`: in a text file, whose words may be numbers."""
        return self._add([(word,) for word in words] if written else words, places)

    def _add(self, distinct: Sequence[Any], places: np.ndarray) -> np.ndarray:
        new = [place for place, label in enumerate(distinct) if label not in self._codes]
        for place in new:
            self._codes[distinct[place]] = len(self._codes)
            self._first.append(self.examples + int(np.argmax(places == place)))
        if len(self._codes) > self._MOST:
            raise InputError(f"{self._name}: more than {self._MOST:,} different labels look like names or measurements "
                             "of the examples, not like classes: give the column of the classes")
        self.examples += len(places)
        return np.array([self._codes[label] for label in distinct], np.int32)[places]

    def values(self) -> np.ndarray:
        """The distinct labels, in the order of their codes."""
        written = [label for label in self._codes if isinstance(label, tuple)]
        read = dict(zip(written, read_texts([word for word, in written]).tolist(), strict=True)) if written else {}
        values = np.empty(len(self._codes), object)
        values[:] = [read.get(label, label) for label in self._codes]
        if self._fractions:
            values = values.astype(np.float64)
        return values

    def classes(self, known: int, names: Sequence[str] | None) -> Classes:
        """As find_classes of all labels."""
        if not self.examples:
            raise InputError(f"{self._name} is empty: give at least one example")
        return find_classes(self.values(), self._name, known or len(names or ()) or self._columns, names, self.examples)

    def numbers(self, classes: Classes) -> np.ndarray:
        """The number of the class of each code, int32; an InputError for a label that is none of the classes."""
        classes.check_columns(self._columns, self._name)
        values = self.values()

        def number(code: int, label: Any) -> int:
            found = classes.written(label[0], values[code]) if classes.texts and isinstance(label, tuple) else -1
            if found >= 0:
                return found
            return int(classes.encode(values[code : code + 1], f"{self._name}: example {self._first[code]}")[0])

        return np.array([number(code, label) for code, label in enumerate(self._codes)], np.int32)


def read_texts(texts: Sequence[str]) -> np.ndarray:
    """The distinct labels of a text file as what they are: whole numbers, booleans, or text (objects).

    Different texts stay different labels: 01 and 1, or 1E2 and 100, are text; but 1.0 is 1, and true is True. Fractions
    become float64, which find_classes refuses with a remedy.
    """
    trimmed = [text.strip() for text in texts]
    if all(map(_WHOLE.fullmatch, trimmed)):
        return np.array([int(text.partition(".")[0]) for text in trimmed], np.int64)
    if set(trimmed) <= _BOOLEANS:
        return np.array([text.lower() == "true" for text in trimmed], bool)
    try:
        fractions = np.array(list(map(float, trimmed)))
    except ValueError:
        return _objects(texts)
    return fractions if np.any(np.isfinite(fractions) & (fractions % 1 != 0)) else _objects(texts)


def _absent(distinct: Sequence[Any]) -> str | None:
    """Of distinct labels, one that stands for an absent value, where all others are numbers as text."""
    absent = [label for label in distinct if isinstance(label, str) and label.strip() in ABSENT]
    others = [label for label in distinct if label not in absent]
    with contextlib.suppress(ValueError):
        if absent and others and np.isfinite([*map(float, others)]).all():
            return absent[0]
    return None


def _values(labels: Any, name: str) -> np.ndarray:
    """Labels as one value each, [N]: integers, booleans, or text (objects); an InputError if they cannot be classes."""
    labels = np.asarray(labels)
    if labels.ndim and not len(labels):
        raise InputError(f"{name} is empty: give at least one example")
    if _is_written(labels):
        words, codes = _distinct(labels)
        labels = read_texts(words)[codes]
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim == 2 and labels.shape[1] > 1 and labels.dtype.kind in "iufb":
        if not (((labels == 0) | (labels == 1)).all() and (labels.sum(axis=1) == 1).all()):
            raise InputError(f"{name}: labels of shape {list(labels.shape)} must be one-hot rows, a single 1 and else 0"
                             "; of probabilities or several classes an example, choose one: labels.argmax(axis=1)")
        labels = labels.argmax(axis=1)
    if labels.ndim != 1:
        raise InputError(f"{name}: labels must have the shape [N] or one-hot [N, classes], not {list(labels.shape)}")
    if labels.dtype.kind == "S":
        labels = np.char.decode(labels, "utf-8", "replace")
    if labels.dtype.kind == "U":
        return labels.astype(object)
    if labels.dtype.kind == "O":  # Python objects
        labels = _of_objects(labels, name)
    if labels.dtype.kind == "f":
        labels = labels.astype(np.float64)
        bad = np.flatnonzero(~(np.isfinite(labels) & (labels == np.floor(labels)) & (np.abs(labels) < 2**53)))
        if len(bad):
            label, where = labels[bad[0]], f" of example {bad[0]}" if len(labels) > 1 else ""  # else in `name`
            remedy = "round or group the values first, as in numpy.digitize(y, bounds)"
            raise InputError(f"{name}: label {label}{where} is no class, classes are named by whole numbers or text: "
                             f"{remedy if np.isfinite(label) else 'remove or mend it'}")
        labels = labels.astype(np.int64)
    if labels.dtype.kind not in "iubO":
        raise InputError(f"{name}: labels must name classes, by text or whole numbers, not be of type {labels.dtype}")
    return np.asarray(labels)


def _columns(labels: Any) -> int:
    """Of one-hot rows; 0 if the labels are others."""
    shape = np.shape(labels)
    return shape[1] if len(shape) == 2 and shape[1] > 1 else 0


def _is_written(labels: Any) -> bool:
    return isinstance(labels, np.ndarray) and labels.dtype == object and isinstance(next(labels.flat, None), Written)


def _of_objects(labels: np.ndarray, name: str) -> np.ndarray:
    """Python objects as numbers if all are numbers, else as text; an InputError if some are missing, or only some are
    numbers."""
    first: dict[bool, tuple[int, Any]] = {}  # whether it is a number: where the first such label is, and which
    for i, label in enumerate(labels):
        number = isinstance(label, _NUMBERS)
        absent = label is None or type(label).__name__ in {"NAType", "NaTType"}  # pandas's
        if absent or (number and label != label):  # noqa: PLR0124 - NaN
            raise InputError(f"{name}: example {i} has no label: remove or mend it")
        first.setdefault(number, (i, label))
    if len(first) > 1:
        (i, one), (j, other) = first[True], first[False]
        raise InputError(f"{name}: the label of example {i} is the number {one}, but that of example {j} the text "
                         f"{str(other)!r}: give all as text, as in y.astype(str), or all as numbers")
    if True in first:
        return np.array([float(label) if isinstance(label, Decimal) else label for label in labels])
    return _objects([label.decode(errors="replace") if isinstance(label, bytes) else str(label) for label in labels])


def _objects(texts: Sequence[str]) -> np.ndarray:
    """Text as an array of objects: an array of characters would give each as many as the longest has."""
    array = np.empty(len(texts), object)
    array[:] = texts
    return array


def _distinct(values: np.ndarray) -> tuple[list[Any], np.ndarray]:
    """The distinct values, as Python's, and for each value which of them it is."""
    if values.dtype.kind in "iu" and len(values) and values.min() >= 0 and values.max() < _SMALL:
        there = np.zeros(_SMALL, bool)
        there[values] = True
        return np.flatnonzero(there).tolist(), (np.cumsum(there) - 1)[values]
    if values.dtype.kind != "O":
        distinct, codes = np.unique(values, return_inverse=True)
        return distinct.tolist(), codes
    if _is_written(values):  # of which there may be millions, and pyarrow has read them
        import pyarrow as pa

        encoded = pa.array(values, pa.string()).dictionary_encode()
        return list(map(Written, encoded.dictionary.to_pylist())), encoded.indices.to_numpy()
    known: dict[Any, int] = {}
    codes = np.fromiter((known.setdefault(value, len(known)) for value in values), np.intp, len(values))
    return list(known), codes
