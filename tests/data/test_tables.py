"""One reader: tables and frames mean the same to train, evaluate, predict and load(RUN), in any order and form."""

import gzip
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import asked_rows
from pyarrow import parquet

import distmlp
from distmlp import Config, InputError, train
from distmlp.data import columnar, read
from distmlp.data.asked import TableRows
from distmlp.data.columns import Columns, matched
from distmlp.data.datasets import Data, load
from distmlp.data.tables import Reader, Tables
from distmlp.results import run_data
from distmlp.results.models import Model

Capture = pytest.CaptureFixture[str]
COLOURS = ["red", "green", "blue"]


def frame(size: int = 60) -> pd.DataFrame:
    """Three numbers, of which only b tells the class."""
    random = np.random.default_rng(0)
    table = pd.DataFrame(random.standard_normal((size, 3)).round(3), columns=["a", "b", "c"])
    table["label"] = np.where(table["b"] > 0, "yes", "no")
    table.loc[:1, ["b", "label"]] = [[0.5, "yes"], [-0.5, "no"]]
    return table


def config(dataset: object, **changes: Any) -> Config:
    defaults = {"test_fraction": 0.2, "hidden_sizes": (8,), "batch_size": 8, "num_epochs": 30, "learning_rate": 0.05,
                "optimizer": "adam", "num_devices": 1, "eval_every_epochs": 0}
    return Config(**({"dataset": str(dataset)} | defaults | changes))  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Trained on frame() as a CSV file."""
    folder = tmp_path_factory.mktemp("named")
    frame().to_csv(folder / "t.csv", index=False)
    train(config(folder / "t.csv", workdir=str(folder / "run")))
    return distmlp.load(folder / "run")


def written(folder: Path, text: str, name: str = "t.csv") -> Path:
    (folder / name).write_text(text, encoding="utf-8")
    return folder / name


def examples(data: Data) -> np.ndarray:
    """All features, sorted by the first column: how parts were drawn has no say."""
    found = np.concatenate([part.take(np.arange(len(part)))[0] for part in data.parts])
    return found[np.lexsort(found.T[::-1])]


def predicted(path: Path, model: Model, header: str = "") -> np.ndarray:
    """The features that predict reads of a file."""
    return np.concatenate([features for _, features in asked_rows(path, model, header)])


# What train takes, predict takes.

FORMS = {
    "t.csv": lambda t, path: t.to_csv(path, index=False),
    "index.csv": lambda t, path: t.to_csv(path),
    "t.tsv": lambda t, path: t.to_csv(path, index=False, sep="\t"),
    "semicolons.csv": lambda t, path: t.to_csv(path, index=False, sep=";"),
    "t.csv.gz": lambda t, path: t.to_csv(path, index=False),
    "bom.csv": lambda t, path: t.to_csv(path, index=False, encoding="utf-8-sig"),
    "t.parquet": lambda t, path: t.to_parquet(path, index=False),
    "index.parquet": lambda t, path: t.iloc[::1].set_index(t.index + 7).to_parquet(path, index=True),
    "other order.csv": lambda t, path: t[["label", "c", "a", "b"]].to_csv(path, index=False),
    "no labels.csv": lambda t, path: t.drop(columns="label").to_csv(path, index=False),
    "no names.csv": lambda t, path: t.drop(columns="label").to_csv(path, index=False, header=False),
    "places.csv": lambda t, path: t.drop(columns="label").set_axis(range(3), axis=1).to_csv(path, index=False),
    "parts/train.csv": lambda t, path: t.to_csv(path, index=False),
    "parts/test.parquet": lambda t, path: t.to_parquet(path, index=False),
}


@pytest.mark.parametrize("form", FORMS)
def test_what_train_takes_predict_takes(form: str, model: Model, tmp_path: Path) -> None:
    table, path = frame(), tmp_path / form
    path.parent.mkdir(exist_ok=True)
    FORMS[form](table, path)
    path = path.parent if form.startswith("parts") else path
    found = predicted(path, model)
    np.testing.assert_array_equal(found, table[["a", "b", "c"]].to_numpy(np.float32))
    if "labels" not in form and form not in ("no names.csv", "places.csv"):
        dataset = run_data.split(model, dataset=str(path))
        np.testing.assert_array_equal(dataset.take(np.arange(60))[0], found)
        if form != "parts/test.parquet":
            np.testing.assert_array_equal(examples(load(config(path, label_column="label")))[:, 1].sort(),
                                          found[:, 1].sort())  # fmt: skip


def test_evaluate_and_predict_agree_as_commands(call_verb: Any, model: Model, tmp_path: Path) -> None:
    table = frame(30)[["c", "label", "b", "a"]]
    table.to_csv(tmp_path / "new.csv.gz")
    done = call_verb("evaluate", str(model.run), "--dataset=new.csv.gz", "--json")
    assert done.returncode == 0, done.stderr
    accuracy = json.loads(done.stdout)["accuracy"]
    assert accuracy > 0.9
    done = call_verb("predict", str(model.run), "new.csv.gz", "--json")
    assert done.returncode == 0, done.stderr
    classes = [json.loads(line)["class"] for line in done.stdout.splitlines()]
    assert np.mean(np.array(classes) == table["label"]) == accuracy


def test_the_table_that_was_trained_on_can_be_predicted(tmp_path: Path) -> None:
    table = frame()
    table.columns = ["a", " two  words ", "True?", "label"]
    table["True?"] = table["a"] > 0
    table.to_csv(tmp_path / "t.csv", sep=";")
    table = table.drop(columns=" two  words ")
    chosen = config(tmp_path / "t.csv", ignore_columns="two  words", num_epochs=1, workdir=str(tmp_path / "run"))
    train(chosen)
    model = distmlp.load(tmp_path / "run")
    np.testing.assert_array_equal(predicted(tmp_path / "t.csv", model), table[["a", "True?"]].to_numpy(np.float32))


def test_folders_of_arrays_and_of_pictures_are_predicted(digits_run: Path, tmp_path: Path) -> None:
    from PIL import Image

    model, x = distmlp.load(digits_run), np.arange(6 * 64, dtype=np.uint8).reshape(6, 64) % 17
    (tmp_path / "arrays").mkdir()
    for name, array in {"x_train": x[:4], "y_train": np.arange(4), "x_test": x[4:], "y_test": np.arange(2)}.items():
        np.save(tmp_path / "arrays" / f"{name}.npy", array)
    np.testing.assert_array_equal(predicted(tmp_path / "arrays", model), x[4:])  # as evaluate does
    for part in ("one", "two"):
        (tmp_path / "pictures" / part).mkdir(parents=True)
        Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "pictures" / part / "a.png")
    found = [Path(name) for name, _ in asked_rows(tmp_path / "pictures", model)]
    (tmp_path / "pictures" / "labels.csv").write_text("a,b\n1,2\n")  # a stray list of the pictures
    assert found == [Path(name) for name, _ in asked_rows(tmp_path / "pictures", model)]
    assert [path.parent.name for path in found] == ["one", "two"]
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty holds no tables, arrays or pictures"):
        asked_rows(tmp_path / "empty", model)


@pytest.mark.parametrize("inner", ["", "data"])
def test_of_a_folder_of_numbered_parts_the_test_set_is_predicted(inner: str, model: Model, tmp_path: Path) -> None:
    table, folder = frame(), tmp_path / inner
    folder.mkdir(exist_ok=True)
    for name, rows in {"train-00000-of-00002": slice(20), "train-00001-of-00002": slice(20, 50),
                       "test-00000-of-00001": slice(50, 60)}.items():  # fmt: skip
        table[rows].to_parquet(folder / f"{name}.parquet")
    np.testing.assert_array_equal(predicted(tmp_path, model), table[["a", "b", "c"]].to_numpy(np.float32)[50:])


# Columns by name.


@pytest.mark.parametrize("kind", [pd.DataFrame, pa.Table.from_pandas])
def test_frames_given_to_a_model_find_their_columns(kind: Any, model: Model, capsys: Capture) -> None:
    table = frame()
    shuffled = table[["c", "b", "a"]]
    for given in (kind(table[["a", "b", "c"]]), kind(shuffled)):
        assert (np.array(model.predict(given).classes) == table["label"]).mean() > 0.9
        assert model.evaluate(given, table["label"].to_numpy()).accuracy > 0.9
    assert capsys.readouterr().err == ""
    np.testing.assert_array_equal(model.predict(kind(shuffled.assign(d="x", e=1))).probabilities,
                                  model.predict(table[["a", "b", "c"]].to_numpy()).probabilities)
    captured = capsys.readouterr()
    assert captured.err.count("\n") == 1
    assert "d, e are not known to the run, and ignored" in captured.err
    assert captured.out == ""
    with pytest.raises(InputError, match="the frame lacks the columns a, b: it has c"):
        model.predict(kind(shuffled[["c"]]))


def test_frames_without_names_are_taken_by_place(model: Model) -> None:
    table = frame()[["a", "b", "c"]]
    expected = model.predict(table.to_numpy()).probabilities
    np.testing.assert_array_equal(model.predict(pd.DataFrame(table.to_numpy())).probabilities, expected)


def test_a_test_frame_in_another_order_is_the_same_set(capsys: Capture) -> None:
    table = frame()
    x, y = table[["a", "b", "c"]], table["label"]
    for kind in (pd.DataFrame, pa.Table.from_pandas):
        data = load(config("python:x", test_fraction=0), (x, y), (kind(x[["b", "c", "a"]].assign(more=1)), y), (x, y))
        np.testing.assert_array_equal(data.test.take(np.arange(60))[0], x.to_numpy(np.float32))
        assert "more" in " ".join(data.remarks)
    with pytest.raises(InputError, match="test_set lacks the column c"):
        load(config("python:x", test_fraction=0), (x, y), (x[["a", "b"]], y))


def test_a_default_frame_in_another_order_is_found_by_its_numbers() -> None:
    x, y = pd.DataFrame(frame()[["a", "b", "c"]].to_numpy()), frame()["label"]
    data = load(config("python:x", test_fraction=0), (x, y), (x[[2, 0, 1]], y))
    np.testing.assert_array_equal(data.test.take(np.arange(60))[0], x.to_numpy(np.float32))


def test_tables_of_a_folder_find_their_columns_and_say_what_is_ignored(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "train.csv", index=False)
    frame()[["label", "c", "b", "a"]].assign(note="x").to_csv(tmp_path / "test.csv", index=False)
    data = load(config(tmp_path, test_fraction=0))
    np.testing.assert_array_equal(data.test.take(np.arange(60))[0], data.train.take(np.arange(60))[0])
    assert [remark for remark in data.remarks if "test.csv: column note is not known to the run" in remark]
    frame().drop(columns="label").to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(InputError, match=r"test.csv has no column label, without which .* --test_fraction=0.2"):
        load(config(tmp_path, test_fraction=0))


# Headers.


def test_a_header_of_numbers_is_no_row(model: Model, digits_run: Path, tmp_path: Path) -> None:
    frame()[["a", "b", "c"]].set_axis(range(3), axis=1).iloc[:5].to_csv(tmp_path / "t.csv", index=False)
    assert len(predicted(tmp_path / "t.csv", model)) == 5
    digits = distmlp.load(digits_run)
    pd.DataFrame(np.ones((5, 64))).to_csv(tmp_path / "d.csv", index=False)
    assert len(predicted(tmp_path / "d.csv", digits)) == 5
    pd.DataFrame(np.ones((5, 64))).to_csv(tmp_path / "d.csv", index=False, header=False)
    assert len(predicted(tmp_path / "d.csv", digits)) == 5


@pytest.mark.parametrize("kind", ["file", "frame"])
def test_numbers_that_are_names_are_found_by_name(kind: str, tmp_path: Path) -> None:
    """Years, unlike 0, 1, 2, ..., which merely count the columns."""
    years = pd.DataFrame({"2018": 18.0, "2019": 19.0, "2020": 20.0, "label": ["u", "v"] * 10})
    later = years.rename(columns={"2018": "2021"})
    if kind == "frame":
        with pytest.raises(InputError, match="test_set lacks the column 2018: it has 2021, 2019, 2020"):
            load(config("python:x", test_fraction=0), (years.iloc[:, :3], years["label"]),
                 (later.iloc[:, :3], later["label"]))  # fmt: skip
        return
    years.to_csv(tmp_path / "train.csv", index=False)
    for labels in (later["label"], later["2019"]):
        later.assign(label=labels).to_csv(tmp_path / "test.csv", index=False)
        with pytest.raises(InputError, match=r"test.csv lacks the column 2018: .*; give --header=none if its first"):
            load(config(tmp_path, test_fraction=0))
    columns = load(config(tmp_path / "train.csv")).table
    reader = Reader(Config(), columns)
    for text, rows in (("2019,2020,2021\n1,2,3\n", 0), (",2019,2020,2021\n0,1,2,3\n", 0),
                       ("2020,2018,2019\n1,2,3\n", 1), ("1,2,3\n4,5,6\n", 2),
                       ("2018,2018,1\n4,5,6\n", 2), ("2018,0.5,1\n4,5,6\n", 2), ("0,1,2\n4,5,6\n", 1)):  # fmt: skip
        path = written(tmp_path, text)
        if not rows:
            with pytest.raises(InputError, match="lacks the column 2018"):
                TableRows(path, reader, [], sure=False)
        else:
            assert TableRows(path, reader, [], sure=False).count() == rows


def test_names_that_count_past_the_labels_go_by_place(tmp_path: Path) -> None:
    rows = "1,2,u,3\n4,5,v,6\n" * 10
    data = load(config(written(tmp_path, "0,1,2,3\n" + rows), label_column="2"))
    assert data.columns == ["0", "1", "3"]
    reader = Reader(Config(), data.table)
    for text in ("a,b,c\n7,8,9\n", "7,8,9\n", "0,1,2,3\n7,8,5,9\n", "1,3,0\n8,9,7\n"):
        (block,) = TableRows(written(tmp_path, text), reader, [], sure=False).blocks(0, 9)
        assert block.features.tolist() == [[7, 8, 9]]


def test_a_first_row_with_a_gap_is_a_row(model: Model, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="row 1 of column 1 has no value: remove the row, or fill it in"):
        asked_rows(written(tmp_path, "1,NA,2\n1,2,3\n"), model)
    assert len(predicted(written(tmp_path, "1,2,3\n4,5,6\n"), model)) == 2


def test_an_empty_line_is_a_row_of_a_single_column_but_at_the_end(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(columnar, "_BLOCK", 4)
    table = pd.DataFrame({"a": [1.0, 2.0] * 10, "label": ["u", "v"] * 10})
    columns = load(config("python:x", missing="zero"), (table[["a"]], table["label"])).table
    for text, rows in (("a\n1\n\n3\n\n", [1, 0, 3]), ("a\r\n\r\n\r\n3\r\n", [0, 0, 3]), ('a\n1\n""\n', [1, 0]),
                       ("1" + "\n" * 80 + "3" + "\n" * 80, [1, *[0] * 79, 3]), ("a\n", [])):  # fmt: skip
        found = TableRows(written(tmp_path, text), Reader(Config(), columns), [], sure=False)
        assert found.count() == len(rows)
        assert [row for block in found.blocks(0, 999) for row in block.features[:, 0].tolist()] == rows
    columns = load(config("python:x"), (table[["a"]], table["label"])).table
    found = TableRows(written(tmp_path, "a\n1\n\n3\n"), Reader(Config(), columns), [], sure=False)
    with pytest.raises(InputError, match="row 2 of column a has no value"):
        [*found.blocks(0, 99)]


UCI = "1,14.23,1.71\n2,13.2,1.78\n1,14.23,2.5\n2,12.1,1.5\n" * 5


def test_a_table_without_a_header(tmp_path: Path) -> None:
    path = written(tmp_path, UCI)
    for changes in ({}, {"label_column": "1"}, {"label_column": "0"}):
        with pytest.raises(InputError, match=r"t.csv.*--header=none"):
            load(config(path, **changes))
    chosen = config(path, header="none", label_column="0", num_epochs=1, workdir=str(tmp_path / "run"))
    data = load(chosen)
    assert data.columns == ["1", "2"]
    assert [str(name) for name in data.classes or ()] == ["1", "2"]
    assert len(examples(data)) == 20
    train(chosen)
    model = distmlp.load(tmp_path / "run")
    rows_of_file = np.array([[14.23, 1.71], [13.2, 1.78]], np.float32)
    np.testing.assert_array_equal(predicted(path, model)[:2], rows_of_file)
    assert len(run_data.split(model, dataset=str(path))) == 20
    features = written(tmp_path, "14.23,1.71\n13.2,1.78\n", "x.csv")
    np.testing.assert_array_equal(predicted(features, model), rows_of_file)
    data = load(config(path, header="none", label_column="0", ignore_columns="2"))
    assert data.columns == ["1"]


@pytest.mark.parametrize("header", [False, True])  # a default frame's names say no more than none
def test_columns_go_by_number_where_these_are_surely_the_training_sets(header: bool) -> None:
    def places(columns: Columns, width: int, labelled: bool = False) -> list[str]:
        raw = columnar.frame(pd.DataFrame(np.ones((1, width))), "new")
        return matched(raw._replace(header=header), columns, Config(), labelled).features

    between = Columns(("1", "2", "3", "4"), "0", ("5",))
    assert places(between, 6) == places(between, 6, labelled=True) == ["1", "2", "3", "4"]
    assert places(between, 5, labelled=True) == ["1", "2", "3", "4"]  # what lacks is no label
    assert places(between, 4) == ["0", "1", "2", "3"]
    last = Columns(("0", "1", "2"), "3", ("4",))
    assert [places(last, width) for width in (3, 4, 5)] == [["0", "1", "2"]] * 3
    assert places(last, 4, labelled=True) == ["0", "1", "2"]
    apart = Columns(("0", "1", "3"))  # of a frame, whose labels were given beside it
    assert places(apart, 4) == places(apart, 5) == ["0", "1", "3"]
    with pytest.raises(InputError, match=r"^new has 5 columns .* set 6: .*all 6, or the 4 of the features"):
        places(between, 5)
    gap = Columns(("0", "1"), "3", ("2", "4"))
    for columns, width, labelled in ((between, 7, False), (last, 6, False), (gap, 4, True)):
        with pytest.raises(InputError, match=f"^new has {width} columns without names"):
            places(columns, width, labelled)


def test_a_quote_that_is_not_closed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Arrow takes all rows behind it for one cell."""
    lines = [f"{n % 7},{'yes' if n % 2 else 'no'},ok" for n in range(60)]
    for cell, row in (('"5 inch', 41), ('"', 60), ('"a ""b""', 1), ('5" wide', 0), ('"a\nb"', 0), ('"a ""b"""', 0)):
        own = [line.replace("ok", cell) if number == (row or 60) else line for number, line in enumerate(lines, 1)]
        for end in ("\n", "", "\r\n", "\n\n"):
            for block in (1 << 22, 64):
                monkeypatch.setattr(columnar, "_BLOCK", block)
                path = written(tmp_path, "\n".join(["a,label,notes", *own]) + end)
                raw = columnar.file(path, lambda cells: True)
                if not row:
                    assert sum(len(columns[0]) for columns in raw.read(["label"])) == 60
                    continue
                with pytest.raises(InputError, match=rf"t.csv cannot be read as a table: a.* quote .*row {row} opens|"
                                   "t.csv cannot be read as a table: a row has more than 0 MiB"):  # fmt: skip
                    [*raw.read(["label"])]


