"""--fold=I/K: each training example is held out once, of whatever kind the data are, and nothing is learned from it."""

import hashlib
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pandas as pd
import pytest
from conftest import make_arrays, small_config
from hypothesis import strategies as st
from PIL import Image
from sklearn.model_selection import train_test_split

from distmlp import Config, InputError, load, train
from distmlp.data import datasets, split
from distmlp.results import run_data
from launch import pack as verb

ROWS = 90  # of the sets below, of which the test set takes a third


def test_folds_part_the_examples_and_each_class_alike() -> None:
    labels = np.random.default_rng(0).choice(5, 1003, p=[0.5, 0.3, 0.15, 0.04, 0.01]).astype(np.int32)
    for count in (2, 5, 7, 1003):
        numbers = split.folds(labels, count, seed=3)
        assert set(numbers) == set(range(1, count + 1))
        for rows in (numbers, *(numbers[labels == label] for label in range(5))):
            sizes = np.bincount(rows, minlength=count + 1)[1:]
            assert sizes.max() - sizes.min() <= 1
    drawn = split.folds(labels, 5, seed=3)
    assert (drawn != split.folds(labels, 5, seed=4)).any()
    held = [split.hold_out_fold(labels, f"{number}/5", 3, "it", None) for number in range(1, 6)]
    assert sorted(np.concatenate([inside for _, inside in held])) == list(range(1003))
    for number, (stay, inside) in enumerate(held, start=1):
        np.testing.assert_array_equal(inside, np.flatnonzero(drawn == number))
        np.testing.assert_array_equal(stay, np.flatnonzero(drawn != number))
    # Runs of other versions name folds, too: these must be the same for ever.
    assert hashlib.sha256(drawn.astype("<i4").tobytes()).hexdigest()[:16] == "d9c847816fa25fad"


