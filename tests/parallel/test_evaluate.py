"""Evaluation: sums on the host in index order; parity over devices is in test_parity.py."""

from typing import Any

import jax
import numpy as np
import pytest
import tutorial
from conftest import make_arrays
from hypothesis import given, settings
from hypothesis import strategies as st

from distmlp import Config, model
from distmlp.data.datasets import ArrayDataset, ItemDataset
from distmlp.data.labels import Classes
from distmlp.parallel import evaluate as evaluate_module
from distmlp.parallel.evaluate import Evaluator, Sum
from distmlp.parallel.layout import make_layout
from distmlp.parallel.specs import STATE, State

CONFIG = Config()


def state(scaling: Any = ()) -> State:
    params = jax.tree.map(lambda a: 5 * np.asarray(a), model.init_network_params([12, 8, 4], jax.random.key(1)))
    return make_layout(CONFIG).put(State(params, (), np.int32(0), scaling), STATE)


def test_loss_and_accuracy_are_the_tutorials() -> None:
    arrays = make_arrays()
    dataset = ArrayDataset(arrays["x_train"], arrays["y_train"], "x")
    result = Evaluator(make_layout(CONFIG), 7)(state(), dataset)
    images, targets = arrays["x_train"].astype(np.float32), tutorial.one_hot(arrays["y_train"], 4)
    assert result.loss == pytest.approx(float(tutorial.loss(state().params, images, targets)), rel=1e-6)
    assert result.accuracy == result.correct / 96
    assert result.accuracy == pytest.approx(tutorial.accuracy(state().params, images, arrays["y_train"]))


def test_types_are_its_own_and_not_the_environments() -> None:
    arrays = make_arrays()
    dataset, layout, given = ArrayDataset(arrays["x_train"], arrays["y_train"], "x"), make_layout(CONFIG), state()
    expected = Evaluator(layout, 7)(given, dataset)
    with jax.enable_x64(True):
        assert Evaluator(layout, 7)(given, dataset) == expected


def test_the_states_scaling_is_applied() -> None:
    arrays = make_arrays()
    scaling = (np.full(12, 100, np.float32), np.full(12, 0.02, np.float32))
    scaled = ((arrays["x_train"] - scaling[0]) * scaling[1]).astype(np.float32)
    evaluate = Evaluator(make_layout(CONFIG), 7)
    found = evaluate(state(scaling), ArrayDataset(arrays["x_train"], arrays["y_train"], "x"))
    expected = evaluate(state(), ArrayDataset(scaled, arrays["y_train"], "x"))
    assert found.correct == expected.correct
    assert found.loss == pytest.approx(expected.loss, rel=1e-6)


def test_item_by_item_sets_give_the_same() -> None:
    arrays = make_arrays()
    items: Any = list(zip(arrays["x_test"], arrays["y_test"], strict=True))
    evaluate = Evaluator(make_layout(CONFIG), 7)
    whole = evaluate(state(), ArrayDataset(arrays["x_test"], arrays["y_test"], "x"))
    assert evaluate(state(), ItemDataset(items, "x", Classes(4))) == whole


@settings(deadline=None, max_examples=60)
@given(count=st.integers(1, 60_000), piece=st.integers(1, 9_000), seed=st.integers(0, 9))
def test_losses_that_come_in_pieces_are_added_as_numpy_adds_all_of_them(count: int, piece: int, seed: int) -> None:
    count = min(count, 400 * piece)
    losses = np.random.default_rng(seed).lognormal(0, 3, count)
    added = Sum(count)
    for start in range(0, count, piece):
        added.add(losses[start : start + piece])
    assert added.value == losses.sum()


def test_pairs_of_classes_are_counted_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(evaluate_module, "_COUNTED", 100)
    true, predicted = np.random.default_rng(0).integers(0, 7, (2, 1234)).astype(np.int32)
    pairs = evaluate_module._Pairs()
    for start in range(0, 1234, 90):
        pairs.add(true[start : start + 90], predicted[start : start + 90])
    matrix = np.zeros((7, 7), int)
    np.add.at(matrix, (true, predicted), 1)
    assert pairs.counted().tolist() == [[i, j, matrix[i, j]] for i in range(7) for j in range(7)]


def test_poll_is_called_before_each_step_and_may_stop_it() -> None:
    arrays, calls = make_arrays(), []

    def poll() -> None:
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Evaluator(make_layout(CONFIG), 7)(state(), ArrayDataset(arrays["x_train"], arrays["y_train"], "x"), poll)
    assert len(calls) == 2  # 96 examples are two steps of 56
