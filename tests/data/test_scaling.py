"""Input scaling: statistics of the training set alone, exact over blocks, and carried by checkpoints."""

from typing import Any

import numpy as np
import pytest
from conftest import make_arrays

from distmlp.data import examples
from distmlp.data.datasets import ArrayDataset, Data, input_scaling


def data(x_train: np.ndarray) -> Data:
    test = np.full_like(x_train, 200)  # must not matter
    train_set, test_set = (ArrayDataset(x, np.arange(len(x)) % 2, "x") for x in (x_train, test))
    return Data(train_set, test_set, x_train.shape[1], 2)


def test_none_leaves_the_inputs_alone() -> None:
    assert input_scaling("none", data(make_arrays()["x_train"])) == ()


def test_unit_divides_by_the_largest_absolute_value() -> None:
    x = np.array([[0, 1, -8], [2, 4, 0]], np.float32)
    shift, scale = input_scaling("unit", data(x))
    np.testing.assert_array_equal((x - shift) * scale, x / 8)
    _, zero = input_scaling("unit", data(x * 0))
    assert np.isfinite(zero).all()


@pytest.mark.parametrize("block", [1, 7, 96, 1000])
def test_standard_gives_mean_0_and_deviation_1_and_leaves_constants_at_0(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(examples, "BLOCK", block)
    x: Any = make_arrays()["x_train"].astype(np.float32)
    x[:, 3] = 17
    x[:, 5] = 1e6 + np.arange(len(x)) % 2  # a large mean and a small deviation
    shift, scale = input_scaling("standard", data(x))
    assert shift.dtype == scale.dtype == np.float32
    scaled = (x - shift) * scale
    varying = [i for i in range(12) if i != 3]
    np.testing.assert_allclose(scaled[:, varying].mean(axis=0), 0, atol=1e-5)
    np.testing.assert_allclose(scaled[:, varying].std(axis=0), 1, rtol=1e-4)
    assert not scaled[:, 3].any()
