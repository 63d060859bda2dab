"""Rows that a model is asked about, of sources of any size: read block by block, in the sources' order."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from distmlp import machine
from distmlp.data import arrays, columnar, packed, pictures, refused, sources
from distmlp.data.arrays import Stored
from distmlp.data.columns import Columns, Unseen
from distmlp.data.tables import Reader
from distmlp.errors import InputError, listed

_ROWS = 8192  # of a pack, read at a time


class Asked(NamedTuple):
    """Some rows."""

    features: np.ndarray  # uint8 or float32 [rows, features], not checked for the model yet
    carried: list[Any]  # other columns of a table, as Arrow's arrays


class Rows(Protocol):
    """The rows at one file or folder."""

    name: str
    picture: bool  # whether it is a single picture

    def count(self) -> int: ...

    def blocks(self, start: int, stop: int) -> Iterator[Asked]:
        """The rows from `start` to before `stop`."""

    def remarks(self) -> list[str]:
        """What the user should know, once the rows were read."""


class TableRows:
    """The rows of a table, whose columns are those of the model's training set."""

    picture = False

    def __init__(self, file: Path, reader: Reader, carried: Sequence[str], sure: bool) -> None:
        """`carried`: columns that come along; `sure`: --header is said of this very file."""
        self.name, self._reader, self._raw = str(file), reader, reader.opened(file, sure)
        self._choice = reader.choice(self._raw, labelled=False)
        by_name = {name.strip(): name for name in self._raw.names}
        missing = [name for name in carried if name.strip() not in by_name]
        if missing:
            raise InputError(f"--columns={missing[0]}: {file} has no such column, it has {listed(self._raw.names)}")
        self._carried = [by_name[name.strip()] for name in carried]
        self._unseen = Unseen()

    def count(self) -> int:
        if self._raw.rows is not None:
            return self._raw.rows
        return sum(len(block[0]) for block in self._raw.read(self._raw.names[:1]))

    def blocks(self, start: int, stop: int) -> Iterator[Asked]:
        row, columns = start, self._reader.columns
        for block in self._reader.blocks(self._raw, self._choice, self._carried, start):
            table = block.table.part(0, stop - row)
            if not len(table.numbers):
                break
            features = table.numbers if columns is None else columns.encode(table, self._unseen)
            yield Asked(features, [column.slice(0, len(features)) for column in block.carried])
            row += len(features)

    def remarks(self) -> list[str]:
        known = {f"{self.name}: column {name} is not known to the run, and ignored" for name in self._carried}
        return [text for text in self._choice.remarks if text not in known] + self._unseen.remarks(self.name)


class ArrayRows:
    """The rows of an array: of several, those of features."""

    picture = False

    def __init__(self, path: Path, width: int) -> None:
        self.name, named = str(path), {"": Stored(path)} if path.suffix.lower() == ".npy" else arrays.stored(path)
        self._stored = named[arrays.features_name(path, [*named])]
        self._single = self._stored.shape == (width,)  # one row, not as many of one value

    def count(self) -> int:
        return 1 if self._single else len(self._stored)

    def blocks(self, start: int, stop: int) -> Iterator[Asked]:
        if self._single:
            yield Asked(np.concatenate([*self._stored.blocks(0)])[None], [])
            return
        for block in self._stored.blocks(start):
            block = block[: stop - start]
            if not len(block):
                break
            start += len(block)
            yield Asked(block.reshape(len(block), math.prod(block.shape[1:])) if block.ndim > 1 else block, [])

    def remarks(self) -> list[str]:
        return []


class PackRows:
    """The rows of a pack: its test part, or all if it has none."""

    picture = False

    def __init__(self, pack: packed.Pack, columns: Columns | None) -> None:
        pack.check_columns(columns)
        self._examples = pack.examples("test" if "test" in pack.parts else "train", 0)
        self.name = str(pack.folder)

    def count(self) -> int:
        return len(self._examples)

    def blocks(self, start: int, stop: int) -> Iterator[Asked]:
        for begin in range(start, min(stop, len(self._examples)), _ROWS):
            rows = np.arange(begin, min(begin + _ROWS, stop, len(self._examples)))
            yield Asked(self._examples.take(rows)[0], [])

    def remarks(self) -> list[str]:
        return []


