"""The report of an evaluation as a terminal shows it."""

import numpy as np

from distmlp.results.evaluation import ClassificationReport


def report(classes: tuple[str, ...], pairs: list[list[int]]) -> str:
    each = np.array([1.0] * len(classes))
    per_class = {"precision": each, "recall": each, "f1": each, "support": each.astype(int) * 1200}
    return str(ClassificationReport(
        checkpoint_step=120, loss=0.0123456, accuracy=0.75, correct=3000, count=4000, classes=classes,
        pairs=np.array(pairs), per_class=per_class, accuracy_interval=(0.7363, 0.7632), log_loss=0.0246912,
        balanced_accuracy=0.7512345, roc_auc=None, average_precision=None, top_3_accuracy=None,
        calibration_error=0.03456, calibration=([], []), left_out="there are too many",
    ))


HEAD = """\
checkpoint of step 120: 3,000 of 4,000 correct, accuracy 75.00 %, loss 0.01235

accuracy interval  73.63 to 76.32 %  Where the accuracy on endlessly many such
                                     examples is, in 95 of 100 cases (Wilson).
log loss           0.02469           The mean of -log(probability of the true
                                     class); 0 is perfect.
balanced accuracy  0.7512            The mean of the classes' recalls, so that
                                     rare classes count like frequent ones.
calibration error  0.0346            How far the probability of the prediction
                                     is from how often it is right: the mean
                                     over ten ranges.
ROC AUC and average precision are left out: there are too many

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
