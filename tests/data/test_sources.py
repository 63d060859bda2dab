"""Files as people have them: spellings, tables, and parts that are held out."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_arrays

from distmlp import Config, InputError
from distmlp.data.datasets import Learned, load
from distmlp.data.packing import pack_sources

ARRAYS = make_arrays()


def write(path: Path, names: dict[str, str]) -> str:
    """An .npz file or a folder of .npy files with these of make_arrays' arrays, under other names."""
    if path.suffix == ".npz":
        np.savez(path, **{name: ARRAYS[array] for name, array in names.items()})
    else:
        path.mkdir()
        for name, array in names.items():
            np.save(path / f"{name}.npy", ARRAYS[array])
    return str(path)


@pytest.mark.parametrize("file", ["set.npz", "set"])
@pytest.mark.parametrize(
    "names",
    [
        "x_train y_train x_test y_test", "X_train y_train X_test y_test", "X_TRAIN Y_TRAIN X_TEST Y_TEST",
        "train_images train_labels test_images test_labels", "x-train y-train x-test y-test",
        "x y x_test y_test", "data target test_data test_target", "images labels test_images test_labels",
    ],
)  # fmt: skip
def test_the_usual_spellings(names: str, file: str, tmp_path: Path) -> None:
    data = load(Config(dataset=write(tmp_path / file, dict(zip(names.split(), ARRAYS, strict=True)))))
    assert (len(data.train), len(data.test), data.validation) == (96, 40, None)
    np.testing.assert_array_equal(data.test.take(np.arange(40))[0], ARRAYS["x_test"])


@pytest.mark.parametrize("affix", ["val", "valid", "validation"])
def test_a_validation_set_in_the_file_is_used(affix: str, tmp_path: Path) -> None:
    names = {name: name for name in ARRAYS} | {f"x_{affix}": "x_test", f"y_{affix}": "y_test"}
    data = load(Config(dataset=write(tmp_path / "set.npz", names)))
    assert data.validation is not None
    assert len(data.validation) == 40
    plain = load(Config(dataset=write(tmp_path / "plain.npz", {name: name for name in ARRAYS})))
    assert data.fingerprint().startswith(plain.fingerprint())
    assert data.fingerprint() != plain.fingerprint()
    with pytest.raises(InputError, match="comes with a validation set"):
        load(Config(dataset=str(tmp_path / "set.npz"), validation_fraction=0.1))


@pytest.mark.parametrize(
    ("names", "words"),
    [
        ("x_train x_test", "lacks y_train, it holds x_train, x_test"),
        ("pictures answers", "lacks x_train, it holds pictures, answers"),
        ("x data y", "holds x and data, which could both be meant"),
        ("x y x_test", "lacks y_test"),
        ("x y", "comes without a test set: give one, or --test_fraction=0.2"),
    ],
)
def test_arrays_that_cannot_be_told_apart(names: str, words: str, tmp_path: Path) -> None:
    path = write(tmp_path / "set.npz", dict(zip(names.split(), ARRAYS, strict=False)))
    with pytest.raises(InputError, match=words):
        load(Config(dataset=path))


def test_python_objects_are_refused_with_the_remedy(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=ARRAYS["x_train"], y=np.array(["a", "b"] * 48, object))
    with pytest.raises(InputError, match=r"y holds Python objects.*save text as text, as in y.astype\(str\)"):
        load(Config(dataset=str(tmp_path / "set.npz")))


@pytest.mark.parametrize("file", ["set.npz", "set"])
def test_parts_are_held_out_in_proportion_by_the_seed(file: str, tmp_path: Path) -> None:
    names = {"x": "x_train", "y": "y_train"}
    fractions = {"test_fraction": 0.25, "validation_fraction": 0.25}
    config: dict[str, Any] = {"dataset": write(tmp_path / file, names), **fractions}
    data, again, other = (load(Config(**config, seed=seed)) for seed in (0, 0, 1))
    assert data.validation is not None
    assert data.fingerprint() == again.fingerprint() != other.fingerprint()
    parts = [data.train, data.validation, data.test]
    assert [len(part) for part in parts] == [54, 18, 24]
    rows = np.concatenate([part.take(np.arange(len(part)))[0] for part in parts])
    assert sorted(map(bytes, rows)) == sorted(map(bytes, ARRAYS["x_train"]))  # each example in one part
    whole = np.bincount(ARRAYS["y_train"]) / 96
    for part in parts:
        images, labels = part.take(np.arange(len(part)))
        np.testing.assert_allclose(np.bincount(labels, minlength=4) / len(part), whole, atol=0.06)
        at = [next(i for i, row in enumerate(ARRAYS["x_train"]) if (row == image).all()) for image in images]
        assert at == sorted(at)  # in the set's order
        np.testing.assert_array_equal(ARRAYS["y_train"][at], labels)
    assert (data.train.resident is None) == (file == "set")
    if file == "set":  # nothing is copied
        assert all(np.shares_memory(data.train.images, part.images) for part in parts)  # type: ignore[attr-defined]


