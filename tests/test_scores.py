"""What the best checkpoint is chosen by, and what an evaluation shows, against scikit-learn's and SciPy's numbers."""

import functools
import json
from typing import Any

import numpy as np
import pytest
from conftest import make_arrays, small_config
from scipy import special, stats
from sklearn import metrics

from distmlp import Config, InputError, load, scores, train
from distmlp.data import datasets
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.layout import make_layout
from distmlp.progress import Line, Standing, best, score
from distmlp.training import Program
from launch import evaluate

ARRAYS = make_arrays(test=80)
X, Y = ARRAYS["x_train"], ARRAYS["y_train"]
TEST, VALIDATION = ((ARRAYS["x_test"][part], ARRAYS["y_test"][part]) for part in (slice(40), slice(40, 80)))
SCORES = ("balanced_accuracy", "macro_f1", "loss", "roc_auc")


def standing(history: list[Line]) -> Standing:
    return functools.reduce(Standing.after, history, Standing())


def trained(**changes: Any) -> Any:
    config = small_config("python:arrays", workdir=None, num_epochs=6, learning_rate=0.005, shuffle=True,
                          reduction="invariant", input_scaling="standard", **changes)  # fmt: skip
    return train(config, (X, Y), TEST, VALIDATION)


def sklearns(name: str, labels: np.ndarray, probabilities: np.ndarray) -> float:
    predicted = probabilities.argmax(axis=1)
    return float({
        "balanced_accuracy": lambda: metrics.balanced_accuracy_score(labels, predicted),
        "macro_f1": lambda: metrics.f1_score(labels, predicted, average="macro"),
        "roc_auc": lambda: metrics.roc_auc_score(labels, probabilities, multi_class="ovr"),
    }[name]())


@pytest.mark.parametrize("name", SCORES)
def test_the_best_goes_by_the_score_which_is_the_same_on_any_devices(name: str) -> None:
    first, *others = (trained(choose_by=name, num_devices=devices) for devices in (1, 3, 8))
    *lines, final = first.history
    keys = [key for key in lines[0] if "second" not in key]
    for other in others:
        assert [[line[key] for key in keys] for line in other.history[:-1]] == [
            [line[key] for key in keys] for line in lines]  # fmt: skip
    values = [line[f"validation_{name}"] for line in lines]
    top = lines[int(np.argmin(values) if name == "loss" else np.argmax(values))]
    assert best(first.history) is top
    for which in ("best_test", "test"):
        assert f"{which}_{name}" in final
    by_accuracy = trained(num_devices=1)
    assert [line["validation_loss"] for line in by_accuracy.history[:-1]] == [line["validation_loss"] for line in lines]
    assert "choose_by" not in by_accuracy.history[0]


def test_scores_are_scikit_learns(tmp_path: Any) -> None:
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=TEST[0], y_test=TEST[1])
    for name in SCORES[:2] + SCORES[3:]:
        history = train(small_config(str(tmp_path / "a.npz"), choose_by=name, workdir=name)).history
        probabilities = load(name, checkpoint=10).predict(TEST[0]).probabilities
        assert history[1][f"test_{name}"] == pytest.approx(sklearns(name, TEST[1], probabilities), abs=1e-7)


def test_patience_and_the_kept_checkpoint_go_by_the_score(tmp_path: Any) -> None:
    lines = [{"step": n, "choose_by": "loss", "test_accuracy": 0.5 + n / 10, "test_loss": loss}
             for n, loss in enumerate((3.0, 1.0, 2.0, 1.0))]  # fmt: skip
    assert score(lines[0]) == -3
    assert best(lines) is lines[1]
    assert standing(lines).stale == 2
    assert score({"final": True, "choose_by": "loss", "test_loss": 1.0}) is None
    result = trained(choose_by="loss", patience=1, num_devices=1)
    assert standing(result.history).stale in (0, 1)


def test_the_evaluation_of_labels_that_are_read_one_by_one(tmp_path: Any) -> None:
    """No process knows all labels then; they come with the results."""
    pairs = list(zip(TEST[0], TEST[1].astype(int), strict=True))
    config = small_config("python:list", num_devices=3, workdir=None, choose_by="macro_f1", num_classes=4)
    result = train(config, (X, Y), pairs)
    again = train(config, (X, Y), TEST)
    found, expected = ([line.get("test_macro_f1") for line in each.history] for each in (result, again))
    assert found == expected


