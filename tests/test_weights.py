"""Weights of examples: what they count in the loss, where they come from, and what they leave as it is."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import make_arrays, small_config

from distmlp import Config, InputError, model, train
from distmlp.data import datasets
from distmlp.data import weights as weighing
from distmlp.data.datasets import ArrayDataset, Data, input_scaling
from distmlp.data.loader import NumpyLoader
from distmlp.data.order import Order
from distmlp.parallel.layout import make_layout
from distmlp.parallel.specs import BATCH, STATE, State
from distmlp.parallel.step import Recipe, gradients

ARRAYS = make_arrays()
X, Y, TEST = ARRAYS["x_train"], ARRAYS["y_train"], (ARRAYS["x_test"], ARRAYS["y_test"])
WEIGHTS = np.random.default_rng(1).uniform(0, 3, len(X)).astype(np.float32)
PYTHON = small_config("python:arrays", workdir=None)


def trained(weights: Any, x: np.ndarray = X, y: np.ndarray = Y, **settings: Any) -> Any:
    result = train(Config(**PYTHON.settings() | {"hidden_sizes": (8,)} | settings), (x, y, weights), TEST)
    return jax.tree.map(np.asarray, result.params), result.history


def gradient(x: np.ndarray, y: np.ndarray, weights: np.ndarray | None, devices: int, **settings: Any) -> Any:
    """Of one batch of all examples: the loss and the gradient."""
    config = Config(batch_size=len(x), num_devices=devices, **settings)
    layout = make_layout(config)
    loader = NumpyLoader(ArrayDataset(x, y, "x"), len(x), layout.num_shards, layout.local_shards, weights=weights)
    params = model.init_network_params([12, 8, 4], jax.random.key(0))
    state = layout.put(jax.tree.map(np.asarray, State(params, (), np.int32(0), ())), STATE)
    step = layout.wrap(lambda state, batch: gradients(state, batch, layout, Recipe(4)), (STATE, BATCH), donate=False)
    return jax.tree.map(np.asarray, step(state, layout.put(next(iter(loader)).on_devices(), BATCH)))


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_whole_weights_are_repeated_rows_and_0_a_missing_one(devices: int) -> None:
    times = np.arange(96) % 4
    loss, grads = gradient(X, Y, times.astype(np.float32), devices)
    rows = np.repeat(np.arange(96), times)
    expected_loss, expected = gradient(X[rows], Y[rows], None, 1)
    np.testing.assert_allclose(loss, expected_loss, rtol=1e-6)
    largest = max(np.abs(part).max() for part in jax.tree.leaves(expected))
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a / largest, b / largest, atol=1e-6), grads, expected)


@pytest.mark.parametrize("placement", [pytest.param("host", marks=pytest.mark.full_xla), "device"])
def test_weights_give_the_same_bits_on_any_devices(placement: str) -> None:
    weights = np.where(np.arange(96) % 5 == 0, 0, WEIGHTS)
    runs = [trained(weights, num_devices=devices, reduction="invariant", shuffle=True, momentum=0.9,
                    data_placement=placement, input_scaling="standard", class_weight="balanced")
            for devices in (1, 3, 8)]  # fmt: skip
    keys = ("train_loss", "test_loss", "test_correct", "params_sha256")
    first, *others = ([{key: line.get(key) for key in keys} for line in history] for _, history in runs)
    assert first == others[0] == others[1]
    assert first[-1]["params_sha256"] != trained(None, reduction="invariant", shuffle=True, momentum=0.9,
                                                 input_scaling="standard")[1][-1]["params_sha256"]  # fmt: skip


@pytest.mark.parametrize("placement", ["host", "device"])
def test_weights_of_1_change_no_bit(placement: str) -> None:
    settings = {"data_placement": placement, "input_scaling": "standard", "num_devices": 3}
    without, with_ones = (trained(weights, **settings)[1] for weights in (None, np.ones(96)))
    for name in ("params_sha256", "train_loss", "test_loss"):
        assert [line.get(name) for line in without] == [line.get(name) for line in with_ones]


@pytest.mark.parametrize("placement", ["host", "device"])
@pytest.mark.parametrize("devices", [1, 8])
def test_a_batch_without_weight_changes_nothing_but_the_step(placement: str, devices: int) -> None:
    """The second of five batches has no weight. Adam would otherwise go on by its momentum, and decay the weights."""
    weights = np.ones(96)
    weights[20:40] = 0
    settings: dict[str, Any] = {
        "optimizer": "adamw", "weight_decay": 0.1, "learning_rate": 0.01, "num_devices": devices, "num_epochs": 1,
        "data_placement": placement, "reduction": "invariant",
    }  # fmt: skip
    params, history = trained(weights, **settings)
    rows = np.flatnonzero(weights)
    expected, without = trained(None, X[rows], Y[rows], **settings)
    jax.tree.map(np.testing.assert_array_equal, params, expected)
    assert (history[0]["step"], without[0]["step"]) == (5, 4)
    np.testing.assert_allclose(history[0]["train_loss"], without[0]["train_loss"], rtol=1e-12)


def test_the_ledger_counts_examples_whatever_they_weigh(npz: str) -> None:
    weights = np.zeros(96)
    weights[:50] = WEIGHTS[:50] + 0.1
    for run, given in (("a", None), ("b", weights)):
        train(small_config("python:arrays", workdir=run, ledger=True, num_devices=3), (X, Y, given), TEST)
    a, b = ([json.loads(line) for line in Path(run, "ledger.jsonl").read_text().splitlines()] for run in "ab")
    assert [line.get("examples") for line in a] == [line.get("examples") for line in b]
    assert [line.get("count") for line in b] == [None, 20, 20, 20, 20, 16, 20, 20, 20, 20, 16]
    assert [line.get("loss") for line in a] != [line.get("loss") for line in b]


def test_a_run_goes_on_only_with_its_weights_and_then_to_the_same_bits() -> None:
    config = small_config("python:arrays", reduction="invariant", shuffle=True)
    whole = train(config, (X, Y, WEIGHTS), TEST).history
    stopped = Config(**config.settings() | {"workdir": "other", "max_steps": 7, "hidden_sizes": (8,)})
    train(stopped, (X, Y, WEIGHTS), TEST)
    longer = Config(**stopped.settings() | {"max_steps": 0, "hidden_sizes": (8,), "num_devices": 3})
    with pytest.raises(InputError, match="are not those that the run in"):
        train(longer, (X, Y, WEIGHTS[::-1]), TEST)
    again = train(longer, (X, Y, WEIGHTS), TEST).history
    assert again[-1]["params_sha256"] == whole[-1]["params_sha256"]


def test_the_loss_of_a_line_is_the_weighted_mean() -> None:
    """With a learning rate that changes nothing to speak of, all batches have the losses of the initial parameters."""
    params, history = trained(WEIGHTS, learning_rate=1e-30, num_epochs=1)
    log_probs = np.asarray(model.batched_predict(params, X.astype(np.float32)), np.float64)
    losses = -log_probs[np.arange(96), Y] / 4
    np.testing.assert_allclose(history[0]["train_loss"], np.average(losses, weights=WEIGHTS), rtol=1e-6)


def test_the_weight_of_a_batch_is_one_number_whatever_the_shards() -> None:
    order = Order(96, 20, shuffle=True, seed=3)
    sums = order.weight_sums(WEIGHTS, 2, 0, 5)
    assert sums.dtype == np.float32
    np.testing.assert_array_equal(sums[1:4], order.weight_sums(WEIGHTS, 2, 1, 4))
    for shards in (1, 3, 8):
        loader = NumpyLoader(ArrayDataset(X, Y, "x"), 20, shards, shuffle=True, seed=3, weights=WEIGHTS)
        loader.set_position(2)
        batches = list(loader)
        np.testing.assert_array_equal([batch.weight_sum for batch in batches], sums)
        for batch in batches:
            np.testing.assert_array_equal(batch.weights, np.where(batch.real > 0, WEIGHTS[batch.indices], 0))
            np.testing.assert_allclose(batch.weights.sum(), batch.weight_sum, rtol=1e-6)
        assert sum(int(batch.real.sum()) for batch in batches) == 96
    np.testing.assert_array_equal(order.weight_sums(None, 2, 0, 5), [20, 20, 20, 20, 16])


@pytest.mark.parametrize("scaling", ["standard", "unit"])
def test_scaling_by_weights_is_that_of_repeated_rows(scaling: str) -> None:
    times = np.arange(96) % 3
    x = X.astype(np.float32)
    x[:, 3] = 0.1  # constant, though sums of it by weights are not exact
    x[0, 4] = 1e6  # of weight 0
    thirds = times.astype(np.float32) * np.float32(1 / 3)
    weighted = Data(ArrayDataset(x, Y, "x"), ArrayDataset(x, Y, "x"), 12, 4, weights=thirds)
    rows = np.repeat(np.arange(96), times)
    repeated = Data(ArrayDataset(x[rows], Y[rows], "x"), ArrayDataset(x, Y, "x"), 12, 4)
    found, expected = (input_scaling(scaling, data) for data in (weighted, repeated))
    np.testing.assert_allclose(found, expected, rtol=1e-6)
    assert found[1][3] == (0 if scaling == "standard" else expected[1][3])


def test_balanced_is_scikit_learns_and_multiplies_the_weights_given() -> None:
    from sklearn.utils.class_weight import compute_sample_weight

    few = np.flatnonzero((Y != 2) | (np.arange(96) % 3 == 0))
    x, y, weights = X[few], Y[few], WEIGHTS[few]
    config = Config(**PYTHON.settings() | {"class_weight": "balanced", "hidden_sizes": (8,)})
    plain = datasets.load(config, (x, y), TEST).weights
    np.testing.assert_allclose(plain, compute_sample_weight("balanced", y), rtol=1e-6)
    both = datasets.load(config, (x, y, weights), TEST).weights
    assert both is not None
    ratio = both / weights
    for number in range(4):  # one factor for each class, by which all classes have one sum
        np.testing.assert_allclose(ratio[y == number], ratio[y == number][0], rtol=1e-6)
        np.testing.assert_allclose(both[y == number].sum(), weights.sum() / 4, rtol=1e-5)


def test_balanced_goes_by_what_is_left_to_train_on() -> None:
    config = Config(**PYTHON.settings() | {
        "class_weight": "balanced", "hidden_sizes": (8,), "test_fraction": 0.25, "validation_fraction": 0.2,
    })  # fmt: skip
    named = WEIGHTS + np.arange(96, dtype=np.float32)
    data = datasets.load(config, (np.arange(96.0)[:, None] * np.ones(12), Y, named))
    assert data.weights is not None
    rows = data.train.take(np.arange(len(data.train)))[0][:, 0].astype(int)
    sums = np.bincount(Y[rows], named[rows])
    np.testing.assert_allclose(data.weights, named[rows] * (sums.sum() / 4 / sums)[Y[rows]], rtol=1e-6)


@pytest.mark.parametrize(("weights", "words"), [
    (np.where(np.arange(96) == 7, -1, 1), "train_set: the weight -1 of example 7 must be a finite number from 0 up"),
    (np.where(np.arange(96) == 7, np.nan, 1), "the weight nan of example 7 must be"),
    (np.where(np.arange(96) == 7, np.inf, 1), "the weight inf of example 7 must be"),
    (np.where(np.arange(96) == 7, 1e300, 1), r"the weight 1e\+300 of example 7 must be"),
    (np.zeros(96), "train_set: all weights are 0"),
    (np.full(96, 2e28), "train_set: the weights add up to .*, which float32 cannot hold"),
    (np.full(96, 1e-35), "train_set: the weights add up to 9.6e-34, which float32 cannot hold"),
    (np.ones(95), "train_set has 96 examples but 95 weights"),
    (np.ones((96, 2)), r"weights must be numbers of shape \[examples\], one for each, not float64 \[96, 2\]"),
    (np.array(["1"] * 96), "weights must be numbers of shape"),
], ids=["negative", "nan", "inf", "float64", "zero", "large", "small", "few", "matrix", "text"])  # fmt: skip
def test_weights_that_cannot_be(weights: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        train(PYTHON, (X, Y, weights), TEST)
    assert "\n" not in str(caught.value)


def test_weights_of_other_sets_are_ignored_and_one_line_says_so() -> None:
    data = datasets.load(PYTHON, (X, Y, WEIGHTS), (*TEST, np.zeros(40)))
    assert list(data.remarks) == ["test_set: the weights are ignored, for evaluation counts each example once"]
    assert list(datasets.load(PYTHON, (X, Y, None), (*TEST, None)).remarks) == []


def test_balanced_needs_labels_that_are_known_before() -> None:
    pairs = list(zip(X, Y.astype(int), strict=True))
    config = Config(**PYTHON.settings() | {"class_weight": "balanced", "hidden_sizes": (8,), "num_classes": 4})
    with pytest.raises(InputError, match="--class_weight=balanced: train_set has one class, or does not list its"):
        datasets.load(config, pairs, TEST)


def test_balanced_needs_weights_above_0_in_two_classes() -> None:
    with pytest.raises(InputError, match=r"^--class_weight=balanced: train_set has weights above 0 in one class only"):
        weighing.of_training(np.where(Y == 1, 2.0, 0), Y, True, "train_set")


def test_weights_that_processors_take_for_0_are_0() -> None:
    """Else a batch of them alone would be divided by 0."""
    smallest = float(np.finfo(np.float32).tiny)
    found = weighing.of_training(np.array([1, smallest, smallest / 2, 1e-45, 0]), np.zeros(5, np.int32), False, "x")
    assert found is not None
    assert found.tolist() == [1, smallest, 0, 0, 0]