def test_held_out_parts_need_two_examples_of_a_class(tmp_path: Path) -> None:
    np.savez(tmp_path / "set.npz", x=np.eye(5), y=[0, 0, 0, 1, 0])
    with pytest.raises(InputError, match=r"--test_fraction=0.4: class 1 of .* has a single example"):
        load(Config(dataset=str(tmp_path / "set.npz"), test_fraction=0.4))


TABLE = """height, weight ,tall,label
1.5,3,True,cat
2,4,False,dog
1e1,5,True,cat
-3,6,False,dog
"""


def table(folder: Path, text: str, name: str = "t.csv", **changes: Any) -> Any:
    (folder / name).write_text(text, encoding="utf-8")
    return load(Config(**{"dataset": str(folder / name), "test_fraction": 0.5} | changes))


@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("start", ["", "\ufeff"])
def test_a_table_of_text(separator: str, start: str, tmp_path: Path) -> None:
    data = table(tmp_path, start + TABLE.replace(",", separator))
    assert (data.columns, data.classes) == (["height", " weight ", "tall"], ["cat", "dog"])
    rows = np.concatenate([part.take(np.arange(2))[0] for part in (data.train, data.test)])
    assert rows.dtype == np.float32
    assert sorted(rows.tolist()) == [[-3, 6, 0], [1.5, 3, 1], [2, 4, 0], [10, 5, 1]]
    assert data.info()["columns"] == data.columns


def test_a_parquet_file_and_a_folder_of_parts(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    (tmp_path / "parts").mkdir()
    columns = {"a": [1, 2, 3, 4], "b": [0.5, 0.25, 0.0, 1.0], "y": ["no", "yes", "no", "yes"]}
    for part in ("train", "test", "val"):
        order = ["a", "b", "y"] if part == "train" else ["y", "b", "a"]  # columns are found by name
        parquet.write_table(pa.table({name: columns[name] for name in order}), tmp_path / "parts" / f"{part}.parquet")
    data = load(Config(dataset=str(tmp_path / "parts")))
    assert data.validation is not None
    for found in data.parts:
        np.testing.assert_array_equal(found.take(np.arange(4))[0], np.array([columns["a"], columns["b"]], np.float32).T)
        assert found.take(np.arange(4))[1].tolist() == [0, 1, 0, 1]


def test_numbers_do_not_depend_on_the_first_rows(tmp_path: Path) -> None:
    """A column that begins with whole numbers, over the megabyte from which readers guess."""
    text = "a,y\n" + "1,0\n2,1\n" * 200_000 + "1.5,0\n2.5,1\n"
    assert table(tmp_path, text).num_classes == 2


def test_columns_can_be_chosen(tmp_path: Path) -> None:
    text = "id,kind,a,b\nq,0,1,2\nr,1,3,4\ns,0,1,2\nt,1,3,4\n"
    data = table(tmp_path, text, label_column="kind", ignore_columns="id, b")
    assert (data.columns, data.num_classes) == (["a"], 2)


@pytest.mark.parametrize(
    ("text", "changes", "words"),
    [
        (TABLE.replace("label", "kind"), {}, "has no columns named label, target, class, y: give --label_column"),
        (TABLE.replace("tall", "Class"), {}, "has 2 columns named label, target, class, y: give --label_column"),
        (TABLE, {"label_column": "kind"}, "has no columns named kind"),
        (TABLE, {"ignore_columns": "age"}, "--ignore_columns=age: .*t.csv has no such column"),
        (TABLE.replace("1e1", "big"), {}, "row 3 of column height is 'big', not a number: give --ignore_columns=h"),
        (TABLE.replace("2,4", ",4"), {}, "row 2 of column height has no value: remove the row, fill it in"),
        (TABLE.replace("2,4", "NA,4"), {}, "row 2 of column height has no value"),
        (TABLE.replace("False,dog\n1e1", "False,\n1e1"), {}, "row 2 has no label in column label"),
        (TABLE.replace("2,4,", "2,4,5,6,"), {}, "cannot be read as a table"),
        (TABLE.replace("height", "tall"), {}, "several columns named tall"),
        ("label\na\nb\n", {}, "has no columns of features beside label: give it one or more"),
        ("", {}, "cannot be read as a table"),
        (TABLE.replace("2,4", "inf,4"), {}, "row 2 of column height is infinite, or beyond float32: mend it, or"),
        (TABLE.replace("2,4", "-1e39,4"), {}, "row 2 of column height is infinite, or beyond float32: mend it, or"),
        (TABLE.replace("2,4", "inf,4").replace("1e1", ""), {"missing": "zero"}, "row 2 of column height is infinite"),
        ("\x00\x07\x1b,b\n1,2\n", {}, r"give --label_column, one of \\x00\\x07\\x1b, b, or --header=none"),
    ],
)  # fmt: skip
def test_tables_that_cannot_be_trained_on(text: str, changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=words) as caught:
        table(tmp_path, text, **changes)
    assert "t.csv" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["größe,label\n1,a\n2,b\n", "size,label\n1,grün\n2,blau\n"])