def test_what_an_evaluation_is_asked_for_changes_none_of_its_numbers() -> None:
    config = small_config("python:arrays", num_devices=2)  # 32 rows a step
    layout = make_layout(config)
    data = datasets.load(config, (X, Y), TEST)
    parts = Program(config, data, layout, layout.device_memory)
    state = parts.initial_state(())
    evaluator = Evaluator(layout, config.eval_batch_size)
    plain, labels, log_probs = (evaluator(state, data.test, ask=ask) for ask in ("", "labels", "log_probs"))
    assert plain == labels == log_probs
    assert plain.pairs is plain.labels is plain.log_probs is labels.log_probs is None
    np.testing.assert_array_equal(log_probs.labels, TEST[1])
    assert log_probs.log_probs is not None
    assert log_probs.log_probs.shape == (40, 4)
    np.testing.assert_allclose(np.exp(log_probs.log_probs).sum(axis=1), 1, rtol=1e-5)
    matrix = np.zeros((4, 4), int)
    np.add.at(matrix, (TEST[1].astype(int), log_probs.log_probs.argmax(axis=1)), 1)
    for found in (labels.pairs, log_probs.pairs):
        assert found is not None
        assert found.tolist() == [[*place, matrix[*place]] for place in np.argwhere(matrix).tolist()]


def test_roc_auc_needs_examples_of_each_class() -> None:
    some = TEST[1] != 2
    with pytest.raises(InputError, match="roc_auc is not defined for validation_set, for no example is of class 2"):
        train(small_config("python:a", workdir=None, choose_by="roc_auc"), (X, Y), TEST, (TEST[0][some], TEST[1][some]))
    result = train(small_config("python:a", workdir=None, choose_by="roc_auc"), (X, Y), (TEST[0][some], TEST[1][some]),
                   VALIDATION)  # fmt: skip
    assert "test_roc_auc" not in result.history[-1]
    pairs = list(zip(TEST[0][some], TEST[1][some].astype(int), strict=True))
    with pytest.raises(InputError, match="is not defined for test_set, for not every class occurs in it"):
        train(small_config("python:a", workdir=None, choose_by="roc_auc", num_classes=4), (X, Y), pairs)


def test_roc_auc_of_too_many_classes_is_refused_before_training_though_labels_are_not_known() -> None:
    pairs = list(zip(TEST[0], TEST[1].astype(int), strict=True))
    config = small_config("python:a", workdir=None, choose_by="roc_auc", num_classes=101)
    with pytest.raises(InputError, match="is not defined for test_set, for there are more than 100 classes"):
        train(config, (X, Y), pairs, on_line=pytest.fail)  # with no line before


