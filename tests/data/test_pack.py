"""pack: what comes out is what training reads from the sources themselves, whole or not at all, and it is checked."""

import dataclasses
import errno
import gc
import importlib.metadata
import io
import itertools
import json
import os
import re
import shutil
import stat
import subprocess
import sys
import threading
import time
import zipfile
import zlib
from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from conftest import REPOSITORY, asked_rows, small_config
from PIL import Image
from pyarrow import feather

from distmlp import Config, InputError, machine, pack, train
from distmlp.data import batches as loading
from distmlp.data import datasets, packed, packing, sources, split, streams, tables
from distmlp.data.examples import ArrayDataset
from distmlp.data.labels import Seen, find_classes
from distmlp.data.loader import NumpyLoader
from distmlp.errors import WriteError
from distmlp.results import bulk, run_data
from distmlp.results.models import Model
from launch import pack as verb

Capture = pytest.CaptureFixture[str]
LEARNED = {"missing": "mean", "text_columns": "one_hot", "test_fraction": 0.25, "validation_fraction": 0.2, "seed": 3}


def frame(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    """A column of numbers with gaps, one of words with gaps, one of True and False, and labels that are words."""
    rng = np.random.default_rng(seed)
    number = rng.standard_normal(rows).astype(np.float32)
    number[::7] = np.nan
    words = np.array(["red", "green", "blue", None], object)[rng.integers(0, 4, rows)]
    return pd.DataFrame({"id": np.arange(rows), "number": number, "word": words, "flag": rng.random(rows) > 0.5,
                         "label": np.array(["yes", "no", "01"], object)[rng.integers(0, 3, rows)]})


def flags(settings: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in settings.items()]


def run(output: Path, *sources: Path, **settings: Any) -> Path:
    assert verb.main([*map(str, sources), f"--output={output}", *flags(settings)]) == 0
    return output


def same(one: datasets.Data, other: datasets.Data) -> None:
    """All that training takes from the data is the same, to the last bit."""
    assert one.sizes == other.sizes
    assert (one.classes, one.numbered, one.columns, one.table) == (other.classes, other.numbered, other.columns,
                                                                   other.table)  # fmt: skip
    assert (one.weights is None) == (other.weights is None)
    assert one.weights is None or one.weights.tobytes() == other.weights.tobytes()  # type: ignore[union-attr]
    for a, b in zip(one.parts, other.parts, strict=True):
        for x, y in zip(a.take(np.arange(len(a))), b.take(np.arange(len(b))), strict=True):
            assert (x.dtype, x.tobytes()) == (y.dtype, y.tobytes())
        assert (a.shape, a.dtype) == (b.shape, b.dtype)
    for scaling in ("unit", "standard"):
        for x, y in zip(*(datasets.input_scaling(scaling, data) for data in (one, other)), strict=True):
            assert x.tobytes() == y.tobytes()


def write_csv(table: pd.DataFrame, path: Path) -> None:
    table.to_csv(path, index=False)


TABLES: dict[str, Callable[[pd.DataFrame, Path], Any]] = {
    "t.csv": write_csv, "t.csv.gz": write_csv, "t.tsv": lambda table, path: table.to_csv(path, sep="\t", index=False),
    "t.parquet": lambda table, path: table.to_parquet(path, row_group_size=130),
    "t.feather": lambda table, path: feather.write_feather(pa.Table.from_pandas(table), str(path), chunksize=90),
}  # fmt: skip


@pytest.mark.parametrize("name", TABLES)
@pytest.mark.parametrize("block", [1 << 20, 1 << 9])
def test_a_pack_is_what_training_reads_from_the_table(
    name: str, block: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packed, "BLOCK_BYTES", block)
    TABLES[name](frame(), path := tmp_path / name)
    settings = LEARNED | {"ignore_columns": "id"}
    made = run(tmp_path / "made", path, **settings)
    same(datasets.load(Config(dataset=str(path), **settings)), datasets.load(Config(dataset=str(made), seed=3)))
    assert sorted(file.name for file in made.iterdir()) == [
        "pack.json", *(f"{letter}_{part}.npy" for letter in "xy" for part in ("test", "train", "validation"))]
    values = np.load(made / "x_train.npy")
    assert values.shape == (240, 5)  # a file that others can read, too, and compare
    info = json.loads((made / "pack.json").read_text())["pack"]["parts"]["train"]["x"]
    blocks = [values[begin : begin + info["block_rows"]] for begin in range(0, 240, info["block_rows"])]
    assert info["crc32"] == "".join(f"{zlib.crc32(rows.tobytes()):08x}" for rows in blocks)


def test_a_folder_of_many_tables_is_one_and_one_of_parts_is_parts(tmp_path: Path) -> None:
    whole = frame()
    for place, begin in enumerate(range(0, 400, 100)):  # as Spark writes them
        folder = tmp_path / "spark"
        folder.mkdir(exist_ok=True)
        whole.iloc[begin : begin + 100].to_parquet(folder / f"part-{place:05}-c000.snappy.parquet")
    (folder / "_SUCCESS").touch()
    (folder / "_temporary").mkdir()
    whole.to_parquet(folder / "_temporary" / "part-9.parquet")
    whole.to_parquet(tmp_path / "whole.parquet")
    settings = LEARNED | {"ignore_columns": "id"}
    same(datasets.load(Config(dataset=str(run(tmp_path / "a", folder, **settings)))),
         datasets.load(Config(dataset=str(tmp_path / "whole.parquet"), **settings)))
    parts = tmp_path / "parts"
    for part, seed in (("train", 0), ("test", 1)):
        (parts / part).mkdir(parents=True)
        for place in range(2):
            frame(60, 2 * seed + place).to_csv(parts / part / f"{place}.csv", index=False)
    made = datasets.load(Config(dataset=str(run(tmp_path / "b", parts, missing="zero", text_columns="one_hot"))))
    assert made.sizes[:2] == [120, 120]
    named = run(tmp_path / "c", parts / "test", parts / "train", missing="zero", text_columns="one_hot")
    same(made, datasets.load(Config(dataset=str(named))))


@pytest.mark.parametrize("names", [
    "wine.csv test.csv", "wine.csv wine_test.csv", "data/train-0.csv more/test-0.csv", "adult.train.csv adult.test.csv",
    "a/1.csv val/1.csv", "a.npz test.npz", "train.npz test.npz",
])  # fmt: skip
@pytest.mark.parametrize("alone", [True, False])
def test_what_is_named_as_held_out_is_not_packed_into_the_training_set(
    names: str, alone: bool, tmp_path: Path
) -> None:
    files = [tmp_path / "s" / name for name in names.split()]
    for file in files:
        file.parent.mkdir(parents=True, exist_ok=True)
        if file.suffix == ".npz":
            np.savez(file, x=np.eye(4), y=[0, 1, 0, 1])
        else:
            file.write_text("x,label\n1,0\n2,1\n")
    sources = [tmp_path / "s"] if alone else [tmp_path / "s" / name.split("/")[0] for name in names.split()]
    with pytest.raises(InputError, match=r"would be one training set: name all of them train, test or val") as caught:
        run(tmp_path / "made", *dict.fromkeys(sources))
    assert "\n" not in str(caught.value)


def test_numbered_files_of_parts_are_parts_and_of_one_part_alone_are_the_training_set(tmp_path: Path) -> None:
    for rows, name in ((20, "train-00000-of-00002"), (30, "train-00001-of-00002"), (8, "test-00000-of-00001-b42a7")):
        frame(rows).to_parquet(tmp_path / f"{name}.parquet")
    made = packed.Pack(run(tmp_path / "a", tmp_path, missing="zero", text_columns="one_hot"))
    assert {part: info["x"]["rows"] for part, info in made.info["parts"].items()} == {"train": 50, "test": 8}
    for file in tmp_path.glob("train-*"):
        file.unlink()
    frame(9).to_csv(tmp_path / "test2.csv", index=False)
    for name, paths in (("b", [tmp_path]), ("c", sorted(tmp_path.glob("test*")))):
        alone = packed.Pack(run(tmp_path / "made" / name, *paths, missing="zero", text_columns="one_hot"))
        assert {part: info["x"]["rows"] for part, info in alone.info["parts"].items()} == {"train": 17}


def test_one_table_in_two_formats_is_not_read_twice(tmp_path: Path) -> None:
    write_csv(frame(), tmp_path / "wine.csv")
    write_csv(frame(), tmp_path / "wine.csv.gz")
    with pytest.raises(InputError, match=r"wine\.csv and .*wine\.csv\.gz could both be meant: move one away"):
        run(tmp_path / "made", tmp_path, **LEARNED)


def test_the_test_and_validation_set_of_a_folder_are_evaluated_apart(tmp_path: Path) -> None:
    for part, rows in (("test", 20), ("val", 30)):
        frame(rows)[["number", "label"]].to_csv(tmp_path / f"{part}.csv", index=False)
    columns = datasets.load(Config(dataset="python:x", missing="mean", test_fraction=0.5), (
        frame()[["number"]], frame()["label"])).table  # fmt: skip
    assert columns is not None
    found = sources.for_model(tmp_path, Config(), dataclasses.replace(columns, label="label"))
    assert {part: [file.name for file in stream.files] for part, stream in found.items()} == {
        "test": ["test.csv"], "validation": ["val.csv"]}  # fmt: skip
    with pytest.raises(InputError, match="holds no training set, but test, validation: name the parts"):
        run(tmp_path / "made", tmp_path)


def test_folders_of_partitions_are_a_column_if_asked(tmp_path: Path) -> None:
    for kind in ("a", "b"):
        (tmp_path / "t" / f"kind={kind}").mkdir(parents=True)
        pd.DataFrame({"x": [0.5, 1.5], "label": [0, 1]}).to_parquet(tmp_path / "t" / f"kind={kind}" / "0.parquet")
    plain = packed.Pack(run(tmp_path / "plain", tmp_path / "t"))
    assert plain.columns is not None
    assert plain.columns.features == ["x"]
    asked = packed.Pack(run(tmp_path / "asked", tmp_path / "t", partitions="columns", text_columns="one_hot"))
    assert asked.columns is not None
    assert asked.columns.features == ["x", "kind=a", "kind=b"]
    assert asked.examples("train", 0).take(np.arange(4))[0].tolist() == [
        [0.5, 1, 0], [1.5, 1, 0], [0.5, 0, 1], [1.5, 0, 1]]  # fmt: skip


@pytest.mark.parametrize("kind", [np.uint8, np.float64])
@pytest.mark.parametrize("form", ["folder", "npz", "compressed", "fortran"])
def test_arrays(kind: Any, form: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    arrays = {}
    for part, rows in (("train", 70), ("test", 30)):
        x = rng.integers(0, 200, (rows, 3, 4)).astype(kind)
        arrays |= {f"x_{part}": np.asfortranarray(x) if form == "fortran" else x, f"y_{part}": rng.integers(5, 9, rows)}
    source = tmp_path / ("arrays" if form in ("folder", "fortran") else "arrays.npz")
    if source.suffix:
        (np.savez_compressed if form == "compressed" else np.savez)(source, **arrays)
    else:
        source.mkdir()
        for name, array in arrays.items():
            np.save(source / f"{name}.npy", array)
    same(datasets.load(Config(dataset=str(source))), datasets.load(Config(dataset=str(run(tmp_path / "p", source)))))


@pytest.mark.parametrize("train_bytes", [True, False])
def test_a_part_of_other_numbers_keeps_them_and_one_of_another_width_is_refused(
    train_bytes: bool, tmp_path: Path
) -> None:
    x = np.random.default_rng(0).integers(0, 256, (40, 4)).astype(np.uint8)
    kinds: list[np.ndarray] = [x, (x[:10] / 255).astype(np.float32)] if train_bytes else [x / 255, x[:10]]
    arrays = dict(zip(("x_train", "x_test"), kinds, strict=True)) | {"y_train": np.arange(40) % 2}
    np.savez(tmp_path / "a.npz", **arrays, y_test=np.arange(10) % 2)
    made = run(tmp_path / "p", tmp_path / "a.npz")
    same(datasets.load(Config(dataset=str(tmp_path / "a.npz"))), datasets.load(Config(dataset=str(made))))
    for width in (1, 3):
        np.savez(tmp_path / "a.npz", **arrays | {"x_test": kinds[1][:, :width]}, y_test=np.arange(10) % 2)
        with pytest.raises(InputError, match=rf"x_train has 4 features but .*x_test has {width}: they must") as it:
            run(tmp_path / "q", tmp_path / "a.npz")
        assert "\n" not in str(it.value)


def pictures(folder: Path, count: int = 6) -> None:
    for number, name in enumerate(("cat", "dog")):
        (folder / name).mkdir(parents=True)
        for place in range(count):
            pixels = np.full((5, 6 + place % 2), 40 * number + place, np.uint8)
            Image.fromarray(pixels).save(folder / name / f"{place}.png")


def test_pictures(tmp_path: Path) -> None:
    pictures(tmp_path / "pets")
    settings = {"image_size": 4, "test_fraction": 0.25}
    made = datasets.load(Config(dataset=str(run(tmp_path / "made", tmp_path / "pets", **settings))))
    same(datasets.load(Config(dataset=str(tmp_path / "pets"), **settings)), made)  # type: ignore[arg-type]
    assert made.info()["pictures"]


def test_rows_in_folders_that_links_lead_to_are_packed_trained_on_and_predicted(tmp_path: Path) -> None:
    pictures(tmp_path / "pets", 2)
    (tmp_path / "more").mkdir()
    (tmp_path / "pets" / "cat").rename(tmp_path / "more" / "tabby")
    (tmp_path / "pets" / "cat").mkdir()
    (tmp_path / "pets" / "cat" / "all").symlink_to(tmp_path / "more")
    (tmp_path / "more" / "back").symlink_to(tmp_path / "pets" / "cat")  # a link of a loop adds no row
    config = Config(dataset=str(tmp_path / "pets"), image_size=4)
    assert len(datasets.load(config, tested=False).train) == 4
    made = run(tmp_path / "made", tmp_path / "pets", image_size=4)
    (opened,) = bulk.sources(of_pack(made)).at(tmp_path / "pets")
    assert opened().count() == 4
    (tmp_path / "tables").mkdir()
    (tmp_path / "source").mkdir()
    frame(40).to_parquet(tmp_path / "tables" / "1.parquet")
    (tmp_path / "source" / "day").symlink_to(tmp_path / "tables")
    assert sources.below(tmp_path / "source") == sources.tables(tmp_path / "source") == [
        tmp_path / "source" / "day" / "1.parquet"]
    assert sources.found([tmp_path / "source"], Config())["train"].files == sources.below(tmp_path / "source")


def test_a_folder_that_cannot_be_read_is_not_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures(tmp_path / "pets", 2)
    (tmp_path / "pets" / "cat" / "more").mkdir()
    scandir = os.scandir

    def refusing(path: Any) -> Any:  # the tests' user may read everything
        if Path(path).name == "more":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)
    for walk in (lambda: datasets.load(Config(dataset=str(tmp_path / "pets"), image_size=4), tested=False),
                 lambda: sources.below(tmp_path / "pets")):
        with pytest.raises(InputError, match=r"pets/cat/more cannot be read \(Permission denied\): make it readable"):
            walk()


def test_a_column_of_weights_goes_with_tables_only(tmp_path: Path) -> None:
    pictures(tmp_path / "pets")
    x, y = np.zeros((6, 2), np.float32), np.arange(6) % 2
    np.savez(tmp_path / "a.npz", x=x, y=y)
    said = "--weight_column=w goes with a table, which .* is not: name an array of weights w_train"
    for source in (tmp_path / "pets", tmp_path / "a.npz"):
        with pytest.raises(InputError, match=said):
            run(tmp_path / "made", source, weight_column="w", image_size=4)
    with pytest.raises(InputError, match=said):
        pack([(x, y)], tmp_path / "made", Config(weight_column="w"))


def of_pack(output: Path) -> Model:
    """A model of the pack's features and classes, which was not trained."""
    data = datasets.load(Config(dataset=str(output)), tested=False)
    params = [(np.zeros((data.num_classes, data.num_features), np.float32), np.zeros(data.num_classes, np.float32))]
    return Model(output, 0, params, (), Config(dataset=str(output)), {"data_info": json.loads(json.dumps(data.info()))})


def test_a_model_reads_files_as_its_pack_did(tmp_path: Path) -> None:
    for number, name in enumerate(("cat", "dog")):  # bright, of other proportions, and in colour
        (tmp_path / "pets" / name).mkdir(parents=True)
        pixels = np.random.default_rng(number).integers(180 * number, 256, (20, 31, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pets" / name / "0.png")
    model = of_pack(run(tmp_path / "made", tmp_path / "pets", image_size=9, image_mode="gray"))
    expected = packed.Pack(tmp_path / "made").examples("train", 0).take(np.arange(2))[0]
    np.testing.assert_array_equal(np.concatenate([row for _, row in asked_rows(tmp_path / "pets", model)]), expected)
    again = run_data.read(model, str(tmp_path / "pets")).test
    np.testing.assert_array_equal(again.take(np.arange(2))[0], expected)

    (tmp_path / "iris.data").write_text("5.1,3.5,setosa\n6.2,2.9,virginica\n" * 5)
    model = of_pack(run(tmp_path / "irises", tmp_path / "iris.data", header="none", label_column="2"))
    assert model.reader().config.header == "none"
    rows = run_data.split(model, "test", str(tmp_path / "iris.data"))
    assert rows.take(np.arange(10))[1].tolist() == [0, 1] * 5
    del model.meta["data_info"]["packed"]  # as in older runs
    assert model.reading == model.config


def saved(folder: Path, table: pa.Table, features: dict[str, Any]) -> Path:
    """As datasets.Dataset.save_to_disk writes it."""
    folder.mkdir(parents=True)
    with pa.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), table.schema) as out:
        out.write_table(table, max_chunksize=4)
    (folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}],
                                                   "_indices_files": None}))  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps({"features": features}))
    return folder


