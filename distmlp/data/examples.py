"""Sets of examples, checked once so that nothing downstream has to.

Features are [N, features], uint8 where the source is (a quarter of the bytes on the way to the device) and float32
otherwise; labels are int32 [N].
"""

import copy
import hashlib
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from distmlp.data import given
from distmlp.data.labels import Classes
from distmlp.data.scaling import BLOCK
from distmlp.data.streams import NOT_FINITE
from distmlp.data.typed import surely_finite
from distmlp.errors import InputError, one_line

_READ_WHOLE = 1 << 30  # bytes of a memory-mapped set that are read and checked before training


class Readable(Protocol):
    """Examples that can be read, wherever they lie: all that an evaluation needs."""

    name: str  # for messages
    num_features: int
    dtype: "np.dtype[Any]"  # of the features
    one_by_one: bool  # each example is read by itself, so that processes which read ahead help

    def __len__(self) -> int: ...

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The examples at these positions, an integer array of any shape: features [..., features] and labels [...].

        An InputError says that one which is read only now cannot be trained on.
        """

    def ask(self, indices: np.ndarray) -> None:
        """These examples will be taken soon: where they lie on a disk, reading them begins. Waits for nothing."""

    def fingerprint(self) -> str:
        """A digest that is the same for the same examples, on any host."""


class Examples(Readable, Protocol):
    """A set of examples as all the rest of the package sees it."""

    shape: tuple[int, ...]  # of one example's features, before they were made one row

    @property
    def labels(self) -> np.ndarray:
        """int32 [N]; all 0 where only reading every example would tell."""

    @property
    def resident(self) -> tuple[np.ndarray, np.ndarray] | None:
        """The features and labels of all examples, where these lie in memory."""

    def part(self, rows: np.ndarray, name: str) -> "Examples":
        """The examples at these positions, int64, as a set of their own."""

    def modified(self) -> int | None:
        """When the features' file was last written, in ns; None where the fingerprint covers them all. It is no part of
        the fingerprint: a copy on another host has another time, and is the same set.
        """


class ArrayDataset:
    """Numbers [N, ...] with class numbers [N]. Those in memory are checked here, mapped ones as they are read.

    `files` are the pictures that the numbers were read from.
    """

    one_by_one = False

    def __init__(self, images: np.ndarray, labels: np.ndarray, name: str, files: list[Path] | None = None) -> None:
        self.name, self._mapped, self.files = name, isinstance(images, np.memmap), files
        self._covered = not self._mapped or images.nbytes <= _READ_WHOLE  # whether the fingerprint covers each value
        self._rows: np.ndarray | None = None  # the positions in a memory-mapped array; None: all of them
        if images.ndim and len(images) == 0:
            raise InputError(f"{name} is empty: give at least one example")
        self.shape, width = images.shape[1:], math.prod(images.shape[1:])
        if images.ndim and not (self._mapped and images.ndim > 2 and not images.flags.c_contiguous):  # a copy in memory
            images = images.reshape(len(images), -1)
        if images.ndim < 2 or width == 0 or images.dtype.kind not in "uifb":
            raise InputError(f"{name}: features must be numbers of shape [examples, ...], "
                             f"not {images.dtype} {list(images.shape)}")
        check_lengths(len(images), len(labels), name)
        self.labels = np.ascontiguousarray(labels, dtype=np.int32)
        self.images = images if self._mapped else self._finite(_features(images))
        self.num_features, self.dtype = width, _features(images[:1]).dtype

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def resident(self) -> tuple[np.ndarray, np.ndarray] | None:
        return None if self._mapped else (self.images, self.labels)

    def ask(self, indices: np.ndarray) -> None:
        pass

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = indices if self._rows is None else self._rows[indices]
        images = self.images[rows]
        if self._mapped:
            images = self._finite(_features(images.reshape(*rows.shape, self.num_features)), rows)
        return images, self.labels[indices]

    def _finite(self, images: np.ndarray, rows: np.ndarray | None = None) -> np.ndarray:
        """These images, which are those at `rows` or all, if their values are finite; else an InputError."""
        if images.dtype == np.float32 and not surely_finite(images):
            bad = np.argwhere(~np.isfinite(images).all(axis=-1))
            if len(bad):
                example = bad[0][0] if rows is None else rows[tuple(bad[0])]
                raise InputError(f"{self.name}: example {example} {NOT_FINITE}")
        return images

    def part(self, rows: np.ndarray, name: str) -> "ArrayDataset":
        part = copy.copy(self)  # of a memory-mapped array nothing is copied
        part.name, part.labels, part.files = name, self.labels[rows], _chosen(self.files, rows)
        if self._mapped:
            part._rows = rows if self._rows is None else self._rows[rows]
        else:
            part.images = self.images[rows]
        return part

    def fingerprint(self) -> str:
        """Digest of shape, dtype and labels, and of the features: of a memory-mapped set of more than 1 GiB, of 4096
        spaced rows only (`modified` tells of its others). Finds values that are NaN or infinite, before training.
        """
        if self.files is not None:
            return _pictures_fingerprint(self)
        shape = len(self.images), self.num_features
        digest = hashlib.blake2b(f"{shape} {self.images.dtype}".encode(), digest_size=16)
        digest.update(self.labels.data)
        spaced = np.linspace(0, len(self) - 1, 4096).astype(int)
        for images in blocks(self) if self._covered else (self.take(spaced)[0],):
            digest.update(np.ascontiguousarray(images).data)
        return digest.hexdigest()

    def modified(self) -> int | None:
        if self.files is not None:
            return _pictures_modified(self)
        return None if self._covered else Path(self.images.filename).stat().st_mtime_ns  # type: ignore[attr-defined] # a memmap


class ItemDataset:
    """Any map-style Dataset of pairs or dicts that is not empty; items are read, and checked, one by one.

    `files` are the pictures that the items are.
    """

    one_by_one, resident = True, None

    def __init__(self, dataset: Any, name: str, classes: Classes, files: list[Path] | None = None) -> None:
        self.dataset, self.name, self.classes, self.files = dataset, name, classes, files
        if len(self) == 0:
            raise InputError(f"{name} is empty: give at least one example")
        listed = given.listed_labels(dataset)
        self._listed = None if listed is None else classes.encode(listed, name)
        self.num_features, self.dtype = 0, np.dtype(np.float32)  # until the first item is read
        first, _ = self._item(0)
        self.num_features, self.dtype, self.shape = first.size, first.dtype, first.shape

    def __len__(self) -> int:
        return len(self.dataset)

    def _item(self, index: int) -> tuple[np.ndarray, int]:
        where = f"{self.name}: example {index}"
        try:
            item = self.dataset[index]
        except Exception as error:  # whatever the user's own code raises
            raise InputError(f"{where} cannot be read ({type(error).__name__}: {one_line(error)})") from error
        try:
            image, label = given.pair(item)
        except InputError:
            raise
        except (TypeError, ValueError) as error:
            raise InputError(f"{where} must be a pair of an image and a label ({one_line(error)})") from None
        if image.dtype.kind not in "uifb" or image.size != (self.num_features or image.size):
            raise InputError(f"{where} must be {self.num_features or 'some'} numbers, "
                             f"not {image.dtype} {list(image.shape)}")
        number = self.classes.encode(label.reshape(1, -1) if label.size > 1 else label.reshape(1), where).item()
        if self._listed is not None and number != self._listed[index]:
            listed = self.classes.called[self._listed[index]]
            raise InputError(f"{where} has the label {label}, but the Dataset lists {listed} for it (as .targets or "
                             ".labels), perhaps as it was before a target_transform: make the two agree")
        image = _features(image)
        if self.num_features and not np.can_cast(image.dtype, self.dtype):
            raise InputError(f"{where} has values of type {image.dtype}, but example 0 of {self.dtype}: give all alike")
        if not np.isfinite(image).all():
            raise InputError(f"{where} {NOT_FINITE}")
        return image, number

    def ask(self, indices: np.ndarray) -> None:
        pass

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        items = [self._item(int(i)) for i in indices.flat]
        images = np.stack([image.ravel() for image, _ in items], dtype=self.dtype).reshape(*indices.shape, -1)
        return images, np.array([label for _, label in items], np.int32).reshape(indices.shape)

    @property
    def labels(self) -> np.ndarray:
        return np.zeros(len(self), np.int32) if self._listed is None else self._listed

    def part(self, rows: np.ndarray, name: str) -> "ItemDataset":
        from torch.utils.data import Subset  # only here: torch takes a second to import

        return ItemDataset(Subset(self.dataset, rows.tolist()), name, self.classes, _chosen(self.files, rows))

    def fingerprint(self) -> str:
        """Digest of length, the first item's shape and dtype, and listed labels; not of values, which may be random,
        unless they are those of files."""
        if self.files is not None:
            return _pictures_fingerprint(self)
        digest = hashlib.blake2b(f"{len(self)} {self.shape} {self.dtype}".encode(), digest_size=16)
        listed = given.listed_labels(self.dataset)
        digest.update(b"" if listed is None else repr(listed.tolist()).encode())
        return digest.hexdigest()

    def modified(self) -> int | None:
        """When the newest file was written. Those that another Dataset reads are its own affair."""
        return None if self.files is None else _pictures_modified(self)


class _Pictures(Examples, Protocol):
    """Examples that are picture files, whether they are decoded once or as they are needed."""

    files: list[Path] | None  # of each


def _chosen(files: list[Path] | None, rows: np.ndarray) -> list[Path] | None:
    return None if files is None else [files[row] for row in rows]


def _covers(pictures: _Pictures) -> bool:
    """Whether the fingerprint covers each value."""
    return len(pictures) * pictures.num_features * pictures.dtype.itemsize <= _READ_WHOLE


def _pictures_fingerprint(pictures: _Pictures) -> str:
    """As that of an array in memory; of more than 1 GiB, of 512 spaced pictures only."""
    digest = hashlib.blake2b(f"{(len(pictures), pictures.num_features)} {pictures.dtype}".encode(), digest_size=16)
    digest.update(pictures.labels.data)
    spaced = np.linspace(0, len(pictures) - 1, 512).astype(int)
    for images in blocks(pictures) if _covers(pictures) else (pictures.take(spaced)[0],):
        digest.update(np.ascontiguousarray(images).data)
    return digest.hexdigest()


def _pictures_modified(pictures: _Pictures) -> int | None:
    """When the newest of the files was written, where the fingerprint does not cover them all."""
    return None if _covers(pictures) else max(path.stat().st_mtime_ns for path in pictures.files or ())


def blocks(dataset: Examples) -> Iterator[np.ndarray]:
    """The features, some thousand rows at a time: a memory-mapped set need not fit in memory."""
    for start in range(0, len(dataset), BLOCK):
        rows = np.arange(start, min(start + BLOCK, len(dataset)))
        yield dataset.resident[0][start : start + BLOCK] if dataset.resident else dataset.take(rows)[0]


def check_lengths(examples: int, labels: int, name: str) -> None:
    if labels != examples:
        raise InputError(f"{name} has {examples} examples but {labels} labels: give as many of both")


def _features(images: np.ndarray) -> np.ndarray:
    """uint8 as it is, all else as float32; what float32 cannot hold becomes infinite, for the caller to find."""
    with np.errstate(over="ignore"):
        return images if images.dtype == np.uint8 else images.astype(np.float32, copy=False)
