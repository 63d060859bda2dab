"""Picture files as arrays, for training and predictions; class folders with them; and pictures in columns of tables.

What is done to each picture, in this order: the camera's rotation (EXIF) is undone; values of more than 8 bits are
brought to 8; a palette, CMYK and all other kinds of colour become red, green and blue; transparent parts become white,
or black where what can be seen is bright. A folder's are then made gray or coloured, and brought to --image_size.
"""

import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from distmlp import machine
from distmlp.config import Config
from distmlp.data import columnar, typed
from distmlp.data.arrays import Part, Source, by_part, visible, walk
from distmlp.data.columnar import Raw
from distmlp.data.spread import Spread
from distmlp.data.streams import Labels
from distmlp.data.typed import Choice, Rules
from distmlp.errors import InputError, counted, listed, one_line

SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
Picture = Callable[[Path], np.ndarray]  # makes a row of a file
AT_ONCE = 256  # pictures that are decoded at a time, where not all are held
_DEPTHS = (8, 12, 16, 24, 32)  # bits of a value
_BRIGHTEST = "brightest"
_LOOKED_AT = 100  # pictures, where not all are held


def read(path: Path | IO[bytes], name: str = "") -> Image.Image:
    """The picture in a file, 8 bits a value, gray (L) or coloured (RGB); see the module for what is done. `name` is
    that of an open file, for messages.

    Raises:
      InputError: it cannot be read.
    """
    name = name or str(path)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            image.load()
            ImageOps.exif_transpose(image, in_place=True)
            return _opaque(_eight_bits(image))
    except (Image.DecompressionBombWarning, Image.DecompressionBombError):
        raise InputError(f"{name} has more than {Image.MAX_IMAGE_PIXELS:,} pixels, which Pillow does not read: make it "
                         "smaller, or remove it") from None
    except Exception as error:  # damage surfaces as any of a dozen types
        reason = getattr(error, "strerror", None) or one_line(error).split(":")[0]
        raise InputError(f"{name} cannot be read as a picture, it is no picture, or a broken one ({reason}): "
                         "remove it, or bring back an intact copy") from None


def as_training(image: Image.Image, gray: bool, size: int) -> np.ndarray:
    """A picture of `read` as training takes it, uint8 [height, width] or [height, width, 3]; `size` is --image_size."""
    image = image.convert("L" if gray else "RGB")
    if size:
        image = image.resize((size, size), Image.Resampling.BILINEAR)
    return np.asarray(image)


def _eight_bits(image: Image.Image) -> Image.Image:
    """Whole numbers of more bits by the upper 8 of 8, 12, 16, 24 or 32 bits, whichever the file's largest value needs;
    fractions by those too, or if none is above 1 by their share of it. What was taken for the brightest value that can
    be is the `info` _BRIGHTEST of what comes out, 0 if it is all black."""
    if not image.mode.startswith(("I", "F")):
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64)).clip(0)
    largest = values.max(initial=0)
    if image.mode == "F" and largest <= 1:
        values, brightest = np.rint(values * 255), 1
    else:
        bits = next(bits for bits in _DEPTHS if largest < 2**bits or bits == _DEPTHS[-1])
        values, brightest = values / 2 ** (bits - 8), 2**bits - 1
    made = Image.fromarray(values.clip(0, 255).astype(np.uint8))
    made.info[_BRIGHTEST] = brightest if largest else 0
    return made


def _opaque(image: Image.Image) -> Image.Image:
    """Gray or coloured, with white or black instead of what is transparent."""
    gray = image.mode in {"1", "L", "LA", "La"}
    if image.has_transparency_data:
        image = image.convert("RGBA")
        shown, alpha = np.asarray(image.convert("RGB").convert("L"), np.float64), np.asarray(image)[..., 3]
        bright = alpha.any() and np.average(shown, weights=alpha) > 127.5
        image = Image.alpha_composite(Image.new("RGBA", image.size, "black" if bright else "white"), image)
    if image.mode not in {"L", "RGB"}:
        image = image.convert("L" if image.mode == "1" else "RGB")
    return image.convert("L") if gray and image.mode != "L" else image


def holds_pictures(folder: Path) -> bool:
    """Whether there are pictures in a folder, or in those below it."""
    return any(True for _ in files(folder))


def files(folder: Path) -> Iterator[Path]:
    """The pictures in a folder and in those below it. Hidden ones, and those in hidden folders, are left out."""
    return filter(_is_picture, walk(folder))


def _is_picture(path: Path) -> bool:
    return path.name.lower().endswith(SUFFIXES)


