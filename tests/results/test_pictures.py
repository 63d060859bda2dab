"""Pictures and rows from files, as the network knows them."""

import base64
import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from conftest import asked_rows
from PIL import Image

from distmlp import Config, InputError, load, train
from distmlp.data import datasets
from distmlp.results import shown
from distmlp.results.models import Model
from distmlp.results.pictures import PictureShape, picture_shape, read_picture

MNIST = PictureShape(28, 28, 1, False, 255.0, True, 0.0)
COLOUR = PictureShape(8, 8, 3, False, 255.0, True, None)


@pytest.fixture
def digit() -> np.ndarray:
    """A bright 7 on black, [28, 28]."""
    picture = np.zeros((28, 28), np.uint8)
    picture[4:7, 6:21] = 254
    for row in range(7, 25):
        picture[row, 20 - (row - 4) // 2 : 23 - (row - 4) // 2] = 200 + row
    return picture


def save(picture: Image.Image, path: Path) -> Path:
    picture.save(path)
    return path


def close(actual: np.ndarray, picture: np.ndarray, tolerance: float) -> bool:
    """Whether a row is a picture, up to a mean difference."""
    return bool(np.abs(actual.astype(float).ravel() - picture.ravel()).mean() <= tolerance)


def test_a_picture_like_the_training_sets_goes_through_unchanged(digit: np.ndarray, tmp_path: Path) -> None:
    row = read_picture(save(Image.fromarray(digit), tmp_path / "a.png"), MNIST)
    assert row.dtype == np.uint8
    np.testing.assert_array_equal(row, digit.ravel())
    colours = np.random.default_rng(0).integers(0, 256, (8, 8, 3), np.uint8)
    path = save(Image.fromarray(colours), tmp_path / "b.png")
    np.testing.assert_array_equal(read_picture(path, COLOUR), colours.ravel())
    first = COLOUR._replace(channels_first=True)
    np.testing.assert_array_equal(read_picture(path, first), colours.transpose(2, 0, 1).ravel())


def test_photographed_conditions(digit: np.ndarray, tmp_path: Path) -> None:
    inverted = Image.fromarray(255 - digit)
    np.testing.assert_array_equal(read_picture(save(inverted, tmp_path / "i.png"), MNIST), digit.ravel())
    colour = save(inverted.convert("RGB"), tmp_path / "c.png")
    np.testing.assert_array_equal(read_picture(colour, MNIST), digit.ravel())
    palette = save(Image.fromarray(digit).quantize(256), tmp_path / "p.png")
    assert close(read_picture(palette, MNIST), digit, 1)
    large = save(inverted.resize((280, 280), Image.Resampling.NEAREST), tmp_path / "l.png")
    np.testing.assert_array_equal(read_picture(large, MNIST), digit.ravel())
    wide = Image.new("L", (56, 28), 255)
    wide.paste(inverted, (14, 0))
    half = np.asarray(Image.fromarray(digit).resize((14, 14), Image.Resampling.BOX))
    assert close(read_picture(save(wide, tmp_path / "w.png"), MNIST).reshape(28, 28)[7:21, 7:21], half, 1)
    deep = save(Image.fromarray(digit.astype(np.uint16) * 257), tmp_path / "d.png")
    np.testing.assert_array_equal(read_picture(deep, MNIST), digit.ravel())
    jpeg = save(inverted.convert("RGB"), tmp_path / "j.jpg")
    assert close(read_picture(jpeg, MNIST), digit, 6)
    turned = Image.fromarray(digit).transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # to be shown turned by 90 degrees clockwise
    turned.save(tmp_path / "t.png", exif=exif)
    np.testing.assert_array_equal(read_picture(tmp_path / "t.png", MNIST), digit.ravel())


@pytest.mark.parametrize("ink", [0, 255])
def test_transparent_paper(digit: np.ndarray, tmp_path: Path, ink: int) -> None:
    shape = (28, 28, 3)
    pixels = np.concatenate([np.full(shape, ink, np.uint8), digit[..., None]], axis=2)
    path = save(Image.fromarray(pixels, "RGBA"), tmp_path / "alpha.png")
    assert close(read_picture(path, MNIST), digit, 0.5)


def test_values_become_those_of_the_training_set(digit: np.ndarray, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).integers(0, 17, (8, 8), np.uint8)
    pixels[0], pixels[-1] = 0, 0
    path = save(Image.fromarray(np.rint(pixels * (255 / 16)).astype(np.uint8)), tmp_path / "small.png")
    shape = picture_shape(64, {}, Config())
    assert shape == PictureShape(8, 8, 1, False, 16.0, True, 0.0)
    np.testing.assert_array_equal(read_picture(path, shape), pixels.ravel())
    fractions = read_picture(save(Image.fromarray(digit), tmp_path / "b.png"), MNIST._replace(largest=1, integer=False))
    np.testing.assert_allclose(fractions, digit.ravel() / 255, atol=1e-7)
    assert fractions.dtype == np.float32


@pytest.mark.parametrize("mode", ["L", "RGBA", "I;16", "P"])
@pytest.mark.parametrize(("image_mode", "shape"), [("gray", [9, 9]), ("rgb", [9, 9, 3])])
def test_pictures_that_training_stretched_are_as_it_saw_them(
    tmp_path: Path, mode: str, image_mode: str, shape: list[int]
) -> None:
    from distmlp.data.pictures import ImageFolder

    pixels = np.random.default_rng(0).integers(0, 256, (20, 31), np.uint8)
    image = Image.fromarray(pixels.astype(np.uint16) * 250) if mode == "I;16" else Image.fromarray(pixels).convert(mode)
    if mode == "RGBA":
        image.putalpha(Image.fromarray(255 - pixels))
    (tmp_path / "all" / "cats").mkdir(parents=True)
    image.save(tmp_path / "all" / "cats" / "a.png")
    config = Config(dataset="folder", image_size=9, image_mode=image_mode)
    expected = ImageFolder(tmp_path / "all", config)[0][0]
    info = {"shape": shape, "dtype": "uint8", "largest": None, "background": 0.0}
    row = read_picture(tmp_path / "all" / "cats" / "a.png", picture_shape(int(np.prod(shape)), info, config))
    np.testing.assert_array_equal(row, expected.ravel())


def test_what_pictures_are_like() -> None:
    info = {"shape": [3, 10, 20], "dtype": "float32", "largest": 1.0, "background": 0.9}
    assert picture_shape(600, info, Config(dataset="mine.npz")) == PictureShape(10, 20, 3, True, 1.0, False, 0.9)
    assert picture_shape(3072, {}, Config(dataset="mine.npz")) == PictureShape(32, 32, 3, False, 255.0, True, None)
    with pytest.raises(InputError, match="trained on rows of 13 values, which are no pictures"):
        picture_shape(13, {"shape": [13]}, Config(dataset="wine.csv"))


@pytest.mark.parametrize("width", [64, 75])
def test_a_table_of_as_many_columns_as_a_square_has_pixels_is_no_picture(width: int) -> None:
    info = {"shape": [width], "columns": [f"c{n}" for n in range(width)]}
    with pytest.raises(InputError, match=f"trained on rows of {width} values, which are no pictures"):
        picture_shape(width, info, Config(dataset="t.csv"))


def features(path: Path, model: Model) -> np.ndarray:
    """What predict reads of a file, or what is wrong with it."""
    ((_, found),) = asked_rows(path, model)
    return found


def test_rows_of_npy_npz_and_csv_are_those_of_the_array(digits_run: Path, tmp_path: Path) -> None:
    model = load(digits_run)
    x = datasets.load(Config()).test.take(np.arange(7))[0]
    np.save(tmp_path / "a.npy", x.reshape(7, 8, 8))
    np.save(tmp_path / "one.npy", x[0])
    np.savez(tmp_path / "a.npz", whatever=x)
    np.savez(tmp_path / "two.npz", y=np.arange(7), x=x)
    np.savetxt(tmp_path / "a.csv", x, delimiter=",", fmt="%d")
    header = ",".join(f"pixel{n}" for n in range(64))
    np.savetxt(tmp_path / "b.csv", x, delimiter=",", fmt="%d", header=header, comments="")
    for name in ("a.npy", "a.npz", "two.npz", "a.csv", "b.csv"):
        np.testing.assert_array_equal(features(tmp_path / name, model), x, name)
    np.testing.assert_array_equal(features(tmp_path / "one.npy", model), x[:1])
    model.meta["data_info"] = {"columns": ["pixel1", "pixel0", *(f"pixel{n}" for n in range(2, 64))]}
    np.testing.assert_array_equal(features(tmp_path / "b.csv", model), x[:, [1, 0, *range(2, 64)]])


def test_pictures_beside_tables(digits_run: Path, wine_run: Path, digit: np.ndarray, tmp_path: Path) -> None:
    """A list of the pictures, or rows with a plot beside them: only a run that knows columns says which is meant."""
    folder, model = tmp_path / "folder", load(digits_run)
    folder.mkdir()
    save(Image.fromarray(digit), folder / "a.png")
    assert asked_rows(folder, model)[0][0] == str(folder / "a.png")
    np.savetxt(folder / "list.csv", np.ones((2, 64)), delimiter=",", fmt="%d")
    with pytest.raises(InputError, match=r"folder holds list\.csv and pictures, as a\.png, which could both"):
        asked_rows(folder, model)
    (folder / "a.png").write_bytes(b"")  # as one that the model cannot take
    assert features(folder, model).shape == (2, 64)
    save(Image.fromarray(digit), folder / "a.png")
    (folder / "list.csv").rename(folder / "test.csv")
    assert features(folder, model).shape == (2, 64)
    (folder / "test.csv").write_bytes((wine_run.parent / "wine.csv").read_bytes())
    (folder / "test.csv").rename(folder / "wine.csv")
    assert features(folder, load(wine_run)).shape == (178, 13)


@pytest.mark.parametrize(("name", "content", "message"), [
    ("absent.png", None, "absent.png does not exist"),
    ("torn.png", b"\x89PNG\r\n\x1a\n\0\0", "torn.png cannot be read as a picture"),
    ("text.png", b"hello", "text.png cannot be read as a picture"),
    ("empty.csv", b"", "empty.csv cannot be read as a table .it is empty"),
    ("words.csv", b"1,2\n1,x\n", "words.csv: row 2 of column 1 is 'x', not a number"),
    ("short.csv", b"1,2\n1\n", "short.csv cannot be read as a table: row 2 has 1 cells, but the first line 2"),
    ("width.csv", b"1,2\n1,2\n", "width.csv: rows have 2 values, but the run was trained on 64"),
    ("torn.npy", b"\x93NUMPY", "torn.npy cannot be read as NumPy arrays"),
    ("torn.npz", b"PK\x03\x04", "torn.npz cannot be read as NumPy arrays"),
])  # fmt: skip
def test_files_that_cannot_be_read(
    digits_run: Path, tmp_path: Path, name: str, content: bytes | None, message: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message) as caught:
        features(tmp_path / name, load(digits_run))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["npy", "Dataset"])
