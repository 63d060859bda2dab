"""The estimator, by scikit-learn's own checks, and in what its users build of estimators; on real data."""

import copy
import dataclasses
import gc
import inspect
import os
import pickle
import signal
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import sklearn
from conftest import REPOSITORY, snapshot
from joblib.externals.loky import get_reusable_executor
from sklearn import datasets
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import make_column_transformer
from sklearn.ensemble import VotingClassifier
from sklearn.exceptions import NotFittedError
from sklearn.inspection import permutation_importance
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score, cross_validate
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler
from sklearn.utils import shuffle
from sklearn.utils.estimator_checks import parametrize_with_checks

from distmlp import Config, InputError, MLPClassifier, load, train
from launch import export, flags, report

# Settings of where data come from: here that is X and y.
OF_FILES = {
    "dataset", "test_fraction", "label_column", "ignore_columns", "header", "text_columns", "missing", "image_size",
    "image_mode", "num_classes", "synthetic_examples", "synthetic_features", "synthetic_classes", "weight_column",
    "fold", "data_seed",
}  # fmt: skip
BESIDE = {"random_state", "verbose", "warm_start", "workdir", "platform", "num_devices", "num_shards", "reduction",
          "patience"}  # fmt: skip
SMALL: dict[str, Any] = {"hidden_sizes": (16,), "num_epochs": 5, "random_state": 0, "num_devices": 1}

WINE = shuffle(*datasets.load_wine(return_X_y=True), random_state=0)
NAMES = np.array(["Barbera", "Barolo", "Grignolino"])


def expected_failures(estimator: Any) -> dict[str, str]:
    return {"check_sample_weight_equivalence_on_dense_data": "it compares at 1e-7, which float32 cannot meet"}


@parametrize_with_checks([MLPClassifier(num_devices=1)], expected_failed_checks=expected_failures)  # type: ignore[untyped-decorator]
def test_scikit_learns_checks(estimator: Any, check: Any) -> None:
    check(estimator)


@pytest.fixture(scope="module")
def fitted() -> MLPClassifier:
    """On the wines, by their names: use it only."""
    return MLPClassifier(**SMALL).fit(WINE[0], NAMES[WINE[1]])


def params_of(estimator: MLPClassifier) -> list[np.ndarray]:
    return [array for layer in zip(estimator.coefs_, estimator.intercepts_, strict=True) for array in layer]


def assert_same_parameters(one: MLPClassifier, other: MLPClassifier) -> None:
    """To the bit."""
    for a, b in zip(params_of(one), params_of(other), strict=True):
        np.testing.assert_array_equal(a, b)


def assert_same(one: MLPClassifier, other: MLPClassifier) -> None:
    """What they predict for the wines, too."""
    assert_same_parameters(one, other)
    np.testing.assert_array_equal(one.predict_proba(WINE[0]), other.predict_proba(WINE[0]))


def test_the_parameters_are_the_settings_of_their_names() -> None:
    scopes = {field.name: field.metadata["scope"] for field in dataclasses.fields(Config)}
    settings = {name for name, scope in scopes.items() if scope in ("experiment", "length")}
    assert set(MLPClassifier().get_params()) == (settings - OF_FILES - {"seed"}) | BESIDE


def test_defaults_are_those_for_tables() -> None:
    tabular = flags.parse(["", "tabular.flags"])
    differing = {"class_weight": None, "workdir": None}
    for name, parameter in inspect.signature(MLPClassifier).parameters.items():
        if hasattr(tabular, name):
            assert parameter.default == differing.get(name, getattr(tabular, name)), name


