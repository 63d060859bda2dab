"""Which examples are held out of the training set as the test set or the validation set."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from distmlp.errors import InputError

_DRAWN = 1 << 21  # examples of which those held out are drawn at once


class HoldOut(NamedTuple):
    """How many examples are held out, and which."""

    part: str  # test or validation
    fraction: float
    seed: int

    @property
    def flag(self) -> str:
        return f"--{self.part}_fraction={self.fraction}"


def hold_out(
    labels: np.ndarray, wanted: HoldOut, name: str, names: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The examples that stay and those that are held out, positions in ascending order, int64: drawn by the seed, with
    the classes in proportion; see `stratified`.

    Args:
      labels: the numbers of the examples' classes, int32 [N]; `names` are the classes'.
      name: of the set, for messages.
    """
    _check_single(np.bincount(labels), wanted.flag, name, names)
    return _drawn(labels, wanted, name)


def folds(labels: np.ndarray, count: int, seed: int) -> np.ndarray:
    """The fold of each example, from 1 to `count`, int32 [N]: drawn by the seed, with each class in proportion, so that
    of a class, and of all, two folds differ by one example at most.

    Args:
      labels: the numbers of the examples' classes, int32 [N].
    """
    order = np.random.RandomState(seed).permutation(len(labels))  # the same in all versions of NumPy
    order = order[np.argsort(labels[order], kind="stable")]  # class by class, which are dealt to the folds in turn
    numbers = np.empty(len(labels), np.int32)
    numbers[order] = 1 + np.arange(len(labels), dtype=np.int32) % count
    return numbers


def hold_out_fold(
    labels: np.ndarray, fold: str, seed: int, name: str, names: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The same as `hold_out` of the examples in a fold, which is given as --fold is: each of the K has others.

    Raises:
      InputError: there are fewer examples than folds, or a class has a single one.
    """
    number, count = map(int, fold.split("/"))
    if count > len(labels):
        raise InputError(f"--fold={fold}: {name} has {len(labels)} examples: give at most so many folds")
    _check_single(np.bincount(labels), f"--fold={fold}", name, names)
    inside = folds(labels, count, seed) == number
    return np.flatnonzero(~inside), np.flatnonzero(inside)


def _check_single(counts: np.ndarray, flag: str, name: str, names: Sequence[Any] | None) -> None:
    """Raises InputError if a class has a single example."""
    single = np.flatnonzero(counts == 1)
    if len(single):
        raise InputError(f"{flag}: class {names[single[0]] if names else single[0]} of {name} has a single example, "
                         "and each part needs one: remove it, or give the parts as files")


def mark(
    marks: np.ndarray, labels: np.ndarray, number: int, wanted: HoldOut, name: str, names: Sequence[Any] | None
) -> None:
    """Gives those examples this number that are held out of the ones marked 0.

    They are those of `hold_out`; of more than 2,097,152, they are drawn of so many at most at a time, so that memory
    does not grow with the set.

    Args:
      marks: uint8 [N], may be a file's.
      labels: as hold_out's, of all examples; may be a file's.
    """
    chunks = -(-len(labels) // _DRAWN)
    bounds = [len(labels) * chunk // chunks for chunk in range(chunks + 1)]
    spans = [slice(*bounds[chunk : chunk + 2]) for chunk in range(chunks)]
    counts = np.zeros(0, np.int64)
    for span in spans:
        more = np.bincount(labels[span][marks[span] == 0], minlength=len(counts))
        more[: len(counts)] += counts
        counts = more
    _check_single(counts, wanted.flag, name, names)
    for span in spans:
        rest = np.flatnonzero(marks[span] == 0)
        chosen = labels[span][rest]
        rest = rest[np.bincount(chosen)[chosen] > 1]  # of a class's only example here nothing can be held out
        _, held = _drawn(labels[span][rest], wanted, name)
        marks[span.start + rest[held]] = number


def _drawn(labels: np.ndarray, wanted: HoldOut, name: str) -> tuple[np.ndarray, np.ndarray]:
    held_out, classes = math.ceil(wanted.fraction * len(labels)), len(np.unique(labels))
    for number, part in ((held_out, "to hold out"), (len(labels) - held_out, "that stay")):
        if number < classes:
            raise InputError(f"{wanted.flag} does not divide the {len(labels)} examples of {name} ({number} {part} are "
                             f"too few for {classes} classes): give another fraction")
    stay, held = stratified(labels, wanted.fraction, wanted.seed)
    return np.sort(stay), np.sort(held)


def stratified(labels: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the examples in two parts, the second of which has this fraction, rounded up: int64, each in random
    order, with the classes in proportion.

    They are those of scikit-learn's train_test_split, which takes longer to import than a small training.
    """
    held_out = math.ceil(fraction * len(labels))
    kinds, counts = np.unique(labels, return_inverse=True, return_counts=True)[1:]
    rows = np.split(np.argsort(kinds, kind="stable"), np.cumsum(counts)[:-1])  # class by class
    rng = np.random.RandomState(seed)  # the same in all versions of NumPy
    stay = _in_proportion(counts, len(labels) - held_out, rng)
    held = _in_proportion(counts - stay, held_out, rng)
    parts: tuple[list[np.ndarray], list[np.ndarray]] = ([], [])
    for own, first, second in zip(rows, stay, held, strict=True):
        drawn = own[rng.permutation(len(own))]
        parts[0].append(drawn[:first])
        parts[1].append(drawn[first : first + second])
    one, two = (rng.permutation(np.concatenate(part)) for part in parts)
    return one, two


def _in_proportion(counts: np.ndarray, number: int, rng: np.random.RandomState) -> np.ndarray:
    """So many examples of each class, of which there are these counts, that they are `number` in all: rounded down, and
    one more of those classes that lose most by that, drawn where they lose alike."""
    exact = counts / counts.sum() * number
    found = np.floor(exact)
    lost, missing = exact - found, int(number - found.sum())
    for value in np.unique(lost)[::-1]:
        if not missing:
            break
        alike = np.flatnonzero(lost == value)
        more = min(len(alike), missing)
        found[rng.choice(alike, more, replace=False)] += 1
        missing -= more
    return found.astype(np.int64)