def test_a_data_set_of_hugging_face_that_was_saved(tmp_path: Path) -> None:
    files, labels = [], []
    for number in range(10):
        Image.fromarray(np.full((4, 4), 20 * number, np.uint8)).save(file := io.BytesIO(), "PNG")
        files.append({"bytes": file.getvalue(), "path": None})
        labels.append(number % 2)
    kinds = {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}
    for part in ("train", "test"):
        saved(tmp_path / "hf" / part, pa.table({"image": files, "label": labels}),
              kinds | {"image": {"_type": "Image"}})  # fmt: skip
    (tmp_path / "hf" / "dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    data = datasets.load(Config(dataset=str(run(tmp_path / "a", tmp_path / "hf"))))
    assert data.classes == ["no", "yes"]
    assert data.info()["pictures"]
    assert data.train.take(np.arange(10))[0][:, 0].tolist() == [20 * number for number in range(10)]
    model = of_pack(tmp_path / "a")
    for use in (lambda: asked_rows(tmp_path / "hf", model), lambda: run_data.read(model, str(tmp_path / "hf"))):
        with pytest.raises(InputError, match=r"hf was saved by .* save_to_disk: make a pack of it, by `distmlp pack "):
            use()
    assert len(run_data.split(model, "test", str(tmp_path / "a"))) == 10
    numbers = saved(tmp_path / "numbers", pa.table({"x": np.arange(10.0), "label": labels}), kinds)
    made = packed.Pack(run(tmp_path / "b", numbers))
    assert made.info["classes"] == ["no", "yes"]
    assert made.examples("train", 0).take(np.arange(10))[0][:, 0].tolist() == [*range(10)]


def test_the_splits_of_a_saved_data_set_have_the_same_classes_and_kind_of_columns(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file := io.BytesIO(), "PNG")
    rows = [{"bytes": file.getvalue(), "path": None}] * 2
    sets: list[tuple[Any, Any]] = [({"x": [1.0, 2]}, {}), ({"image": rows}, {"image": {"_type": "Image"}})]
    for columns, kinds in sets:
        for part, names in (("train", ["no", "yes"]), ("test", ["yes", "no"])):
            label = {"label": {"_type": "ClassLabel", "names": names}}
            saved(tmp_path / "hf" / part, pa.table(columns | {"label": [0, 1]}), kinds | label)
        (tmp_path / "hf" / "dataset_dict.json").write_text("{}")
        with pytest.raises(InputError, match=r"hf/test has the classes yes, no, but .*hf/train no, yes: give both the"):
            sources.found([tmp_path / "hf"], Config())
        shutil.rmtree(tmp_path / "hf")
    for first, second, said in ((0, 1, "test has a column of pictures, but .*train has no column"),
                                (1, 0, "test has no column of pictures, but .*train has a column")):
        for part, (columns, kinds) in (("train", sets[first]), ("test", sets[second])):
            label = {"label": {"_type": "ClassLabel", "names": ["no", "yes"]}}
            saved(tmp_path / "hf" / part, pa.table(columns | {"label": [0, 1]}), kinds | label)
        (tmp_path / "hf" / "dataset_dict.json").write_text("{}")
        with pytest.raises(InputError, match=said):
            sources.found([tmp_path / "hf"], Config())
        shutil.rmtree(tmp_path / "hf")


def test_of_several_columns_of_labels_or_pictures_of_a_saved_data_set_none_is_guessed(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.uint8)).save(file := io.BytesIO(), "PNG")
    row = {"bytes": file.getvalue(), "path": None}
    table = pa.table({"image": [row], "mask": [row], "fine": [0], "coarse": [1], "label": [2]})
    kind: dict[str, Any] = {"_type": "ClassLabel", "names": ["a", "b"]}
    image, number = {"_type": "Image"}, {"_type": "Value"}

    def found(features: dict[str, Any], label: str = "") -> streams.Stream:
        shutil.rmtree(tmp_path / "hf", ignore_errors=True)
        saved(tmp_path / "hf", table.select([*features]), features)
        return sources.found([tmp_path / "hf"], Config(label_column=label))["train"]

    said = "columns of kind ClassLabel or named label: give --label_column, one of"
    several: list[dict[str, Any]] = [{"fine": kind, "coarse": kind}, {"fine": kind, "label": number}]
    for features in several:
        with pytest.raises(InputError, match=f"2 {said} {', '.join(features)}$"):
            found({"image": image} | features)
        for label, its in features.items():
            assert found({"image": image} | features, label).classes == its.get("names")
    with pytest.raises(InputError, match=f"no {said} coarse"):
        found({"image": image, "coarse": number})
    with pytest.raises(InputError, match="no columns named mine: give --label_column, one of fine"):
        found({"image": image, "fine": kind}, "mine")
    with pytest.raises(InputError, match="2 columns of pictures, image, mask: keep one, by remove_columns"):
        found({"image": image, "mask": image, "fine": kind})