@pytest.mark.parametrize("classes", [2, 10])
def test_evaluate_says_what_scikit_learn_says(classes: int, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = make_arrays(train=200, test=120, classes=classes)
    np.savez(tmp_path / "a.npz", **arrays)
    train(small_config(str(tmp_path / "a.npz"), input_scaling="standard", learning_rate=0.5, num_devices=1))
    capsys.readouterr()
    assert evaluate.main(["run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    probabilities, labels = load("run").predict(arrays["x_test"]).probabilities, arrays["y_test"]
    ranked = probabilities[:, 1] if classes == 2 else probabilities
    expected = {
        "log_loss": metrics.log_loss(labels, probabilities),
        "balanced_accuracy": sklearns("balanced_accuracy", labels, probabilities),
        "roc_auc": metrics.roc_auc_score(labels, ranked, multi_class="ovr"),
        "average_precision": metrics.average_precision_score(labels, ranked),
        "accuracy_interval": list(stats.binomtest(found["correct"], 120).proportion_ci(0.95, "wilson")),
    }
    for name, value in expected.items():
        near = 2e-4 if name in ("roc_auc", "average_precision") else 1e-5  # log-odds tell apart what here is a tie
        assert found[name] == pytest.approx(value, rel=near), name
    assert found["top_3_accuracy"] == (
        None if classes == 2 else metrics.top_k_accuracy_score(labels, probabilities, k=3))
    sure, right = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    ranges = np.digitize(sure, np.arange(1, 10) / 10)
    error = sum(abs(sure[ranges == n].sum() - right[ranges == n].sum()) for n in range(10)) / 120
    assert found["calibration_error"] == pytest.approx(error, rel=1e-4)
    assert evaluate.main(["run"]) == 0
    text = capsys.readouterr().out
    for name in ("accuracy interval", "log loss", "balanced accuracy", "ROC AUC", "average precision", "calibration"):
        assert f"\n{name}" in text
    assert ("\ntop-3 accuracy" in text) == (classes == 10)
    assert max(map(len, text.splitlines())) <= 80


def test_what_is_not_defined_is_null_and_one_line_says_why(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    some = TEST[1] != 2
    np.savez(tmp_path / "a.npz", x_train=X, y_train=Y, x_test=TEST[0][some], y_test=TEST[1][some])
    train(small_config(str(tmp_path / "a.npz"), num_devices=1))
    capsys.readouterr()
    assert evaluate.main(["run", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["roc_auc"] is found["average_precision"] is None
    assert evaluate.main(["run"]) == 0
    assert "\nROC AUC and average precision are left out: no example is of class 2\n" in capsys.readouterr().out


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_ranks_go_by_log_odds_where_probabilities_are_all_0_or_1(classes: int) -> None:
    """Logits are far apart where features are in thousands; and their probabilities do not quite add up to 1."""
    random = np.random.default_rng(0)
    labels = random.integers(0, classes, 500).astype(np.int32)
    logits = 3e4 * (np.eye(classes)[labels] + 2 * random.standard_normal((500, classes)))
    log_probs = np.float32(logits - special.logsumexp(logits, axis=1, keepdims=True))
    exact, own = log_probs.astype(float), np.eye(classes, dtype=bool)
    odds = np.stack([exact[:, each] - special.logsumexp(exact[:, ~own[each]], axis=1) for each in range(classes)])
    for found, metric in ((scores.roc_auc, metrics.roc_auc_score),
                          (scores.average_precision, metrics.average_precision_score)):
        expected = [metric(labels == each, odds[each]) for each in range(classes)]
        assert found(labels, log_probs) == pytest.approx(np.mean(expected[-1:] if classes == 2 else expected))


def test_the_limits_of_the_ranking_metrics() -> None:
    assert scores.too_many(100_000, 100) == ""
    assert scores.too_many(10, 101) == "there are more than 100 classes"
    assert scores.too_many(100_001, 100) == "there are more than 10,000,000 probabilities"
    assert scores.too_many(10**7, 2) == ""
    assert scores.too_many(10**7 + 1, 2) == "there are more than 10,000,000 probabilities"


@pytest.mark.parametrize(("correct", "count"), [(0, 1), (0, 50), (50, 50), (1, 1), (7, 9), (9876, 10000)])
def test_wilsons_interval(correct: int, count: int) -> None:
    expected = stats.binomtest(correct, count).proportion_ci(0.95, "wilson")
    assert scores.wilson(correct, count) == pytest.approx(tuple(expected), abs=1e-12)


def test_a_rare_class_gets_a_line() -> None:
    labels = np.repeat([0, 1], [96, 4])
    few = (np.random.default_rng(0).standard_normal((100, 3)), labels)

    def remark(classes: int = 0, data: Any = few, **changes: Any) -> str:
        config = Config(batch_size=10, num_classes=classes, **changes)
        return datasets.balance_remark(config, datasets.load(config, data, data))

    assert remark().startswith("4.0% of the training examples are of class 1: --class_weight=balanced lets it count")
    assert "--choose_by=balanced_accuracy" in remark(classes=5)
    assert remark(class_weight="balanced") == remark(choose_by="macro_f1") == ""
    assert remark(data=(few[0], np.repeat([0, 1], [95, 5]))) == ""
    assert remark(data=(few[0], np.arange(100) % 25)) == ""  # each has 4 %
    assert remark(data=(few[0], np.array([*np.arange(99) % 20, 20]))) != ""
    assert remark(data=list(zip(*few, strict=True)), classes=2) == ""  # labels that are not known yet


def test_the_line_of_a_rare_class_comes_once_when_training_begins(capsys: pytest.CaptureFixture[str]) -> None:
    data = (np.random.default_rng(0).standard_normal((100, 3)), np.repeat([0, 1], [96, 4])[::-1])
    train(small_config("python:a", num_epochs=1), data, data)
    train(small_config("python:a", num_epochs=2), data, data)
    assert capsys.readouterr().err.count("--class_weight=balanced lets it count") == 1