def test_ignored_columns_are_those_of_the_name(tmp_path: Path) -> None:
    """Of a column of lists all elements; units in brackets are none."""
    table = pd.DataFrame({"p": range(20), "p[bar]": range(20), "p[0]": range(20), "label": [0, 1] * 10})
    table.to_csv(tmp_path / "t.csv", index=False)
    assert load(config(tmp_path / "t.csv", ignore_columns="p")).columns == ["p[bar]", "p[0]"]
    table.to_parquet(tmp_path / "t.parquet")
    assert load(config(tmp_path / "t.parquet", ignore_columns="p")).columns == ["p[bar]", "p[0]"]
    lists = pd.DataFrame({"q": range(20), "p": [[1, 2]] * 20, "label": [0, 1] * 10})
    lists.to_parquet(tmp_path / "t.parquet")
    assert load(config(tmp_path / "t.parquet", ignore_columns="p")).columns == ["q"]


def test_a_frame_that_lacks_a_numbered_column_does_not_go_by_place(tmp_path: Path) -> None:
    x = pd.DataFrame(np.random.default_rng(0).standard_normal((60, 4)))
    y = (x[2] > 0).astype(int)
    train(config("python:x", workdir=str(tmp_path / "run")), (x.drop(columns=1), y))
    model = distmlp.load(tmp_path / "run")
    assert (model.predict(x).classes == y).mean() > 0.9
    with pytest.raises(InputError, match="lacks the column 3: it has 0, 1, 2"):
        model.predict(x[[0, 1, 2]])


