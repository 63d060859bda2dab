"""Data sets: what names and files give, and what is refused when they are read."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_arrays, small_config
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split

from distmlp import Config, InputError, train
from distmlp.data import examples
from distmlp.data.datasets import ArrayDataset, Data, ItemDataset, Learned, load
from distmlp.data.labels import Classes


def test_digits_are_a_fixed_stratified_split() -> None:
    data = load(Config())
    assert (len(data.train), len(data.test), data.num_features, data.num_classes) == (1437, 360, 64, 10)
    assert data.fingerprint() == load(Config(seed=3)).fingerprint()
    images, labels = load_digits(return_X_y=True)
    theirs = train_test_split(images, labels, test_size=0.2, stratify=labels, random_state=0)
    (x, y), (x_test, y_test) = (part.take(np.arange(len(part))) for part in (data.train, data.test))
    for own, given in zip((x, x_test, y, y_test), theirs, strict=True):
        np.testing.assert_array_equal(own, given.reshape(own.shape))
    images, labels = data.train.take(np.arange(len(data.train)))
    assert (images.dtype, images.max(), labels.dtype) == (np.uint8, 16, np.int32)
    shares = [np.bincount(labels) / len(labels), np.bincount(data.test.take(np.arange(360))[1]) / 360]
    np.testing.assert_allclose(*shares, atol=0.003)


@pytest.mark.parametrize(("factors", "told"), [((16, 1), 2), ((1, 16), 2), ((16, 16), 0), ((1, 1), 0), ((2, 1), 0)])
def test_parts_of_which_one_seems_to_be_divided_by_255_are_told(
    factors: tuple[int, int], told: int, tmp_path: Path
) -> None:
    arrays = make_arrays()
    for part, factor in zip(("train", "test"), factors, strict=True):
        arrays[f"x_{part}"] = np.random.default_rng(0).random(arrays[f"x_{part}"].shape, np.float32) * factor
    np.savez(tmp_path / "a.npz", **arrays)
    np.savez(tmp_path / "test.npz", x=arrays["x_test"], y=arrays["y_test"])
    data = load(small_config(str(tmp_path / "a.npz")))
    later = load(small_config(str(tmp_path / "test.npz"), num_classes=4), learned=Learned(data.info()))
    found = [text for each in (data, later) for text in each.remarks if "divided by 255" in text]
    assert len(found) == told, found


def test_synthetic_sets_have_the_size_asked_for_and_are_learnable() -> None:
    config = Config(dataset="synthetic", synthetic_examples=3000, synthetic_features=5, synthetic_classes=3)
    data = load(config)
    assert (len(data.train), len(data.test), data.num_features, data.num_classes) == (3000, 500, 5, 3)
    x, y = data.train.take(np.arange(3000))
    solution, *_ = np.linalg.lstsq(x - 127.5, np.eye(3)[y], rcond=None)
    x, y = data.test.take(np.arange(500))
    assert (((x - 127.5) @ solution).argmax(axis=1) == y).mean() > 0.8
    assert data.fingerprint() == load(config).fingerprint()
    assert data.fingerprint() != load(Config(**{**config.settings(), "seed": 1})).fingerprint()


def save(folder: Path, arrays: dict[str, np.ndarray], kind: str) -> str:
    """The arrays as an .npz file or as a folder of .npy files."""
    path = folder / f"set.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        path.mkdir(exist_ok=True)
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    return str(path)


@pytest.mark.parametrize("kind", ["npz", "npy"])
@pytest.mark.parametrize("dtype", ["uint8", "int64", "float32", "float64"])
def test_files_of_any_dtype(kind: str, dtype: str, tmp_path: Path) -> None:
    arrays = make_arrays()
    arrays["x_train"] = arrays["x_train"].reshape(96, 3, 4).astype(dtype)  # images are flattened
    arrays["x_test"] = arrays["x_test"].astype(dtype)
    arrays["y_train"] = arrays["y_train"][:, None].astype("int64")  # labels [N, 1]
    data = load(Config(dataset=save(tmp_path, arrays, kind)))
    assert (data.train.resident is None) == (kind == "npy")
    images, labels = data.train.take(np.array([[5, 3], [0, 95]]))
    assert images.dtype == (np.uint8 if dtype == "uint8" else np.float32)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(images, make_arrays()["x_train"][[[5, 3], [0, 95]]])
    np.testing.assert_array_equal(labels, make_arrays()["y_train"][[[5, 3], [0, 95]]])
    assert (data.num_features, data.num_classes) == (12, 4)


def test_a_fingerprint_shows_a_change_of_any_value() -> None:
    arrays = make_arrays()

    def fingerprint() -> str:
        return ArrayDataset(arrays["x_train"], arrays["y_train"], "x").fingerprint()

    seen = {fingerprint(), fingerprint()}
    arrays["x_train"][70, 7] ^= 1
    seen.add(fingerprint())
    arrays["y_train"][70] ^= 1
    seen.add(fingerprint())
    assert len(seen) == 3


def test_a_mapped_set_of_moderate_size_is_covered_whole_and_copies_are_the_same_set(tmp_path: Path) -> None:
    arrays = make_arrays(train=5000)
    data = load(Config(dataset=save(tmp_path, arrays, "npy")))
    (tmp_path / "copy").mkdir()
    copy = load(Config(dataset=save(tmp_path / "copy", arrays, "npy")))
    assert data.fingerprint() == copy.fingerprint()
    assert data.modified() == copy.modified() == [None, None]
    arrays["x_train"][4001, 7] ^= 1
    assert load(Config(dataset=save(tmp_path / "copy", arrays, "npy"))).fingerprint() != data.fingerprint()


def test_a_large_mapped_set_that_was_written_again_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where rows are only sampled, the time of the file tells of the others; a copy is no reason to refuse."""
    monkeypatch.setattr(examples, "_READ_WHOLE", 0)
    arrays = make_arrays(train=9000)
    config = small_config(save(tmp_path, arrays, "npy"), batch_size=3000, num_epochs=1)
    train(config)
    sampled = np.linspace(0, 8999, 4096).astype(int)
    arrays["x_train"][np.setdiff1d(np.arange(9000), sampled)[7]] ^= 1
    save(tmp_path, arrays, "npy")
    train(dataclasses.replace(config, num_epochs=2))
    assert "were written again since the run began" in capsys.readouterr().err
    train(dataclasses.replace(config, num_epochs=3))
    assert "written again" not in capsys.readouterr().err
    arrays["x_train"][sampled[7]] ^= 1
    save(tmp_path, arrays, "npy")
    with pytest.raises(InputError, match="are not those that the run"):
        train(dataclasses.replace(config, num_epochs=4))


