"""Pictures as the network knows them: the training set's size, channels, polarity and range of values.

A file is read as for training (data/pictures.py). Then, in this order: colours become grey where the training set is
grey (ITU-R 601), and grey becomes colour where it is not; a picture with its background at the other end of the scale
than the training set's is inverted (grey ones only, the background is the median of the outermost pixels); another size
is padded with the background to the right proportions and resized, with antialiasing; values 0..255 are stretched to
the training set's range, unless it was of picture files, too. A picture that already is as the training set's pictures
are goes through unchanged.

Where training brought a folder's pictures to --image_size, only that is done, and as it was then.
"""

import math
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image, ImageOps

from distmlp.config import Config
from distmlp.data import pictures
from distmlp.errors import InputError

_DARK = {"digits", "mnist", "fashion_mnist"}  # known data sets, whose older runs do not say it themselves
_LARGEST = {"digits": 16.0}


class PictureShape(NamedTuple):
    """What the training set's pictures are like."""

    height: int
    width: int
    channels: int  # 1 or 3
    channels_first: bool
    largest: float  # the value of full brightness
    integer: bool
    background: float | None  # 0 (black) .. 1 (white); None: not known, or not the same everywhere
    stretched: bool = False  # to this size, by training, whatever their proportions
    smallest: float = 0.0  # the value of black


def picture_shape(num_features: int, data_info: dict[str, Any], config: Config) -> PictureShape:
    """From what the run knows of its data; where it does not, pictures are taken to be square.

    Raises:
      InputError: rows of so many values are no pictures, or they are of a table, whose columns have names.
    """
    shape = [size for size in data_info.get("shape") or [] if size != 1]
    if len(shape) not in (2, 3) or math.prod(shape) != num_features:
        grey, colour = math.isqrt(num_features), math.isqrt(num_features // 3)
        named = bool(data_info.get("columns"))
        if grey**2 == num_features and not named:
            shape = [grey, grey]
        elif 3 * colour**2 == num_features and not named:
            shape = [colour, colour, 3]
        else:
            raise InputError(f"the run was trained on rows of {num_features} values, which are no pictures: "
                             "give rows in a .npy, .npz or .csv file")
    first = len(shape) == 3 and shape[0] == 3 and shape[2] != 3
    height, width = shape[1:] if first else shape[:2]
    channels = 1 if len(shape) == 2 else shape[0 if first else 2]
    if channels not in {1, 3}:
        raise InputError(f"the run was trained on pictures with {channels} channels: give rows in a .npy file")
    background = data_info.get("background", 0.0 if config.dataset in _DARK else None)
    largest = float(data_info.get("largest") or _LARGEST.get(config.dataset, 255.0))
    smallest = float(data_info.get("smallest", 0.0))
    if data_info.get("pictures"):  # files, whose values are 0..255 wherever the largest of them is
        largest = 255.0
    integer = data_info.get("dtype", "uint8") == "uint8"
    return PictureShape(height, width, channels, first, largest, integer, background, config.image_size > 0, smallest)


def for_model(num_features: int, data_info: dict[str, Any], config: Config, path: Path) -> np.ndarray:
    """A picture file as a row for the model of which these are known.

    Raises:
      InputError: it cannot be read, or the model was not trained on pictures.
    """
    return read_picture(path, picture_shape(num_features, data_info, config))


def read_picture(path: Path, shape: PictureShape) -> np.ndarray:
    """A picture file as a row of the training set, uint8 or float32 [features]; see the module for what is done.

    Raises:
      InputError: it cannot be read.
    """
    size = shape.height if shape.stretched else 0
    picture = Image.fromarray(pictures.as_training(pictures.read(path), shape.channels == 1, size))
    background = _background(picture)
    opposite = shape.channels == 1 and not shape.stretched
    if opposite and _differ(background[0] / 255, shape.background):
        picture, background = ImageOps.invert(picture), tuple(255 - value for value in background)
    if picture.size != (shape.width, shape.height):
        picture = _resized(picture, shape, background)
    values = np.asarray(picture, np.float32) * np.float32((shape.largest - shape.smallest) / 255)
    values += np.float32(shape.smallest)
    if shape.integer:
        values = np.rint(values).astype(np.uint8)
    if shape.channels_first:
        values = values.transpose(2, 0, 1)
    return np.ascontiguousarray(values).ravel()


def _background(picture: Image.Image) -> tuple[int, ...]:
    """Median of the outermost pixels, by channel."""
    values = np.atleast_3d(np.asarray(picture))
    edge = np.concatenate([values[0], values[-1], values[1:-1, 0], values[1:-1, -1]])
    return tuple(int(value) for value in np.median(edge, axis=0))


def _differ(background: float, wanted: float | None) -> bool:
    """Whether one is dark and the other bright; a training set whose background is neither asks for nothing."""
    return wanted is not None and abs(wanted - 0.5) > 0.25 and (background > 0.5) != (wanted > 0.5)


def _resized(picture: Image.Image, shape: PictureShape, background: tuple[int, ...]) -> Image.Image:
    scale = max(picture.width / shape.width, picture.height / shape.height)
    padded = (max(picture.width, round(shape.width * scale)), max(picture.height, round(shape.height * scale)))
    canvas = Image.new(picture.mode, padded, background[0] if len(background) == 1 else background)
    canvas.paste(picture, ((padded[0] - picture.width) // 2, (padded[1] - picture.height) // 2))
    return canvas.resize((shape.width, shape.height), Image.Resampling.BOX if scale > 1 else Image.Resampling.BICUBIC)
