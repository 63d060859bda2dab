"""The report of an evaluation as a terminal shows it."""

import numpy as np

from distmlp.results.evaluation import ClassificationReport


def report(classes: tuple[str, ...], pairs: list[list[int]]) -> str:
    each = np.array([1.0] * len(classes))
    per_class = {"precision": each, "recall": each, "f1": each, "support": each.astype(int) * 1200}
    return str(ClassificationReport(
        120, 0.0123456, 0.75, 3000, 4000, classes, np.array(pairs), per_class, np.zeros(4, np.int32)
    ))


HEAD = """\
checkpoint of step 120: 3,000 of 4,000 correct, accuracy 75.00 %, loss 0.01235

class  precision  recall     f1  support
cat       1.0000  1.0000 1.0000    1,200
dog       1.0000  1.0000 1.0000    1,200
"""


def test_the_classes_and_the_confusion_matrix() -> None:
    assert report(("cat", "dog"), [[0, 0, 2], [1, 0, 110], [1, 1, 1]]) == HEAD + """
confusion matrix (a row is a true class, a column what was predicted):
    cat dog
cat   2   0
dog 110   1"""


def test_names_that_are_too_alike_for_their_columns_are_numbered() -> None:
    assert report(("first", "firth"), [[0, 0, 2], [1, 0, 1]]).partition("\n\nconfusion")[2] == """\
 matrix (a row is a true class, a column what was predicted):
         0  1
0 first  2  0
1 firth  1  0"""


def test_of_many_classes_the_most_frequent_mistakes() -> None:
    mistakes = [[0, 0, 99], *([n, n + 1, n % 3] for n in range(1, 39))]
    shown = report(tuple(f"c{n}" for n in range(40)), mistakes).partition("\n\nthe most frequent mistakes ")[2]
    head, *lines = shown.splitlines()
    assert head == "(--json has all of them):"
    assert len(lines) == 20
    assert lines[0] == "      2  c2 taken for c3"
    assert lines[1] == "      2  c5 taken for c6"  # of equal ones, the first class first
    assert lines[13] == "      1  c1 taken for c2"