def test_a_large_mapped_set_in_fortran_order_is_not_copied(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = np.random.default_rng(0).random((20, 3, 4)), np.arange(20) % 2
    found = []
    for name, kept in (("c", x), ("fortran", np.asfortranarray(x))):
        (tmp_path / name).mkdir()
        path = save(tmp_path / name, {"x_train": kept, "y_train": y}, "npy")
        for limit in (1 << 30, 0):
            monkeypatch.setattr(examples, "_READ_WHOLE", limit)
            data = load(Config(dataset=path, test_fraction=0.2))
            taken = [part.take(np.arange(4).reshape(2, 2))[0] for part in data.parts]
            found.append([data.info(), data.fingerprint(), *map(np.ndarray.tobytes, taken)])
            assert [each.shape for each in taken] == [(2, 2, 12)] * 2
            assert all((time is None) == (limit > 0) for time in data.modified())
            assert np.shares_memory(data.train.images, data.test.images)  # type: ignore[attr-defined]
    assert found[:2] == found[2:]


def test_a_nan_in_a_mapped_test_set_is_found_before_training(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(InputError, match="x_test, y_test: example 7 has a value that is NaN"):
        train(small_config(save(tmp_path, broken(x_test=put(np.nan)), "npy")))
    assert "epoch" not in capsys.readouterr().out


def test_what_a_checkpoint_says_of_the_data(tmp_path: Path) -> None:
    assert load(Config()).info() == {
        "name": "digits", "classes": None, "columns": None, "shape": [8, 8], "dtype": "uint8", "largest": 16.0,
        "background": 0.0,
    }
    mapped = load(Config(dataset=save(tmp_path, broken(x_train=put(0.5)), "npy"))).info()
    assert (mapped["name"], mapped["dtype"], mapped["largest"]) == ("set", "float32", 255)


class Counted:
    """A map-style Dataset, which counts how often an item is read."""

    def __init__(self, x: np.ndarray, y: np.ndarray) -> None:
        self.x, self.targets, self.reads = x, y.tolist(), 0

    def __len__(self) -> int:
        return len(self.x)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        self.reads += 1
        return self.x[index], self.targets[index]


@pytest.mark.parametrize("kind", ["npz", "npy", "Dataset"])
@pytest.mark.parametrize(("low", "high", "background"), [(0, 1, 1.0), (-1, 1, 0.0), (0, 16, 1.0)])
def test_the_range_and_the_background_are_known_wherever_the_examples_lie(
    kind: str, low: float, high: float, background: float, tmp_path: Path
) -> None:
    pixels = np.full((200, 8, 8), background, np.float32)
    pixels[:, 2:6, 2:6] = 1 - background
    pixels[:, 3, 3] = 0.5
    x, y = low + pixels * (high - low), np.arange(200) % 2
    items = Counted(x, y)
    data = load(Config(), items, items) if kind == "Dataset" else load(
        Config(dataset=save(tmp_path, {"x": x, "y": y, "x_test": x, "y_test": y}, kind)))  # fmt: skip
    items.reads = 0
    info = data.info()
    assert (info["largest"], info["background"], info.get("smallest", 0)) == (high, background, low)
    assert (data.info(), items.reads) == (info, 100 if kind == "Dataset" else 0)  # read once


def test_pictures_of_different_backgrounds_have_none(tmp_path: Path) -> None:
    x = np.zeros((40, 8, 8), np.uint8)
    x[:, 2:6] = 255
    x[:3] = 255 - x[:3]
    y = np.arange(40) % 2
    assert load(Config(), (x, y), (x, y)).info()["background"] is None
    assert load(Config(), (x[2:], y[2:]), (x, y)).info()["background"] == 0


def test_datasets_that_number_their_classes_otherwise_are_refused() -> None:
    train_set, test_set = (Counted(np.zeros((4, 3)), np.arange(4) % 2) for _ in range(2))
    train_set.classes, test_set.classes = ["cat", "dog"], ["dog", "cat"]  # type: ignore[attr-defined]
    with pytest.raises(InputError, match="test_set has the classes dog, cat, but train_set cat, dog: give both the"):
        load(Config(), train_set, test_set)


def broken(**changes: Any) -> dict[str, np.ndarray]:
    arrays = make_arrays()
    for name, change in changes.items():
        arrays[name] = change(arrays[name])
    return arrays


def put(value: float, dtype: str = "float64") -> Any:
    """A change that makes one value of row 7 `value`."""

    def change(array: np.ndarray) -> np.ndarray:
        array = array.astype(dtype)
        array[7, ...] = value
        return array

    return change


BAD = {
    "labels are fractions": (broken(y_train=lambda y: y + 0.5), "x_train, y_train: label 0.5 of example 0 is no class"),
    "labels are NaN": (broken(y_train=put(np.nan)), "label nan of example 7 is no class"),
    "labels are soft": (broken(y_train=lambda y: np.eye(4)[y] * 0.9 + 0.025), "labels.argmax(axis=1)"),
    "several classes an example": (broken(y_train=lambda y: np.eye(4)[y] + np.eye(4)[0]), "labels.argmax(axis=1)"),
    "text only in the test set": (broken(y_test=lambda y: y.astype(str)), "is text, but the training set's are whole"),
    "negative test label": (broken(y_test=put(-1, "int64")), "label -1 is out of range"),
    "huge label": (broken(y_train=put(2**40, "int64")), "label 1099511627776 of 96 examples looks damaged"),
    "far label": (broken(y_train=put(10**6, "int64")), "label 1000000 of 96 examples looks damaged"),
    "test label beyond": (broken(y_test=put(9, "int64")), "label 9 is out of range for 4 classes"),
    "lengths differ": (broken(y_train=lambda y: y[:-1]), "has 96 examples but 95 labels"),
    "widths differ": (broken(x_test=lambda x: x[:, :-1]), "has 12 features but"),
    "empty": (broken(x_train=lambda x: x[:0], y_train=lambda y: y[:0]), "x_train, y_train is empty"),
    "empty test": (broken(x_test=lambda x: x[:0], y_test=lambda y: y[:0]), "x_test, y_test is empty"),
    "no features": (broken(x_train=lambda x: x[:, :0]), "features must be numbers"),
    "text": (broken(x_train=lambda x: x.astype(str)), "features must be numbers"),
    "complex": (broken(x_train=lambda x: x.astype(complex)), "features must be numbers"),
    "a scalar": (broken(x_train=lambda x: x[0, 0]), "features must be numbers"),
    "one class": (broken(y_train=lambda y: y * 0, y_test=lambda y: y * 0), "has a single class"),
}


@pytest.mark.parametrize("kind", ["npz", "npy"])
@pytest.mark.parametrize("case", BAD)
def test_arrays_that_cannot_be_trained_on(case: str, kind: str, tmp_path: Path) -> None:
    arrays, words = BAD[case]
    path = save(tmp_path, arrays, kind)
    with pytest.raises(InputError) as caught:
        load(Config(dataset=path))
    assert words in str(caught.value)
    assert path in str(caught.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300])
@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_values_that_are_not_finite(value: float, kind: str, tmp_path: Path) -> None:
    """In memory: at load. Mapped: when the example is read."""
    dataset = save(tmp_path, broken(x_train=put(value)), kind)
    with pytest.raises(InputError, match=r"x_train, y_train: example 7 has a value that is NaN or infinite"):
        load(Config(dataset=dataset)).train.take(np.arange(96).reshape(2, 48))
    if kind == "npy":
        load(Config(dataset=dataset)).train.take(np.arange(8, 96))  # the others are fine


def test_large_finite_values_pass_although_their_sum_overflows_float32() -> None:
    assert len(ArrayDataset(np.full((9, 4), 3e38, np.float32), np.zeros(9, int), "x")) == 9


@pytest.mark.parametrize("kind", ["npz", "npy"])
def test_a_missing_array_is_named(kind: str, tmp_path: Path) -> None:
    arrays = make_arrays()
    del arrays["y_test"]
    with pytest.raises(InputError, match=r"lacks y_test, it holds .*x_test.* must hold x_train"):
        load(Config(dataset=save(tmp_path, arrays, kind)))


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("compressed", [False, True])
def test_damaged_npz_files_end_in_one_line_or_in_numbers(seed: int, compressed: bool, tmp_path: Path) -> None:
    """Bytes changed anywhere, and truncation: never anything but an InputError (or an undamaged-looking set)."""
    path, rng = tmp_path / "set.npz", np.random.default_rng(seed)
    (np.savez_compressed if compressed else np.savez)(path, **make_arrays())
    whole, refused = path.read_bytes(), 0
    for _ in range(60):
        damaged = bytearray(whole)
        if rng.random() < 0.3:
            del damaged[rng.integers(len(whole)) :]
        else:
            for at in rng.integers(0, len(whole), 3):
                damaged[at] = rng.integers(256)
        path.write_bytes(bytes(damaged))
        message = None
        try:
            load(Config(dataset=str(path)))
        except InputError as error:
            message = str(error)
        if message is not None:
            refused += 1
            assert str(path) in message
            assert "\n" not in message
    assert refused > 30  # zip has a checksum over each array


@pytest.mark.parametrize("cut", [0, 5, 60, 200])
def test_truncated_npy_files(cut: int, tmp_path: Path) -> None:
    path = Path(save(tmp_path, make_arrays(), "npy"))
    file = path / "x_train.npy"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(InputError, match=r"x_train\.npy"):
        load(Config(dataset=str(path)))


class Items(torch.utils.data.Dataset[Any]):
    """A map-style Dataset of whatever it is given."""

    def __init__(self, items: list[Any]) -> None:
        self.items = items

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


GOOD = (np.ones((2, 2)), 1)


def test_map_style_datasets_of_arrays_tensors_and_numbers() -> None:
    items = [GOOD, (torch.ones(4), torch.tensor(0)), (np.ones(4, np.float64), np.int64(2)), (np.ones(4), np.array([1]))]
    data = load(Config(num_classes=3), Items(items), Items(items[:2]))
    images, labels = data.train.take(np.array([[0, 1], [2, 3]]))
    assert (images.shape, images.dtype, labels.dtype) == ((2, 2, 4), np.float32, np.int32)
    assert labels.tolist() == [[1, 0], [2, 1]]
    assert ItemDataset(Items([(np.ones(4, np.uint8), 0)]), "x", Classes(2)).take(np.arange(1))[0].dtype == np.uint8


@pytest.mark.parametrize(
    ("item", "words"),
    [
        ((np.ones(4), 3), "label 3 is out of range for 3 classes"),
        ((np.ones(4), -1), "label -1 is out of range"),
        ((np.ones(4), 1.5), "label 1.5 is no class"),
        ((np.ones(4), [0, 1, 1]), "must be one-hot rows"),
        ((np.ones(4), "cat"), "label 'cat' is text"),
        ({"picture": np.ones(4), "label": 0}, "a dict of picture, label: name them image and label"),
        ((np.ones(5), 0), r"must be 4 numbers, not float64 \[5\]"),
        ((np.array(["a"] * 4), 0), "must be 4 numbers"),
        ((np.full(4, np.nan), 0), "NaN or infinite"),
        ((np.full(4, 1e300), 0), "NaN or infinite"),
        (np.ones(4), "must be a pair"),
        (5, "must be a pair"),
    ],
    ids=str,
)
def test_items_are_checked_as_they_are_read(item: Any, words: str) -> None:
    dataset = ItemDataset(Items([GOOD, item]), "train_set", Classes(3))
    with pytest.raises(InputError, match=rf"train_set: example 1.*{words}"):
        dataset.take(np.array([0, 1]))


def test_given_datasets_go_together_and_need_a_class_count() -> None:
    with pytest.raises(InputError, match="train_set comes without a test set: give one, or --test_fraction"):
        load(Config(num_classes=2), Items([GOOD]))
    with pytest.raises(InputError, match="go with a train_set"):
        load(Config(), None, Items([GOOD]))
    with pytest.raises(InputError, match="--num_classes is needed for train_set"):
        load(Config(), Items([GOOD]), Items([GOOD]))
    with pytest.raises(InputError, match="test_set is empty"):
        load(Config(num_classes=2), Items([GOOD]), Items([]))
    given = load(Config(num_classes=2), Items([GOOD]), Items([GOOD]))
    assert isinstance(given, Data)
