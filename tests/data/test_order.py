"""Training sets whose examples come in an order that is not a random one: they are said, and no others."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_arrays, small_config
from PIL import Image

from distmlp import Config, train
from distmlp.data.datasets import load, order_remark
from distmlp.data.order import far_batch

SHARES = {"two": [0.5, 0.5], "rare": [0.9, 0.1], "ten": [0.1] * 10, "hundred": [0.01] * 100}


@pytest.mark.parametrize("batch_size", [1, 4, 32, 128, 700])
@pytest.mark.parametrize("shares", SHARES)
def test_sorted_labels_are_far_and_those_in_random_order_are_not(shares: str, batch_size: int) -> None:
    rng, kinds = np.random.default_rng(0), SHARES[shares]
    for _ in range(20):
        assert far_batch(rng.choice(len(kinds), 1500, p=kinds), batch_size) is None
    ordered = np.sort(rng.choice(len(kinds), 1500, p=kinds))
    found = far_batch(ordered, batch_size)
    assert found is not None
    assert len(np.unique(found)) < len(kinds) or batch_size == 700
    if (shares, batch_size) != ("rare", 700):  # a fifth of the first batch, a tenth of all
        assert far_batch(ordered[::-1].copy(), batch_size) is not None


def test_orders_that_are_balanced_in_each_batch_and_those_that_are_not() -> None:
    cycle = np.arange(1500) % 10
    assert far_batch(cycle, 128) is None
    assert far_batch(np.repeat(cycle[:150], 10), 10) is not None  # a batch is of one class, a hundred examples are not
    assert far_batch(np.sort(cycle), 1500) is None  # a single batch has no order
    assert far_batch(np.repeat([0, 1, 2], 50), 128) is not None  # the last batch of an epoch has one class
    assert far_batch(np.zeros(100, int), 10) is None  # labels that are not known


@pytest.mark.parametrize("name", ["digits", "mnist", "synthetic"])
def test_data_sets_that_are_known_are_in_random_order(name: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue("mnist_dir") if name == "mnist" else "data"
    for batch_size in (16, 128, 1000):
        config = Config(dataset=name, data_dir=folder, batch_size=batch_size, synthetic_examples=5000)
        assert order_remark(config, load(config)) == ""


def table(folder: Path, shuffled: bool) -> str:
    """Scikit-learn's irises, as they come, sorted by kind."""
    from sklearn.datasets import load_iris

    frame = load_iris(as_frame=True).frame
    (frame.sample(frac=1, random_state=0) if shuffled else frame).to_csv(folder / "iris.csv", index=False)
    return str(folder / "iris.csv")


def pictures(folder: Path) -> str:
    for n in range(40):
        path = folder / "pets" / ("cat", "dog")[n % 2] / f"{n}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((3, 3), n, np.uint8)).save(path)
    return str(folder / "pets")


def test_it_is_said_before_training_with_the_remedy(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def said(dataset: str, **changes: Any) -> list[str]:
        train(small_config(dataset, test_fraction=0.2, **changes))
        return [line for line in capsys.readouterr().err.splitlines() if "no random order" in line]

    (line,) = said(table(tmp_path, shuffled=False), workdir="first")
    assert line.startswith("distmlp: the training set is in no random order: of 2")
    assert "100% are of class 2, of all 33%; give --shuffle" in line or "100% are of class 0, of all 33%" in line
    log = Path("first", "log.txt").read_text()
    assert log.index(line) < log.index("epoch   1")
    (line,) = said(pictures(tmp_path), workdir=None)
    assert "are of class cat" in line or "are of class dog" in line
    assert said(table(tmp_path, shuffled=False), workdir="second", shuffle=True) == []
    assert said(table(tmp_path, shuffled=True), workdir="third") == []
    assert os.path.exists("third")


def test_going_on_does_not_say_it_again(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arrays = make_arrays()
    order = np.argsort(arrays["y_train"], kind="stable")
    np.savez("sorted.npz", **arrays | {"x_train": arrays["x_train"][order], "y_train": arrays["y_train"][order]})
    for epochs, times in ((1, 1), (2, 0)):
        train(small_config("sorted.npz", num_epochs=epochs))
        assert capsys.readouterr().err.count("no random order") == times
