"""Which of a file's arrays are the rows to predict."""

from pathlib import Path

import numpy as np
import pytest

from distmlp import InputError
from distmlp.data.asked import ArrayRows

ROWS, OTHERS = np.arange(6.0).reshape(3, 2), np.zeros((3, 2))


def features(path: Path) -> np.ndarray:
    return np.concatenate([block.features for block in ArrayRows(path, 2).blocks(0, 9)])


@pytest.mark.parametrize("held", [
    {"whatever": ROWS}, {"ids": np.zeros(3), "X": ROWS}, {"x_train": OTHERS, "x_test": ROWS, "y_test": np.zeros(3)},
    {"x_train": ROWS, "y_train": np.zeros(3)},
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