@pytest.mark.parametrize("devices", [1, pytest.param(3, marks=pytest.mark.full_xla)])
def test_a_fit_has_the_bits_of_train(devices: int) -> None:
    x, y = datasets.load_breast_cancer(return_X_y=True)
    weights = np.random.default_rng(0).random(len(y))
    settings: dict[str, Any] = {
        "hidden_sizes": (16, 8), "num_epochs": 3, "batch_size": 64, "optimizer": "adamw", "learning_rate": 0.01,
        "schedule": "warmup_cosine", "warmup_steps": 4, "weight_decay": 0.3, "shuffle": True,
        "input_scaling": "standard", "validation_fraction": 0.2, "num_devices": devices,
    }  # fmt: skip
    estimator = MLPClassifier(**settings, random_state=7, class_weight={0: 2.0, 1: 0.5}).fit(x, y, weights)
    expected = train(Config(**settings, seed=7, workdir=None), (x, y, weights * np.where(y == 0, 2.0, 0.5)), (x, y))
    for (weight, bias), coef, intercept in zip(
        expected.best_params, estimator.coefs_, estimator.intercepts_, strict=True
    ):
        np.testing.assert_array_equal(coef, np.asarray(weight).T)
        np.testing.assert_array_equal(intercept, bias)
    lines = [line for line in expected.history if not line.get("final")]
    assert estimator.loss_curve_ == [line["train_loss"] for line in lines]
    assert estimator.validation_curve_ == [line["validation_accuracy"] for line in lines]


def test_a_second_fit_of_the_same_shapes_compiles_nothing(compilations: list[str]) -> None:
    changed = {"num_epochs": 4, "schedule": "constant", "validation_fraction": 0.25}
    first = MLPClassifier(**SMALL | changed).fit(*WINE)
    first.predict(WINE[0])
    compilations.clear()
    again = MLPClassifier(**SMALL | changed | {"random_state": 1, "num_epochs": 6, "class_weight": "balanced"})
    again.fit(WINE[0] + 1, NAMES[WINE[1]]).predict(WINE[0])
    assert compilations == []
    for other in ({"matmul_precision": "highest"}, {"learning_rate": 0.02}):
        compilations.clear()
        MLPClassifier(**SMALL | changed | other).fit(*WINE)
        assert compilations, f"{other} needs another program"


def test_what_is_kept_of_a_fit_holds_neither_its_settings_nor_its_data() -> None:
    estimator = MLPClassifier(**SMALL).fit(*WINE)
    settings = weakref.ref(estimator._settings)
    del estimator
    gc.collect()
    assert settings() is None


