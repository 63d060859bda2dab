"""Rows that a model is asked about, of sources of any size: read block by block, in the sources' order."""

import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from distmlp import machine
from distmlp.config import Config
from distmlp.data import arrays, columnar, packed, pictures, sources, tables, typed
from distmlp.data.arrays import part_of
from distmlp.data.columns import Columns, Unseen, is_header, matched
from distmlp.data.streams import Stored
from distmlp.errors import InputError, listed

_ROWS = 8192  # of a pack, read at a time
_PICTURES = 256


class Asked(NamedTuple):
    """Some rows."""

    features: np.ndarray  # uint8 or float32 [rows, features], not checked for the model yet
    carried: list[Any]  # other columns of a table, as Arrow's arrays


class Rows(Protocol):
    """The rows at one file or folder."""

    name: str

    def count(self) -> int: ...

    def blocks(self, start: int, stop: int) -> Iterator[Asked]:
        """The rows from `start` to before `stop`."""

    def remarks(self) -> list[str]:
        """What the user should know, once the rows were read."""


class TableRows:
    """The rows of a table, whose columns are those of the model's training set."""

    def __init__(self, file: Path, config: Config, columns: Columns | None, width: int, carried: Sequence[str],
                 sure: bool) -> None:  # fmt: skip
        """`carried`: columns that come along; `sure`: --header is said of this very file."""
        self.name, self._columns = str(file), columns
        self._raw = columnar.file(file, lambda cells: is_header(cells, str(file), config, columns, sure))
        self._choice = matched(self._raw, columns, config, labelled=False, width=width)
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
        row, choice, columns = start, self._choice, self._columns
        for block in typed.stream(self._raw, choice.features, None, None, choice.empty,
                                  tables.rules_of(columns, choice), carried=self._carried, start=start):  # fmt: skip
            names = choice.features if columns is None else columns.names
            table = tables.by_training(block.table, choice, names).part(0, stop - row)
            if not len(table.numbers):
                break
            features = table.numbers if columns is None else columns.encode(table, self._unseen)
            yield Asked(features, [column.slice(0, len(features)) for column in block.carried])
            row += len(features)

    def remarks(self) -> list[str]:
        known = {f"{self.name}: column {name} is not known to the run, and ignored" for name in self._carried}
        return [text for text in self._choice.remarks if text not in known] + self._unseen.remarks(self.name)


class ArrayRows:
    """The rows of an array."""

    def __init__(self, stored: Stored, width: int) -> None:
        self.name, self._stored = stored.name, stored
        self._single = stored.shape == (width,)  # one row, not as many of one value

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

    def __init__(self, pack: packed.Pack, columns: Columns | None) -> None:
        pack.check_columns(columns)
        self._examples = pack.examples("test" if "test" in pack.parts else "train", 0)
        self.name = self._examples.name

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

    def count(self) -> int:
        return len(self._files)

    def blocks(self, start: int, stop: int) -> Iterator[Asked]:
        files = self._files[start:stop]
        with ThreadPoolExecutor(machine.cores()) as pool:
            for begin in range(0, len(files), _PICTURES):
                yield Asked(np.stack([*pool.map(self._picture, files[begin : begin + _PICTURES])]), [])

    def remarks(self) -> list[str]:
        return []


def found(
    paths: Sequence[Path], config: Config, columns: Columns | None, width: int, carried: Sequence[str],
    picture: Callable[[Path], np.ndarray], sure: bool,
) -> list[Rows]:
    """What is to be predicted at files and folders, in their order; of a data set in parts, its test set.

    Args:
      columns, width: of the model's training set.
      carried: columns that come along; tables alone have any.
      picture: a picture file as a row of the model's.
      sure: --header is said of these very files.

    Raises:
      InputError: there is nothing that could be predicted, or no such column.
    """
    rows = [each for path in paths for each in _at(path, config, columns, width, carried, picture, sure)]
    if carried and (other := next((each for each in rows if not isinstance(each, TableRows)), None)):
        raise InputError(f"--columns={','.join(carried)}: {other.name} is no table, and has no columns by name")
    return rows


def _at(
    path: Path, config: Config, columns: Columns | None, width: int, carried: Sequence[str],
    picture: Callable[[Path], np.ndarray], sure: bool,
) -> list[Rows]:
    def table(file: Path) -> Rows:
        return TableRows(file, config, columns, width, carried, sure)

    if not path.exists():
        raise InputError(f"{path} does not exist")
    suffix = path.suffix.lower()
    if path.is_file():
        if columnar.is_table(path):
            return [table(path)]
        if suffix == ".npy":
            return [ArrayRows(Stored(path), width)]
        if suffix == ".npz":
            stored = sources.archived(path)
            return [ArrayRows(stored[arrays.features_name(path, [*stored])], width)]
        return [PictureRows([path], picture)]
    if packed.is_pack(path):
        return [PackRows(packed.Pack(path), columns)]
    if files := sorted(path.glob("*.npy")):
        stored = {file.stem: Stored(file) for file in files}
        return [ArrayRows(stored[arrays.features_name(path, [*stored])], width)]
    below = sources.below(path)
    if below:
        parts = {part: [file for file in below if part_of(path / file.relative_to(path).parts[0]) == part]
                 for part in ("test", "train")}  # fmt: skip
        return [table(file) for file in parts["test"] or parts["train"] or below]
    images = [file for file in sorted(path.rglob("*")) if file.suffix.lower() in pictures.SUFFIXES
              and not any(part.startswith(".") for part in file.relative_to(path).parts)]
    if not images:
        raise InputError(f"{path} holds no tables, arrays or pictures")
    return [PictureRows(images, picture)]