def test_values_that_float32_cannot_tell_apart_are_refused(tmp_path: Path) -> None:
    times = 1_700_000_000 + np.arange(60)

    def loaded(column: Any, **settings: Any) -> Any:
        pd.DataFrame({"t": column, "x": np.arange(60) / 7, "label": np.arange(60) % 2}).to_csv(
            tmp_path / "t.csv", index=False)
        return load(config(tmp_path / "t.csv", test_fraction=0.5, **settings))

    for column in (times, np.where(np.arange(60) == 7, np.nan, times), 1 + np.arange(60) * 1e-9):
        with pytest.raises(InputError, match=r"t\.csv: the values of column t, .* are too close together for float32"):
            loaded(column, missing="mean")
    wide, even = 10**9 + 10**7 * np.arange(60), 2**24 + 2 * (np.arange(60) % 5)
    for column in (times - times[0], np.full(60, times[0]), wide, even, np.where(np.arange(60) == 7, np.nan, even)):
        assert loaded(column, missing="zero").num_features == 2
    assert loaded(times, ignore_columns="t").num_features == 1
    pd.DataFrame({"t": wide, "label": np.arange(60) % 2}).to_csv(tmp_path / "t.csv", index=False)
    train(config(tmp_path / "t.csv", test_fraction=0.5, input_scaling="standard", workdir=str(tmp_path / "run")))
    rows = written(tmp_path, "t\n1000000001\n1000000002\n", "rows.csv")
    assert len(predicted(rows, distmlp.load(tmp_path / "run"))) == 2


