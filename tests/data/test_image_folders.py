"""Folders of class folders with pictures."""

import dataclasses
import functools
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import asked_rows, small_config
from PIL import Image

from distmlp import Config, InputError, machine, train
from distmlp import load as load_run
from distmlp.data import examples, packing, pictures
from distmlp.data.datasets import Learned, load
from distmlp.results import run_data
from distmlp.results.pictures import for_model

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


def test_pictures_of_other_kinds_are_told(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    (root / "cat" / "notes.txt").write_text("of a cat")
    data = load(Config(dataset=str(root), test_fraction=0.25))
    assert data.remarks == []
    for number in range(2):
        Image.fromarray(PIXELS["cat0"]).save(root / "dog" / f"{number}.gif")
    said = f"{root}: 2 pictures of other kinds (.gif) are not read: save as PNG what is to be used"
    assert load(Config(dataset=str(root), test_fraction=0.25)).remarks == [said]
    assert packing.pack_sources([root], tmp_path / "made", Config(test_fraction=0.25))[1] == [said]


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


@pytest.mark.parametrize("memory", [1 << 40, 0])
def test_pictures_of_many_bits_whose_scales_were_guessed_differently_are_said(
    memory: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = folder(tmp_path / "set")
    pixels = np.full((6, 5), 200, np.uint16)
    for number, path in enumerate(sorted(root.rglob("*.png"))):
        pixels[0, 0] = 5000
        Image.fromarray(pixels * (number > 0)).save(path)
    monkeypatch.setattr(machine, "memory", lambda: memory)
    config = Config(dataset=str(root), test_fraction=0.25)
    assert load(config).remarks == []  # one scale, and a picture that is all black
    Image.fromarray(np.full((6, 5), 200, np.uint16)).save(root / "dog" / "2.png")
    [said] = load(config).remarks
    assert said.startswith(f"{root / 'dog' / '2.png'} was taken to have values up to 255, and {root}")
    assert " up to 65535, each by its largest value: " in said
    _, [packed] = packing.pack_sources([root], tmp_path / "made", config)
    assert said.split(" and ")[0] == packed.split(" and ")[0]  # the other is one of many


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


def save_all(root: Path, make: Any) -> Path:
    """Pictures made of the pixels: make(pixels) gives an image, and what to save it with."""
    for name, pixels in PIXELS.items():
        path = root / name[:3] / f"{name[3:]}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        image, options = make(Image.fromarray(pixels))
        image.save(path.with_suffix(options.pop("suffix", ".png")), **options)
    return root


def turned(image: Image.Image) -> Any:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    return image.transpose(Image.Transpose.ROTATE_90), {"exif": exif}


def transparent(image: Image.Image) -> Any:
    """Dark above, and the lower half is transparent, whatever colour it has there."""
    image = Image.fromarray(np.asarray(image) // 3)
    alpha = np.full((6, 5), 255, np.uint8)
    alpha[3:] = 0
    image.putalpha(Image.fromarray(alpha))
    return image, {}


def palette(image: Image.Image) -> Any:
    return image.quantize(64), {}


def palette_with_a_hole(image: Image.Image) -> Any:
    return image.quantize(64), {"transparency": 0}


def ink(image: Image.Image) -> Any:
    return image.convert("CMYK"), {"suffix": ".tif"}


def twelve_bits(image: Image.Image) -> Any:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16) * 15 + 7), {}


def dim(image: Image.Image) -> Any:
    """16 bits a pixel, of which no value needs more than 8."""
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.uint16)), {}


def fractions(image: Image.Image) -> Any:
    return Image.fromarray(np.asarray(image.convert("L")).astype(np.float32) / 255), {"suffix": ".tif"}


def gray_with_alpha(image: Image.Image) -> Any:
    return transparent(image)[0].convert("LA"), {}