def source(config: Config, path: Path, picture: Picture | None = None) -> Source:
    """The parts train, test and val of a folder, or all of it as one, to be divided; for a model as it takes a
    `picture`."""
    parts = roots(path)
    folders: dict[str, ImageFolder] = {}
    for part, root in parts.items():
        folders[part] = ImageFolder(root, config, folders.get("train"), picture)
    found = {
        part: Part(folder.decoded() if folder.fits else folder, np.array(folder.targets, object), str(folder.root),
                   folder.paths)
        for part, folder in folders.items()
    }  # fmt: skip
    return Source(found, pictures=True, remarks=folders["train"].remarks())


def roots(path: Path) -> dict[str, Path]:
    """The folders of class folders, by part; an InputError where a part's name can be a class."""
    inner = visible(path)
    parts = by_part(inner)
    if not parts:
        return {"train": path}
    others = [folder.name for folder in inner if folder not in parts.values() and holds_pictures(folder)]
    if others or "train" not in parts:
        names = listed([folder.name for folder in parts.values()])
        beside = f"beside {listed(others)}" if others else "without train"
        raise InputError(f"{path} holds {names} {beside}: if {names} is a class, rename it, as in {names}_; if not, "
                         "move the training set's class folders into a folder train")
    return parts


class Sizing:
    """Brings pictures to one kind and size. The first one decides, where --image_mode and --image_size do not."""

    def __init__(self, config: Config, like: "Sizing | None" = None) -> None:
        """`like`: of the training set, whose pictures' kind and shape these have to have."""
        self._size, self._auto = config.image_size, config.image_mode == "auto"
        self._gray: bool = like._gray if like else config.image_mode == "gray"
        self.shape: tuple[int, ...] = like.shape if like else ()
        self.brightest: dict[int, str] = like.brightest if like else {}  # what was guessed so, and a picture of each

    @property
    def remarks(self) -> list[str]:
        """What the user should know of the pictures that have come along."""
        guessed = sorted(item for item in self.brightest.items() if item[0])
        if len(guessed) < 2:
            return []
        (least, dark), *_, (most, bright) = guessed
        return [f"{dark} was taken to have values up to {least}, and {bright} up to {most}, each by its largest value: "
                "equal values in them become unequal; save all with 8 bits, by one scale"]

    def begin(self, first: Image.Image) -> None:
        """Looks at the first picture, where no training set has decided."""
        if not self.shape:
            self._gray = first.mode == "L" if self._auto else self._gray
            self.shape = as_training(first, self._gray, self._size).shape

    def array(self, image: Image.Image, name: str) -> np.ndarray:
        """A picture, of this name, uint8 [height, width] or [height, width, 3]."""
        if (brightest := image.info.get(_BRIGHTEST)) is not None:
            self.brightest.setdefault(brightest, name)
        if self._auto and self._gray and image.mode != "L":
            raise InputError(f"{name} is in colour, but the first picture is gray: give --image_mode=gray or rgb")
        pixels = as_training(image, self._gray, self._size)
        if pixels.shape != self.shape:
            raise InputError(f"{name} has {image.height} x {image.width} pixels, but the first picture "
                             f"{self.shape[0]} x {self.shape[1]}: give --image_size, to which all are brought")
        return pixels