def test_a_table_in_another_encoding(text: str, tmp_path: Path) -> None:
    for encoding in ("latin-1", "utf-16"):
        (tmp_path / "t.csv").write_bytes(text.encode(encoding))
        with pytest.raises(InputError, match=r"t\.csv cannot be read as a table \(.*\): save it as UTF-8$"):
            load(Config(dataset=str(tmp_path / "t.csv")))


def test_a_folder_of_tables_must_name_its_parts(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts" / "one.csv").write_text(TABLE)
    with pytest.raises(InputError, match=r"holds no train.csv or train.parquet, but one"):
        load(Config(dataset=str(tmp_path / "parts")))


def test_data_for_a_model_have_its_classes_and_columns_and_are_not_divided(tmp_path: Path) -> None:
    info = table(tmp_path, TABLE).info()
    (tmp_path / "new.csv").write_text("label, weight ,more,tall,height\ndog,4,x,1,2\ndog,6,y,0,-3\n")
    data = load(Config(dataset=str(tmp_path / "new.csv"), test_fraction=0.5), learned=Learned(info))
    images, labels = data.test.take(np.arange(2))
    assert (images.tolist(), labels.tolist()) == ([[2, 4, 1], [-3, 6, 0]], [1, 1])
    (tmp_path / "new.csv").write_text("label,height,tall\ndog,4,1\n")
    with pytest.raises(InputError, match=r"new.csv lacks the column  weight : it has label, height, tall"):
        load(Config(dataset=str(tmp_path / "new.csv")), learned=Learned(info))


@pytest.mark.parametrize(("cells", "classes"), [
    (["01", "1", "002"], ["002", "01", "1"]), (["1E2", "100"], ["100", "1E2"]), (["NA", "null"], ["NA", "null"]),
    (["nan", "None"], ["None", "nan"]), (["1", "2", "3"], [1, 2, 3]), (["-1", "1"], [-1, 1]),
    (["True", "False"], [False, True]), (["1.0", "2.0"], [1, 2]), (["0", "1"], None),
])  # fmt: skip
def test_the_classes_of_a_table_are_what_its_labels_are(cells: list[str], classes: Any, tmp_path: Path) -> None:
    text = "a,y\n" + "".join(f"{n},{cell}\n" for n in range(4) for cell in cells)
    data = table(tmp_path, text)
    assert data.classes == classes
    assert classes is None or [type(name) for name in data.classes] == [type(name) for name in classes]
    config = Config(dataset=str(tmp_path / "t.csv"), num_classes=len(cells))
    again = load(config, learned=Learned(data.info())).test
    names = classes or [0, 1]
    assert [str(names[number]) for number in again.labels] == [cell.replace(".0", "") for cell in cells] * 4


def test_text_in_parquet_is_text_and_booleans_are_booleans(tmp_path: Path) -> None:
    import pyarrow as pa
    from pyarrow import parquet

    for labels, classes in ((["1", "2"], ["1", "2"]), ([True, False], [False, True]), ([3, 1], [1, 3])):
        parquet.write_table(pa.table({"a": [1.0, 2.0] * 4, "y": labels * 4}), tmp_path / "t.parquet")
        assert load(Config(dataset=str(tmp_path / "t.parquet"), test_fraction=0.5)).classes == classes


def test_two_tables_of_one_part_are_refused(tmp_path: Path) -> None:
    (tmp_path / "parts").mkdir()
    for name in ("train.csv", "Training.tsv", "test.csv"):
        (tmp_path / "parts" / name).write_text(TABLE)
    with pytest.raises(InputError, match=r"Training\.tsv and .*train\.csv could both be meant as the train set"):
        load(Config(dataset=str(tmp_path / "parts")))
    (tmp_path / "parts" / "Training.tsv").unlink()
    (tmp_path / "parts" / "train.json").write_text('{"about": "the table"}')  # no table
    assert [len(part) for part in load(Config(dataset=str(tmp_path / "parts"))).parts] == [4, 4]


def test_tables_and_arrays_that_are_no_part_are_named(tmp_path: Path) -> None:
    for name in ("train.csv", "test.csv", "README.txt", "License.txt", ".hidden.csv", "about.md"):
        (tmp_path / name).write_text(TABLE)
    assert load(Config(dataset=str(tmp_path))).remarks == []
    for name in ("dev.csv", "Holdout.tsv"):
        (tmp_path / name).write_text(TABLE)
    data = load(Config(dataset=str(tmp_path)))
    said = [f"{tmp_path}: Holdout.tsv, dev.csv are not read: the parts are named train, test and val"]
    assert (data.validation, data.remarks) == (None, said)
    assert load(Config(dataset=str(tmp_path)), learned=Learned(data.info())).remarks == said
    arrays = write(tmp_path / "arrays", {name: name for name in ARRAYS})
    assert load(Config(dataset=arrays)).remarks == []
    np.save(tmp_path / "arrays" / "x_dev.npy", ARRAYS["x_test"])
    assert load(Config(dataset=arrays)).remarks == [
        f"{arrays}: x_dev.npy is not read: the parts are named train, test and val"]  # fmt: skip
    archive = tmp_path / "a.npz"
    for more, text in ((["x_dev", "y_dev"], "x_dev, y_dev are not read: the parts are named train, test and val"),
                       (["sample_weights"], "sample_weights is not read: the parts are named train, test and val, and "
                        "weights w_train")):  # fmt: skip
        np.savez(archive, **ARRAYS, **dict.fromkeys(more, np.ones(4)))
        assert load(Config(dataset=str(archive))).remarks == [f"{archive}: {text}"]
        assert pack_sources([archive], tmp_path / more[0], Config())[1] == [f"{archive}: {text}"]


def test_what_hugging_face_has_saved_is_to_be_packed(tmp_path: Path) -> None:
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["train"]}')
    with pytest.raises(InputError, match=r"was saved by .* save_to_disk: make a pack of it, by `distmlp pack .* and"):
        load(Config(dataset=str(tmp_path)))
    (tmp_path / "dataset_dict.json").rename(tmp_path / "dataset_info.json")
    for name in ("train.csv", "test.csv"):
        (tmp_path / name).write_text(TABLE)
    assert load(Config(dataset=str(tmp_path))).num_classes == 2
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(InputError, match="was saved by"):
        load(Config(dataset=str(tmp_path)))