@hypothesis.settings(deadline=None, max_examples=100)
@hypothesis.given(
    counts=st.lists(st.integers(2, 30), min_size=1, max_size=6), part=st.floats(0.05, 0.9), seed=st.integers(0, 99)
)
def test_parts_are_those_of_scikit_learn(counts: list[int], part: float, seed: int) -> None:
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 3, counts))
    rows = np.arange(len(labels))
    try:
        theirs = train_test_split(rows, test_size=part, stratify=labels, random_state=seed)
    except ValueError:
        with pytest.raises(InputError, match=r"examples of it .* are too few for \d classes\): give another"):
            split.hold_out(labels, split.HoldOut("validation", part, seed), "it", None)
        return
    for own, wanted in zip(split.stratified(labels, part, seed), theirs, strict=True):
        np.testing.assert_array_equal(own, wanted)
    found = split.hold_out(labels, split.HoldOut("validation", part, seed), "it", None)
    for own, wanted in zip(found, theirs, strict=True):
        np.testing.assert_array_equal(own, np.sort(wanted))


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """One set of examples as pictures, arrays, mapped arrays and a table, and each of them packed."""
    root = tmp_path_factory.mktemp("sets")
    random = np.random.default_rng(1)
    pixels, names = random.integers(0, 256, (ROWS, 3, 4), np.uint8), np.repeat(["ape", "bee", "cat"], [45, 30, 15])
    for row, (picture, name) in enumerate(zip(pixels, names, strict=True)):
        (root / "pictures" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(picture).save(root / "pictures" / name / f"{row:03}.png")
    np.savez(root / "set.npz", x=pixels, y=names)
    (root / "mapped").mkdir()
    np.save(root / "mapped" / "x.npy", pixels)
    np.save(root / "mapped" / "y.npy", names)
    frame = pd.DataFrame(pixels.reshape(ROWS, -1), columns=[f"p{column}" for column in range(12)])
    frame.assign(label=names).to_csv(root / "table.csv", index=False)
    sources = ("pictures", "set.npz", "mapped", "table.csv")
    for source in sources:
        assert verb.main([str(root / source), f"--output={root / 'packed' / source}"]) == 0
    return {path: str(root / path) for source in sources for path in (source, f"packed/{source}")}


def rows(examples: Any) -> list[bytes]:
    features, labels = examples.take(np.arange(len(examples)))
    return [row.tobytes() for row in np.column_stack([features, labels]).astype(np.float32)]


def test_the_same_of_pictures_arrays_tables_and_packs(sets: dict[str, str]) -> None:
    def parts(dataset: str, fold: int) -> list[list[bytes]]:
        data = datasets.load(Config(dataset=dataset, test_fraction=1 / 3, fold=f"{fold}/4", seed=8))
        return [rows(part) for part in (data.train, data.validation, data.test)]

    found = {name: [parts(path, fold) for fold in range(1, 5)] for name, path in sets.items()}
    expected = found["set.npz"]
    assert [[*map(len, each)] for each in expected] == [[45, 15, 30]] * 4
    everything = sorted(expected[0][0] + expected[0][1])
    assert sorted(row for _, held, _ in expected for row in held) == everything  # each of them once
    for own, held, test in expected:
        assert sorted(own + held) == everything
        assert test == expected[0][2]
    for name, each in found.items():
        assert each == expected, name


def test_what_is_learned_comes_from_the_rows_that_stay(tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    number = random.standard_normal(80).astype(np.float32)
    number[::6] = np.nan
    words = np.array([f"word{n}" for n in random.integers(0, 40, 80)])  # most of them in few rows
    frame = pd.DataFrame({"number": number, "word": words, "label": np.where(random.random(80) < 0.5, "yes", "no")})
    frame.to_parquet(tmp_path / "all.parquet")
    settings: dict[str, Any] = {"missing": "mean", "text_columns": "one_hot"}
    whole = {"dataset": str(tmp_path / "all.parquet"), "test_fraction": 0.25, "seed": 5}
    stay, test = split.hold_out((frame.label == "yes").to_numpy(np.int32), split.HoldOut("test", 0.25, 5), "it", None)
    numbers = split.folds((frame.label == "yes").to_numpy(np.int32)[stay], 3, 5)
    for fold in (1, 2, 3):
        parts = {"train": stay[numbers != fold], "val": stay[numbers == fold], "test": test}
        folder = tmp_path / f"fold{fold}"
        folder.mkdir()
        for part, chosen in parts.items():
            frame.iloc[chosen].to_parquet(folder / f"{part}.parquet")
        one = datasets.load(Config(**whole, **settings, fold=f"{fold}/3"))
        other = datasets.load(Config(dataset=str(folder), **settings))
        assert one.columns == other.columns
        assert one.table == other.table
        for a, b in zip(one.parts, other.parts, strict=True):
            assert rows(a) == rows(b)
        scaling = [datasets.input_scaling("standard", data) for data in (one, other)]
        assert [part.tobytes() for part in scaling[0]] == [part.tobytes() for part in scaling[1]]


def test_a_run_on_a_fold_is_the_run_on_its_rows(tmp_path: Path) -> None:
    arrays = make_arrays()
    x, y, tests = arrays["x_train"], arrays["y_train"], (arrays["x_test"], arrays["y_test"])
    np.savez(tmp_path / "set.npz", **arrays)
    settings: dict[str, Any] = {"input_scaling": "standard", "shuffle": True, "num_devices": 1, "num_epochs": 4}
    config = small_config(str(tmp_path / "set.npz"), **settings, seed=7, data_seed=2, fold="3/4")
    final = train(config).history[-1]
    stay, held = split.hold_out_fold(y.astype(np.int32), "3/4", 2, "it", None)
    alone = small_config("digits", **settings, seed=7, workdir=None)
    expected = train(alone, (x[stay], y[stay]), tests, (x[held], y[held])).history
    assert final["params_sha256"] == expected[-1]["params_sha256"]
    model = load("run")
    found = model.evaluate_set(run_data.split(model, "validation"))
    best = max(expected[:-1], key=lambda line: line["validation_accuracy"])
    assert (found.count, found.correct, found.loss) == (24, best["validation_correct"], best["validation_loss"])
    with pytest.raises(InputError, match=r"--fold was 3/4, is 2/4"):
        train(small_config(str(tmp_path / "set.npz"), **settings, seed=7, data_seed=2, fold="2/4"))


def test_runs_of_several_seeds_share_their_data(tmp_path: Path) -> None:
    arrays = make_arrays()
    np.savez(tmp_path / "set.npz", x=arrays["x_train"], y=arrays["y_train"])
    drawn: tuple[dict[str, Any], ...] = (
        {"test_fraction": 0.2, "validation_fraction": 0.2}, {"test_fraction": 0.2, "fold": "1/3"},
        {"dataset": "synthetic", "synthetic_examples": 60, "synthetic_features": 3},
    )  # fmt: skip
    for settings in drawn:
        settings = {"dataset": str(tmp_path / "set.npz")} | settings
        five = datasets.load(Config(**settings, seed=5)).fingerprint()
        assert datasets.load(Config(**settings, seed=6)).fingerprint() != five
        assert datasets.load(Config(**settings, seed=6, data_seed=5)).fingerprint() == five


@pytest.mark.parametrize("fold", ["0/5", "6/5", "1/1", "2", "1/", "a/b", "-1/5", "1/5 "])
def test_folds_that_are_none(fold: str) -> None:
    with pytest.raises(InputError, match=r"--fold=.*: give I/K, the I-th of K parts, as in 1/5"):
        Config(fold=fold).validate()


def test_folds_that_cannot_be(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"--fold=1/5 makes a validation set, and so does --validation_fraction=0\.1"):
        Config(fold="1/5", validation_fraction=0.1).validate()
    arrays = make_arrays()
    np.savez(tmp_path / "val.npz", **arrays, x_val=arrays["x_test"], y_val=arrays["y_test"])
    with pytest.raises(InputError, match=r"--fold=1/5: .* comes with a validation set, .*: leave the flag out"):
        datasets.load(Config(dataset=str(tmp_path / "val.npz"), fold="1/5"))
    np.savez(tmp_path / "few.npz", x=np.eye(7), y=[0, 0, 0, 1, 1, 1, 2], x_test=np.eye(7), y_test=[0, 0, 0, 1, 1, 1, 2])
    with pytest.raises(InputError, match=r"--fold=1/3: class 2 of .* has a single example"):
        datasets.load(Config(dataset=str(tmp_path / "few.npz"), fold="1/3"))
    with pytest.raises(InputError, match=r"--fold=1/8: .* has 7 examples: give at most so many folds"):
        datasets.load(Config(dataset=str(tmp_path / "few.npz"), fold="1/8"))
    table = pd.DataFrame({"number": [1.0, None, 3.0, 4.0] * 5, "label": ["yes", "no"] * 10})
    table.to_parquet(tmp_path / "t.parquet")
    made = tmp_path / "made"
    assert verb.main([str(tmp_path / "t.parquet"), f"--output={made}", "--missing=mean", "--test_fraction=0.2"]) == 0
    with pytest.raises(InputError, match=r"--fold=1/3: .*made was packed with words or means of all its training rows"):
        datasets.load(Config(dataset=str(made), fold="1/3"))