KINDS: dict[str, tuple[Any, Any]] = {  # how a picture is saved, and what it has to be read as
    "turned": (turned, np.asarray),
    "transparent": (transparent, lambda image: np.concatenate([np.asarray(image)[:3] // 3, np.full((3, 5, 3), 255)])),
    "palette": (palette, lambda image: image.quantize(64).convert("RGB")),
    "palette with a hole": (palette_with_a_hole, None),
    "CMYK": (ink, lambda image: image.convert("CMYK").convert("RGB")),
    "12 bits": (twelve_bits, lambda image: (np.asarray(image.convert("L")).astype(int) * 15 + 7) // 16),
    "dim": (dim, lambda image: image.convert("L")),
    "fractions": (fractions, lambda image: image.convert("L")),
    "gray with alpha": (gray_with_alpha, None),
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [0, 4])
def test_a_picture_is_the_same_array_in_training_evaluation_and_prediction(
    kind: str, size: int, tmp_path: Path
) -> None:
    make, expected = KINDS[kind]
    root = save_all(tmp_path / "set", make)
    config = Config(dataset=str(root), test_fraction=0.25, image_size=size)
    data = load(config)
    seen = {part.take(np.array([i]))[0].tobytes() for part in data.parts for i in range(len(part))}
    files = sorted(path for path in root.rglob("*") if path.is_file())
    picture = functools.partial(for_model, data.num_features, data.info(), config)
    assert {picture(path).tobytes() for path in files} == seen
    assert len(seen) > 12  # not all alike
    learned = Learned(data.info(), picture)
    again = load(dataclasses.replace(config, test_fraction=0, image_size=0), learned=learned).train
    assert {again.take(np.array([i]))[0].tobytes() for i in range(len(again))} == seen
    if expected is not None and not size:
        assert {np.asarray(expected(Image.fromarray(pixels)), np.uint8).tobytes() for pixels in PIXELS.values()} == seen


def test_pictures_of_the_same_kind_but_another_size_are_evaluated_as_they_are_predicted(tmp_path: Path) -> None:
    config = Config(dataset=str(folder(tmp_path / "set")), test_fraction=0.25)
    data = load(config)
    other = save_all(tmp_path / "other", lambda image: (image.resize((15, 18)).convert("L"), {}))
    picture = functools.partial(for_model, 30, data.info(), config)
    row = load(Config(dataset=str(other)), learned=Learned(data.info(), picture)).train.take(np.array([0]))[0][0]
    np.testing.assert_array_equal(row, picture(other / "cat" / "0.png"))


def test_a_picture_above_pillows_limit_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = Config(dataset=str(folder(tmp_path / "set")), test_fraction=0.25)
    for limit in (29, 10):  # of which Pillow warns; and which it refuses
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(InputError, match=rf"0\.png has more than {limit} pixels, which Pillow does not read"):
            load(config)


def test_whether_pictures_fit_in_memory_is_no_part_of_the_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = Config(dataset=str(folder(tmp_path / "set")), test_fraction=0.25)
    for whole in (1 << 30, 0):  # bytes of which the fingerprint covers each value
        monkeypatch.setattr(examples, "_READ_WHOLE", whole)
        prints = []
        for memory in (1 << 40, 1):
            monkeypatch.setattr(machine, "memory", lambda memory=memory: memory)
            data = load(config)
            assert data.train.one_by_one == (memory == 1)
            prints.append((data.fingerprint(), data.modified()))
        assert prints[0] == prints[1]
        assert (prints[0][1] == [None, None]) == bool(whole)
    before = load(config).modified()
    os.utime(tmp_path / "set" / "cat" / "0.png", ns=(2**61, 2**61))
    assert load(config).modified() != before


def test_the_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_CONTROL_GROUPS", tmp_path / "groups")
    whole = machine.memory()
    assert whole > 1 << 28
    for text, limits in (
        ("0::/pod/box\n", {"pod/box/memory.max": "max", "pod/memory.max": "100000", "memory.max": "max"}),
        ("0::/\n", {"memory.max": "100000\n"}),
        ("0::/system/box:3.scope\n", {"system/box:3.scope/memory.max": "100000"}),
        ("5:cpu:/\n4:memory:/docker/abc\n0::/\n", {"memory/memory.limit_in_bytes": "100000"}),  # the host's path
        ("4:cpu,memory:/user/one\n", {"memory/user/one/memory.limit_in_bytes": "100000",
                                      "memory/memory.limit_in_bytes": str(2**63 - 4096)}),
    ):  # fmt: skip
        (tmp_path / "cgroup").write_text(text)
        for name, limit in limits.items():
            (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "groups" / name).write_text(limit)
        assert machine.memory() == 100_000
        shutil.rmtree(tmp_path / "groups")
        assert machine.memory() == whole


@pytest.mark.parametrize("names", [
    ("train", "test"), ("Training", "Testing"), ("TRAIN", "TEST"), ("Train", "validation")
])  # fmt: skip
def test_the_folders_of_the_parts_in_any_case(names: tuple[str, str], tmp_path: Path) -> None:
    for name in names:
        folder(tmp_path / "set" / name)
    (tmp_path / "set" / "notes").mkdir()  # without pictures
    data = load(Config(dataset=str(tmp_path / "set"), test_fraction=0 if "est" in names[1].lower() else 0.25))
    assert (data.classes, sum(map(len, data.parts))) == (["cat", "dog"], 32)


def test_hidden_names_are_left_out(tmp_path: Path) -> None:
    root = folder(tmp_path / ".cache" / "set")
    config = Config(dataset=str(root), test_fraction=0.25)
    fingerprint = load(config).fingerprint()
    (root / ".ipynb_checkpoints").mkdir()
    shutil.copytree(root / "cat", root / "cat" / ".ipynb_checkpoints")
    shutil.copy(root / "dog" / "0.png", root / "dog" / ".0.png")
    (root / ".DS_Store").write_text("")
    assert load(config).fingerprint() == fingerprint


@pytest.mark.parametrize("made", [["test"], ["test", "train"], ["validation"], ["Train"]])
def test_a_class_that_is_named_as_a_part_is_refused(made: list[str], tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    for name in made:
        shutil.copytree(root / "cat", root / name)
    words = rf"holds {', '.join(sorted(made))} beside cat, dog: if .* rename it"
    with pytest.raises(InputError, match=words) as caught:
        load(Config(dataset=str(root), test_fraction=0.25))
    assert "\n" not in str(caught.value)


def test_a_folder_is_one_part_only_once_and_needs_a_training_set(tmp_path: Path) -> None:
    for name in ("train", "Training", "test"):
        folder(tmp_path / "set" / name)
    with pytest.raises(InputError, match=r"Training and .*train could both be meant as the train set"):
        load(Config(dataset=str(tmp_path / "set")))
    shutil.rmtree(tmp_path / "set" / "train")
    (tmp_path / "set" / "Training").rename(tmp_path / "set" / "val")
    with pytest.raises(InputError, match="set holds test, val without train"):
        load(Config(dataset=str(tmp_path / "set")))


def test_tables_beside_pictures(tmp_path: Path) -> None:
    root = folder(tmp_path / "set")
    (root / "labels.csv").write_text("file,label\n0.png,cat\n")
    config = Config(dataset=str(root), test_fraction=0.25)
    assert load(config).classes == ["cat", "dog"]
    (root / "train.csv").write_text("a,label\n1,cat\n")
    with pytest.raises(InputError, match=r"holds train\.csv and folders of pictures, which could both be meant"):
        load(config)


def test_class_folders_are_evaluated_by_their_names(tmp_path: Path) -> None:
    """Also where these are numbers with zeros before them, or words that stand for missing values in tables."""
    for names in (("01", "002"), ("NA", "null")):
        root = folder(tmp_path / names[0])
        (root / "cat").rename(root / names[0])
        (root / "dog").rename(root / names[1])
        config = small_config(str(root), test_fraction=0.25, workdir=str(tmp_path / f"run{names[0]}"), batch_size=6)
        train(config)
        model = load_run(config.workdir)
        assert model.classes == tuple(sorted(names))
        whole: Any = run_data.split(model, "train", str(root))
        assert (len(whole), np.bincount(whole.labels).tolist()) == (16, [8, 8])
        result = model.evaluate_set(whole)
        files = sorted(path for path in root.rglob("*.png"))
        guesses = [model.predict(x).classes[0] for path in files for _, x in asked_rows(path, model)]
        assert result.correct == sum(guess == path.parent.name for guess, path in zip(guesses, files, strict=True))


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