def test_header_none_keeps_the_first_row_whatever_it_is(tmp_path: Path) -> None:
    path = written(tmp_path, "0,1,2,3\n" + "5,6,7,0\n0,1,2,3\n5,6,7,0\n" * 4)
    assert len(examples(load(config(path, header="none", label_column="3")))) == 13
    text = "red,small,yes\n" + "blue,large,no\nred,large,yes\nblue,small,no\n" * 4
    data = load(config(written(tmp_path, text), header="none", label_column="2", text_columns="one_hot"))
    assert data.columns == ["0=blue", "0=red", "1=large", "1=small"]
    assert len(examples(data)) == 13


def test_predict_can_be_told_that_a_file_has_no_header(model: Model, tmp_path: Path) -> None:
    path = written(tmp_path, "0,1,2\n3,4,5\n")
    assert predicted(path, model).tolist() == [[3, 4, 5]]
    assert predicted(path, model, header="none").tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b,c,label\n1,2,3,no\n1,2,3\n", r"row 2 has 3 cells, but the first line 4"),
        ("a,b,c,label\n" + "1,2,3,no\n" * 9 + "1,2,3,4,yes\n", "row 10 has 5 cells, but the first line 4"),
        ("a,b,b ,label\n1,2,3,no\n1,2,3,yes\n", "several columns named b"),
        ("a,b,c,label\n1,2,3,no\n14_23,2,3,yes\n", "row 2 of column a is '14_23', not a number"),
        ("a,b,c,label\n1,2,3,no\n0x10,2,3,yes\n", "row 2 of column a is '0x10', not a number"),
        ('a,b,c,label\n"1\n2",2,3,no\n1,2,3,yes\n', "row 1 of column a is '1.n2', not a number"),
    ],
)
def test_one_line_with_the_row(text: str, words: str, model: Model, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    for use in (lambda: load(config(path)), lambda: asked_rows(path, model),
                 lambda: run_data.split(model, dataset=str(path))):  # fmt: skip
        with pytest.raises(InputError, match=words) as caught:
            use()
        assert "\n" not in str(caught.value)


# Columns that are no features.


@pytest.mark.parametrize("name", ["t.csv", "t.parquet"])
@pytest.mark.parametrize("index", [None, "string"])
def test_pandas_index_is_left_out(name: str, index: str | None, tmp_path: Path) -> None:
    table = frame().sort_values("label")  # so that the index tells the class
    if index:
        table.index = pd.Index([f"row {n}" for n in table.index])
    (table.to_csv if name == "t.csv" else table.to_parquet)(tmp_path / name)
    data = load(config(tmp_path / name))
    assert data.columns == ["a", "b", "c"]
    (remark,) = data.remarks
    assert "is pandas' index, no feature, and left out" in remark
    if name == "t.csv":
        read = pd.read_csv(tmp_path / name)
        assert load(config("python:x"), (read.drop(columns="label"), read["label"])).columns == ["a", "b", "c"]


def test_an_index_that_parquet_names_is_neither_feature_nor_label(tmp_path: Path) -> None:
    table = frame().rename(columns={"label": "kind"})
    table.index = pd.Index(np.where(table["kind"] == "yes", 1, 0), name="label")
    table.to_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"no columns named label.*give --label_column, one of a, b, c, kind$"):
        load(config(tmp_path / "t.parquet"))
    data = load(config(tmp_path / "t.parquet", label_column="kind"))
    assert data.columns == ["a", "b", "c"]
    x = parquet.read_table(tmp_path / "t.parquet").drop_columns("kind")
    assert load(config("python:x"), (x, table["kind"].to_numpy())).columns == ["a", "b", "c"]


def test_an_index_that_was_saved_twice(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "t.csv")
    pd.read_csv(tmp_path / "t.csv").to_csv(tmp_path / "t.csv")
    assert load(config(tmp_path / "t.csv")).columns == ["a", "b", "c"]


