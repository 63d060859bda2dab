"""Data of kinds that are not read: the line names the true cause, and what to do."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from conftest import make_arrays, small_config

from distmlp import InputError
from distmlp.data import datasets
from launch import evaluate, predict

X, Y = np.zeros((8, 3), np.float32), np.arange(8) % 2


def frame() -> Any:
    return pd.DataFrame({"a": [0.5, 1, 2], "label": [0, 1, 0]})


FILES = {  # by name: what writes one, and what is to be said of it
    "book.xlsx": (lambda path: path.write_bytes(b"PK\x03\x04"),
                  r'pandas\.read_excel\("book\.xlsx"\)\.to_csv\("book\.csv", index=False\)$'),
    "t.ORC": (lambda path: frame().to_orc(path), r'pandas\.read_orc\("t\.ORC"\)\.to_csv\("t\.csv"'),
    "rows.jsonl": (lambda path: frame().to_json(path, orient="records", lines=True),
                   r'pandas\.read_json\("rows\.jsonl", lines=True\)\.to_csv\("rows\.csv", index=False\)$'),
    "a.h5": (lambda path: path.write_bytes(b"\x89HDF\r\n\x1a\n"), r'by h5py\.File, .* numpy\.savez\("a\.npz", x_train'),
    "a.pt": (lambda path: torch.save((torch.zeros(3, 2), torch.zeros(3)), path), r"by torch\.load, and save its"),
    "a.zip": (lambda path: path.write_bytes(b"PK"), "unpack it first"),
    "notes.odd": (lambda path: path.write_text("a,b\n"), r"\.odd files are not taken: give a \.csv, \.tsv or"),
    "notes": (lambda path: path.write_text("a,b\n"), r"files of its kind are not taken: give a \.csv, \.tsv or"),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_kind_that_is_not_read(
    name: str, digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (write, remedy), path = FILES[name], tmp_path / name
    write(path)  # type: ignore[no-untyped-call]
    for read in (lambda: datasets.load(small_config(str(path))),
                 lambda: evaluate.main([str(digits_run), f"--dataset={path}"])):
        with pytest.raises(InputError, match=remedy) as caught:
            read()
        assert str(caught.value).startswith(f"{path} cannot be read, ")
        assert "\n" not in str(caught.value)
    if not name.startswith("notes"):  # which may be a picture
        assert predict.main([str(digits_run), str(path)]) == 2
        assert f"distmlp: error: {caught.value}\n" == capsys.readouterr().err


@pytest.mark.parametrize(("content", "reason"), [
    (b"<html>not found</html>\n", "it does not begin as one of them"), (b"", "No data left in file"),
])  # fmt: skip
def test_what_is_no_archive_of_arrays_is_not_said_to_hold_objects(tmp_path: Path, content: bytes, reason: str) -> None:
    (tmp_path / "x.npz").write_bytes(content)
    words = rf"x\.npz cannot be read as NumPy arrays, it may be damaged or truncated \({reason}\): bring back"
    with pytest.raises(InputError, match=words):
        datasets.load(small_config(str(tmp_path / "x.npz")))


def test_an_archive_of_arrays_needs_no_suffix(tmp_path: Path) -> None:
    np.savez(tmp_path / "a.npz", **make_arrays())
    (tmp_path / "a.npz").rename(tmp_path / "arrays")
    assert len(datasets.load(small_config(str(tmp_path / "arrays"))).train) == 96


class DatasetDict(dict[str, Any]):
    """As Hugging Face's: a dict of Datasets."""


@pytest.mark.parametrize(("given", "words"), [
    (DatasetDict(train=[(X[0], 1)], test=[(X[0], 0)]),
     r"train_set is a DatasetDict of 'train', 'test': give each set by itself, as in train\(config, data\['train'\]"),
    ({"x": X, "y": Y}, r"train_set is a dict of 'x', 'y': give each set by itself, as in train\(config, \(x, y\)\)"),
    (torch.utils.data.TensorDataset(*map(torch.as_tensor, (X, Y, Y))), "train_set is a TensorDataset of 3 parts: give"),
    ((X,), r"train_set is a tuple of 1 parts: give a tuple \(x, y\), or \(x, y, weights\)$"),
    ([X, Y], r"train_set is a list of 2 parts: give a tuple \(x, y\), or \(x, y, weights\)$"),
    ("mine.csv", r"train_set is a str: name files and folders in the config, as in Config\(dataset='mine\.csv'\)"),
    (torch.utils.data.DataLoader(list(X)), r"train_set is a DataLoader: give its \.dataset"),
], ids=["DatasetDict", "dict", "tensors", "one", "list", "path", "loader"])  # fmt: skip
def test_objects_that_are_no_data_set(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        datasets.load(small_config("python:x", num_classes=2), given, (X, Y))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", [list, lambda examples: dict(enumerate(examples))], ids=["list", "dict"])
def test_what_has_its_examples_by_number_is_a_data_set(kind: Any) -> None:
    examples = kind([(X[0], 0), (X[1], 1)])
    assert len(datasets.load(small_config("python:x", num_classes=2), examples, examples).train) == 2


def test_a_test_table_without_labels_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "train.csv").write_text("a,b,Survived\n" + "1,2,0\n3,4,1\n" * 20)
    (tmp_path / "test.csv").write_text("a,b\n1,2\n3,4\n")
    with pytest.raises(InputError, match=r"test\.csv has no column Survived, without which .* --test_fraction=0\.2"):
        datasets.load(small_config(str(tmp_path), label_column="Survived"))