class ImageFolder:
    """The pictures below a folder, uint8 [height, width] or [height, width, 3], and the names of their classes.

    `like` is of the training set, whose pictures' shape and kind the others must have; else they are an InputError.
    With `picture` they are the rows that this makes of the files.
    """

    def __init__(
        self, root: Path, config: Config, like: "ImageFolder | None" = None, picture: Picture | None = None
    ) -> None:
        self.root, self._picture = root, picture
        self.paths: list[Path] = []
        self.targets: list[str] = []
        self._others: Counter[str] = Counter()  # files of other kinds, by suffix
        for folder in visible(root):
            every = sorted(walk(folder), key=lambda path: (str(path.parent), path.name))  # as torchvision has them
            found = [*filter(_is_picture, every)]
            self._others.update(path.suffix.lower() for path in every if not _is_picture(path))
            if not found:
                raise InputError(f"{root} is no folder of class folders with pictures: {folder.name} holds none "
                                 f"({', '.join(SUFFIXES)}); remove it")
            self.paths += found
            self.targets += [os.fsencode(folder.name).decode(errors="surrogateescape")] * len(found)  # in any locale
        if not self.paths:
            raise InputError(f"{root} is no folder of class folders with pictures: it holds no folders")
        self._sizing: Sizing = Sizing(config, like._sizing if like else None)
        if picture is None:
            self._sizing.begin(read(self.paths[0]))
        self.shape: tuple[int, ...] = like.shape if like else self[0][0].shape if picture else self._sizing.shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        path = self.paths[index]
        if self._picture is not None:
            return self._picture(path), self.targets[index]
        return self._sizing.array(read(path), str(path)), self.targets[index]

    @property
    def fits(self) -> bool:
        """Whether all pictures together take at most a quarter of the host's memory."""
        return len(self) * int(np.prod(self.shape)) <= machine.memory() // 4

    def remarks(self) -> list[str]:
        """What the user should know of the pictures that were read; if there may be anything, some are read here."""
        if not self.fits and self._picture is None:
            for index in np.linspace(0, len(self) - 1, min(len(self), _LOOKED_AT)).astype(int):
                if index and not self._sizing.brightest:
                    break
                _ = self[int(index)]
        return [*self._sizing.remarks, *self.left_out]

    @property
    def left_out(self) -> list[str]:
        """A remark on pictures of kinds that are not read, if there are any."""
        if not self._others:
            return []
        known = Image.registered_extensions().keys()
        kinds = sorted(suffix for suffix in self._others if suffix in known)
        count = sum(self._others[suffix] for suffix in kinds)
        return [f"{self.root}: {counted(count, 'picture')} of other kinds ({', '.join(kinds)}) "
                f"{'is' if count == 1 else 'are'} not read: save as PNG what is to be used"] if kinds else []

    def decoded(self) -> np.ndarray:
        """All pictures, [N, *shape]."""
        pixels = np.empty((len(self), *self.shape), self[0][0].dtype)

        def decode(index: int) -> None:
            pixels[index] = self[index][0]

        with ThreadPoolExecutor(machine.cores()) as pool:  # Pillow decodes without Python's lock
            for _ in tqdm(pool.map(decode, range(len(self))), "decoding", len(self), leave=False, disable=None):
                pass
        return pixels


class Pictures:
    """The pictures of class folders."""

    classes, pictures = None, True

    def __init__(self, folder: ImageFolder) -> None:
        self._folder, self.files, self.name = folder, folder.paths, str(folder.root)

    @property
    def remarks(self) -> list[str]:
        return [*self._folder._sizing.remarks, *self._folder.left_out]

    def labels(self) -> Iterator[Labels]:
        yield Labels(np.array(self._folder.targets, object))

    def features(self, start: int = 0, spread: Spread | None = None) -> Iterator[np.ndarray]:
        count = len(self._folder)
        with ThreadPoolExecutor(machine.cores()) as pool:  # Pillow decodes without Python's lock
            for begin in range(start, count, AT_ONCE):
                rows = range(begin, min(begin + AT_ONCE, count))
                yield np.stack([pixels for pixels, _ in pool.map(self._folder.__getitem__, rows)])


class StoredPictures:
    """Pictures that lie in a column of a table, as those of a Hugging Face data set: their files' bytes, or paths."""

    pictures = True

    def __init__(
        self, files: Sequence[Path], column: str, label: str, classes: Sequence[str] | None, config: Config,
        like: "StoredPictures | None" = None,
    ) -> None:
        self._raws: list[Callable[[], Raw]] = [partial(columnar.file, file, lambda cells: True) for file in files]
        self.files, self._column, self._label = files, column, label
        self.classes, self.name = classes, str(files[0].parent)
        self._sizing: Sizing = Sizing(config, like._sizing if like else None)
        if like is None:
            cells = (cell for opened in self._raws for [found] in opened().read([column]) for cell in found.slice(0, 1))
            if (first := next(cells, None)) is not None:
                self._sizing.begin(self._picture(first.as_py(), 0)[0])

    @property
    def remarks(self) -> list[str]:
        return self._sizing.remarks

    def labels(self) -> Iterator[Labels]:
        for opened in self._raws:
            raw = opened()
            for block in typed.stream(raw, Choice([], self._label), Rules(frozenset(), False, False)):
                if block.labels is not None:
                    yield Labels(block.labels)

    def features(self, start: int = 0, spread: Spread | None = None) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(machine.cores()) as pool:
            row = 0
            for opened in self._raws:
                for [column] in opened().read([self._column]):
                    for begin in range(0, len(column), AT_ONCE):
                        cells = column.slice(begin, AT_ONCE)
                        begin, row = row, row + len(cells)
                        if row <= start:
                            continue
                        cells = cells.slice(max(0, start - begin)).to_pylist()
                        first = max(start, begin)
                        yield np.stack([*pool.map(lambda place, cell: self._sizing.array(*self._picture(cell, place)),
                                                  range(first, row), cells)])  # fmt: skip

    def _picture(self, cell: Any, row: int) -> tuple[Any, str]:
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        name = f"{self.name}: the picture of row {row}"
        if content is None and isinstance(cell, dict) and cell.get("path"):
            return read(Path(cell["path"])), name
        return read(BytesIO(content or b""), name), name
