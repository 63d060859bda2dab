"""Folders of class folders with pictures: found by torchvision, decoded once, in parallel."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch.utils.data
from PIL import Image
from tqdm.auto import tqdm

from distmlp import machine
from distmlp.config import Config
from distmlp.data.arrays import Part, Source, by_part
from distmlp.errors import InputError, one_line

_GRAY = ("1", "L", "LA", "I", "F", "I;16", "I;16B", "I;16L")


def source(config: Config, path: Path) -> Source:
    """The parts train, test and val of a folder, or all of it as one, to be divided."""
    roots = {"train": path} | by_part({inner.name: inner for inner in path.iterdir() if inner.is_dir()})
    folders: dict[str, ImageFolder] = {}
    for part, root in roots.items():
        folders[part] = ImageFolder(root, config, folders.get("train"))
    parts = {
        part: Part(folder.decoded(), np.array(folder.targets), str(roots[part])) if folder.fits
        else Part(folder, None, str(roots[part]))
        for part, folder in folders.items()
    }
    return Source(parts, folders["train"].classes)


class ImageFolder(torch.utils.data.Dataset[tuple[np.ndarray, str]]):
    """The pictures below a folder, uint8 [height, width] or [height, width, 3], and the names of their classes.

    `like` is of the training set, whose pictures' shape and kind the others must have.

    Raises:
      InputError: there are no class folders, or one is empty; a picture is broken or of another size.
    """

    def __init__(self, root: Path, config: Config, like: "ImageFolder | None" = None) -> None:
        import torchvision.datasets

        try:
            found = torchvision.datasets.ImageFolder(root)
        except (OSError, RuntimeError) as error:
            raise InputError(f"{root} is no folder of class folders with pictures ({one_line(error)})"
                             ) from None
        self.classes, self.paths = found.classes, [Path(path) for path, _ in found.samples]
        self.targets = [found.classes[number] for _, number in found.samples]
        self._size, self._mode, self._auto = config.image_size, config.image_mode, config.image_mode == "auto"
        self.shape: tuple[int, ...] = ()
        if like is not None:
            self._mode, self.shape = like._mode, like.shape
        elif self._auto:
            self._mode = "gray" if self._open(0).mode in _GRAY else "rgb"
        self.shape = self.shape or self[0][0].shape

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[np.ndarray, str]:
        image, path = self._open(index), self.paths[index]
        if self._auto and self._mode == "gray" and image.mode not in _GRAY:
            raise InputError(f"{path} is in colour, but the first picture is gray: give --image_mode=gray or rgb")
        if image.mode.startswith("I"):  # 16 bits a pixel, of which PIL would only keep what is below 256
            image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
        image = image.convert("L" if self._mode == "gray" else "RGB")
        if self._size:
            image = image.resize((self._size, self._size), Image.Resampling.BILINEAR)
        pixels = np.asarray(image)
        if self.shape and pixels.shape != self.shape:
            raise InputError(f"{path} has {image.height} x {image.width} pixels, but the first picture "
                             f"{self.shape[0]} x {self.shape[1]}: give --image_size, to which all are brought")
        return pixels, self.targets[index]

    def _open(self, index: int) -> Image.Image:
        try:
            with Image.open(self.paths[index]) as image:
                image.load()
                return image
        except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damage
            raise InputError(f"{self.paths[index]} is no picture, or a broken one ({one_line(error)}): "
                             "remove it, or bring back an intact copy") from None

    @property
    def fits(self) -> bool:
        """Whether all pictures together take at most a quarter of the host's memory."""
        return len(self) * int(np.prod(self.shape)) <= machine.memory() // 4

    def decoded(self) -> np.ndarray:
        """All pictures, uint8 [N, *shape]."""
        pixels = np.empty((len(self), *self.shape), np.uint8)

        def decode(index: int) -> None:
            pixels[index] = self[index][0]

        with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:  # Pillow decodes without Python's lock
            for _ in tqdm(pool.map(decode, range(len(self))), "decoding", len(self), leave=False, disable=None):
                pass
        return pixels
