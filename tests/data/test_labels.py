"""Labels of any kind that names classes, and what cannot be one."""

from typing import Any

import numpy as np
import pytest

from distmlp import InputError
from distmlp.data.labels import Classes, find_classes

KINDS = {
    "text": (["dog", "cat", "fish", "cat"], [1, 0, 2, 0], ["cat", "dog", "fish"]),
    "bytes": ([b"dog", b"cat"], [1, 0], ["cat", "dog"]),
    "objects": (np.array(["dog", "cat"], object), [1, 0], ["cat", "dog"]),
    "number objects": (np.array([2, 1], object), [1, 0], ["1", "2"]),
    "booleans": ([True, False, True], [1, 0, 1], ["False", "True"]),
    "-1 and +1": ([1, -1, 1], [1, 0, 1], ["-1", "1"]),
    "from 1": ([3, 1, 2], [2, 0, 1], ["1", "2", "3"]),
    "10 after 2": ([10, 2], [1, 0], ["2", "10"]),
    "whole floats": ([2.0, 0.0, 1.0], [2, 0, 1], ["0", "1", "2"]),
    "whole floats, bfloat16 apart": (np.array([5, 3], np.float16), [1, 0], ["3", "5"]),
    "from 0": ([2, 0, 1], [2, 0, 1], None),
    "from 0 with a gap": ([0, 3], [0, 3], None),
    "a column": ([[1], [0]], [1, 0], None),
    "one-hot": (np.eye(4)[[2, 0, 1]], [2, 0, 1], None),
    "one-hot booleans": (np.eye(3)[[2, 0, 1]] > 0, [2, 0, 1], None),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_of_labels(kind: str) -> None:
    labels, numbers, names = KINDS[kind]
    classes = find_classes(labels, "y")
    encoded = classes.encode(labels, "y")
    assert (encoded.tolist(), encoded.dtype, classes.names) == (numbers, np.int32, names)
    assert classes.number == {"from 0 with a gap": 4, "one-hot": 4}.get(kind, max(numbers) + 1)
    if names:  # a checkpoint has the names only
        assert Classes.named(names).encode(labels, "y").tolist() == numbers


def test_a_given_number_of_classes_leaves_whole_numbers_alone() -> None:
    classes = find_classes([3, 1, 2], "y", known=4)
    assert (classes.encode([3, 1], "y").tolist(), classes.number, classes.names) == ([3, 1], 4, None)
    assert find_classes([1.0, 2.0], "y", known=3).encode([1.0], "y").tolist() == [1]
    with pytest.raises(InputError, match="y has 3 classes, not --num_classes=4"):
        find_classes(["a", "b", "c"], "y", known=4)


def test_names_that_the_source_gives() -> None:
    classes = find_classes([2, 0], "y", names=["shirt", "shoe", "hat"])
    assert (classes.number, classes.names) == (3, ["shirt", "shoe", "hat"])
    assert Classes.named(["shirt", "shoe", "hat"]).encode(["hat", "shirt"], "y").tolist() == [2, 0]


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (["a", "c", "a"], "does not have the label c of example 1: its classes are a, b"),
        ([0, 1], "does not have the label 0 of example 0"),
    ],
)
def test_labels_that_training_never_saw(labels: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        find_classes(["a", "b"], "x_train").encode(labels, "x_test")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0.5, 1], "label 0.5 of example 0 is no class.*numpy.digitize"),
        ([1, np.nan], "label nan of example 1 is no class.*remove or mend it"),
        ([1, np.inf], "label inf of example 1"),
        ([[0.2, 0.8], [1, 0]], "one-hot rows.*argmax"),
        ([[1, 1], [1, 0]], "one-hot rows.*argmax"),
        (np.array(["a", None], object), "example 1 has no label"),
        ([f"id{i}" for i in range(5000)], "5000 different labels in 5000 examples look like names"),
        (list(range(7, 5007)), "5000 different labels"),
        (["a", "a"], "a single class"),
        ([], "is empty"),
        (np.zeros((3, 2, 2)), r"not \[3, 2, 2\]"),
        ([1j, 2j], "not be of type complex128"),
        ([0, 10**6], "looks damaged"),
    ],
    ids=str,
)
def test_labels_that_cannot_be_classes(labels: Any, words: str) -> None:
    with pytest.raises(InputError, match=f"^y.*{words}"):
        find_classes(labels, "y")
