"""Labels of any kind that names classes, and what cannot be one."""

import json
from decimal import Decimal
from typing import Any

import numpy as np
import pandas as pd
import pytest

from distmlp import InputError
from distmlp.data.labels import Classes, Seen, Written, find_classes, read_texts

KINDS: dict[str, Any] = {
    "text": (["dog", "cat", "fish", "cat"], [1, 0, 2, 0], ["cat", "dog", "fish"]),
    "bytes": ([b"dog", b"cat"], [1, 0], ["cat", "dog"]),
    "objects": (np.array(["dog", "cat"], object), [1, 0], ["cat", "dog"]),
    "number objects": (np.array([2, 1], object), [1, 0], [1, 2]),
    "booleans": ([True, False, True], [1, 0, 1], [False, True]),
    "-1 and +1": ([1, -1, 1], [1, 0, 1], [-1, 1]),
    "from 1": ([3, 1, 2], [2, 0, 1], [1, 2, 3]),
    "10 after 2": ([10, 2], [1, 0], [2, 10]),
    "decimals": ([Decimal("2.0"), Decimal(5)], [0, 1], [2, 5]),
    "nullable integers": (pd.Series([2, 1], dtype="Int64").to_numpy(), [1, 0], [1, 2]),
    "zero-padded": (["002", "01", "1"], [0, 1, 2], ["002", "01", "1"]),
    "whole floats": ([2.0, 0.0, 1.0], [2, 0, 1], [0, 1, 2]),
    "whole floats, bfloat16 apart": (np.array([5, 3], np.float16), [1, 0], [3, 5]),
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
    if names:  # a checkpoint has them as JSON; one of version 0.2 as text
        assert [type(name) for name in names] == [type(name) for name in json.loads(json.dumps(classes.names))]
        known = Classes.of({"classes": classes.names, "numbered": classes.numbered}, 0)
        assert known.encode(labels, "y").tolist() == numbers
        assert Classes.of({"classes": [str(name) for name in names]}, 0).encode(labels, "y").tolist() == numbers


def test_a_given_number_of_classes_leaves_whole_numbers_alone() -> None:
    classes = find_classes([3, 1, 2], "y", known=4)
    assert (classes.encode([3, 1], "y").tolist(), classes.number, classes.names) == ([3, 1], 4, None)
    assert find_classes([1.0, 2.0], "y", known=3).encode([1.0], "y").tolist() == [1]
    with pytest.raises(InputError, match="y has 3 classes, not --num_classes=4"):
        find_classes(["a", "b", "c"], "y", known=4)


def test_names_that_are_fewer_than_the_classes_asked_for_name_none() -> None:
    classes = find_classes([2, 0], "y", known=5, names=["shirt", "shoe", "hat"])
    assert (classes.number, classes.names, classes.numbered) == (5, None, False)


def test_names_that_the_source_gives() -> None:
    classes = find_classes([2, 0], "y", names=["shirt", "shoe", "hat"])
    assert (classes.number, classes.names) == (3, ["shirt", "shoe", "hat"])
    for info in ({}, {"numbered": True}):
        known = Classes.of({"classes": ["shirt", "shoe", "hat"]} | info, 3)
        assert known.encode(["hat", "shirt"], "y").tolist() == known.encode([2, 0], "y").tolist() == [2, 0]


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


RUNS = {
    "numbers by themselves": ({}, 3),
    "numbers": ({"classes": [1, 2, 3], "numbered": False}, 3),
    "booleans": ({"classes": [False, True], "numbered": False}, 2),
    "words": ({"classes": ["cat", "dog"], "numbered": False}, 2),
    "numerals": ({"classes": ["01", "1", "002"], "numbered": False}, 3),
    "named numbers": ({"classes": ["shirt", "shoe"], "numbered": True}, 2),
}


@pytest.mark.parametrize(("run", "labels", "numbers"), [
    ("numbers by themselves", ["2", "0"], [2, 0]), ("numbers by themselves", [True, False], [1, 0]),
    ("numbers", ["2", "1"], [1, 0]), ("numbers", [2.0, 1.0], [1, 0]), ("booleans", [1, 0], [1, 0]),
    ("booleans", ["True", "False"], [1, 0]), ("numerals", [1], [1]), ("numerals", ["002", "01"], [2, 0]),
    ("named numbers", [1, 0], [1, 0]), ("named numbers", ["shoe", "shirt"], [1, 0]),
])  # fmt: skip
def test_labels_that_say_the_same_as_a_runs_are_taken(run: str, labels: Any, numbers: list[int]) -> None:
    info, number = RUNS[run]
    assert Classes.of(info, number).encode(labels, "y").tolist() == numbers


@pytest.mark.parametrize(("run", "labels", "words"), [
    ("numbers by themselves", ["zero", "one"], "label 'zero' is none of the classes 0, 1, 2"),
    ("numbers by themselves", [0, 3], "label 3 is none of the classes 0, 1, 2.*of example 1"),
    ("numbers by themselves", ["1", "01"], "label '01' is none"), ("numbers", ["one"], "label 'one' is none"),
    ("numbers", [0, 1], "label 0 is none of the classes 1, 2, 3"), ("booleans", ["yes"], "label 'yes' is none"),
    ("words", [0, 1], "label 0 is none of the classes cat, dog"), ("numerals", [2], "label 2 is none"),
    ("named numbers", [2], "label 2 is none of the classes shirt, shoe"),
])  # fmt: skip
def test_labels_of_another_kind_than_a_runs_are_refused(run: str, labels: Any, words: str) -> None:
    info, number = RUNS[run]
    with pytest.raises(InputError, match=f"^y: {words}"):
        Classes.of(info, number).encode(labels, "y")


@pytest.mark.parametrize("labels", [
    [1, "a"], [None, 1], [pd.NA, "a"], [pd.NaT, "a"], [float("nan"), "a"], [np.float32("nan"), 1],
])  # fmt: skip
def test_python_objects_that_are_missing_or_of_two_kinds(labels: list[Any]) -> None:
    array = np.empty(2, object)
    array[:] = labels
    with pytest.raises(InputError, match=r"^y: (example 0 has no label|the label of example 0 is the number 1, but)"):
        find_classes(array, "y")


@pytest.mark.parametrize(("texts", "values"), [
    (["3", "1", " 2"], [3, 1, 2]), (["1.0", "2.0"], [1, 2]), (["-1", "1"], [-1, 1]),
    (["True", "False"], [True, False]), (["TRUE"], [True]), (["True", "false"], [True, False]),
    (["01", "1", "002"], ["01", "1", "002"]), (["1E2", "100"], ["1E2", "100"]), (["1", "1.0", "2.00"], [1, 1, 2]),
    (["+1", "1"], ["+1", "1"]), (["NA", "null", "nan"], ["NA", "null", "nan"]), (["nan", "1"], ["nan", "1"]),
    (["1", "True"], ["1", "True"]), (["0.5", "1e2"], [0.5, 100.0]), (["9" * 30, "1"], ["9" * 30, "1"]),
])  # fmt: skip
def test_the_labels_of_a_text_file_are_what_they_are_written_as(texts: list[str], values: list[Any]) -> None:
    read = read_texts(texts).tolist()
    assert (read, [type(value) for value in read]) == (values, [type(value) for value in values])


def in_file(*texts: str) -> np.ndarray:
    """Labels as those of a text file come."""
    return np.array([Written(text) for text in texts], object)


def numbers_seen(train: Any, test: Any) -> list[int]:
    """As pack finds them, block by block."""
    sets = []
    for labels in (train, test):
        seen = Seen("y")
        for label in labels:
            codes = seen.add_words(np.zeros(1, np.int32), [str(label)], written=True)
            assert len(codes) == 1
        sets.append(seen)
    return sets[1].numbers(sets[0].classes(0, None)).tolist()


@pytest.mark.parametrize(("train", "test", "numbers"), [
    (["true", "false", "unknown"], ["true", "false"], [1, 0]), (["1", "1.0", "x"], ["1.0"], [1]),
    (["1", "1.0", "2", "x"], ["1.0", "2.0"], [1, 2]), (["1", "NA", "x"], ["1", "NA"], [0, 1]),
    (["0.5", "x"], ["0.5"], [0]), (["1", "x"], ["1.0"], [0]), (["True", "x"], ["true"], [0]),
])  # fmt: skip
def test_text_of_a_later_file_is_first_of_all_what_is_written(
    train: list[str], test: list[str], numbers: list[int]
) -> None:
    assert find_classes(in_file(*train), "y").encode(in_file(*test), "y").tolist() == numbers
    assert numbers_seen(train, test) == numbers


@pytest.mark.parametrize("test", [["1", "NA"], ["0.50"]])
def test_what_reads_like_a_class_but_is_written_otherwise(test: list[str]) -> None:
    known = find_classes(in_file("0.5", "1", "nan", "x"), "y")
    with pytest.raises(InputError, match=f"does not have the label {test[-1]}"):
        known.encode(in_file(*test), "y")


@pytest.mark.parametrize("texts", [["0", "1", "NA"], ["0.0", "1.0", "nan"], ["01", "02", "null"]])
def test_an_absent_label_among_numbers_is_no_class(texts: list[str]) -> None:
    for labels in (in_file(*texts), np.array(texts), np.array(texts, object)):
        with pytest.raises(InputError, match=f"^y: label '{texts[2]}' of example 2 stands for an absent value among"):
            find_classes(labels, "y")
    with pytest.raises(InputError, match=f"^y: label '{texts[2]}'.* stands for an absent value.*: remove or mend it"):
        numbers_seen([*texts, *texts], [])
    assert find_classes(in_file("a", "b", "NA"), "y").names == ["NA", "a", "b"]


def test_one_hot_labels_have_a_column_for_each_class() -> None:
    classes = find_classes(np.eye(3)[[1, 2]], "y")
    assert (classes.number, classes.names, classes.encode(np.eye(3)[[1]], "y").tolist()) == (3, None, [1])
    for width in (2, 4):
        with pytest.raises(InputError, match=f"^test: one-hot labels have {width} columns, but there are 3 classes"):
            classes.encode(np.eye(width), "test")
    seen, other = Seen("y"), Seen("test")
    seen.add(np.eye(3))
    other.add(np.eye(2))
    with pytest.raises(InputError, match=r"^y, from example 3 on: one-hot labels have 2 columns, but before 3"):
        seen.add(np.eye(2))
    with pytest.raises(InputError, match=r"^test: one-hot labels have 2 columns, but there are 3 classes"):
        other.numbers(seen.classes(0, None))


def test_one_hot_labels_of_classes_that_are_called_otherwise_are_refused() -> None:
    for called in ([1, 2, 3], ["a", "b", "c"]):
        with pytest.raises(InputError, match=r"^test: one-hot labels say classes by number, and these are called .*: "):
            find_classes(np.array(called), "y").encode(np.eye(3)[[1, 2]], "test")
    named = find_classes(np.array([0, 1]), "y", names=["no", "yes"])
    for classes in (find_classes(np.array([False, True]), "y"), named):
        assert classes.encode(np.eye(2)[[1, 0]], "test").tolist() == [1, 0]


def test_whole_floats_are_the_same_classes_as_a_column() -> None:
    for labels in (np.array([0.0, 2.0]), np.array([[0.0], [2.0]])):
        assert find_classes(labels, "y").names == [0, 2]