class PictureRows:
    """Pictures, each as the row that `picture` makes of its file."""

    def __init__(self, files: Sequence[Path], picture: Callable[[Path], np.ndarray]) -> None:
        self.name, self._files, self._picture = str(files[0]), files, picture
        self.picture = len(files) == 1

    def count(self) -> int:
        return len(self._files)

    def blocks(self, start: int, stop: int) -> Iterator[Asked]:
        files = self._files[start:stop]
        with ThreadPoolExecutor(machine.cores()) as pool:
            for begin in range(0, len(files), pictures.AT_ONCE):
                yield Asked(np.stack([*pool.map(self._picture, files[begin : begin + pictures.AT_ONCE])]), [])

    def remarks(self) -> list[str]:
        return []


class Sources:
    """Finds what a model is to predict at files and folders."""

    def __init__(self, reader: Reader, picture: Callable[[Path], np.ndarray], sure: bool) -> None:
        """`reader` reads tables as the model takes them, and `picture` makes a row of a picture file; `sure`: --header
        is said of these very files."""
        self._reader, self._picture, self._sure = reader, picture, sure

    def rows(self, paths: Sequence[Path], carried: Sequence[str] = ()) -> list[Rows]:
        """All that there is, in the order of the paths; `carried`: columns that come along, which tables alone have.

        Raises:
          InputError: there is nothing that could be predicted, or no such column.
        """
        rows = [opened() for path in paths for opened in self.at(path, carried)]
        if carried and (other := next((each for each in rows if not isinstance(each, TableRows)), None)):
            raise InputError(f"--columns={','.join(carried)}: {other.name} is no table, and has no columns by name")
        return rows

    def at(self, path: Path, carried: Sequence[str] = (), apart: bool = False) -> list[Callable[[], Rows]]:
        """What opens the rows at a path: of a data set in parts those of its test set, of a folder of pictures all that
        lie below it; with `apart`, each picture by itself."""

        def each_table(files: Sequence[Path]) -> list[Callable[[], Rows]]:
            return [functools.partial(TableRows, file, self._reader, carried, self._sure) for file in files]

        refused.check_place(path)
        if packed.is_pack(path):
            return [functools.partial(PackRows, packed.Pack(path), self._reader.columns)]
        if path.suffix.lower() in (".npy", ".npz") or (path.is_dir() and any(path.glob("*.npy"))):
            return [functools.partial(ArrayRows, path, self._reader.width)]
        if path.is_file():
            if columnar.is_table(path):
                return each_table([path])
            refused.check_file(path)
            return [functools.partial(PictureRows, [path], self._picture)]
        if self._reader.columns is None:
            refused.check_not_saved(path)
        if files := sources.tables(path):
            self._check_no_pictures(path, files)
            parts = {part: [file for file in files if sources.part_below(path, file) == part]
                     for part in ("test", "train")}  # fmt: skip
            return each_table(parts["test"] or parts["train"] or files)
        images = sorted(pictures.files(path))
        if not images:
            raise InputError(f"{path} holds no tables, arrays or pictures")
        return [functools.partial(PictureRows, files, self._picture)
                for files in ([[image] for image in images] if apart else [images])]

    def _check_no_pictures(self, path: Path, files: Sequence[Path]) -> None:
        """Raises InputError where pictures lie beside tables, none of them named as a part, and the model, which knows
        no columns, may take both."""
        if self._reader.columns is not None or any(sources.part_below(path, file) for file in files):
            return
        images = (file.name for file in sorted(path.iterdir())
                  if file.suffix.lower() in pictures.SUFFIXES and not file.name.startswith("."))  # fmt: skip
        if image := next(images, ""):
            try:
                self._picture(path / image)
            except InputError:  # no picture, or none that the model takes
                return
            raise InputError(f"{path} holds {files[0].relative_to(path)} and pictures, as {image}, which could both be "
                             "meant: name the files, or move the others away")