def test_the_first_stored_picture_decides_for_every_part_and_wherever_reading_begins(tmp_path: Path) -> None:
    def row(*shape: int) -> dict[str, Any]:
        Image.fromarray(np.zeros(shape, np.uint8)).save(file := io.BytesIO(), "PNG")
        return {"bytes": file.getvalue(), "path": None}

    kinds, labels = {"image": {"_type": "Image"}, "label": {"_type": "Value"}}, [0, 1, 0, 1]
    saved(tmp_path / "hf" / "train", pa.table({"image": [row(4, 6, 3), *[row(4, 6)] * 3], "label": labels}), kinds)
    saved(tmp_path / "hf" / "test", pa.table({"image": [row(4, 6)] * 4, "label": labels}), kinds)
    (tmp_path / "hf" / "dataset_dict.json").write_text("{}")
    found = sources.found([tmp_path / "hf"], Config())
    for part, start in (("train", 2), ("test", 0)):
        assert next(found[part].features(start)).shape[1:] == (4, 6, 3)
    shutil.rmtree(tmp_path / "hf" / "test")
    saved(tmp_path / "hf" / "test", pa.table({"image": [row(6, 4)] * 4, "label": labels}), kinds)
    with pytest.raises(InputError, match="row 0 has 6 x 4 pixels, but the first picture 4 x 6: give --image_size"):
        run(tmp_path / "made", tmp_path / "hf")


