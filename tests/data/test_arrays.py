"""Which of a file's arrays are the rows to predict."""

from pathlib import Path

import numpy as np
import pytest

from distmlp import Config, InputError
from distmlp.data import arrays
from distmlp.data.asked import ArrayRows
from distmlp.data.datasets import load

ROWS, OTHERS = np.arange(6.0).reshape(3, 2), np.zeros((3, 2))


def features(path: Path) -> np.ndarray:
    return np.concatenate([block.features for block in ArrayRows(path, 2).blocks(0, 9)])


@pytest.mark.parametrize("held", [
    {"whatever": ROWS}, {"ids": np.zeros(3), "X": ROWS}, {"x_train": OTHERS, "x_test": ROWS, "y_test": np.zeros(3)},
    {"x_train": ROWS, "y_train": np.zeros(3)}, {"x": OTHERS, "y": np.zeros(3), "x_test": ROWS, "y_test": np.zeros(3)},
    {"x_train": OTHERS, "y_train": np.zeros(3), "x": ROWS},
])  # fmt: skip
def test_the_rows_of_an_archive_or_a_folder(held: dict[str, np.ndarray], tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", **held)
    (tmp_path / "folder").mkdir()
    for name, array in held.items():
        np.save(tmp_path / "folder" / f"{name}.npy", array)
    for path in (tmp_path / "rows.npz", tmp_path / "folder"):
        np.testing.assert_array_equal(features(path), ROWS)


def test_the_rows_of_a_file_of_one_array(tmp_path: Path) -> None:
    np.save(tmp_path / "rows.npy", ROWS)
    np.testing.assert_array_equal(features(tmp_path / "rows.npy"), ROWS)


def test_arrays_of_which_none_is_named_as_rows(tmp_path: Path) -> None:
    np.savez(tmp_path / "rows.npz", a=ROWS, b=OTHERS)
    with pytest.raises(InputError, match=r"rows\.npz holds a, b: name the array of rows x or data"):
        features(tmp_path / "rows.npz")


def test_masked_cells_are_no_values() -> None:
    x, y = np.ma.masked_array(np.ones((20, 2)), mask=False), np.arange(20) % 2
    load(Config(dataset="python:x"), (x, y), tested=False)
    x[3, 1] = np.ma.masked
    for given in ((x, y), (x.data, x[:, 1])):
        with pytest.raises(InputError, match=r"1 cells of an array are masked: fill them, as in x.filled\(0\), or"):
            load(Config(dataset="python:x"), given, tested=False)


def test_two_weights_an_example_are_refused(tmp_path: Path) -> None:
    x, y = np.ones((20, 2)), np.arange(20) % 2
    np.savez(tmp_path / "a.npz", x_train=x, y_train=y, w_train=np.ones((20, 2)))
    with pytest.raises(InputError, match=r"a.npz: w_train: weights must be numbers of shape .*, not float64 \[20, 2\]"):
        arrays.streams([arrays.stored(tmp_path / "a.npz")], [tmp_path / "a.npz"], [])
    for weights in (np.ones((20, 2)), np.ones((20, 1))):
        (labels,) = arrays.Batches(lambda: [(x, y, weights)]).labels()  # noqa: B023
        assert labels.weights is not None
        assert labels.weights.shape == weights.shape  # for weights.checked to see
