"""Data given from Python: Datasets as people write them, read here or by spawned workers."""

import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_arrays, process_env, small_config
from PIL import Image

from distmlp import InputError, train
from distmlp.data.datasets import ItemDataset, load
from distmlp.data.given import label_array
from distmlp.data.labels import Classes
from distmlp.data.loader import ExampleLoader, NumpyLoader
from distmlp.errors import STOP_SIGNALS
from distmlp.parallel.evaluate import Evaluator, _Steps
from distmlp.parallel.layout import make_layout


class Vectors(torch.utils.data.Dataset[Any]):
    """The arrays of make_arrays, item by item; `noise` is random augmentation, `broken` cannot be decoded."""

    def __init__(self, kind: str = "train", noise: int = 0, broken: int = -1, listed: bool = False) -> None:
        arrays = make_arrays()
        self.images, self.answers = arrays[f"x_{kind}"], arrays[f"y_{kind}"].astype(int)
        if listed:
            self.targets = self.answers.tolist()
        self.noise, self.broken, self.read = noise, broken, list[int]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        self.read.append(index)
        if index == self.broken:
            raise ValueError(f"cannot decode img{index}.png")
        change = np.random.default_rng().integers(0, self.noise + 1, 12)
        return (self.images[index] // 2 + change).astype(np.uint8), int(self.answers[index])


def test_a_set_with_random_augmentation_can_be_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    def go_on(epochs: int, **changes: Any) -> None:
        train(small_config("digits", num_classes=4, num_epochs=epochs), Vectors(noise=9, **changes), Vectors("test"))

    go_on(1)
    go_on(2)
    assert "resuming after step 5 of 10" in capsys.readouterr().out
    with pytest.raises(InputError, match="are not those that the run"):
        go_on(3, listed=True)


def test_the_fingerprint_of_a_dataset_covers_what_can_be_had_without_its_values() -> None:
    def fingerprint(**changes: Any) -> str:
        return ItemDataset(Vectors(**changes), "x", Classes(4)).fingerprint()

    assert fingerprint(noise=9) == fingerprint(noise=9)
    first, changed = Vectors(listed=True), Vectors(listed=True)
    changed.targets[50] += 1
    prints = [ItemDataset(each, "x", Classes(4)).fingerprint() for each in (first, changed)]
    assert len({*prints, fingerprint(), fingerprint(kind="test")}) == 4


def test_the_order_is_that_of_the_seed_and_epoch() -> None:
    """As torch's own DistributedSampler draws it."""
    given = Vectors()
    train(small_config("digits", num_classes=4, shuffle=True, seed=7, num_devices=1), given, Vectors("test"))
    epochs = [torch.randperm(96, generator=torch.Generator().manual_seed(7 + epoch)).tolist() for epoch in (0, 1)]
    assert given.read[-192:] == epochs[0] + epochs[1]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("devices", [1, 4, 7])
def test_nothing_is_read_for_rows_that_only_fill_up(devices: int) -> None:
    given = Vectors("test")
    dataset = ItemDataset(given, "x", Classes(4))
    given.read.clear()
    config = small_config("digits", num_devices=devices, eval_batch_size=500)
    layout = make_layout(config)
    steps = list(ExampleLoader(dataset, _Steps(layout, 500, 40)))
    assert given.read == list(range(40))
    assert all(images.shape == (500 * devices, 12) for images, *_ in steps)
    given.read.clear()
    batches = list(NumpyLoader(dataset, 64, local_shards=range(devices + 2), num_shards=devices))
    assert sorted(given.read) == list(range(40))
    assert batches[0].images.shape == (devices + 2, -(-64 // devices), 12)


def test_evaluation_uses_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ItemDataset(Vectors("test"), "x", Classes(4))
    config = small_config("digits")
    evaluator, made = Evaluator(make_layout(config), 16, num_workers=2), []
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", lambda self: made.append(self.num_workers) or iter([]))
    with pytest.raises(AssertionError, match="examples are missing"):  # no step was read
        evaluator(None, dataset)
    assert made == [2]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_dataset_raises_keeps_its_cause_and_names_the_index(workers: int) -> None:
    config = small_config("digits", num_classes=4, num_workers=workers)
    with pytest.raises(InputError) as caught:
        train(config, Vectors(broken=50), Vectors("test"))
    assert str(caught.value) == "train_set: example 50 cannot be read (ValueError: cannot decode img50.png)"
    if workers:
        assert 'raise ValueError(f"cannot decode' in caught.value.__notes__[0]
        assert not multiprocessing.active_children()
    else:
        assert isinstance(caught.value.__cause__, ValueError)


def test_what_cannot_be_sent_to_workers_is_one_line() -> None:
    given = Vectors()
    given.transform = lambda x: x  # type: ignore[attr-defined]
    with pytest.raises(InputError) as caught:
        train(small_config("digits", num_classes=4, num_workers=1), given, Vectors("test"))
    assert "train_set cannot be sent to the processes of --num_workers=1" in str(caught.value)
    assert "lambdas" in str(caught.value)


def test_one_hot_labels_of_frames_are_found_by_name() -> None:
    import pandas as pd

    x, y = np.ones((30, 2)), pd.get_dummies(pd.Series([*"abc"] * 10))
    for later, numbers in ((y[["c", "a", "b"]], [0, 1, 2]), (pd.get_dummies(pd.Series([*"acc"] * 10)), [0, 2, 2]),
                           (pd.DataFrame(y.to_numpy()), [0, 1, 2])):  # fmt: skip
        data = load(small_config(dataset="python:x"), (x, y), (x, later))
        assert (data.num_classes, data.test.labels[:3].tolist()) == (3, numbers)  # type: ignore[attr-defined]
    with pytest.raises(InputError, match=r"test_set: the one-hot labels have the columns a, c, d, of which .* have d:"):
        load(small_config(dataset="python:x"), (x, y), (x, y.set_axis([*"acd"], axis=1)))


def test_one_hot_labels_of_frames_are_found_by_number_where_that_is_their_name(tmp_path: Path) -> None:
    import pandas as pd

    x, numbers = np.ones((30, 2)), np.arange(30) % 3
    ordered = pd.get_dummies(pd.Series(numbers))
    mixed = ordered[[2, 0, 1]]
    for first, later in ((ordered, mixed), (mixed, ordered), (mixed, mixed), (numbers, mixed)):
        data = load(small_config(dataset="python:x"), (x, first), (x, later))
        for part in (data.train, data.test):
            assert part.labels.tolist() == numbers.tolist()
    assert label_array(mixed).argmax(axis=1).tolist() == numbers.tolist()


def test_labels_that_a_dataset_lists_are_those_of_its_items() -> None:
    class Zeros(Vectors):
        def __getitem__(self, index: int) -> Any:
            image, label = super().__getitem__(index)
            return image, int(label == self.zero)

        zero = 0

    def given(zero: int, targets: list[int]) -> Zeros:
        dataset = Zeros()
        dataset.zero, dataset.targets = zero, targets
        return dataset

    labels = [int(Vectors()[index][1]) for index in range(96)]
    for zero in (labels[0], 9):  # the first item differs, or another one
        with pytest.raises(InputError, match=r"^train_set: example \d+ has the label \d, but the Dataset lists \d"):
            train(small_config("digits", num_workers=0), given(zero, labels), Vectors("test"))
    targets = [int(label == 1) for label in labels]
    data = load(small_config("digits"), given(1, targets), given(1, targets))
    assert data.num_classes == 2
    assert data.train.take(np.arange(96))[1].tolist() == targets


def test_the_named_column_of_labels_is_no_feature() -> None:
    import pandas as pd

    table = pd.DataFrame({"a": np.arange(40.0), "quality": [3, 4] * 20})
    chosen = small_config("python:x", label_column="quality", test_fraction=0.2)
    with pytest.raises(InputError, match=r"^--label_column=quality is among the features of train_set: leave it out"):
        load(chosen, (table, table["quality"]))
    assert load(chosen, (table[["a"]], table["quality"])).columns == ["a"]


def test_items_of_other_types_than_the_first_are_refused() -> None:
    items: Any = [(np.ones(4, np.uint8), 1), (np.full(4, 0.5), 0)]
    with pytest.raises(InputError, match="example 1 has values of type float32, but example 0 of uint8"):
        ItemDataset(items, "x", Classes(2)).take(np.arange(2))
    items.reverse()
    assert ItemDataset(items, "x", Classes(2)).take(np.arange(2))[0].dtype == np.float32


def test_data_given_from_python_have_their_own_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(small_config("digits", num_classes=4, num_epochs=1, workdir=""), Vectors(), Vectors("test"))
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("Vectors-20")
    text = capsys.readouterr().out
    assert "Vectors: 96 training" in text
    assert "digits" not in text + (run / "run.flags").read_text()
    with pytest.raises(InputError, match=r"--dataset=python:Vectors: .* given from Python"):
        load(small_config("python:Vectors"))


X, Y, X_TEST, Y_TEST = make_arrays().values()
NAMES = ["ant", "bee", "cow", "dog"]


class Described(Vectors):
    """As torchvision's: it says its classes."""

    classes = NAMES


class Images(torch.utils.data.Dataset[Any]):
    """As Hugging Face's: dicts, of pictures, and the names of the classes in `features`."""

    features: Any = {"image": None, "label": SimpleNamespace(names=NAMES)}  # noqa: RUF012

    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> dict[str, Any]:
        return {"image": Image.fromarray(X_TEST[index].reshape(3, 4)), "label": int(Y_TEST[index])}


def given_frames() -> tuple[Any, Any]:
    import pandas as pd

    return pd.DataFrame(X, columns=[f"c{i}" for i in range(12)]), pd.Series(np.array(NAMES)[Y])


def lists(x: np.ndarray, y: np.ndarray, change: Any = lambda x, y: (x, y)) -> list[Any]:
    """A list of pairs."""
    return [change(torch.from_numpy(image).float(), float(label)) for image, label in zip(x, y, strict=True)]


SETS: dict[str, tuple[Any, list[str] | None]] = {
    "arrays": ((X, Y), None),
    "arrays with names": ((X, np.array(NAMES)[Y]), NAMES),
    "tensors": ((torch.from_numpy(X), torch.from_numpy(Y)), None),
    "a TensorDataset": (torch.utils.data.TensorDataset(torch.from_numpy(X), torch.from_numpy(Y)), None),
    "bfloat16 tensors with gradients": ((torch.from_numpy(X).bfloat16().requires_grad_(), torch.from_numpy(Y)), None),
    "frames": (given_frames, NAMES),
    "lists": ((X.tolist(), Y.tolist()), None),
    "a Dataset with classes": (Described(), NAMES),
    "a Dataset with targets": (Vectors(listed=True), None),
    "a part of it": (torch.utils.data.Subset(Vectors(listed=True), range(96)), None),
    "dicts of pictures": (Images(), NAMES),
}  # fmt: skip


@pytest.mark.parametrize("kind", SETS)
def test_what_python_gives_is_trained_on_without_a_number_of_classes(kind: str) -> None:
    given, names = SETS[kind]
    given = given() if callable(given) else given
    data = load(small_config("python:x", test_fraction=0.25), given)
    assert (data.num_classes, data.classes) == (4, names)
    assert len(data.train) + len(data.test) == (40 if kind == "dicts of pictures" else 96)
    assert data.columns == ([f"c{i}" for i in range(12)] if kind == "frames" else None)
    images, labels = data.train.take(np.arange(10))
    whole = X_TEST if kind == "dicts of pictures" else X
    answers = Y_TEST if kind == "dicts of pictures" else Y
    if "Dataset with" in kind or "part" in kind:
        images = images * 2 + whole[0] % 2 * 0  # Vectors halves
    at = [np.abs(whole.astype(float) - image).sum(axis=1).argmin() for image in images]
    np.testing.assert_array_equal(answers[at], labels)


def test_arrays_from_python_give_the_parameters_of_the_file(npz: str) -> None:
    plain = train(small_config(npz, workdir="plain"))
    given = train(small_config("digits", workdir="given"), (X, Y), (X_TEST, Y_TEST))
    assert plain.history[-1]["params_sha256"] == given.history[-1]["params_sha256"]


@pytest.mark.parametrize(
    "change",
    [
        lambda x, y: (x.bfloat16(), y),
        lambda x, y: (x.requires_grad_(), torch.tensor(y)),
        lambda x, y: {"image": x.numpy(), "label": y},
        lambda x, y: {"pixel_values": x, "labels": torch.tensor([y])},
        lambda x, y: (x, np.eye(4)[int(y)]),
    ],
    ids=["bfloat16", "gradients", "dicts", "other names", "one-hot"],
)
def test_items_as_people_have_them(change: Any) -> None:
    data = load(small_config("python:x", num_classes=4), lists(X, Y, change), lists(X_TEST, Y_TEST, change))
    images, labels = data.train.take(np.arange(96))
    np.testing.assert_array_equal(images, X)
    np.testing.assert_array_equal(labels, Y)


class Stream(torch.utils.data.IterableDataset[Any]):
    def __iter__(self) -> Any:
        return iter(lists(X, Y))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (Stream(), "train_set is a Stream, whose examples cannot be asked for by number: give a map-style Dataset"),
        (X, r"train_set is a single ndarray: give a pair \(x, y\)"),
        (Vectors(), "--num_classes is needed for train_set"),
        ((X, Y + 0.5), "train_set: label 0.5 of example"),
        ((X, Y[:-1]), "train_set has 96 examples but 95 labels"),
        (lists(X, Y + 0.25), "train_set: example 0: label [0-9.]+25 is no class"),
        ((X, ["u", float("nan"), "v"] * 32), "train_set: example 1 has no label"),
        ((X, [["u"], ["v"], [float("nan")]] * 32), "train_set: example 2 has no label"),
        ((X, (1, "a", "b") * 32), "train_set: the label of example 0 is the number 1, but that of example 1 the text"),
        ((X, [b"u", float("nan"), b"v"] * 32), "train_set: example 1 has no label"),
    ],
    ids=["stream", "no labels", "no class count", "fractions", "lengths", "fractional items", "a gap in a list",
         "a gap in a column", "text beside numbers", "a gap in bytes"],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_one_line(given: Any, words: str) -> None:
    with pytest.raises(InputError, match=words):
        load(small_config("python:x", num_classes=4 * isinstance(given, list), test_fraction=0.25), given)


INTERRUPTED = """
import sys, time
import numpy as np

class Slow:
    def __len__(self):
        return 300
    def __getitem__(self, index):
        time.sleep(0.002)
        return np.full(4, index % 7, np.uint8), index % 3

if __name__ == "__main__":
    from distmlp import Config, train
    from distmlp.errors import Interrupted

    config = Config(num_classes=3, num_workers=2, batch_size=10, hidden_sizes=(4,), num_epochs=10**6, workdir="run",
                    checkpoint_every_steps=10**6)
    try:
        train(config, Slow(), (np.zeros((9, 4), np.uint8), np.arange(9) % 3))
    except Interrupted as stop:
        print(stop)
        sys.exit(stop.exit_code)
"""


def test_a_signal_to_the_process_group_leaves_the_workers_to_the_trainer(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(INTERRUPTED)
    child = subprocess.Popen([sys.executable, "script.py"], env=process_env(), stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip
    assert child.stdout is not None
    epochs = (line for line in child.stdout if line.startswith("epoch "))
    next(epochs)
    workers = [int(pid) for pid in Path(f"/proc/{child.pid}/task/{child.pid}/children").read_text().split()
               if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]  # fmt: skip
    assert len(workers) == 2
    for pid in workers:  # a moment before the trainer, which must not miss them
        for signum in STOP_SIGNALS:
            os.kill(pid, signum)
    for _ in range(3):
        next(epochs)
    os.killpg(child.pid, signal.SIGINT)
    output, _ = child.communicate(timeout=120)
    assert child.returncode == 130, output
    assert "stopped after step" in output
    assert "exited unexpectedly" not in output
    assert [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