def test_splits_of_a_saved_data_set_that_are_no_part_or_one_part_twice_are_named(tmp_path: Path) -> None:
    for part in ("train", "validation_matched", "validation_mismatched", "test"):
        saved(tmp_path / "hf" / part, pa.table({"x": np.arange(10.0), "label": np.arange(10) % 2}), {})
    (tmp_path / "hf" / "dataset_dict.json").write_text("{}")
    with pytest.raises(InputError, match=r"hf holds validation_matched, validation_mismatched of test, train"):
        run(tmp_path / "made", tmp_path / "hf")
    shutil.rmtree(tmp_path / "hf" / "validation_mismatched")
    (tmp_path / "hf" / "validation_matched").rename(tmp_path / "hf" / "training")
    with pytest.raises(InputError, match=r"hf/train and .*hf/training could both be meant as the train set"):
        run(tmp_path / "made", tmp_path / "hf")
    for part in ("train", "training", "test"):
        shutil.rmtree(tmp_path / "hf" / part)
    with pytest.raises(InputError, match="hf holds no split: "):
        run(tmp_path / "made", tmp_path / "hf")


def test_batches_from_python(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).standard_normal((90, 2, 3)), np.arange(90) % 3
    pairs = [(x[begin : begin + 20], y[begin : begin + 20]) for begin in range(0, 90, 20)]
    config = Config(test_fraction=0.3)
    from_memory = datasets.load(config, (x, y))
    for name, batches in (("list", pairs), ("generator", (pair for pair in pairs))):
        same(from_memory, datasets.load(Config(dataset=str(pack(batches, tmp_path / name, config)))))
    none: list[Any] = [(np.zeros((0, 2, 3), np.uint8), []), *pairs, (x[:0], y[:0])]
    given: list[tuple[str, Any]] = [("list_none", none), ("generator_none", (pair for pair in none))]
    for name, batches in given:
        same(from_memory, datasets.load(Config(dataset=str(pack(batches, tmp_path / name, config)))))
        shutil.rmtree(tmp_path / name)
    frames = (frame(rows, seed) for rows, seed in ((0, 0), (50, 0), (50, 1), (0, 1), (50, 2)))
    settings = LEARNED | {"ignore_columns": "id"}
    made = pack(frames, tmp_path / "frames", Config(**settings))
    pd.concat([frame(50, seed) for seed in range(3)]).to_csv(tmp_path / "t.csv", index=False)
    same(datasets.load(Config(dataset=str(tmp_path / "t.csv"), **settings)), datasets.load(Config(dataset=str(made))))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["frames", "generator", "list", "t.csv"]
    with pytest.raises(InputError, match="batch 1 of batches must be features of shape"):
        pack([(x, y), (x, y[1:])], tmp_path / "wrong")
    with pytest.raises(InputError, match="rows of the shape"):
        pack(iter([(x, y), (x[:, 1:], y)]), tmp_path / "wrong")
    for nothing in ([], [(x[:0], y[:0])]):
        with pytest.raises(InputError, match="batches is empty"):
            pack(nothing, tmp_path / "wrong")
    with pytest.raises(InputError, match=r"^folder='' is empty"):
        pack([(x, y)], "")
    assert not [*tmp_path.glob("wrong*")]


def test_what_the_batches_raise_comes_through_as_it_is(tmp_path: Path) -> None:
    x, y, error = np.zeros((4, 2), np.float32), np.arange(4) % 2, FileNotFoundError(errno.ENOENT, "gone", "mine.bin")

    def read() -> Iterator[Any]:
        yield x, y
        raise error

    class Again:
        def __iter__(self) -> Iterator[Any]:
            return read()

    for batches in (read(), Again()):
        with pytest.raises(FileNotFoundError) as caught:
            pack(batches, tmp_path / "made")
        assert caught.value is error
    assert not [*tmp_path.iterdir()]