def test_columns_without_a_name(tmp_path: Path) -> None:
    trailing = "a,b,label,\n" + "1,2,yes,\n3,4,no,\n" * 10
    assert load(config(written(tmp_path, trailing))).columns == ["a", "b"]
    path = written(tmp_path, trailing.replace("4,no,", "4,no,7"))
    with pytest.raises(InputError, match=r"column 4 has no name, but values, as '7': .*--ignore_columns='Unnamed: 3'"):
        load(config(path))
    assert load(config(path, ignore_columns="Unnamed: 3")).columns == ["a", "b"]


def test_any_column_can_be_ignored(tmp_path: Path) -> None:
    path = written(tmp_path, 'a, the b ,"c, d",label\n' + "1,x,y,yes\n3,u,v,no\n" * 10)
    assert load(config(path, ignore_columns='the b,"c, d"')).columns == ["a"]


# Frames.


def test_frames_are_converted_column_by_column() -> None:
    from decimal import Decimal

    size = 8
    columns: dict[str, Any] = {
        "float": np.arange(size) / 2, "bool": np.arange(size) % 2 == 0, "int8": np.arange(size, dtype=np.int8),
        "Int64": pd.array(range(size), "Int64"), "boolean": pd.array([True, False] * 4, "boolean"),
        "decimal": [Decimal(n) / 4 for n in range(size)], "object": np.array([1, 2.5] * 4, object),
        "sparse": pd.arrays.SparseArray(np.arange(size) % 3), "list": [np.array([n, n + 1.0]) for n in range(size)],
        "half": np.arange(size, dtype=np.float16), "arrow": pd.array(range(size), "int32[pyarrow]"),
    }  # fmt: skip
    x, y = pd.DataFrame(columns), np.arange(size) % 2
    data = load(config("python:x", test_fraction=0), (x, y), (x, y))
    assert data.columns is not None
    assert data.columns[8:10] == ["list[0]", "list[1]"]
    expected = np.column_stack([np.stack(column) if name == "list" else np.asarray(column).astype(np.float32)
                                for name, column in columns.items()])  # fmt: skip
    np.testing.assert_array_equal(data.train.take(np.arange(size))[0], expected)


@pytest.mark.parametrize("names", [("a", "a "), ("e", "e[0]"), ("e ", "e [1] ")])
def test_columns_of_frames_and_files_whose_names_are_one(names: tuple[str, str], tmp_path: Path) -> None:
    first = pa.array([[1.0, 2.0]] * 20 if "[" in names[1] else np.arange(20.0))
    table = pa.table({names[0]: first, names[1]: np.ones(20), "y": [0, 1] * 10})
    parquet.write_table(table, tmp_path / "t.parquet")
    x, y = table.drop_columns(["y"]), table["y"].to_numpy()
    for source, more in ((tmp_path / "t.parquet", ()), ("python:x", ((x, y),)), ("python:x", ((x.to_pandas(), y),))):
        with pytest.raises(InputError, match=r"has several columns named (a|e ?\[[01]\]): give each its own name"):
            load(config(source), *more)


def test_a_run_of_two_columns_of_one_name_takes_no_table_that_has_one_of_them() -> None:
    with pytest.raises(InputError, match="the frame has one column a, and the run was trained on several"):
        Reader(Config(), Columns(("a", "a "))).features(pd.DataFrame({"a": [1.0], "b": [2.0]}), "the frame")


@pytest.mark.parametrize("kind", ["string[pyarrow]", "dictionary", "category"])
def test_text_of_joined_frames_is_taken(kind: str) -> None:
    """Arrow has it in several pieces."""
    dtype = pd.ArrowDtype(pa.dictionary(pa.int32(), pa.string())) if kind == "dictionary" else kind
    half = pd.DataFrame({"k": ["u", "v"] * 20, "y": ["yes", "no"] * 20}).astype(dtype)
    whole = pd.concat([half, half], ignore_index=True)
    data = load(config("python:x", text_columns="one_hot"), (whole[["k"]], whole["y"]))
    assert (data.columns, data.classes) == (["k=u", "k=v"], ["no", "yes"])
    assert sum(map(len, data.parts)) == 80
    assert columnar.frame(whole, "x").names == ["k", "y"]


def test_labels_may_be_text_of_arrows() -> None:
    labels = pa.array(["yes", "no"] * 20)
    for given in (labels, pa.chunked_array([labels[:10], labels[10:]])):
        assert load(config("python:x"), (frame(40)[["a"]], given)).classes == ["no", "yes"]


def test_bytes_have_no_gaps_to_fill() -> None:
    table = pd.DataFrame({"a": np.arange(20, dtype=np.uint8), "b": np.uint8(3)})
    y = np.arange(20) % 2
    data = load(config("python:x", missing="zero"), (table, y))
    assert sorted(data.train.take(np.arange(16))[0][:, 1].tolist()) == [3] * 16
    data = load(config("python:x", missing="mean"), (table.astype(float), y))
    features, _ = Reader(Config(), data.table).features(table, "the frame")
    np.testing.assert_array_equal(features, table.to_numpy())


def test_arrows_numbers_and_embeddings_in_parquet(tmp_path: Path) -> None:
    embedding = pa.FixedSizeListArray.from_arrays(pa.array(np.arange(40, dtype=np.float32)), 4)
    table = pa.table({
        "e": embedding, "d": pa.array(range(10)).cast(pa.decimal128(30, 3)), "u": pa.array(range(10), pa.uint16()),
        "t": pa.array([True, False] * 5), "h": pa.array(np.arange(10, dtype=np.float16)), "y": [0, 1] * 5,
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "t.parquet")
    data = load(config(tmp_path / "t.parquet"))
    assert data.columns == ["e[0]", "e[1]", "e[2]", "e[3]", "d", "u", "t", "h"]
    np.testing.assert_array_equal(examples(data)[:, 3:6], np.array([[4 * n + 3, n, n] for n in range(10)], np.float32))
    assert load(config(tmp_path / "t.parquet", ignore_columns="e, h")).columns == ["d", "u", "t"]


def test_lists_after_rows_without_any_are_found(tmp_path: Path) -> None:
    lists = [None] * 1500 + [[1.0, 2.0]] * 500
    table = pa.table({"e": pa.array(lists, pa.list_(pa.float32())), "b": np.zeros(2000), "y": [0, 1] * 1000})
    parquet.write_table(table, tmp_path / "t.parquet")
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), table.schema) as file:
        file.write_table(table, 100)
    for name in ("t.parquet", "t.arrow"):
        data = load(config(tmp_path / name, missing="zero"))
        assert data.columns == ["e[0]", "e[1]", "b"]
        assert examples(data).sum(axis=0).tolist() == [500, 1000, 0]
        with pytest.raises(InputError, match=r"column e\[0\] has no value: .*--missing=zero"):
            load(config(tmp_path / name))
    table = table.set_column(0, "e", pa.array([[], None] * 1000, pa.list_(pa.float32())))
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"column e is of the type list.*, not of numbers: give --ignore_columns=e,"):
        load(config(tmp_path / "t.parquet"))
    assert load(config(tmp_path / "t.parquet", ignore_columns="e")).columns == ["b"]


