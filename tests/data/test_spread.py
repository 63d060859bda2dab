"""Values that float32 cannot tell apart are refused of every training set, however it is read."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from distmlp import Config, InputError, MLPClassifier
from distmlp.data import packing, spread
from distmlp.data.datasets import load
from distmlp.data.packed import UNFINISHED
from distmlp.data.packing import pack, pack_sources

TIMES = 1_700_000_000 + np.arange(60.0)
Y = np.arange(60) % 2
SETTINGS: dict[str, Any] = {"num_classes": 2, "test_fraction": 0.5, "num_devices": 1}


def rows(column: Any) -> np.ndarray:
    return np.stack([np.arange(60) / 7, column, np.zeros(60)], axis=1)


def in_memory(x: np.ndarray, folder: Path) -> None:
    load(Config(dataset="python:x", **SETTINGS), (x, Y))


def in_a_file(x: np.ndarray, folder: Path) -> None:
    np.savez(folder / "a.npz", x=x, y=Y)
    load(Config(dataset=str(folder / "a.npz"), **SETTINGS))


def mapped(x: np.ndarray, folder: Path) -> None:
    np.save(folder / "x.npy", x)
    np.save(folder / "y.npy", Y)
    load(Config(dataset=str(folder), **SETTINGS))


def packed(x: np.ndarray, folder: Path) -> None:
    np.savez(folder / "a.npz", x=x, y=Y)
    pack_sources([folder / "a.npz"], folder / "made", Config(test_fraction=0.5))


def packed_batches(x: np.ndarray, folder: Path) -> None:
    pack([(x[start : start + 7], Y[start : start + 7]) for start in range(0, 60, 7)], folder / "made",
         Config(test_fraction=0.5))  # fmt: skip


def packed_tables(x: np.ndarray, folder: Path) -> None:
    for part in range(2):
        table = pd.DataFrame(x[part::2], columns=["a", "t", "c"]).assign(word="red", label=Y[part::2])
        table.to_csv(folder / f"{part}.csv", index=False)
    config = Config(test_fraction=0.5, text_columns="one_hot")
    pack_sources([folder / "0.csv", folder / "1.csv"], folder / "made", config)


def fitted(x: np.ndarray, folder: Path) -> None:
    MLPClassifier(hidden_sizes=(2,), num_epochs=1).fit(x, Y)


READ = [in_memory, in_a_file, mapped, packed, packed_batches, packed_tables, fitted]


@pytest.mark.parametrize("read", READ)
def test_a_column_of_times_is_refused(read: Callable[..., None], tmp_path: Path) -> None:
    called = "column t" if read is packed_tables else "feature 1"
    with pytest.raises(InputError, match=f"the values of {called}, 1700000000 to 1700000059, are too close together"):
        read(rows(TIMES), tmp_path)
    read(rows(np.where(np.arange(60) == 50, 1.8e9, TIMES)), tmp_path)  # then hardly anything is lost


@pytest.mark.parametrize("column", [np.full(60, 1e9 + 1), 2**24 + 2 * (np.arange(60) % 5), TIMES - TIMES[0],
                                    TIMES.astype(np.float32), np.full(60, 0.1)])  # fmt: skip
def test_what_float32_holds_is_taken(column: np.ndarray, tmp_path: Path) -> None:
    in_memory(rows(column).astype(np.float32) if column.dtype == np.float32 else rows(column), tmp_path)


def test_whole_numbers_and_any_shape_are_looked_at(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = np.stack([np.zeros(60), TIMES, np.arange(60)], axis=1).astype(np.int64)
    monkeypatch.setattr(spread, "_BLOCK", 7)
    monkeypatch.setattr(spread, "_SPACED", 3)
    for x in (whole, whole[:, :, None, None], np.asfortranarray(whole)):
        with pytest.raises(InputError, match="feature 1, 1700000000 to 1700000059"):
            in_memory(x, tmp_path)
    whole[30, 1] = 0  # not among the spaced ones
    in_memory(whole, tmp_path)


@pytest.mark.parametrize("read", [packed, packed_tables])
def test_a_pack_that_goes_on_knows_what_was_read_before(
    read: Callable[..., None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packing, "_NOTED_SECONDS", -1)
    for _ in range(2):
        with pytest.raises(InputError, match="are too close together"):
            read(rows(TIMES), tmp_path)
        assert json.loads((tmp_path / "made.unfinished" / UNFINISHED).read_text())["written"]
        monkeypatch.setattr(pd.DataFrame, "to_csv", lambda *args, **options: None)  # the files stay as they are
        monkeypatch.setattr(np, "savez", lambda *args, **options: None)


def test_blocks_of_other_types_count_too() -> None:
    found = spread.Spread(1)
    found.add(TIMES[:, None])
    found.add(np.array([[7]], np.float32))
    found.check("x")
    found = spread.Spread(1)
    found.add(TIMES[:, None].astype(np.float32))
    found.add(TIMES[:, None])
    with pytest.raises(InputError, match="x: the values of feature 0"):
        found.check("x")


def test_what_is_beyond_float32_is_for_others_to_find() -> None:
    found = spread.Spread(2)
    found.add(np.stack([np.full(60, 0.1), np.geomspace(1, 1e300, 60)], axis=1))
    found.check("x")


def test_a_test_set_may_be_as_it_is(tmp_path: Path) -> None:
    wide = rows(1e9 + 1e7 * np.arange(60))
    near = np.stack([wide[0], wide[0] + [0, 1, 0]])
    assert len(load(Config(dataset="python:x", num_classes=2), (wide, Y), (near, Y[:2])).test) == 2
    np.savez(tmp_path / "a.npz", x_train=wide, y_train=Y, x_test=near, y_test=Y[:2])
    pack_sources([tmp_path / "a.npz"], tmp_path / "made", Config())
    for name, x, y in (("train", wide, Y), ("test", near, Y[:2])):
        pd.DataFrame(x, columns=[*"atc"]).assign(label=y).to_csv(tmp_path / f"{name}.csv", index=False)
    pack_sources([tmp_path / "train.csv", tmp_path / "test.csv"], tmp_path / "tables", Config())
