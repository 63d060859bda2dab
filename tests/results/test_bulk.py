"""predict --output: every row once, in order, the same as predict says, whole or not at all."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from pyarrow import parquet
from sklearn.datasets import load_wine

from distmlp import InputError, load
from distmlp.data import columnar
from distmlp.data.streams import Streamed
from distmlp.parallel.layout import Layout
from distmlp.results import bulk, files, models, run_data
from distmlp.results.ensemble import Ensemble
from launch import command, evaluate, pack, predict

Capture = pytest.CaptureFixture[str]


def plain() -> pd.DataFrame:
    frame = load_wine(as_frame=True).frame
    return frame.rename(columns={"od280/od315_of_diluted_wines": "od280", "target": "label"})


def wine(rows: int = 700) -> pd.DataFrame:
    """More rows than wine has, each with a number of its own."""
    frame = plain().drop(columns="label")
    frame = pd.concat([frame] * 4, ignore_index=True).iloc[:rows]
    return frame.assign(id=np.arange(len(frame))[::-1] + 5, name=[f"n{row}" for row in range(len(frame))])


@pytest.fixture
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(columnar, "_BLOCK", 40 * 15)


@pytest.fixture(params=["parquet", "csv", "feather", "folder"])
def source(request: pytest.FixtureRequest, tmp_path: Path, small_blocks: None) -> Path:
    path = tmp_path / f"wine.{request.param}"
    if request.param == "csv":
        wine().to_csv(path, index=False)
    elif request.param == "feather":
        wine().to_feather(path)
    elif request.param == "folder":
        path.mkdir()
        for place, begin in enumerate((0, 300, 500)):
            wine().iloc[begin : (300, 500, 700)[place]].to_parquet(path / f"part-{place}.parquet")
    else:
        wine().to_parquet(path)
    return path


def read(path: Path) -> pd.DataFrame:
    if ".parquet" in path.name:
        return parquet.read_table(path).to_pandas()
    if ".csv" in path.name:
        return pd.read_csv(path)
    return pd.DataFrame([json.loads(line) for line in path.read_text().splitlines()])


@pytest.mark.parametrize("form", [".parquet", ".csv", ".jsonl"])
def test_all_rows_in_order_with_their_columns(form: str, source: Path, wine_run: Path, tmp_path: Path) -> None:
    output = tmp_path / f"out{form}"
    assert predict.main([str(wine_run), str(source), f"--output={output}", "--columns=id,name", "--probabilities"]) == 0
    found, known = read(output), load(wine_run).predict(wine().drop(columns=["id", "name"]))
    assert found["id"].tolist() == wine()["id"].tolist()
    assert found["name"].tolist() == wine()["name"].tolist()
    assert found["class"].tolist() == known.classes.tolist()
    np.testing.assert_array_equal(found["probability"].astype(np.float32), known.probabilities.max(axis=1))
    each = found[[f"p_{name}" for name in load(wine_run).classes]].to_numpy(np.float32)
    np.testing.assert_array_equal(each, known.probabilities)
    assert not [*tmp_path.glob(".distmlp*")]


def test_an_array_of_probabilities(wine_run: Path, tmp_path: Path) -> None:
    model, x = load(wine_run), wine().drop(columns=["id", "name"]).to_numpy(np.float32)
    np.save(tmp_path / "x.npy", x)
    assert predict.main([str(wine_run), str(tmp_path / "x.npy"), f"--output={tmp_path / 'p.npy'}"]) == 0
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), model.predict(x).probabilities)
    np.savez(tmp_path / "one.npz", x=x[3])
    assert predict.main([str(wine_run), str(tmp_path / "one.npz"), f"--output={tmp_path / 'q.npy'}"]) == 0
    assert np.load(tmp_path / "q.npy").shape == (1, 3)


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_each_process_has_its_part(
    kind: str, wine_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, small_blocks: None
) -> None:
    for place, begin in enumerate((0, 101)):
        table = wine(202).iloc[begin : begin + 101]
        path = tmp_path / f"{place}.{kind}"
        table.to_csv(path, index=False) if kind == "csv" else table.to_parquet(path)
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    monkeypatch.setenv("MASTER_PORT", "1")
    monkeypatch.setenv("WORLD_SIZE", "3")
    sources = [str(tmp_path / f"{place}.{kind}") for place in range(2)]
    ids: list[int] = []
    for rank in range(3):
        monkeypatch.setenv("RANK", str(rank))
        assert predict.main([str(wine_run), *sources, f"--output={tmp_path}/p.parquet", "--columns=id"]) == 0
        ids += read(tmp_path / f"p.parquet.{rank}-of-3")["id"].tolist()
    assert ids == wine(202)["id"].tolist()
    assert not (tmp_path / "p.parquet").exists()
    monkeypatch.setenv("WORLD_SIZE", "300")
    monkeypatch.setenv("RANK", "1")
    assert predict.main([str(wine_run), *sources, f"--output={tmp_path}/few.parquet", "--columns=id"]) == 0
    assert len(read(tmp_path / "few.parquet.1-of-300")) <= 1


def test_one_of_several_processes_takes_its_gpus_and_says_what_only_it_may_see(
    wine_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "localhost",
           "MASTER_PORT": "1", "CUDA_VISIBLE_DEVICES": "0,1,2,3"}  # fmt: skip
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("JAX_PLATFORMS")
    gpus: list[str] = []

    def loaded(*arguments: Any) -> Any:
        gpus.append(jax.config.values["jax_cuda_visible_devices"])
        return load(*arguments)

    monkeypatch.setattr("distmlp.results.load.load", loaded)
    x = np.array(plain().drop(columns="label"), np.float32)
    x[-1] = np.nan
    np.save(tmp_path / "x.npy", x)
    for output, alone in (("p.npy", True), ("p.txt", False)):
        with pytest.raises(InputError) as caught:
            predict.main([str(wine_run), str(tmp_path / "x.npy"), f"--output={output}"])
        assert command._speaks_alone(caught.value) == alone
    assert gpus == ["2,3"]


def test_all_devices_work(wine_run: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch) -> None:
    model, used = load(wine_run), set()
    made = models._program

    def watched(compute_dtype: str, logarithms: bool) -> Any:
        def program(*arguments: Any) -> Any:
            result = made(compute_dtype, logarithms)(*arguments)
            used.update(result.devices())
            return result

        return program

    monkeypatch.setattr(models, "_program", watched)
    x = wine().drop(columns=["id", "name"]).to_numpy(np.float32)
    blocks = [np.concatenate([x] * 8)] * 2
    found = np.concatenate([*model.probabilities(blocks)])
    assert used == {*jax.local_devices()}
    np.testing.assert_array_equal(found, np.concatenate([load(wine_run).predict(x).probabilities] * 16))


def test_whole_numbers_of_a_text_file_are_numbers_if_all_are(
    wine_run: Path, tmp_path: Path, small_blocks: None
) -> None:
    frame = wine().assign(number=lambda table: table["id"].astype(str))
    frame.loc[650, "number"] = "007"
    frame.to_csv(tmp_path / "t.csv", index=False)
    bulk.write(load(wine_run), [tmp_path / "t.csv"], bulk.Output(tmp_path / "p.parquet", ["id", "number"]))
    table = parquet.read_table(tmp_path / "p.parquet")
    assert [str(kind) for kind in table.schema.types[:2]] == ["int64", "string"]
    assert table["number"].to_pylist() == frame["number"].tolist()


def test_text_of_a_parquet_file_stays_text(wine_run: Path, tmp_path: Path) -> None:
    numbers = [str(row) for row in range(20)]
    table = pa.Table.from_pandas(wine(20), preserve_index=False)
    parquet.write_table(table.append_column("number", pa.array(numbers, pa.string())), tmp_path / "t.parquet")
    wine(20).assign(number=numbers).to_csv(tmp_path / "t.csv", index=False)
    for first, second in (("parquet", "csv"), ("csv", "parquet")):
        paths = [tmp_path / f"t.{kind}" for kind in (first, second)]
        bulk.write(load(wine_run), paths, bulk.Output(tmp_path / "p.parquet", ["number"]))
        assert parquet.read_table(tmp_path / "p.parquet")["number"].to_pylist() == numbers * 2


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_the_parts_of_several_processes_have_the_same_types(kind: str, wine_run: Path, tmp_path: Path) -> None:
    frame = wine(20).assign(number=[*map(str, range(15)), *"abcde"])  # numbers only, for the first two of four
    path = tmp_path / f"t.{kind}"
    frame.to_csv(path, index=False) if kind == "csv" else frame.to_parquet(path)
    for processes in (4, 30):
        for process in range(processes):
            output = bulk.Output(tmp_path / "p.parquet", ["number", "id"], process=process, processes=processes)
            bulk.write(load(wine_run), [path], output)
        parts = [parquet.read_table(f"{tmp_path}/p.parquet.{n}-of-{processes}") for n in range(processes)]
        assert [str(kind) for kind in parts[0].schema.types[:2]] in (["string", "int64"], ["large_string", "int64"])
        assert pa.concat_tables(parts)["number"].to_pylist() == frame["number"].tolist()


def test_a_column_of_another_type_in_another_file(wine_run: Path, tmp_path: Path) -> None:
    paths = [tmp_path / f"{n}.parquet" for n in range(3)]
    for path, notes in zip(paths, ([None] * 9, [*"abcdefghi"], [*range(9)]), strict=True):
        wine(9).assign(note=notes).to_parquet(path)
    for first, second, said in ((paths[0], paths[1], "string, not null"), (paths[2], paths[1], "string, not int64")):
        with pytest.raises(InputError, match=f"^--columns=note is (large_)?{said}, unlike .* of .*1.parq"):
            bulk.write(load(wine_run), [first, second], bulk.Output(tmp_path / "p.csv", ["note"]))
        bulk.write(load(wine_run), [first, second], bulk.Output(tmp_path / "p.jsonl", ["note"]))
        assert read(tmp_path / "p.jsonl")["note"].tolist()[9:] == [*"abcdefghi"]


@pytest.mark.parametrize(("first", "second", "said"), [
    (pa.array(range(5)), pa.array(["007"] * 5), "string, not int64"),
    (pa.array([0.5] * 5, pa.float32()), pa.array([0.1] * 5), "double, not float"),
    (pa.array([True] * 5), pa.array([2] * 5), "int64, not bool"),
    (pa.array([0.1] * 5, pa.float32()), pa.array([0.5, -2, 1e9, None, np.nan]), ""),
    (pa.array([""] * 5), pa.array([7] * 5), ""), (pa.array(range(5)), pa.array([None] * 5, pa.string()), ""),
    (pa.array(range(5)), pa.nulls(5), ""),
    (pa.array([{"x": 1}] * 5), pa.array([{"x": 2}, None, *[{"x": 3}] * 3], pa.struct([("x", pa.int32())])), ""),
])  # fmt: skip
def test_no_value_becomes_another_one_by_the_type_of_an_earlier_file(
    first: Any, second: Any, said: str, wine_run: Path, tmp_path: Path
) -> None:
    for place, notes in enumerate((first, second)):
        table = pa.Table.from_pandas(wine(5), preserve_index=False)
        parquet.write_table(table.append_column("note", notes), tmp_path / f"{place}.parquet")
    paths = [tmp_path / "0.parquet", tmp_path / "1.parquet"]
    if said:
        with pytest.raises(InputError, match=f"^--columns=note is {said}, unlike .* of .*1.parquet: save it as one"):
            bulk.write(load(wine_run), paths, bulk.Output(tmp_path / "p.parquet", ["note"]))
        return
    bulk.write(load(wine_run), paths, bulk.Output(tmp_path / "p.parquet", ["note"]))
    assert str(parquet.read_table(tmp_path / "p.parquet")["note"][5:].to_pylist()) == str(
        second.cast(first.type).to_pylist())


@pytest.mark.parametrize("column", [
    pa.array([{"x": 1}] * 5), pa.array([[("k", 1)]] * 5, pa.map_(pa.string(), pa.int64())),
], ids=["struct", "map"])  # fmt: skip
def test_a_column_that_a_text_file_does_not_have(column: Any, wine_run: Path, tmp_path: Path) -> None:
    table = pa.Table.from_pandas(wine(5), preserve_index=False).append_column("note", column)
    parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"^--columns=note: a \.csv file cannot hold a column of type (struct|map)<.*>:"
                                         r" write a \.parquet or \.jsonl file$"):
        bulk.write(load(wine_run), [tmp_path / "t.parquet"], bulk.Output(tmp_path / "p.csv", ["id", "note"]))
    assert [path.name for path in tmp_path.iterdir()] == ["t.parquet"]
    for form in ("parquet", "jsonl"):
        bulk.write(load(wine_run), [tmp_path / "t.parquet"], bulk.Output(tmp_path / f"p.{form}", ["id", "note"]))


def test_json_has_null_for_what_is_no_number(wine_run: Path, tmp_path: Path) -> None:
    values = [1.5, np.nan, np.inf, -np.inf, None]
    frame = pa.Table.from_pandas(wine(5), preserve_index=False)
    for name, column in (("f", pa.array(values, pa.float32())), ("d", pa.array(values, pa.float64())),
                         ("s", pa.array([{"x": value} for value in values]))):  # fmt: skip
        frame = frame.append_column(name, column)
    parquet.write_table(frame, tmp_path / "t.parquet")
    bulk.write(load(wine_run), [tmp_path / "t.parquet"], bulk.Output(tmp_path / "p.jsonl", ["f", "d", "s"]))
    text = (tmp_path / "p.jsonl").read_text()
    assert ("NaN" in text, "Infinity" in text) == (False, False)
    lines = [json.loads(line) for line in text.splitlines()]
    assert [(line["f"], line["d"], line["s"]["x"]) for line in lines] == [(1.5,) * 3] + [(None,) * 3] * 4


@pytest.mark.parametrize("size", [0, 5], ids=["one", "ensemble"])
def test_a_row_that_has_no_probabilities_is_named(size: int, wine_run: Path, tmp_path: Path, capsys: Capture) -> None:
    """What stands for no data is finite, until it is scaled."""
    model: Any = load(wine_run)
    model = Ensemble.of(wine_run, [model] * size) if size else model
    frame = plain().head(30).assign(label="Barolo <b>")
    frame.loc[7, "hue"] = np.finfo(np.float32).min
    frame.to_csv(tmp_path / "t.csv", index=False)
    rows = frame.drop(columns="label")
    said = "has a value so large that its probabilities are no numbers"
    for call in (model.predict, model.predict_log_proba):  # a table's rows are counted from 1
        with pytest.raises(InputError, match=f"row 8 {said}"):
            call(rows)
        with pytest.raises(InputError, match=f"row 7 {said}"):
            call(np.array(rows, np.float32))
    with pytest.raises(InputError, match=f"7 {said}"):
        model.evaluate(rows, frame["label"])
    with pytest.raises(InputError, match=rf"t\.csv: row 8 {said}"):
        bulk.write(model, [tmp_path / "t.csv"], bulk.Output(tmp_path / "p.csv"))
    if not size:
        assert predict.main([str(wine_run), str(tmp_path / "t.csv"), "--json"]) == 2
        assert f"t.csv: row 8 {said}" in capsys.readouterr().err
        with pytest.raises(InputError, match=rf"t\.csv.*: example 7 {said}"):
            evaluate.main([str(wine_run), f"--dataset={tmp_path / 't.csv'}", "--json"])


@pytest.mark.parametrize("value", [np.nan, np.finfo(np.float32).min])
def test_a_process_names_the_rows_of_its_part_as_the_file_has_them(
    value: float, wine_run: Path, tmp_path: Path
) -> None:
    x = np.array(plain().drop(columns="label"), np.float32)[:40]
    np.save(tmp_path / "first.npy", x[:4])
    x[33] = value
    np.save(tmp_path / "x.npy", x)
    output = bulk.Output(tmp_path / "p.csv", process=1, processes=2)
    with pytest.raises(InputError, match=r"x\.npy: row 33 has a value"):
        bulk.write(load(wine_run), [tmp_path / "first.npy", tmp_path / "x.npy"], output)


def test_rows_that_were_printed_count_though_a_later_one_fails(
    wine_run: Path, tmp_path: Path, small_blocks: None, capsys: Capture
) -> None:
    frame = plain().drop(columns="label")
    frame.loc[150, "hue"] = np.finfo(np.float32).min
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert predict.main([str(wine_run), str(tmp_path / "t.csv")]) == 1
    printed = capsys.readouterr()
    assert 0 < len(printed.out.splitlines()) <= 150
    assert "t.csv: row 151 has a value" in printed.err


@pytest.mark.parametrize("form", [".parquet", ".csv", ".jsonl"])
def test_a_class_whose_name_is_no_text(form: str, wine_run: Path, tmp_path: Path) -> None:
    """As of a folder of pictures, named in another locale."""
    model = load(wine_run)
    names = ["K\udce4fer", "b", "c"]
    model = dataclasses.replace(model, meta=model.meta | {"data_info": model.data_info | {"classes": names}})
    plain().to_csv(tmp_path / "t.csv", index=False)
    bulk.write(model, [tmp_path / "t.csv"], bulk.Output(tmp_path / f"p{form}", probabilities=True))
    found = read(tmp_path / f"p{form}")
    assert {*found["class"]} == {r"K\udce4fer", "b", "c"}
    assert [*found.columns[2:]] == [r"p_K\udce4fer", "p_b", "p_c"]


def test_a_pack(wine_run: Path, tmp_path: Path) -> None:
    plain().to_csv(tmp_path / "wine.csv", index=False)
    assert pack.main([str(tmp_path / "wine.csv"), f"--output={tmp_path / 'made'}"]) == 0
    assert predict.main([str(wine_run), str(tmp_path / "made"), f"--output={tmp_path / 'p.npy'}"]) == 0
    x = plain().drop(columns="label")
    np.testing.assert_array_equal(np.load(tmp_path / "p.npy"), load(wine_run).predict(x).probabilities)
    with pytest.raises(InputError, match="is no table, and has no columns by name"):
        bulk.write(load(wine_run), [tmp_path / "made"], bulk.Output(tmp_path / "p.csv", ["id"]))


def test_pictures(digits_run: Path, tmp_path: Path) -> None:
    from PIL import Image

    (tmp_path / "pictures").mkdir()
    for place in range(5):
        Image.fromarray(np.full((8, 8), 20 * place, np.uint8)).save(tmp_path / "pictures" / f"{place}.png")
    bulk.write(load(digits_run), [tmp_path / "pictures"], bulk.Output(tmp_path / "p.csv"))
    assert len(read(tmp_path / "p.csv")) == 5


@pytest.mark.parametrize(("arguments", "said"), [
    (["--output=p.txt"], r"--output=p\.txt: give a file whose name ends in one of \.parquet"),
    (["--output=p.csv", "--columns=nothing"], "--columns=nothing: .* has no such column, it has alcohol"),
    (["--output=p.csv", "--columns=id,id"], "several columns named id"),
    (["--output=p.npy", "--columns=id"], r"an \.npy file holds probabilities only"),
    (["--columns=id"], "go with --output=FILE"), (["--output=p.csv", "--json"], "--json goes without --output"),
    (["--output=none/p.csv"], r"--output=none/p\.csv cannot be written \(No such file"),
])  # fmt: skip
def test_wrong_usage(arguments: list[str], said: str, wine_run: Path, tmp_path: Path) -> None:
    wine(9).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(InputError, match=said):
        predict.main([str(wine_run), str(tmp_path / "t.csv"), *arguments])


def test_nothing_is_written_unless_all_is(
    wine_run: Path, tmp_path: Path, small_blocks: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    frame = wine()
    frame.loc[690, "alcohol"] = np.nan
    frame.to_csv(tmp_path / "t.csv", index=False)
    (tmp_path / "p.parquet").write_text("of before")
    with pytest.raises(InputError, match="row 691 of column alcohol has no value"):
        bulk.write(load(wine_run), [tmp_path / "t.csv"], bulk.Output(tmp_path / "p.parquet"))
    os.mkfifo(tmp_path / "pipe")
    for call in (lambda: bulk.write(load(wine_run), [tmp_path / "pipe"], bulk.Output(tmp_path / "p.parquet")),
                 lambda: run_data.read(load(wine_run), str(tmp_path / "pipe")),
                 lambda: run_data.split(load(wine_run), dataset=str(tmp_path / "pipe"))):  # fmt: skip
        with pytest.raises(InputError, match="pipe is neither a file nor a folder, perhaps a pipe: write what comes"):
            call()
    with pytest.raises(InputError, match=r"gone\.csv does not exist"):
        bulk.write(load(wine_run), [tmp_path / "gone.csv"], bulk.Output(tmp_path / "p.parquet"))
    wine(1).iloc[:0].to_csv(tmp_path / "none.csv", index=False)
    with pytest.raises(InputError, match=r"none\.csv holds no rows"):
        bulk.write(load(wine_run), [tmp_path / "none.csv"], bulk.Output(tmp_path / "p.parquet"))
    frame.drop(index=690).to_csv(tmp_path / "t.csv", index=False)
    monkeypatch.setattr(Path, "replace", lambda path, other: (_ for _ in ()).throw(OSError(28, "No space left")))
    with pytest.raises(InputError, match=r"p\.parquet cannot be written \(No space left on device\): give"):
        bulk.write(load(wine_run), [tmp_path / "t.csv"], bulk.Output(tmp_path / "p.parquet"))
    assert (tmp_path / "p.parquet").read_text() == "of before"
    assert not [*tmp_path.glob(".distmlp*")]


def test_a_link_stays_and_permissions_are_kept(tmp_path: Path) -> None:
    (tmp_path / "file").touch(0o600)
    (tmp_path / "link").symlink_to(tmp_path / "file")
    with files.whole(tmp_path / "link") as new:
        new.write_text("all")
    assert (tmp_path / "link").is_symlink()
    assert ((tmp_path / "file").read_text(), (tmp_path / "file").stat().st_mode & 0o777) == ("all", 0o600)
    with pytest.raises(InputError, match="Is a directory"), files.whole(tmp_path):
        pass


def test_lists_in_a_table(wine_run: Path, tmp_path: Path) -> None:
    table = pa.Table.from_pandas(wine(20).drop(columns="name"), preserve_index=False)
    parquet.write_table(table.append_column("tags", pa.array([[1]] * 20)), tmp_path / "t.parquet")
    bulk.write(load(wine_run), [tmp_path / "t.parquet"], bulk.Output(tmp_path / "p.parquet", ["id", "tags[0]"]))
    assert read(tmp_path / "p.parquet")["tags[0]"].tolist() == [1] * 20


@pytest.mark.parametrize("form", [".parquet", ".csv", ".npy"])
def test_each_example_of_an_evaluation(form: str, wine_run: Path, tmp_path: Path, capsys: Capture) -> None:
    output, model = tmp_path / f"e{form}", load(wine_run)
    assert evaluate.main([str(wine_run), "--json", f"--output={output}", "--probabilities"]) == 0
    told = json.loads(capsys.readouterr().out)
    test: Any = run_data.split(model, "test")
    known = model.predict(test.take(np.arange(len(test)))[0])
    if form == ".npy":
        np.testing.assert_allclose(np.load(output), known.probabilities, rtol=1e-5)
        return
    found = read(output)
    assert (found["label"] == found["class"]).sum() == told["correct"]
    assert len(found) == told["count"]
    assert found["label"].tolist() == [model.classes[number] for number in test.labels]
    assert found["class"].tolist() == known.classes.tolist()
    np.testing.assert_allclose(found["probability"], known.probabilities.max(axis=1), rtol=1e-5)
    assert found.columns[3:].tolist() == [f"p_{name}" for name in model.classes]
    with pytest.raises(InputError, match="--probabilities goes with --output"):
        evaluate.main([str(wine_run), "--probabilities"])


@pytest.mark.parametrize("form", ["csv", "parquet", "folder"])
def test_an_evaluation_reads_tables_as_it_goes(
    form: str, wine_run: Path, tmp_path: Path, small_blocks: None, capsys: Capture
) -> None:
    frame, model = load_wine(as_frame=True).frame, load(wine_run)
    names = np.array(list(model.classes))
    frame = frame.assign(label=names[frame["target"]], id=range(178)).drop(columns="target")
    frame = frame.rename(columns={"od280/od315_of_diluted_wines": "od280"})
    path = tmp_path / f"t.{form}"
    if form == "folder":
        path.mkdir()
        for begin in range(0, 178, 45):
            frame[begin : begin + 45].to_parquet(path / f"part-{begin:03}.parquet")
    else:
        frame.to_csv(path, index=False) if form == "csv" else frame.to_parquet(path)
    examples = run_data.split(model, "test", str(path))
    assert isinstance(examples, Streamed)
    labels = frame["label"].to_numpy()
    expected = model.evaluate(frame.drop(columns=["label", "id"]), labels)
    capsys.readouterr()
    assert model.evaluate_set(examples).as_json() == expected.as_json()
    assert "column id is not known to the run, and ignored" in capsys.readouterr().err
    found, numbers = examples.take(np.array([3, 9, 170]))
    again, _ = examples.take(np.array([[0, 3]]))  # what lies before is read again
    assert (again.shape, numbers.dtype) == ((1, 2, 13), np.int32)
    np.testing.assert_array_equal(again[0, 1], found[0])
    assert [model.classes[number] for number in numbers] == labels[[3, 9, 170]].tolist()
    assert run_data.split(model, "train", str(path)).fingerprint() == examples.fingerprint()


def test_an_evaluation_uses_all_devices_and_says_the_same(wine_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = load(wine_run)
    examples, used = run_data.split(model, "train"), []
    put = Layout.put

    def watched(self: Layout, tree: Any, specs: Any) -> Any:
        used.append(len(self.devices))
        return put(self, tree, specs)

    monkeypatch.setattr(Layout, "put", watched)
    on_all = model.evaluate_set(examples).as_json()
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    assert model.evaluate_set(examples).as_json() == on_all
    assert {*used} == {8, 1}