def test_lists_of_several_lengths_are_refused_whichever_element_is_ignored(tmp_path: Path) -> None:
    parquet.write_table(pa.table({"e": [[1, 2, 3], [4, 5, 6, 7]] * 10, "y": [0, 1] * 10}), tmp_path / "t.parquet")
    for ignored in ("", "e[0]", "e[1], e[2]"):
        with pytest.raises(InputError, match="a list in column e has 3 values, but another 4: all must have as many"):
            load(config(tmp_path / "t.parquet", ignore_columns=ignored))


@pytest.mark.parametrize(
    ("column", "words"),
    [
        (["u", "v"] * 30, "train_set: row 1 of column k is 'u', not a number.*--text_columns=one_hot"),
        (pd.Categorical(["u", "v"] * 30), "train_set: row 1 of column k is 'u', not a number.*--text_columns=one_hot"),
        (pd.Categorical(["1", "2"] * 29 + ["v"] * 2), "train_set: row 59 of column k is 'v', not a number"),
        (pd.date_range("2020", periods=60), "train_set: column k is of the type timestamp.*, not of numbers"),
        (np.ones(60, complex), "train_set: column k cannot be converted to numbers or text"),
        ([1, "a"] * 30, "train_set: column k cannot be converted to numbers or text"),
        ([None, *range(59)], "train_set: row 1 of column k has no value.*--missing=mean"),
        ([[1], [1, 2]] * 30, "train_set: a list in column k has 1 values, but another 2"),
    ],
)
def test_the_column_that_is_none_is_named(column: Any, words: str) -> None:
    table = frame()
    with pytest.raises(InputError, match=words):
        load(config("python:x"), (table[["a"]].assign(k=column), table["label"]))


def test_arrows_views_of_text_are_text() -> None:
    table = pa.table({"k": pa.array(["u", None, "v", "u"] * 10, pa.string_view()), "n": np.arange(40.0)})
    with pytest.raises(InputError, match=r"row 1 of column k is 'u', not a number.*--text_columns=one_hot"):
        load(config("python:x", missing="zero"), (table, ["yes", "no"] * 20))
    data = load(config("python:x", missing="zero", text_columns="one_hot"), (table, ["yes", "no"] * 20))
    assert data.columns == ["k=u", "k=v", "n"]


def test_sparse_matrices_are_told_what_to_do(model: Model) -> None:
    from scipy import sparse  # type: ignore[import-untyped]

    x, y = sparse.csr_matrix(frame()[["a", "b", "c"]].to_numpy()), frame()["label"].to_numpy()
    for use in (lambda: load(config("python:x"), (x, y)), lambda: model.predict(x), lambda: model.evaluate(x, y)):
        with pytest.raises(InputError, match=r"csr_matrix.*give x.toarray\(\)"):
            use()


# Text and gaps.


def gaps(size: int = 80) -> pd.DataFrame:
    """A colour that tells the class, and a number with gaps."""
    random = np.random.default_rng(1)
    colour = random.choice(COLOURS, size)
    table = pd.DataFrame({"n": random.standard_normal(size).round(2), "colour": colour,
                          "label": np.where(colour == "red", "warm", "cold")})
    table.loc[3:5, "n"] = np.nan
    table.loc[7, "colour"] = None
    return table


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """Trained on gaps() with both flags."""
    folder = tmp_path_factory.mktemp("mixed")
    gaps().to_csv(folder / "t.csv", index=False)
    train(config(folder / "t.csv", text_columns="one_hot", missing="mean", workdir=str(folder / "run")))
    return distmlp.load(folder / "run")


def test_text_and_gaps_are_refused_with_the_flag_that_takes_them(tmp_path: Path) -> None:
    gaps().to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=r"row 4 of column n has no value.*--missing=mean, --missing=zero"):
        load(config(tmp_path / "t.csv", text_columns="one_hot"))
    with pytest.raises(InputError, match=r"row 1 of column colour is '.*', not a number.*--text_columns=one_hot"):
        load(config(tmp_path / "t.csv", missing="zero"))
    gaps().drop(columns="n").to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=r"row 8 of column colour has no value.*--missing=mean"):
        load(config(tmp_path / "t.csv", text_columns="one_hot"))


def test_text_and_gaps_become_features(tmp_path: Path) -> None:
    table = gaps()
    for name in ("t.csv", "t.parquet", "t.frame"):
        path = tmp_path / name
        given: Any = ()
        if name == "t.frame":
            given = ((table.drop(columns="label"), table["label"]),)
        else:
            (table.to_csv if name == "t.csv" else table.to_parquet)(path, index=False)
        data = load(config("python:x" if given else path, text_columns="one_hot", missing="zero"), *given)
        assert data.columns == ["n", "colour=blue", "colour=green", "colour=red"]
        wanted = [[0 if np.isnan(n) else np.float32(n), *(float(colour == word) for word in sorted(COLOURS))]
                  for n, colour in zip(table["n"], table["colour"], strict=True)]
        expected = np.array(wanted, np.float32)
        np.testing.assert_array_equal(examples(data), expected[np.lexsort(expected.T[::-1])])


def test_the_mean_is_of_the_training_part_alone(tmp_path: Path) -> None:
    gaps().to_csv(tmp_path / "t.csv", index=False)
    chosen = config(tmp_path / "t.csv", text_columns="one_hot", missing="mean", test_fraction=0.5)
    data, plain = load(chosen), gaps()
    training = data.train.take(np.arange(len(data.train)))[0]
    kept = [row for row in training[:, 0] if (plain["n"].astype(np.float32) == row).any()]
    assert data.table is not None
    np.testing.assert_allclose(data.table.fill["n"], np.mean(kept), rtol=1e-6)
    assert abs(data.table.fill["n"] - plain["n"].mean()) > 1e-3


