"""Which examples are held out of the training set as the test set or the validation set."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from distmlp.errors import InputError, one_line

_DRAWN = 1 << 21  # examples of which those held out are drawn at once


def hold_out(
    labels: np.ndarray, part: str, fraction: float, seed: int, name: str, names: Sequence[Any] | None
) -> tuple[np.ndarray, np.ndarray]:
    """The examples that stay and those that are held out, positions in ascending order, int64: drawn by the seed, with
    the classes in proportion.

    Args:
      labels: the numbers of the examples' classes, int32 [N]; `names` are the classes'.
      part: test or validation.
      name: of the set, for messages.
    """
    flag = f"--{part}_fraction={fraction}"
    _check_single(np.bincount(labels), flag, name, names)
    return _drawn(labels, flag, fraction, seed, name)


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
    marks: np.ndarray, labels: np.ndarray, number: int, part: str, fraction: float, seed: int, name: str,
    names: Sequence[Any] | None,
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
    flag = f"--{part}_fraction={fraction}"
    _check_single(counts, flag, name, names)
    for span in spans:
        rest = np.flatnonzero(marks[span] == 0)
        chosen = labels[span][rest]
        rest = rest[np.bincount(chosen)[chosen] > 1]  # of a class's only example here nothing can be held out
        _, held = _drawn(labels[span][rest], flag, fraction, seed, name)
        marks[span.start + rest[held]] = number


def _drawn(labels: np.ndarray, flag: str, fraction: float, seed: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    from sklearn.model_selection import train_test_split

    try:
        stay, held = train_test_split(np.arange(len(labels)), test_size=fraction, stratify=labels, random_state=seed)
    except ValueError as error:
        raise InputError(f"{flag} does not divide the {len(labels)} examples of {name} ({one_line(error)}): "
                         "give another fraction") from None
    return np.sort(stay), np.sort(held)