@pytest.mark.parametrize("span", [(0, 1), (-1, 1)])
def test_a_run_that_did_not_read_its_examples_into_memory_takes_pictures_as_others_do(
    kind: str, span: tuple[float, float], tmp_path: Path
) -> None:
    """Bright strokes on black, of values 0..1 or -1..1: predicted from files, and from files that are inverted."""
    rng, (low, high) = np.random.default_rng(0), span
    pixels, y = np.zeros((60, 8, 8)), np.arange(60) % 2
    pixels[y == 0, 2:6, 3] = pixels[y == 1, 3, 2:6] = 1
    pixels[:, 2:6, 2:6] = (pixels[:, 2:6, 2:6] + 0.2 * rng.random((60, 4, 4))).clip(0, 1)
    x = (low + pixels * (high - low)).astype(np.float32)
    config = Config(dataset=str(tmp_path / "set"), hidden_sizes=(16,), batch_size=20, num_epochs=10, optimizer="adam",
                    learning_rate=0.01, workdir="run")  # fmt: skip
    if kind == "Dataset":
        pairs = [(image[None], label) for image, label in zip(x, y.tolist(), strict=True)]
        train(dataclasses.replace(config, num_classes=2), pairs, pairs)
    else:
        (tmp_path / "set").mkdir()
        for name, array in {"x": x, "y": y, "x_test": x, "y_test": y}.items():
            np.save(tmp_path / "set" / f"{name}.npy", array)
        train(config)
    model = load("run")
    for paper in (0, 1):
        right = 0
        for n in range(20):
            shown = np.rint(255 * abs(paper - pixels[n])).astype(np.uint8)
            row = features(save(Image.fromarray(shown), tmp_path / f"{paper}{n}.png"), model)
            np.testing.assert_allclose(row[0], x[n].ravel(), atol=(high - low) / 255)
            right += model.predict(row).classes[0] == y[n]
        assert right == 20


@pytest.mark.parametrize("span", [(0, 1), (-1, 1)])
def test_the_report_shows_mistakes_in_their_own_range(span: tuple[float, float]) -> None:
    low, high = span
    info = {"shape": [2, 2], "dtype": "float32", "largest": high, "background": None, "smallest": low}
    values = np.array([low, high, (low + high) / 2, low], np.float32)
    address = shown._example_picture(picture_shape(4, info, Config(dataset="mine.npz")), values)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(address.partition(",")[2]))).convert("L"))
    assert picture.ravel().tolist() in ([0, 255, 128, 0], [0, 255, 127, 0])