def test_ctrl_c_ends_a_fit_with_what_was_trained(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(line: dict[str, Any]) -> str:
        if line["epoch"] == 3:
            os.kill(os.getpid(), signal.SIGINT)
        return f"epoch {line['epoch']}"

    monkeypatch.setattr("distmlp.run.log.describe", interrupted)
    estimator = MLPClassifier(**SMALL | {"num_epochs": 100_000, "verbose": True})
    with pytest.warns(UserWarning, match="interrupted by user"):
        estimator.fit(*WINE)
    assert 3 <= estimator.n_iter_ < 100_000
    assert len(estimator.loss_curve_) in (estimator.n_iter_, estimator.n_iter_ - 1)
    assert estimator.score(*WINE) > 0.9


def test_a_fit_is_silent_writes_nothing_and_sets_no_handlers(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(signal, "signal", lambda *arguments: pytest.fail("a handler was set"))
    MLPClassifier(**SMALL).fit(*WINE)
    assert capfd.readouterr() == ("", "")
    assert snapshot(tmp_path) == {}
    MLPClassifier(**SMALL, verbose=True).fit(*WINE)
    assert [line.split()[:2] for line in capfd.readouterr().out.splitlines()[1:]] == [
        ["epoch", str(epoch)] for epoch in range(1, 6)
    ]


def test_partial_fit_is_an_epoch_at_the_constant_rate() -> None:
    settings = SMALL | {"num_epochs": 3, "schedule": "constant"}
    whole, parts = MLPClassifier(**settings).fit(*WINE), MLPClassifier(**settings | {"num_epochs": 9})
    for _ in range(3):
        parts.partial_fit(WINE[0], WINE[1], classes=[0, 1, 2])
    assert_same(whole, parts)
    assert (parts.n_iter_, parts.loss_curve_) == (3, whole.loss_curve_)
    parts.partial_fit(WINE[0][:20], np.zeros(20))  # one class of those
    assert (parts.n_iter_, parts.predict_proba(WINE[0]).shape) == (4, (178, 3))
    with pytest.raises(ValueError, match="none of the classes: 3"):
        parts.partial_fit(WINE[0], WINE[1] + 1)
    with pytest.raises(ValueError, match="not the same as on last call"):
        parts.partial_fit(WINE[0], WINE[1], classes=[0, 1])
    with pytest.raises(ValueError, match="classes must be passed"):
        clone(parts).partial_fit(*WINE)


def test_what_is_constant_in_the_first_rows_is_learned_from_later_ones() -> None:
    x = np.random.default_rng(0).standard_normal((64, 3))
    y = (x[:, 0] > 0).astype(int)
    for first in (x * [0, 1, 1], x[:1]):
        estimator = MLPClassifier(**SMALL | {"learning_rate": 0.05})
        estimator.partial_fit(first, y[: len(first)], classes=[0, 1])
        for _ in range(10):
            estimator.partial_fit(x, y)
        assert estimator.score(x, y) > 0.9
    constant = MLPClassifier(**SMALL).fit(x * [0, 1, 1], y)
    np.testing.assert_array_equal(constant.predict_proba(x), constant.predict_proba(x * [0, 1, 1]))


def test_partial_fit_weighs_classes_whatever_its_rows_are() -> None:
    x, y = WINE[0], WINE[1]
    parts = MLPClassifier(**SMALL, class_weight={1: 50}).partial_fit(x, y, classes=[0, 1, 2])
    weighed = MLPClassifier(**SMALL).partial_fit(x, y, [0, 1, 2], np.where(y == 1, 50, 1))
    for estimator, weights in ((parts, None), (weighed, [1] * 20)):
        estimator.partial_fit(x[:20], np.zeros(20), sample_weight=weights)  # without class 1
    assert_same(parts, weighed)
    for estimator in (MLPClassifier(**SMALL), parts):
        with pytest.raises(InputError, match=r"^class_weight='balanced' goes by the labels of all rows.*: give a dict"):
            estimator.set_params(class_weight="balanced").partial_fit(x, y, classes=[0, 1, 2])


def test_a_fit_that_is_refused_changes_nothing(fitted: MLPClassifier) -> None:
    x, y, wrong = WINE[0][:, :5], WINE[1], -np.ones(178)
    refitted, new = copy.deepcopy(fitted), MLPClassifier(**SMALL)
    for estimator in (refitted, new):
        with pytest.raises(InputError, match="the weight -1 of example 0"):
            estimator.fit(x, y + 1, wrong)
    with pytest.raises(InputError, match="the weight -1 of example 0"):
        new.partial_fit(x, y, [0, 1, 2], wrong)
    assert_same(refitted, fitted)
    assert set(refitted.predict(WINE[0])) == set(NAMES)
    assert not hasattr(new, "n_features_in_")
    with pytest.raises(NotFittedError):
        new.predict(x)


def test_a_warm_start_goes_on() -> None:
    cold = MLPClassifier(**SMALL).fit(*WINE)
    warm = MLPClassifier(**SMALL, warm_start=True).fit(*WINE)
    assert_same(cold, warm)
    warm.fit(*WINE)
    assert (warm.n_iter_, len(warm.loss_curve_)) == (10, 10)
    assert warm.loss_curve_[5] < cold.loss_curve_[1]
    with pytest.raises(ValueError, match="with warm_start, y must have the classes"):
        warm.fit(WINE[0], WINE[1] % 2)
    for other in ({"hidden_sizes": (8,)}, {"input_scaling": "none"}):
        with pytest.raises(InputError, match=r"not of these --hidden_sizes, --optimizer and --input_scaling"):
            copy.deepcopy(warm).set_params(**other).fit(*WINE)
    parts = MLPClassifier(**SMALL).partial_fit(WINE[0], WINE[1], classes=[0, 1, 2])
    settings: dict[str, Any]
    for settings in ({"optimizer": "sgd"}, {"clip_norm": 1.0}):
        with pytest.raises(InputError, match=r"not of these --optimizer, --momentum, --weight_decay and --clip_norm"):
            copy.deepcopy(parts).set_params(**settings).partial_fit(*WINE)
    assert cold.fit(*WINE).n_iter_ == 5


@pytest.mark.parametrize("batch_size", [32, 200])
def test_integer_weights_are_as_repeated_rows(batch_size: int) -> None:
    """What scikit-learn's check does, at what float32 can do."""
    rng = np.random.RandomState(42)
    x, y, weights = rng.rand(15, 30), rng.randint(0, 3, size=15), rng.randint(0, 5, size=15)
    settings = {"batch_size": batch_size, "num_devices": 1, "random_state": 0}
    mixed = shuffle(x, y, weights, random_state=0)
    weighted = MLPClassifier(**settings).fit(mixed[0], mixed[1], mixed[2])
    repeated = MLPClassifier(**settings).fit(x.repeat(weights, axis=0), y.repeat(weights))
    np.testing.assert_allclose(weighted.predict_proba(x), repeated.predict_proba(x), rtol=1e-5, atol=1e-5)
    unweighted = MLPClassifier(**settings).fit(x, y)
    assert np.abs(unweighted.predict_proba(x) - repeated.predict_proba(x)).max() > 0.01


def test_weights_of_classes_and_what_is_given_wrong() -> None:
    x, y = WINE
    by_class = MLPClassifier(**SMALL, class_weight={"Barbera": 3, "Barolo": 1, "Grignolino": 0.5}).fit(x, NAMES[y])
    assert_same(by_class, MLPClassifier(**SMALL).fit(x, y, np.array([3, 1, 0.5])[y]))
    balanced = MLPClassifier(**SMALL, class_weight="balanced").fit(x, y)
    np.testing.assert_allclose(  # computed in another order
        balanced.predict_proba(x),
        MLPClassifier(**SMALL).fit(x, y, (len(y) / (3 * np.bincount(y)))[y]).predict_proba(x), atol=1e-5,
    )  # fmt: skip
    with pytest.raises(ValueError, match="not in class_weight"):
        MLPClassifier(**SMALL, class_weight={"Barollo": 3}).fit(x, NAMES[y])
    for given in ([3, 1, 0.5], np.array([3, 1, 0.5]), 5):
        with pytest.raises(ValueError, match=rf"^class_weight is a {type(given).__name__}: give None, "):
            MLPClassifier(**SMALL, class_weight=given).fit(x, y)
    MLPClassifier(**SMALL | {"random_state": 2**32 - 1}).fit(x, y)  # the largest that scikit-learn has
    text = MLPClassifier(**SMALL, class_weight={"0": 3, "2": 0.5}).fit(x, y.astype(str))
    assert_same(text, by_class)
    MLPClassifier(**SMALL, class_weight={0: 3, 1: 1, 2: 0.5, 3: 7}).fit(x, y)  # one that these rows lack


@pytest.mark.parametrize("copied", [
    copy.deepcopy, lambda estimator: pickle.loads(pickle.dumps(estimator)),
    lambda estimator: [joblib.dump(estimator, "model.joblib"), joblib.load("model.joblib")][1],
    lambda estimator: clone(estimator).fit(WINE[0], NAMES[WINE[1]]),
], ids=["deepcopy", "pickle", "joblib", "clone"])  # fmt: skip
def test_copies_predict_the_same(fitted: MLPClassifier, copied: Any) -> None:
    assert_same(fitted, copied(fitted))
    assert copied(fitted).predict(WINE[0]).tolist() == fitted.predict(WINE[0]).tolist()


def test_a_clone_is_not_fitted(fitted: MLPClassifier) -> None:
    with pytest.raises(NotFittedError):
        clone(fitted).predict(WINE[0])


def test_seeds_are_drawn(fitted: MLPClassifier) -> None:
    drawn = np.random.RandomState(3)
    one, two = (MLPClassifier(**SMALL | {"random_state": drawn}).fit(*WINE) for _ in range(2))
    assert not np.array_equal(one.coefs_[0], two.coefs_[0])
    again = MLPClassifier(**SMALL | {"random_state": np.random.RandomState(3)}).fit(*WINE)
    assert_same(one, again)
    assert not np.array_equal(fitted.coefs_[0], MLPClassifier(**SMALL | {"random_state": None}).fit(*WINE).coefs_[0])


def test_probabilities_far_from_what_was_trained(fitted: MLPClassifier) -> None:
    logarithms = fitted.predict_log_proba(WINE[0] * 1e4)
    assert np.isfinite(logarithms).all()
    assert (fitted.predict_proba(WINE[0] * 1e4) == 0).any()
    np.testing.assert_allclose(np.exp(fitted.predict_log_proba(WINE[0])), fitted.predict_proba(WINE[0]), rtol=1e-6)
    assert set(fitted.predict(WINE[0])) == set(NAMES)


def test_the_best_parameters_by_rows_held_out() -> None:
    settings = SMALL | {"num_epochs": 60, "validation_fraction": 0.3, "learning_rate": 0.05}
    patient = MLPClassifier(**settings, patience=4, choose_by="loss").fit(*WINE)
    scores = patient.validation_curve_
    assert scores.index(max(scores)) == patient.n_iter_ - 5 < 55
    shorter = MLPClassifier(**settings | {"max_steps": 4 * (patient.n_iter_ - 4), "schedule_steps": 240}).fit(*WINE)
    assert_same(patient, shorter)


def test_what_it_does_not_take(fitted: MLPClassifier) -> None:
    x, y = WINE
    for arguments, message in (
        ((x, np.stack([y, y], axis=1)), "1d array"), ((scipy.sparse.csr_array(x), y), "[Ss]parse"),
        ((np.where(x > 1500, np.nan, x), y), "NaN"), ((x, y, -np.ones(len(y))), "weight"),
        ((x, [*NAMES[y[:-1]], float("nan")]), "NaN"),
    ):  # fmt: skip
        with pytest.raises((ValueError, TypeError), match=message):
            MLPClassifier(**SMALL).fit(*arguments)
    for setting, message in (
        ({"learning_rate": -1.0}, "--learning_rate=-1.0 must be above 0"), ({"random_state": -1}, "--seed=-1"),
        ({"patience": 3}, "^patience=3 goes by a validation set: give validation_fraction=0.1$"),
        ({"class_weight": "auto"}, "--class_weight=auto"),
        ({"workdir": ""}, "^workdir='' is empty, as if by a variable that is not set: name a folder, or give None$"),
    ):
        with pytest.raises(InputError, match=message):
            MLPClassifier(**SMALL | setting).fit(x, y)
    for labels, single in ((np.append(y[:-1] + 1, 4), "4"), (np.append(NAMES[y[:-1]], "Merlot"), "'Merlot'")):
        with pytest.raises(InputError, match=rf"^validation_fraction=0.1: label {single} is of a single row.*=0$"):
            MLPClassifier(**SMALL, validation_fraction=0.1).fit(x, labels)
    for drawn in (None, np.random.RandomState(0)):
        with pytest.raises(InputError, match=r"^with workdir, give an int as random_state"):
            MLPClassifier(**SMALL | {"random_state": drawn}, workdir="run").fit(x, y)
    with pytest.raises(InputError, match="leave workdir out"):
        MLPClassifier(**SMALL, workdir="run").partial_fit(x, y, classes=[0, 1, 2])


def test_in_pipelines_and_by_columns_of_a_frame() -> None:
    frame = datasets.load_wine(as_frame=True).data
    frame["strength"] = pd.cut(frame.pop("alcohol"), 3, labels=["weak", "medium", "strong"]).astype(str)
    columns = make_column_transformer((OneHotEncoder(sparse_output=False), ["strength"]), remainder=StandardScaler())
    y = NAMES[datasets.load_wine().target]
    model = make_pipeline(columns.set_output(transform="pandas"), MLPClassifier(**SMALL)).fit(frame, y)
    names = model[-1].feature_names_in_.tolist()
    assert ("onehotencoder__strength_weak" in names, len(names), model[-1].n_features_in_) == (True, 15, 15)
    assert model.score(frame, y) > 0.8
    with pytest.warns(UserWarning, match="does not have valid feature names"):
        model[-1].predict(model[:-1].transform(frame).to_numpy())
    bare = clone(model).set_output(transform="default").fit(frame, y)
    np.testing.assert_array_equal(bare.predict_proba(frame), model.predict_proba(frame))


def test_in_searches_of_one_process_and_of_two() -> None:
    x, y = WINE[0][:150], WINE[1][:150]
    grid = {"random_state": [0, 1, 2]}  # with another --hidden_sizes, all processes would compile again
    found = [GridSearchCV(MLPClassifier(**SMALL), grid, cv=3, n_jobs=jobs).fit(x, y) for jobs in (1, 2)]
    get_reusable_executor().shutdown()  # joblib's two would stay, and other tests count this process's children
    scores = [search.cv_results_["mean_test_score"].tolist() for search in found]
    assert scores[0] == scores[1]
    assert max(scores[0]) > 0.9
    assert_same(*(search.best_estimator_ for search in found))


def test_in_validation_with_weights_on_their_way() -> None:
    x, y = WINE[0][:150], WINE[1][:150]
    plain = cross_val_score(MLPClassifier(**SMALL), x, y, cv=3)
    assert plain.min() > 0.85
    weights = np.where(y == 0, 0.0, 1.0)  # of the first class, nothing is learned
    with sklearn.config_context(enable_metadata_routing=True):
        estimator = MLPClassifier(**SMALL).set_fit_request(sample_weight=True).set_score_request(sample_weight=False)
        found = cross_validate(estimator, x, y, cv=3, params={"sample_weight": weights}, return_estimator=True)
    assert all(0 not in each.predict(x) for each in found["estimator"])
    assert found["test_score"].max() < plain.min()


def test_in_calibration_ensembles_and_inspection() -> None:
    x, y = (part[:400] for part in shuffle(*datasets.load_breast_cancer(return_X_y=True), random_state=0))
    estimator = MLPClassifier(**SMALL)
    calibrated = CalibratedClassifierCV(estimator, cv=2, ensemble=False).fit(x, y)
    np.testing.assert_allclose(calibrated.predict_proba(x).sum(axis=1), 1, atol=1e-6)
    other = make_pipeline(StandardScaler(), LogisticRegression())
    voting = VotingClassifier([("ours", estimator), ("theirs", other)], voting="soft").fit(x, y)
    each = [model.predict_proba(x) for model in voting.estimators_]
    np.testing.assert_allclose(voting.predict_proba(x), np.mean(each, axis=0), rtol=1e-6)
    assert min(calibrated.score(x, y), voting.score(x, y)) > 0.95
    beside = np.concatenate([x[:, :2], np.random.default_rng(0).random((len(x), 1))], axis=1)  # with one of no use
    important = permutation_importance(clone(estimator).fit(beside, y), beside, y, n_repeats=2, random_state=0)
    of_use, _, of_none = important.importances_mean
    assert (of_use > 0.1, abs(of_none) < 0.02) == (True, True)


def test_a_fit_with_a_folder_is_a_run(
    fitted: MLPClassifier, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    x, y = pd.DataFrame(WINE[0]).add_prefix("column "), NAMES[WINE[1]]
    estimator = MLPClassifier(**SMALL, workdir=tmp_path / "run").fit(x, y)
    assert capfd.readouterr() == ("", "")
    model = load(tmp_path / "run")
    assert (model.classes, model.step) == (tuple(sorted(NAMES)), 30)
    found = estimator.predict_proba(x)
    np.testing.assert_array_equal(found, fitted.predict_proba(WINE[0]))
    np.testing.assert_array_equal(model.predict_proba(x), found)
    np.testing.assert_array_equal(model.predict_proba(x[x.columns[::-1]]), found)  # by name
    np.testing.assert_array_equal(model.predict_log_proba(WINE[0]), estimator.predict_log_proba(x))
    before = snapshot(tmp_path / "run" / "checkpoints")
    assert clone(estimator).fit(x, y).loss_curve_ == estimator.loss_curve_ == fitted.loss_curve_
    assert snapshot(tmp_path / "run" / "checkpoints") == before, "a finished run was trained again"
    with pytest.raises(InputError, match="holds another run"):
        clone(estimator).set_params(learning_rate=0.1).fit(x, y)
    longer = MLPClassifier(**SMALL | {"num_epochs": 7, "schedule": "constant"})
    for each in (3, 7):
        gone_on = clone(longer).set_params(workdir="longer", num_epochs=each).fit(x, y)
    assert_same_parameters(gone_on, longer.fit(x, y))

    assert export.main([str(tmp_path / "run"), "--format=npz", "--output=model.npz"]) == 0
    assert np.load("model.npz")["classes"].tolist() == sorted(NAMES)
    assert report.main([str(tmp_path / "run"), "--output=report.html"]) == 0
    assert "<svg" in Path("report.html").read_text()


@pytest.mark.parametrize("names", [[False, True], [1.0, 2.0], [0.0, 1.0], [0, 1], [-1, 1]], ids=str)
def test_a_run_calls_the_classes_as_train_does(names: list[Any]) -> None:
    x, y = WINE[0][WINE[1] < 2], np.array(names)[WINE[1][WINE[1] < 2]]
    estimator = MLPClassifier(**SMALL | {"num_epochs": 2}, workdir="run").fit(x, y)
    train(Config(dataset="python:a", hidden_sizes=(8,), num_epochs=1, workdir="other"), (x, y), (x, y))
    called = [(type(name), name) for name in load("run").classes]
    assert called == [(type(name), name) for name in load("other").classes]
    assert called == [(bool if y.dtype == bool else int, name) for name in estimator.classes_.tolist()]
    assert (estimator.classes_.dtype, estimator.predict(x[:2]).dtype) == (y.dtype, y.dtype)
    assert load("run").predict(x).classes.tolist() == estimator.predict(x).tolist()


def test_the_best_of_a_folder(tmp_path: Path) -> None:
    settings = SMALL | {"validation_fraction": 0.3, "learning_rate": 0.05, "patience": 4, "num_epochs": 60}
    one, other = (MLPClassifier(**settings, workdir=workdir).fit(*WINE) for workdir in (None, tmp_path / "run"))
    assert one.n_iter_ == other.n_iter_ < 60
    assert_same_parameters(one, other)
    assert one.validation_curve_ == other.validation_curve_


def test_importing_it_starts_nothing() -> None:
    code = (
        "import sys\n"
        "from distmlp import MLPClassifier\n"
        "assert 'jax' not in sys.modules and 'torch' not in sys.modules\n"
        "MLPClassifier().get_params()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=REPOSITORY, check=True, timeout=120)