def test_words_are_learned_from_the_training_set_alone(tmp_path: Path, capsys: Capture) -> None:
    table = frame()[["a", "label"]].assign(k="u")
    table.to_csv(tmp_path / "train.csv", index=False)
    table.assign(k=["u", "v", "w"] * 20).to_csv(tmp_path / "test.csv", index=False)
    data = load(config(tmp_path, test_fraction=0, text_columns="one_hot"))
    assert data.columns == ["a", "k=u"]
    np.testing.assert_array_equal(data.test.take(np.arange(6))[0][:, 1], [1, 0, 0, 1, 0, 0])
    (remark,) = data.remarks
    assert "in 40 rows, column k has one of 2 words that training did not see, which count as none: v, w" in remark


@pytest.mark.parametrize("words", [("True", "False", "Unknown"), ("true", "false", "unknown")])
def test_truths_are_the_words_that_were_learned_for_them(words: tuple[str, ...]) -> None:
    table = frame()[["a"]].assign(k=[*words] * 20)
    test = table.assign(k=[True, False, False] * 20)
    chosen = config("python:x", text_columns="one_hot", test_fraction=0)
    data = load(chosen, (table, frame()["label"]), (test, frame()["label"]))
    assert data.columns is not None
    true, false = (data.test.take(np.arange(3))[0][:, data.columns.index(f"k={word}")] for word in words[:2])
    assert (true.tolist(), false.tolist()) == ([1, 0, 0], [0, 1, 1])
    assert not data.remarks


@pytest.mark.parametrize(("cells", "what"), [
    ([*map(str, range(58)), "?", "?"], "'?'"), ([f"{n},5" for n in range(30)] * 2, "'0,5', '1,5', '10,5' and 27 more"),
    (["red", "blue", "7"] * 20, "")])  # fmt: skip
def test_numbers_that_become_words_are_remarked_on(cells: list[str], what: str, tmp_path: Path) -> None:
    table = frame()[["a", "label"]].assign(k=cells)
    table.to_csv(tmp_path / "train.csv", index=False)
    table.to_csv(tmp_path / "test.csv", index=False)
    chosen = config(tmp_path, test_fraction=0, text_columns="one_hot")
    stream = Tables([lambda: Reader(chosen, None).opened(tmp_path / "train.csv", sure=True)], [], chosen)
    stream.learn(None, lambda rows: None)
    for remarks in (load(chosen).remarks, stream.remarks):
        assert [text.split("train.csv: ")[1].split(": it is taken as text")[0] for text in remarks] == (
            [f"column k holds numbers and {what}"] if what else [])


def test_a_feature_is_no_label_and_a_name_may_be_blank() -> None:
    raw = columnar.frame(pd.DataFrame({"x": [0.5], "y": [1.5], "species": ["a"]}), "new")
    with pytest.raises(InputError, match=r"new has no columns named .*: give --label_column"):
        matched(raw, Columns(("x", "y")), Config(), labelled=True)
    raw = columnar.frame(pa.table({"": [0.5], "a": [1.5]}), "new")
    assert matched(raw, Columns(("a", "")), Config(), labelled=False).features == ["a", ""]


def test_predictions_apply_what_was_learned(mixed: Model, call_verb: Any, tmp_path: Path, capsys: Capture) -> None:
    table = gaps()[["colour", "n", "label"]]
    table.loc[10, "colour"] = "purple"
    table.to_csv(tmp_path / "t.csv", index=False)
    table.to_parquet(tmp_path / "t.parquet")
    assert mixed.columns is not None
    found = predicted(tmp_path / "t.csv", mixed)
    assert found.shape == (80, 4)
    np.testing.assert_array_equal(found[3:6, 0], np.float32(mixed.columns.fill["n"]))
    assert found[7, 1:].tolist() == found[10, 1:].tolist() == [0, 0, 0]
    assert "in 1 rows, column colour has one of 1 words that training did not see" in capsys.readouterr().err
    np.testing.assert_array_equal(predicted(tmp_path / "t.parquet", mixed), found)
    expected = mixed.predict(found)
    np.testing.assert_array_equal(mixed.predict(table).probabilities, expected.probabilities)
    assert mixed.evaluate(table, table["label"].to_numpy()).accuracy > 0.9
    assert run_data.split(mixed, dataset=str(tmp_path / "t.csv")).take(np.arange(80))[0].tolist() == found.tolist()
    done = call_verb("predict", str(mixed.run), "t.csv", "--json")
    assert done.returncode == 0
    assert done.stderr.count("\n") == 1
    assert [json.loads(line)["class"] for line in done.stdout.splitlines()] == expected.classes.tolist()


def test_a_run_goes_on_and_is_evaluated_with_what_it_learned(mixed: Model) -> None:
    assert mixed.evaluate_set(run_data.split(mixed)).accuracy > 0.8
    settings = {name: value for name, value in mixed.meta["settings"].items() if name in Config().settings()}
    again = train(Config(**settings | {"workdir": str(mixed.run), "hidden_sizes": (8,)}))
    assert len(again.history) >= 1


def test_an_export_says_which_columns_it_takes(mixed: Model, tmp_path: Path) -> None:
    from distmlp.results.export import export

    export(mixed, "npz", tmp_path / "m.npz")
    with np.load(tmp_path / "m.npz") as arrays:
        metadata = json.loads(str(arrays["metadata"]))
        assert arrays["w0"].shape[1] == 4
    assert json.loads(metadata["columns"]) == ["n", "colour=blue", "colour=green", "colour=red"]


def test_a_column_of_too_many_words_is_named(tmp_path: Path) -> None:
    table = pd.DataFrame({"id": [f"p{n}" for n in range(1001)], "a": 1.0, "label": ["u", "v", "w"] * 333 + ["u", "v"]})
    table.to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=r"column id has more than 1,000 different words.*--ignore_columns=id"):
        load(config(tmp_path / "t.csv", text_columns="one_hot"))
    table.iloc[1:].to_csv(tmp_path / "t.csv", index=False)
    data = load(config(tmp_path / "t.csv", text_columns="one_hot"))
    assert data.num_features == len({row for row in data.columns or () if row.startswith("id=")}) + 1


def test_a_column_that_becomes_text_after_a_million_numbers_is_text(tmp_path: Path) -> None:
    body = "1,2,u\n0,3,v\n" * 500_000 + "x,2,u\n"
    data = load(config(written(tmp_path, "k,n,label\n" + body), text_columns="one_hot", test_fraction=0.5))
    assert data.columns in (["k=0", "k=1", "k=x", "n"], ["k=0", "k=1", "n"])
    assert len(data.train) + len(data.test) == 1_000_001
    with pytest.raises(InputError, match="row 1000001 of column k is 'x', not a number"):
        load(config(tmp_path / "t.csv"))