def test_batches_that_come_in_another_order_each_time_are_refused_unless_given_once(tmp_path: Path) -> None:
    """Their labels and features are read one after the other."""
    y = np.arange(60) % 3
    words = np.array(["a", "b", "c"], object)[y]

    class Given:
        def __init__(self, labels: Any, shuffled: bool = True, counts: tuple[int, int] = (3, 3)) -> None:
            """`counts`: of batches, the first time and after it."""
            self._rng, self._labels, self._shuffled, self._counts = np.random.default_rng(0), labels, shuffled, counts

        def __iter__(self) -> Iterator[Any]:
            order = self._rng.permutation(60) if self._shuffled else np.arange(60)
            for rows in np.split(order, 3)[: self._counts[0]]:
                yield y[rows, None].astype(np.float32), self._labels[rows]
            self._counts = self._counts[1:] * 2

    for given in (Given(y), Given(words), Given(y, False, (3, 2)), Given(y, False, (2, 3))):
        with pytest.raises(InputError, match=r"batches are not the same each time .* shuffled: give iter\(\.\.\.\)"):
            pack(given, tmp_path / "made")
    for labels in (y, words):
        made = packed.Pack(pack(iter(Given(labels)), tmp_path / f"made{labels.dtype}", Config(test_fraction=0.2)))
        for part, count in (("train", 48), ("test", 12)):
            x, numbers = made.examples(part, 0).take(np.arange(count))
            assert x[:, 0].tolist() == numbers.tolist()


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A pack of blocks of 16 rows of 5 features."""
    monkeypatch.setattr(packed, "BLOCK_BYTES", 16 * 20)
    frame().to_parquet(tmp_path / "t.parquet")
    return run(tmp_path / "made", tmp_path / "t.parquet", ignore_columns="id", **LEARNED)


def flip(path: Path, at: int) -> None:
    with path.open("r+b") as file:  # in its place: a mapped file that becomes shorter ends who reads it
        content = bytearray(file.read())
        content[at] ^= 1
        file.seek(0)
        file.write(content)


@pytest.mark.parametrize("file", ["x_train.npy", "x_test.npy", "y_train.npy"])
def test_damage_is_named(file: str, made: Path, capsys: Capture) -> None:
    assert verb.main([f"--check={made}"]) == 0
    flip(made / file, 128 + 40 * (20 if file[0] == "x" else 4) + 3)
    assert verb.main(["--check", str(made)]) == 1
    rows = r"rows 32 to 47" if file[0] == "x" else "rows 0 to 79"
    assert f"{made / file} is damaged: {rows} are not what" in capsys.readouterr().err
    config = Config(dataset=str(made), data_placement="host")

    def read() -> None:
        data = datasets.load(config)
        part = data.train if file == "x_train.npy" else data.test
        part.take(np.array([31]))  # of another block
        part.take(np.array([[3, 33]]))

    with pytest.raises(InputError, match=rf"{file} is damaged: {rows}"):
        read()
    datasets.load(Config(dataset=str(made), verify_data=False)).train.take(np.arange(40))


def test_no_row_is_given_out_before_its_block_was_verified(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether the thread that goes ahead has been there, is there, or comes later."""
    damaged, sound = packed.Array.damaged, set[int]()

    def slowly(self: packed.Array, block: int) -> bool:
        time.sleep(0.001)
        found = damaged(self, block)
        if self.path.name == "x_train.npy" and not found:
            sound.add(block)
        return found

    def read() -> None:
        for batch in NumpyLoader(datasets.load(Config(dataset=str(made))).train, 8, shuffle=True):
            assert {*(batch.indices // 16).ravel().tolist()} <= sound
            assert batch.images.tobytes() == values[batch.indices].tobytes()

    monkeypatch.setattr(packed.Array, "damaged", slowly)
    values = np.load(made / "x_train.npy")
    read()
    assert sound == {*range(15)}
    sound.clear()
    flip(made / "x_train.npy", 128 + 40 * 20)  # in the block from row 32 on
    with pytest.raises(InputError, match="is damaged: rows 32 to 47"):
        read()


def test_what_is_to_be_trained_on_is_verified_ahead(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def ended() -> None:
        for thread in threading.enumerate():
            if thread.name == "verifying":
                thread.join(10)
                assert not thread.is_alive()

    flip(made / "x_train.npy", 128 + 40 * 20)
    data: Any = datasets.load(Config(dataset=str(made)))
    ended()
    assert np.flatnonzero(data.train._images.unverified).tolist() == [2]  # nobody has asked for it
    damaged, verified, go_on, info = packed.Array.damaged, list[str](), threading.Event(), data.info()

    def noted(self: packed.Array, block: int) -> bool:
        if self.path.name[0] == "x":
            verified.append(self.path.name)
            go_on.wait(10)
        return damaged(self, block)

    monkeypatch.setattr(packed.Array, "damaged", noted)
    data = datasets.load(Config(dataset=str(made)))
    del data  # nothing else holds it
    gc.collect()
    go_on.set()
    ended()
    assert verified in ([], ["x_train.npy"])
    verified.clear()
    held = [datasets.load(Config(dataset=str(made), verify_data=False)),
            datasets.load(Config(dataset=str(made)), learned=datasets.Learned(info))]  # for an evaluation
    monkeypatch.setattr("distmlp.machine.memory", lambda: 100)  # which cannot hold it
    held.append(datasets.load(Config(dataset=str(made))))
    ended()
    assert not verified


def test_what_lies_in_memory_is_verified_as_a_whole(made: Path) -> None:
    flip(made / "x_train.npy", -1)
    data = datasets.load(Config(dataset=str(made)))
    data.train.take(np.arange(100))
    with pytest.raises(InputError, match=r"x_train\.npy is damaged"):
        _ = data.train.resident


@pytest.mark.parametrize("file", ["x_train.npy", "pack.json"])
def test_files_that_are_cut_off_or_gone(file: str, made: Path, capsys: Capture) -> None:
    content = (made / file).read_bytes()
    for rest in (content[:-1], content[:50], None):
        if rest is None:
            (made / file).unlink()
        else:
            (made / file).write_bytes(rest)
        if rest is not None or file != "pack.json":  # without pack.json it is no pack
            with pytest.raises(InputError, match=rf"{file} (is damaged|cannot be read)"):
                datasets.load(Config(dataset=str(made)))
            if file != "pack.json":
                assert verb.main([f"--check={made}"]) == 1


def test_pack_json_that_was_edited_is_damaged(made: Path) -> None:
    path = made / "pack.json"
    path.write_text(path.read_text().replace('"num_classes": 3', '"num_classes": 4'))
    with pytest.raises(InputError, match=r"pack\.json is damaged: it is not what was written"):
        datasets.load(Config(dataset=str(made)))


def test_the_fingerprint_covers_every_value_and_reads_none(made: Path, tmp_path: Path) -> None:
    one = datasets.load(Config(dataset=str(made))).fingerprint()
    table = pd.read_parquet(tmp_path / "t.parquet")
    again = run(tmp_path / "again", tmp_path / "t.parquet", ignore_columns="id", **LEARNED)
    assert datasets.load(Config(dataset=str(again))).fingerprint() == one
    table.loc[200, "number"] += 1e-6
    table.to_parquet(tmp_path / "t.parquet")
    other = run(tmp_path / "other", tmp_path / "t.parquet", ignore_columns="id", **LEARNED)
    assert datasets.load(Config(dataset=str(other))).fingerprint() != one
    data = datasets.load(Config(dataset=str(made)))
    flip(made / "x_train.npy", -1)
    assert data.fingerprint() == one


@pytest.mark.parametrize(("flag", "value"), [
    ("test_fraction", 0.5), ("missing", "zero"), ("ignore_columns", "number"), ("header", "none"),
    ("label_column", "word"), ("num_classes", 7), ("image_size", 3)])  # fmt: skip
def test_flags_that_say_something_else_than_the_pack(flag: str, value: Any, made: Path) -> None:
    with pytest.raises(InputError, match=f"--{flag}={value}: .* was packed with.*leave the flag out"):
        datasets.load(Config(dataset=str(made), **{flag: value}))
    datasets.load(Config(dataset=str(made), **LEARNED, ignore_columns="id"))  # the same is no contradiction


def test_a_pack_without_a_test_set(tmp_path: Path, capsys: Capture) -> None:
    x, y = np.random.default_rng(0).standard_normal((60, 4)), np.arange(60) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y)
    made = run(tmp_path / "made", tmp_path / "a.npz")
    assert "needs: give --test_fraction here or to train, or give a part named test" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"was packed without a test set: give --test_fraction=0\.2"):
        datasets.load(Config(dataset=str(made)))
    data = datasets.load(Config(dataset=str(made), test_fraction=0.2))  # of plain numbers nothing was learned
    same(datasets.load(Config(dataset=str(tmp_path / "a.npz"), test_fraction=0.2)), data)
    assert data.fingerprint() != datasets.load(Config(dataset=str(made), test_fraction=0.3)).fingerprint()
    table = tmp_path / "t.csv"
    frame().to_csv(table, index=False)
    learned = run(tmp_path / "learned", table, missing="mean", text_columns="one_hot")
    assert "needs: pack with --test_fraction, or give a part named test" in capsys.readouterr().err
    with pytest.raises(InputError, match=r"--test_fraction=0\.2: .* was packed without it"):
        datasets.load(Config(dataset=str(learned), test_fraction=0.2))
    with pytest.raises(InputError, match="was packed without a test set: pack its sources again, with --test"):
        datasets.load(Config(dataset=str(learned), missing="mean", text_columns="one_hot"))


def test_a_pack_is_no_source_of_another(made: Path, tmp_path: Path) -> None:
    """It would lose its classes and columns, and what its checksums say."""
    with pytest.raises(InputError, match="made is a pack already: give the tables, arrays or pictures it was made of"):
        run(tmp_path / "again", made)
    (made / packed.UNFINISHED).touch()
    with pytest.raises(InputError, match="made is a pack that was not finished"):
        run(tmp_path / "again", made)


def test_what_was_stopped_goes_on(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[int] = []
    features = tables.Tables.features

    def stopped(self: Any, start: int = 0, *more: Any) -> Iterator[np.ndarray]:
        whole = features(self, start, *more)
        blocks = iter([block[begin : begin + 50] for block in whole for begin in range(0, 400, 50)])
        read.append(start)
        yield from itertools.islice(blocks, 4 if start < 300 else None)
        if start < 300:
            raise KeyboardInterrupt

    monkeypatch.setattr(tables.Tables, "features", stopped)
    monkeypatch.setattr(packing, "_NOTED_SECONDS", 0.0)
    table, output = tmp_path / "t.parquet", tmp_path / "again"
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            run(output, table, ignore_columns="id", **LEARNED)
        assert not output.exists()
        with pytest.raises(InputError, match=r"again\.unfinished is a pack that was not finished"):
            datasets.load(Config(dataset=f"{output}.unfinished"))
    run(output, table, ignore_columns="id", **LEARNED)
    assert read[0] == 0
    assert read[-1] >= 300
    for file in made.iterdir():
        assert file.read_bytes() == (output / file.name).read_bytes(), file.name
    assert not Path(f"{output}.unfinished").exists()


def test_another_command_begins_anew(made: Path, tmp_path: Path) -> None:
    work = tmp_path / "again.unfinished"
    work.mkdir()
    (work / "mine.txt").touch()
    with pytest.raises(InputError, match=r"again\.unfinished is there, and was not made by pack"):
        run(tmp_path / "again", tmp_path / "t.parquet", ignore_columns="id", **LEARNED)
    (work / packed.UNFINISHED).write_text('{"key": "of something else"}')
    again = run(tmp_path / "again", tmp_path / "t.parquet", ignore_columns="id", **LEARNED)
    assert (again / "x_train.npy").read_bytes() == (made / "x_train.npy").read_bytes()
    with pytest.raises(InputError, match="is there already: give another, or remove it"):
        run(again, tmp_path / "t.parquet")


def test_a_link_leads_to_the_folder_that_is_made_and_a_mount_point_is_refused(made: Path, tmp_path: Path) -> None:
    table, settings = tmp_path / "t.parquet", LEARNED | {"ignore_columns": "id"}
    (tmp_path / "empty").mkdir()
    for name, leads in (("link", "empty"), ("early", "later")):
        (tmp_path / name).symlink_to(tmp_path / leads)
        run(tmp_path / name, table, **settings)
        assert (tmp_path / name).is_symlink()
        assert (tmp_path / leads / "x_test.npy").read_bytes() == (made / "x_test.npy").read_bytes()
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    for path, said in ((tmp_path / "loop", "there already"), (Path("/"), "a mount point: give a folder in it, as in "
                                                                         "--output=/pack")):  # fmt: skip
        with pytest.raises(InputError, match=f"^--output={path} is {said}"):
            run(path, table, **settings)
    assert not [*tmp_path.glob("*.unfinished")]


def test_two_processes_do_not_write_one_pack(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    features = tables.Tables.features

    def meanwhile(self: Any, start: int = 0, *more: Any) -> Iterator[np.ndarray]:
        with pytest.raises(InputError, match=r"again\.unfinished is being written by another process: wait"):
            run(tmp_path / "again", tmp_path / "t.parquet")
        yield from features(self, start, *more)

    monkeypatch.setattr(tables.Tables, "features", meanwhile)
    again = run(tmp_path / "again", tmp_path / "t.parquet", ignore_columns="id", **LEARNED)
    assert (again / "x_train.npy").read_bytes() == (made / "x_train.npy").read_bytes()


def test_no_room(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table, settings = tmp_path / "t.parquet", LEARNED | {"ignore_columns": "id"}
    monkeypatch.setattr("shutil.disk_usage", lambda path: namedtuple("Usage", "free")(1000))
    with pytest.raises(InputError, match=r"again needs 16\.8 MB, and 0\.0 MB are free"):
        run(tmp_path / "again", table, **settings)
    assert not [*tmp_path.glob("again*/x_*.npy")]
    monkeypatch.undo()
    monkeypatch.setattr(packed, "BLOCK_BYTES", 16 * 20)

    def full(*arguments: Any) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.pwrite", full)
    with pytest.raises(WriteError, match=r"No space left on device.*make room or mend it, then start again"):
        run(tmp_path / "again", table, **settings)
    assert not (tmp_path / "again").exists()
    monkeypatch.undo()
    monkeypatch.setattr(packed, "BLOCK_BYTES", 16 * 20)
    run(tmp_path / "again", table, **settings)
    assert (tmp_path / "again" / "x_test.npy").read_bytes() == (made / "x_test.npy").read_bytes()


def test_the_room_of_what_is_mapped_is_taken_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk is an error of writing so; of a mapped hole it is a signal."""
    mark, taken = split.mark, list[bool]()

    def noted(marks: Any, *rest: Any) -> None:
        machine.sync(Path(marks.filename))
        stat = Path(marks.filename).stat()
        taken.append(512 * stat.st_blocks >= stat.st_size)
        mark(marks, *rest)

    monkeypatch.setattr(split, "mark", noted)
    pack([(np.zeros((60_000, 1), np.uint8), np.arange(60_000) % 2)], tmp_path / "made", Config(test_fraction=0.5))
    assert taken == [True]


BAD: dict[str, tuple[Callable[[Path], Any], dict[str, Any], str]] = {
    "nothing there": (lambda path: None, {}, "does not exist"),
    "no labels": (lambda path: frame().drop(columns="label").to_parquet(path / "t.parquet"), {}, "no columns named"),
    "a gap": (lambda path: frame().to_parquet(path / "t.parquet"), {"text_columns": "one_hot"},
              "row 1 of column number has no value"),
    "text": (lambda path: frame().to_parquet(path / "t.parquet"), {"missing": "mean"}, "column word is '.*, not a num"),
    "other columns": (lambda path: (frame(9).to_csv(path / "1.csv"),
                                    frame(9).drop(columns="flag").to_csv(path / "2.csv")),
                      {"missing": "mean", "text_columns": "one_hot"}, r"2\.csv lacks the column flag"),
    "infinite": (lambda path: pd.DataFrame({"x": [1.0, 2, np.inf], "y": [0, 1, 0]}).to_parquet(path / "t.parquet"), {},
                 "row 3 of column x is infinite, or beyond float32"),
    "one class": (lambda path: pd.DataFrame({"x": [1.0, 2], "y": ["a", "a"]}).to_csv(path / "t.csv", index=False), {},
                  "has a single class"),
    "a fraction": (lambda path: pd.DataFrame({"x": [1.0, 2], "y": [0.5, 1]}).to_parquet(path / "t.parquet"), {},
                   "label 0.5 of example 0 is no class"),
    "no rows": (lambda path: (path / "t.csv").write_text("x,y\n"), {}, "is empty"),
    "damaged": (lambda path: (path / "t.parquet").write_bytes(b"PAR1"), {}, "cannot be read as a table"),
    "two kinds": (lambda path: (frame().to_csv(path / "t.csv"), np.save(path / "x.npy", np.zeros(3))), {}, "lacks y"),
    "a zip": (lambda path: zipfile.ZipFile(path / "a.zip", "w").close(), {}, "holds no tables"),
}  # fmt: skip


@pytest.mark.parametrize("what", BAD)
def test_sources_that_cannot_be_packed(what: str, tmp_path: Path) -> None:
    write, settings, said = BAD[what]
    folder = tmp_path / ("gone" if what == "nothing there" else "source")
    if what != "nothing there":
        folder.mkdir()
    write(folder)
    with pytest.raises(InputError, match=said) as caught:
        run(tmp_path / "made", folder, **settings)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "made").exists()


def test_values_whose_sum_is_not_finite() -> None:
    large = np.full((3, 2), 3e38, np.float32)
    assert streams.finite(large, "x", 0) is large
    large[1] = np.inf, -np.inf
    with pytest.raises(InputError, match="x: example 11 has a value that is NaN or infinite"):
        streams.finite(large, "x", 10)


def test_a_row_of_a_test_table_that_training_never_saw(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1.0, 2, 3], "label": ["a", "b", "a"]}).to_csv(tmp_path / "train.csv", index=False)
    pd.DataFrame({"x": [1.0, 2, 3], "label": ["a", "b", "c"]}).to_csv(tmp_path / "test.csv", index=False)
    with pytest.raises(InputError, match=r"test\.csv: example 2: the training set does not have the label c"):
        run(tmp_path / "made", tmp_path / "train.csv", tmp_path / "test.csv")


def test_a_model_is_evaluated_on_a_pack_by_the_names_of_its_classes(made: Path, tmp_path: Path) -> None:
    info = datasets.load(Config(dataset=str(made))).info()
    again = datasets.load(Config(dataset=str(made)), learned=datasets.Learned(info | {"classes": ["yes", "01", "no"]}))
    assert [["yes", "01", "no"][label] for label in again.test.labels] == [
        ["01", "no", "yes"][label] for label in datasets.load(Config(dataset=str(made))).test.labels]
    table = dict(info["table"])
    table["fill"] = {name: value + 1 for name, value in table["fill"].items()}
    with pytest.raises(InputError, match="packed from other columns, words or means"):
        datasets.load(Config(dataset=str(made)), learned=datasets.Learned(info | {"table": table}))


def test_many_rows_are_held_out_part_by_part(monkeypatch: pytest.MonkeyPatch) -> None:
    labels = np.sort(np.random.default_rng(0).integers(0, 3, 1000)).astype(np.int32)
    labels[500] = 3
    labels[100] = 3
    _, held = split.hold_out(labels, split.HoldOut("test", 0.2, 5), "x", None)
    marks = np.zeros(1000, np.uint8)
    split.mark(marks, labels, 1, split.HoldOut("test", 0.2, 5), "x", None)
    assert np.flatnonzero(marks).tolist() == held.tolist()
    monkeypatch.setattr(split, "_DRAWN", 300)
    marks[:] = 0
    split.mark(marks, labels, 1, split.HoldOut("test", 0.2, 5), "x", None)
    assert 190 <= marks.sum() <= 210
    assert [50 < marks[start : start + 250].sum() + 5 < 60 for start in range(0, 1000, 250)] == [True] * 4
    for label in range(3):
        assert abs(marks[labels == label].mean() - 0.2) < 0.02
    with pytest.raises(InputError, match="has a single example"):
        split.mark(marks, np.append(labels[1:], np.int32(9)), 1, split.HoldOut("test", 0.2, 5), "x", None)


@pytest.mark.parametrize("labels", [
    np.array([3, 1, 3, 1]), np.array([0, 2, 0, 5]), np.array([-1, 1, -1, 1]), np.array([3, 4096, 3, 7], np.uint64),
    np.array([1.0, 0.0, 1.0, 2.0]), np.array([True, False, True, True]),
    np.array(["b", "a", "b", "c"], object), np.eye(4)[[0, 2, 1, 1]], np.array([b"x", b"y", b"x", b"x"])])  # fmt: skip
def test_labels_that_come_in_blocks_are_the_same_classes(labels: np.ndarray) -> None:
    seen = Seen("y")
    codes = np.concatenate([seen.add(labels[:1]), seen.add(labels[1:3]), seen.add(labels[3:])])
    known = find_classes(labels, "y")
    classes = seen.classes(0, None)
    assert classes == known
    assert seen.numbers(classes)[codes].tolist() == known.encode(labels, "y").tolist()


def test_words_of_text_files_are_what_all_of_them_are() -> None:
    for words, names in ((["1", "2", "1"], [1, 2]), (["1", "01"], ["01", "1"]), (["True", "False"], [False, True])):
        seen = Seen("y")
        codes = [seen.add_words(np.array([0], np.int32), [word], written=True) for word in words]
        classes = seen.classes(0, None)
        assert classes.names == names
        found = seen.numbers(classes)[np.concatenate(codes)]
        assert [str(classes.called[number]) for number in found] == words


def test_neither_jax_nor_torch_is_needed(tmp_path: Path) -> None:
    frame().to_csv(tmp_path / "t.csv", index=False)
    code = ("import sys\nfrom launch import pack\n"
            "pack.main(['t.csv', '--output=made', '--missing=mean', '--text_columns=one_hot', '--test_fraction=0.2'])\n"
            "pack.main(['--check=made'])\n"
            "assert not {'jax', 'torch'} & {*sys.modules}, 'one of them was imported'")  # fmt: skip
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=tmp_path, check=True, timeout=120,
                   env={"PYTHONPATH": str(REPOSITORY), "PATH": "/usr/bin:/bin"}, stdout=subprocess.DEVNULL)


def test_wrong_usage(tmp_path: Path) -> None:
    for arguments, said in (
        ([], "give one SOURCE at least"), (["a.csv"], "and --output=FOLDER"), (["--check=x", "y"], "nothing else"),
        (["a.csv", "--output=x", "--learning_rate=1"], "unrecognized arguments: --learning_rate=1"),
        (["a.csv", "--output=x", "--test_fraction=2"], "--test_fraction=2.0 must be at most 0.9"),
        ([f"--check={tmp_path}"], r"pack.json is damaged \(.*No such file"),
    ):
        with pytest.raises(InputError, match=said):
            verb.main(arguments)


def test_examples_of_a_pack_are_examples(made: Path) -> None:
    part: Any = datasets.load(Config(dataset=str(made))).train
    values, labels = np.load(made / "x_train.npy"), np.load(made / "y_train.npy")[:, 0]
    plain = ArrayDataset(values, labels, "x")
    few = part.part(np.array([5, 7, 200]), "few")
    assert few.take(np.array([[2, 0]]))[0].tolist() == values[[200, 5]][None].tolist()
    assert few.labels.tolist() == labels[[5, 7, 200]].tolist()
    assert few.resident is None
    assert part.resident[0].tobytes() == values.tobytes() == plain.images.tobytes()
    assert len({few.fingerprint(), part.fingerprint(), part.part(np.array([5, 7]), "x").fingerprint()}) == 3
    assert part.modified() is None
    assert small_config(str(made)).dataset == str(made)


def test_each_of_several_processes_reads_its_own_rows(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    part, take, read = datasets.load(Config(dataset=str(made))).train, packed.Packed.take, list[set[int]]()

    def noted(self: Any, indices: np.ndarray) -> Any:
        read[-1].update(indices.ravel().tolist())
        return take(self, indices)

    monkeypatch.setattr(packed.Packed, "take", noted)
    for mine in ([0, 1], [2, 3]):
        read.append(set())
        list(NumpyLoader(part, 16, 4, mine, shuffle=True))
    assert not read[0] & read[1]
    assert read[0] | read[1] == {*range(240)}


@pytest.mark.parametrize("verify", [True, False])
def test_a_set_that_memory_cannot_hold(verify: bool, made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The system is told of rows before they are read; they are the same."""
    monkeypatch.setattr("distmlp.machine.memory", lambda: 100)
    asked: list[tuple[int, int]] = []
    part = datasets.load(Config(dataset=str(made), verify_data=verify)).train
    ask = packed.Array.ask

    def noted(self: packed.Array, rows: np.ndarray) -> None:
        asked.append((len(asked), len(rows)))
        ask(self, rows)

    monkeypatch.setattr(packed.Array, "ask", noted)
    assert part.resident is None
    loader = NumpyLoader(part, 10, shuffle=True)
    values, seen = np.load(made / "x_train.npy"), []
    for step, batch in enumerate(loader):
        assert batch.images.tobytes() == values[batch.indices].tobytes()
        assert len(asked) == min(step + 17, 24)
        seen += batch.indices.ravel().tolist()
    assert sorted(seen) == list(range(240))
    assert {count for _, count in asked} == {10}
    flip(made / "x_train.npy", -1)
    if verify:
        with pytest.raises(InputError, match="is damaged: rows 224 to 239"):
            datasets.load(Config(dataset=str(made))).train.take(np.array([239]))


def test_a_disk_that_is_too_slow_is_said_once_as_it_was_measured(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    monkeypatch.setattr("distmlp.machine.memory", lambda: 100)
    monkeypatch.setattr(loading, "_LOOKED", 0.0)
    part = datasets.load(Config(dataset=str(made))).train
    loader = NumpyLoader(part, 10, shuffle=True)
    list(loader)
    assert loading.Reading(loader).remark(idle=True) == ""
    take, size = packed.Packed.take, 240 * 5 * 4

    def slowly(self: Any, indices: np.ndarray) -> Any:
        time.sleep(0.02)
        return take(self, indices)

    monkeypatch.setattr(packed.Packed, "take", slowly)
    reading, busy = loading.Reading(loader), loading.Reading(loader)
    started = time.monotonic()
    list(loader)
    said, rate = reading.remark(idle=True), size / (time.monotonic() - started) / 1e6
    found = re.fullmatch(r"training waits for the disk, (\d+)% of the time: it gives (\S+) MB/s of examples, and the "
                         r"devices could take \S+: put \S+ on a faster disk, or give more memory", said)  # fmt: skip
    assert found, said
    waits, gives = found.groups()
    assert int(waits) > 50
    assert float(gives) == pytest.approx(rate, abs=0.11)
    assert busy.remark(idle=False) == ""  # the devices worked meanwhile
    list(loader)
    assert reading.remark(idle=True) == ""
    train(small_config(str(made), shuffle=True))
    assert capsys.readouterr().err.count("training waits for the disk") == 1
    monkeypatch.setattr("distmlp.machine.memory", lambda: 1 << 40)  # all of it stays in memory
    reading = loading.Reading(loader)
    list(loader)
    assert reading.remark(idle=True) == ""


@pytest.mark.parametrize("balanced", ["none", "balanced"])
def test_weights(balanced: str, tmp_path: Path) -> None:
    weights = np.random.default_rng(1).integers(0, 5, 400) / 3
    table, settings = frame().assign(w=weights), LEARNED | {"ignore_columns": "id", "weight_column": "w"}
    (tmp_path / "parts").mkdir()
    for place in range(2):
        table.iloc[200 * place : 200 * place + 200].to_csv(tmp_path / "parts" / f"{place}.csv", index=False)
    table.to_csv(tmp_path / "t.csv", index=False)
    made = run(tmp_path / "made", tmp_path / "parts", **settings)
    same(datasets.load(Config(dataset=str(tmp_path / "t.csv"), class_weight=balanced, **settings)),
         datasets.load(Config(dataset=str(made), class_weight=balanced, seed=3)))  # fmt: skip
    x, y = np.random.default_rng(0).standard_normal((400, 3)), np.arange(400) % 3
    np.savez(tmp_path / "a.npz", x=x, y=y, w=weights)
    from_arrays = datasets.load(Config(dataset=str(tmp_path / "a.npz"), test_fraction=0.3, class_weight=balanced))
    for source in (run(tmp_path / "b", tmp_path / "a.npz", test_fraction=0.3),
                   pack([(x[:100], y[:100], weights[:100]), (x[100:], y[100:], weights[100:])], tmp_path / "c",
                        Config(test_fraction=0.3))):  # fmt: skip
        same(from_arrays, datasets.load(Config(dataset=str(source), class_weight=balanced)))
    with pytest.raises(InputError, match="from example 0 on: the weight -1 of example 2"):
        pack([(x[:4], y[:4], np.array([1, 1, -1, 1]))], tmp_path / "d")
    with pytest.raises(InputError, match=r"--weight_column=id: .* was packed with --weight_column=w"):
        datasets.load(Config(dataset=str(made), weight_column="id"))
    flip(made / "w_train.npy", -1)
    with pytest.raises(InputError, match=r"w_train\.npy is damaged"):
        datasets.load(Config(dataset=str(made)))


def test_true_beside_numbers_in_blocks_is_an_error_wherever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distmlp.data.columnar._BLOCK", 64)
    for first, last in (("2", "True"), ("True", "2")):
        cells = [first, *["1"] * 200, last]
        (tmp_path / "t.csv").write_text("x,label\n" + "".join(f"{cell},{row % 2}\n" for row, cell in enumerate(cells)))
        with pytest.raises(InputError, match=r"of column x is '(1|2|True)', not a number: give --ignore_columns=x"):
            run(tmp_path / "made", tmp_path / "t.csv")


def test_what_a_file_system_or_an_installation_lacks_is_no_obstacle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders that cannot be synced, as of Lustre, and a package that is run from its source."""
    sync = os.fsync

    def of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "Invalid argument")
        sync(descriptor)

    def unknown(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(os, "fsync", of_files)
    monkeypatch.setattr(importlib.metadata, "version", unknown)
    monkeypatch.setattr(machine, "version", machine.version.__wrapped__)  # of which each answer is kept
    made = pack([(np.zeros((4, 2), np.float32), np.array([0, 1, 0, 1]))], tmp_path / "made")
    assert packed.Pack(made).info["made_by"] == "distmlp unknown"
