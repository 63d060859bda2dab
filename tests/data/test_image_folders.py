"""Folders of class folders with pictures."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import small_config
from PIL import Image

from distmlp import Config, InputError, train
from distmlp.data import pictures
from distmlp.data.datasets import load

RNG = np.random.default_rng(0)
PIXELS = {f"{name}{i}": RNG.integers(0, 256, (6, 5, 3), dtype=np.uint8) for name in ("cat", "dog") for i in range(8)}


def folder(root: Path, mode: str = "L", suffix: str = "png") -> Path:
    """Two classes of eight pictures of 6 x 5 pixels."""
    for name, pixels in PIXELS.items():
        path = root / name[:3] / f"{name[3:]}.{suffix}"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).convert(mode).save(path)
    return root


@pytest.mark.parametrize(("mode", "shape"), [("L", [6, 5]), ("RGB", [6, 5, 3]), ("RGBA", [6, 5, 3]), ("P", [6, 5, 3])])
@pytest.mark.parametrize("fits", [True, False])
def test_pictures_are_read_as_they_are(
    mode: str, shape: list[int], fits: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Decoded once, or one by one where they do not fit in memory: the same numbers."""
    monkeypatch.setattr(pictures.ImageFolder, "fits", fits)
    root = folder(tmp_path / "set", mode)
    data = load(Config(dataset=str(root), test_fraction=0.25))
    assert (data.classes, data.info()["shape"], data.num_features) == (["cat", "dog"], shape, int(np.prod(shape)))
    assert (len(data.train), len(data.test), data.train.one_by_one) == (12, 4, not fits)
    images, labels = data.test.take(np.arange(4))
    assert (images.dtype, sorted(labels.tolist())) == (np.uint8, [0, 0, 1, 1])
    files = {np.asarray(Image.open(path).convert("L" if mode == "L" else "RGB")).tobytes(): path.parent.name
             for path in root.rglob("*.png")}  # fmt: skip
    assert [files[image.tobytes()] for image in images] == [["cat", "dog"][label] for label in labels]


def test_parts_in_folders_of_their_own(tmp_path: Path) -> None:
    for part in ("train", "test", "val"):
        folder(tmp_path / "set" / part)
    (tmp_path / "set" / "test" / "dog").rename(tmp_path / "set" / "test" / "dot")
    with pytest.raises(InputError, match=r"test: the training set does not have the label dot of example 8"):
        load(Config(dataset=str(tmp_path / "set")))
    (tmp_path / "set" / "test" / "dot").rename(tmp_path / "set" / "test" / "dog")
    data = load(Config(dataset=str(tmp_path / "set")))
    assert [len(part) for part in data.parts] == [16, 16, 16]
    assert data.validation is not None


def test_size_and_mode(tmp_path: Path) -> None:
    root = folder(tmp_path / "set", "RGB")
    data = load(Config(dataset=str(root), test_fraction=0.25, image_size=3, image_mode="gray"))
    assert (data.info()["shape"], data.num_features) == ([3, 3], 9)


def test_sixteen_bits_a_pixel_become_eight(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    for path in root.rglob("*.png"):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.uint16) * 256 + 7).save(path)
    wide = load(Config(dataset=str(root), test_fraction=0.25))
    assert wide.fingerprint() == load(Config(dataset=str(folder(tmp_path / "plain")), test_fraction=0.25)).fingerprint()


def spoil(path: Path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:60])
    elif how == "text":
        path.write_text("<html>not found</html>")
    elif how == "size":
        Image.new("L", (9, 9)).save(path)
    else:
        Image.new("RGB", (5, 6)).save(path)


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("truncated", "is no picture, or a broken one"), ("text", "is no picture, or a broken one"),
        ("size", "has 9 x 9 pixels, but the first picture 6 x 5: give --image_size"),
        ("colour", "is in colour, but the first picture is gray: give --image_mode"),
    ],
)  # fmt: skip
def test_a_picture_that_cannot_be_used_is_named(how: str, words: str, tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    spoil(root / "dog" / "5.png", how)
    with pytest.raises(InputError, match=words) as caught:
        load(Config(dataset=str(root), test_fraction=0.25))
    assert str(root / "dog" / "5.png") in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inside", [["cat"], ["cat", "dog"], []])
def test_folders_without_pictures(inside: list[str], tmp_path: Path) -> None:
    for name in inside:
        (tmp_path / "set" / name).mkdir(parents=True)
    (tmp_path / "set").mkdir(exist_ok=True)
    with pytest.raises(InputError, match=r"set (is no folder of class folders|lacks x_train)"):
        load(Config(dataset=str(tmp_path / "set")))


def test_training_on_pictures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    changes: dict[str, Any] = {"test_fraction": 0.25, "batch_size": 6, "input_scaling": "unit", "num_epochs": 1}
    train(small_config(str(folder(tmp_path / "pets", suffix="jpg")), **changes))
    text = capsys.readouterr().out
    assert "pets: 12 training and 4 test" in text
    assert "2: cat, dog" in text