@pytest.mark.parametrize("end", ["True", "0.5"])
def test_true_beside_numbers_is_no_number_wherever_it_stands(end: str, tmp_path: Path) -> None:
    start = "0.5,u\n0.25,v\n" if end == "True" else "True,u\nFalse,v\n"
    path = written(tmp_path, "k,label\n" + start * 400_000 + f"{end},u\n")
    with pytest.raises(InputError, match=f"column k is '?{'True' if end == 'True' else ''}"):
        load(config(path))


# Older runs.


def test_a_run_that_knows_names_only_predicts_as_before(model: Model, tmp_path: Path) -> None:
    import dataclasses

    info = {name: value for name, value in model.data_info.items() if name != "table"}
    old = dataclasses.replace(model, meta=model.meta | {"data_info": info})
    frame()[["c", "label", "b", "a"]].to_csv(tmp_path / "t.csv")
    np.testing.assert_array_equal(predicted(tmp_path / "t.csv", old), frame()[["a", "b", "c"]].to_numpy(np.float32))
    with_index = dataclasses.replace(old, meta=model.meta | {"data_info": info | {"columns": ["", "a", "b"]}})
    found = predicted(tmp_path / "t.csv", with_index)  # trained on pandas' index, as 0.2.0 did
    np.testing.assert_array_equal(found[:, 0], np.arange(60))
    nothing = dataclasses.replace(old, meta=model.meta | {"data_info": None})
    assert predicted(written(tmp_path, "1,2,3\n4,5,6\n"), nothing).tolist() == [[1, 2, 3], [4, 5, 6]]


# First lines.


@pytest.mark.parametrize(
    ("first", "names"),
    [
        ("\nA,B,label", ["A", "B"]), ("\r\n  \r\n\t\r\nA,B,label", ["A", "B"]), ("\ufeff\n\nA,B,label", ["A", "B"]),
        ('size (5"),B,label', ['size (5")', "B"]), ('5",6",label', ['5"', '6"']),
        ('"A ""x""\n\n,""",B,label', ['A "x"\n\n,"', "B"]), ('\ufeff"A\n1",B,label', ["A\n1", "B"]),
    ],
)  # fmt: skip
def test_empty_lines_and_quotes_before_the_first_line_ends(first: str, names: list[str], tmp_path: Path) -> None:
    separator = first[first.rindex("label") - 1]
    rows = [separator.join(["1"] * len(names) + [label]) for label in ("yes", "no")]
    data = load(config(written(tmp_path, "\n".join([first, *rows * 10, ""]))))
    assert (data.columns, data.classes, sum(map(len, data.parts))) == (names, ["no", "yes"], 20)


def test_empty_lines_before_a_first_row_or_an_index(tmp_path: Path) -> None:
    path = written(tmp_path, "\n\r\n" + "1,2,no\n3,4,yes\n" * 5)
    assert len(examples(load(config(path, header="none", label_column="2")))) == 10
    assert load(config(written(tmp_path, "\n\tA\tlabel\n" + "0\t1\tno\n1\t2\tyes\n" * 5))).columns == ["A"]


def test_a_quote_that_is_not_closed_is_searched_for_in_some_of_the_file(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(columnar, "_LONGEST", 1 << 20)
    started = time.monotonic()
    for text in ('a,"b,label', 'a,"b,label\n' + "1,2,u\n" * 10, 'a,"b,label\n' + "1,2,u\n" * 10**6):
        with pytest.raises(InputError, match=r"t.csv .*\(a quote in its first line is not closed\): close it"):
            load(config(written(tmp_path, text)))
    assert time.monotonic() - started < 10  # it took minutes
    with pytest.raises(InputError, match=r"t.csv cannot be read as a table \(field larger than"):
        load(config(written(tmp_path, "a" * 200_000 + ",label\n1,u\n")))


# Wide and long.


def test_ten_thousand_columns_and_a_long_header(tmp_path: Path) -> None:
    names = [f"{'x' * 120},{n}" for n in range(10_000)]  # a header of 1.2 MB, in quotes
    table = pd.DataFrame(np.arange(300_000).reshape(30, 10_000) % 97, columns=names).assign(label=["u", "v"] * 15)
    table.to_csv(tmp_path / "t.csv", index=False)
    started = time.monotonic()
    data = load(config(tmp_path / "t.csv"))
    assert time.monotonic() - started < 30  # it took minutes; measured: 2
    assert data.num_features == 10_000


def test_long_labels_do_not_take_their_length_for_each_row(tmp_path: Path) -> None:
    long = "w" * 10_000
    with gzip.open(tmp_path / "t.csv.gz", "wt", compresslevel=1) as file:
        file.write("a,label\n" + f"1,{long}\n2,v\n" * 2_500)
    labels = read.source(config(tmp_path / "t.csv.gz"), False, None).parts["train"].labels
    assert len(labels) == 5_000
    assert labels.nbytes == 40_000
    assert len({id(label) for label in labels}) == 2  # each word is kept once


# What is said.


def test_a_training_says_which_features_and_classes_it_has(tmp_path: Path, capsys: Capture) -> None:
    frame().to_csv(tmp_path / "t.csv")
    for workdir in ("run", None):
        train(config(tmp_path / "t.csv", num_epochs=1, workdir=workdir))
        captured = capsys.readouterr()
        assert "t: 3 features (a, b, c), 2 classes (no, yes)\n" in captured.out
        assert captured.err.count("column Unnamed: 0 is pandas' index, no feature, and left out") == 1
        assert "index" not in captured.out


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("t.parquet", b"PAR1 no more"), ("t.csv", "größe,label\n1,u\n".encode("latin-1")),
        ("t.csv", "size,label\n1,größer\n2,u\n".encode("latin-1")), ("t.csv", "size,label\n1,u\n".encode("utf-16")),
        ("t.csv.gz", gzip.compress(b"a,label\n" + b"1,u\n2,v\n" * 1000, mtime=0)[:-20]),
        ("t.csv.gz", b"a,label\n1,u\n"),
        ("t.csv", b""), ("t.csv", b"\n\n"),
    ],
)  # fmt: skip
def test_files_that_are_no_tables(name: str, content: bytes, model: Model, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    for use in (lambda: load(config(tmp_path / name)), lambda: asked_rows(tmp_path / name, model)):
        with pytest.raises(InputError, match=f"{name} (cannot be read as a table|lacks the columns)") as caught:
            use()
        assert "\n" not in str(caught.value)


def test_a_cell_with_line_ends_may_lie_across_two_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "_BLOCK", 16)
    rows = [f'{n},{-n},"{word}"' for n in range(40) for word in ("oh\nyes", "no\n\nno")]
    data = load(config(written(tmp_path, "\n".join(["a,b,label", *rows]))))
    assert (data.classes, sum(map(len, data.parts))) == (["no\n\nno", "oh\nyes"], 80)