@pytest.mark.parametrize(("labels", "classes"), [(("0", "1.0"), [0, 1]), (("False", "true"), [False, True])])
def test_tables_may_write_a_class_in_two_ways(labels: tuple[str, str], classes: list[Any], tmp_path: Path) -> None:
    other = {"0": "0.0", "1.0": "1", "False": "FALSE", "true": "True"}
    for name, (a, b) in (("one", labels), ("two", tuple(other[label] for label in labels))):
        (tmp_path / f"{name}.csv").write_text("x,label\n" + f"1,{a}\n2,{b}\n" * 5)
    pack_sources([tmp_path / "one.csv", tmp_path / "two.csv"], tmp_path / "made", Config(test_fraction=0.2))
    assert [*load(Config(dataset=str(tmp_path / "made"))).called] == classes


def test_memory_that_was_not_written_is_no_value(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a column that is found to be text while it is read for numbers, whatever memory held before."""
    (tmp_path / "t.csv").write_text("size,colour,label\n1,red,a\n2,blue,b\n3,red,a\n4,blue,b\n")
    empty = np.empty

    def used(shape: Any, dtype: Any = float, **more: Any) -> np.ndarray:
        memory = empty(shape, dtype, **more)
        if memory.dtype.kind == "f":
            memory[...] = np.inf
        return memory

    monkeypatch.setattr(np, "empty", used)
    loaded = load(Config(dataset=str(tmp_path / "t.csv"), text_columns="one_hot", test_fraction=0.5))
    assert loaded.columns == ["size", "colour=blue", "colour=red"]
