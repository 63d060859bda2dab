"""Where weights come from: a column of a table or frame, an array beside x_train and y_train."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import make_arrays

from distmlp import Config, InputError, load, train
from distmlp.data import datasets
from launch import evaluate, predict

Capture = pytest.CaptureFixture[str]
TABLE: dict[str, Any] = {"hidden_sizes": (8,), "batch_size": 8, "num_epochs": 2, "num_devices": 1}


def frame(size: int = 60) -> pd.DataFrame:
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.standard_normal((size, 3)).round(3), columns=["a", "b", "c"])
    table.insert(1, "amount", np.round(random.uniform(0, 3, size), 3))
    table["label"] = np.where(table["b"] > 0, "yes", "no")
    return table


def read(dataset: object, **changes: Any) -> datasets.Data:
    return datasets.load(Config(**(TABLE | {"dataset": str(dataset), "weight_column": "amount"} | changes)))


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
def test_a_column_of_weights_is_no_feature(name: str, tmp_path: Path) -> None:
    table = frame()
    getattr(table, "to_" + name[2:])(tmp_path / name, index=False)
    data = read(tmp_path / name, test_fraction=0.25)
    assert data.columns == ["a", "b", "c"]
    assert data.weights is not None
    expected = dict(zip(table["a"].astype(np.float32), table["amount"].astype(np.float32), strict=True))
    first = data.train.take(np.arange(len(data.train)))[0][:, 0]
    np.testing.assert_array_equal(data.weights, [expected[a] for a in first])
    assert ", 2 classes (no, yes), weights from 0." in data.description()
    given = datasets.load(Config(**TABLE, test_fraction=0.25, dataset="python:t", weight_column="amount"),
                          (table.drop(columns="label"), table["label"]))  # fmt: skip
    np.testing.assert_array_equal(given.weights, data.weights)


def test_a_file_without_names_has_its_columns_by_number(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "t.csv", index=False, header=False)
    data = read(tmp_path / "t.csv", header="none", weight_column="1", label_column="4", test_fraction=0.25)
    assert data.columns == ["0", "2", "3"]
    assert data.weights is not None


def test_the_weights_of_a_later_table_are_ignored_and_one_line_says_so(tmp_path: Path, capsys: Capture) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    frame().to_csv(parts / "train.csv", index=False)
    frame(40)[40 * [True]].to_csv(parts / "test.csv", index=False)
    train(Config(**TABLE, dataset=str(parts), weight_column="amount", workdir="run"))
    line = f"distmlp: {parts / 'test.csv'}: column amount, the weights of training, is ignored here\n"
    assert capsys.readouterr().err.count(line) == 1
    without = tmp_path / "without.csv"
    frame(40).drop(columns="amount").to_csv(without, index=False)
    for dataset, lines in ((str(parts / "test.csv"), 1), (str(without), 0)):
        assert evaluate.main(["run", "--json", f"--dataset={dataset}"]) == 0
        out, err = capsys.readouterr()
        assert err.count("is ignored here") == lines
        assert json.loads(out)["count"] == 40
    assert predict.main(["run", str(parts / "test.csv"), str(without)]) == 0
    model = load("run")
    np.testing.assert_array_equal(model.predict(frame()).classes, model.predict(frame()[["c", "b", "a"]]).classes)


@pytest.mark.parametrize(("cell", "changes", "words"), [
    ("", {}, r"t\.csv: row 4 of column amount is (''|None), no weight: mend it, or remove the row"),
    ("many", {}, r"row 4 of column amount is 'many', no weight"),
    ("-2", {}, "the weight -2 of example 3 must be a finite number from 0 up"),
    ("1", {"weight_column": "w"}, r"--weight_column=w: .*t\.csv has no such column, it has a, amount, b, c, label"),
    ("1", {"weight_column": "label"}, r"has no columns named label|--weight_column=label is the column of labels, too"),
    ("1", {"weight_column": "a", "label_column": "a"}, "--weight_column=a is the column of labels, too"),
    ("1", {"ignore_columns": "amount"}, "--weight_column=amount is among --ignore_columns, too"),
])
def test_columns_that_hold_no_weights(cell: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    table = frame().astype({"amount": str})
    table.loc[3, "amount"] = cell
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=words) as caught:
        read(tmp_path / "t.csv", test_fraction=0.25, **changes)
    assert "\n" not in str(caught.value)


def test_weights_are_given_once_and_by_column_in_tables_only(npz: str) -> None:
    table = frame()
    with pytest.raises(InputError, match="train_set comes with weights, too: give one of both"):
        datasets.load(Config(**TABLE, test_fraction=0.25, dataset="python:t", weight_column="amount"),
                      (table.drop(columns="label"), table["label"], table["amount"]))  # fmt: skip
    with pytest.raises(InputError, match=r"--weight_column=amount goes with a table, which .*small\.npz.* is not"):
        read(npz)


@pytest.mark.parametrize("name", ["w_train", "train_weights", "w", "sample_weight"])
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_arrays_of_weights_go_by_name(name: str, kind: str, tmp_path: Path) -> None:
    weights = np.arange(96) / 48
    arrays = make_arrays() | {name: weights, "w_test": np.ones(40)}
    path = tmp_path / "small.npz"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        path = tmp_path / "folder"
        path.mkdir()
        for part, values in arrays.items():
            np.save(path / f"{part}.npy", values)
    data = datasets.load(Config(**TABLE, dataset=str(path)))
    np.testing.assert_array_equal(data.weights, weights.astype(np.float32))
    assert [remark.partition(": ")[2] for remark in data.remarks] == [
        "x_test, y_test, w_test: the weights are ignored, for evaluation counts each example once"]
