"""Rows of sources of any size, read block by block in one order: what is packed, and what is predicted.

A stream is the rows of one part of a data set: of tables, of arrays, of pictures, or of batches given from Python.
"""

import contextlib
import os
import pickle
import zipfile
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from io import BytesIO
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TypeVar

import numpy as np

from distmlp import machine
from distmlp.config import Config
from distmlp.data import columnar, tables, typed
from distmlp.data.columnar import Raw
from distmlp.data.columns import Choice, Columns, Learner, Unseen, chosen, matched
from distmlp.data.pictures import ImageFolder, Sizing
from distmlp.data.pictures import read as read_picture
from distmlp.data.typed import Rules, Table, Words
from distmlp.errors import InputError, listed

_ROWS = 8192  # of arrays, read at a time
_BYTES = 4 << 20  # of arrays, read at a time, at most
_PICTURES = 256  # decoded at a time
_NOT_FINITE = "has a value that is NaN or infinite (or beyond float32): remove or mend it"


T = TypeVar("T")
U = TypeVar("U")


class Labels(NamedTuple):
    """The labels of some rows, of any kind, or as places among words; and their weights, float64, if they have any."""

    values: np.ndarray | Words
    weights: np.ndarray | None = None
    written: bool = False  # in a text file, whose words may be numbers


class Stream(Protocol):
    """The rows of one part of a data set. Each method reads them anew, from the first or from row `start` on."""

    name: str  # for messages
    pictures: bool
    remarks: list[str]  # what the user should know

    @property
    def files(self) -> Sequence[Path]: ...

    @property
    def classes(self) -> Sequence[str] | None:
        """By number, where the source says so."""

    def labels(self) -> Iterator[Labels]: ...

    def features(self, start: int = 0) -> Iterator[np.ndarray]:
        """uint8 or float32 [rows, ...], always of one dtype and shape; finite."""


class Tables:
    """The rows of tables, one after the other; of all but the first, columns are found by name."""

    pictures = False

    def __init__(
        self, raws: Sequence[Callable[[], Raw]], files: Sequence[Path], config: Config, like: "Tables | None" = None,
        classes: dict[str, Sequence[str]] | None = None,
    ) -> None:
        """`raws`: open a table each. `like`: of the training set, where this is another part. `classes`: by column."""
        self._raws, self.files, self._config = raws, files, config
        first = raws[0]()
        self.name = first.name if len(raws) == 1 else f"{first.name} and {len(raws) - 1:,} more"
        if like is None:
            choice, self.columns = chosen(first, config)
            self.remarks = choice.remarks
        else:
            self.columns, self.remarks = like.columns, matched(first, like.columns, config, labelled=True).remarks
        self.classes = (classes or {}).get(self.columns.label)
        self._like, self._learned = like, like is not None
        self.counts: list[int] = []  # of each table's rows, once they have been read
        self.unseen = Unseen()

    def _opened(self) -> Iterator[tuple[Raw, Choice]]:
        for place, opened in enumerate(self._raws):
            raw = opened()
            if place == 0 and self._like is None:
                yield raw, chosen(raw, self._config)[0]
                continue
            choice, weight = matched(raw, self.columns, self._config, labelled=True), self.columns.weight.strip()
            if weight and self._like is None:
                column = next((name for name in raw.names if name.strip() == weight), None)
                if column is None:
                    raise InputError(f"--weight_column={weight}: {raw.name} has no such column, it has "
                                     f"{listed(raw.names)}")
                choice = choice._replace(weight=column)
            yield raw, choice

    def labels(self) -> Iterator[Labels]:
        self.counts.clear()
        for raw, choice in self._opened():
            count = 0
            for block in typed.stream(raw, [], choice.label, choice.weight, [], Rules(frozenset(), False, False)):
                if block.labels is not None:
                    values = block.labels
                    count += len(values.codes if isinstance(values, Words) else values)
                    yield Labels(values, block.weights, raw.text)
            self.counts.append(count)

    def learn(self, marks: np.ndarray | None, progress: Callable[[int], None]) -> None:
        """Reads the rows that are marked 0, for the words and means in them; without marks, all rows."""
        config = self._config
        texts: frozenset[str] = frozenset()
        while not self._learned:
            columns = self.columns.of_texts([name for name in self.columns.names if name in texts],
                                            config.missing != "refuse")  # fmt: skip
            learner, row = Learner(columns, config, self.name), 0
            rest: list[Table] = []
            try:
                if config.text_columns == "one_hot" or config.missing == "mean":
                    for table in self._tables(None, texts, 0):
                        count = len(table.numbers)
                        if marks is not None:
                            table = table.take(np.flatnonzero(marks[row : row + count] == 0))
                        row += count
                        progress(count)
                        rest = _learn(learner, [*rest, table], Learner.ROWS)
                    _learn(learner, rest, 1)
                self.columns, self._learned = learner.result(), True
            except typed.TextFound as error:  # begin again
                texts |= error.names

    def restore(self, columns: Columns, counts: list[int]) -> None:
        """With what an earlier process has learned."""
        self.columns, self.counts, self._learned = columns, counts, True

    def features(self, start: int = 0) -> Iterator[np.ndarray]:
        row = start
        for table in self._tables(self.columns, frozenset(), start):
            features = self.columns.encode(table, self.unseen)
            yield _finite(features, self.name, row)
            row += len(features)

    def _tables(self, columns: Columns | None, texts: frozenset[str], start: int) -> Iterator[Table]:
        """By what was learned, or, to learn, with these columns of text."""
        config, known = self._config, self.columns.names
        first = Rules(None, config.text_columns == "one_hot", config.missing != "refuse")
        if columns is not None:
            texts = frozenset(columns.words)
        for place, (raw, choice) in enumerate(self._opened()):
            count = self.counts[place] if self.counts else raw.rows
            if count is not None and start >= count:
                start -= count
                continue
            rules = first if columns is None or self._like is None else tables.rules_of(columns, choice)
            here = dict(zip(choice.features, known, strict=True))
            text = frozenset(name for name, learned in here.items() if learned in texts)
            try:
                for block in typed.stream(raw, choice.features, None, None, choice.empty, rules, texts=text,
                                          start=start):
                    yield tables.by_training(block.table, choice, known)
            except typed.TextFound as error:
                raise typed.TextFound({here[name] for name in error.names}) from None
            start = 0


def _learn(learner: Learner, blocks: list[Table], least: int) -> list[Table]:
    """Shows rows to a learner, Learner.ROWS at a time, if there are so many at least; what is left of them."""
    rows = sum(len(block.numbers) for block in blocks)
    if rows < least:
        return blocks
    table, start = typed.joined(blocks), 0
    while rows - start >= max(least, 1) and (rows - start >= Learner.ROWS or least == 1):
        learner.add(table.part(start, start + Learner.ROWS))
        start += Learner.ROWS
    return [table.part(start, rows)] if start < rows else []


class Arrays:
    """The rows of arrays, one after the other."""

    pictures = False

    def __init__(self, sets: "Sequence[tuple[Stored, Stored, Stored | None]]", files: Sequence[Path],
                 classes: Sequence[str] | None = None) -> None:  # fmt: skip
        """`sets`: features, labels and weights, if there are any."""
        self._sets, self.files, self.classes = sets, files, classes
        self.name = sets[0][0].name if len(sets) == 1 else f"{sets[0][0].name} and {len(sets) - 1:,} more"
        self.remarks: list[str] = []
        for x, y, weights in sets:
            _check_kind(x.dtype, x.shape[1:], sets[0][0].shape[1:], x.name)
            if len(x) != len(y):
                raise InputError(f"{x.name} has {len(x)} examples but {len(y)} labels: give as many of both")
            if weights is not None and len(x) != len(weights):
                raise InputError(f"{x.name} has {len(x)} examples but {len(weights)} weights: give as many of both")
        if len({weights is None for _, _, weights in sets}) > 1:
            raise InputError(f"{self.name}: some of them have weights, others have none: give all alike")
        self._bytes = all(x.dtype == np.uint8 for x, _, _ in sets)

    def labels(self) -> Iterator[Labels]:
        for _, y, weights in self._sets:
            if weights is None:
                yield from map(Labels, y.blocks(0))
                continue
            parts, rest = weights.blocks(0), np.zeros(0)
            for labels in y.blocks(0):  # whose blocks may have other numbers of rows
                while len(rest) < len(labels):
                    rest = np.concatenate([rest, next(parts).reshape(-1)])
                yield Labels(labels, rest[: len(labels)])
                rest = rest[len(labels) :]

    def features(self, start: int = 0) -> Iterator[np.ndarray]:
        row = start
        for x, _, _ in self._sets:
            if start < len(x):
                for block in x.blocks(start):
                    yield _finite(block if self._bytes else _float32(block), self.name, row)
                    row += len(block)
            start = max(0, start - len(x))


class Pictures:
    """The pictures of class folders."""

    classes, pictures = None, True

    def __init__(self, folder: ImageFolder) -> None:
        self._folder, self.files, self.remarks = folder, folder.paths, list[str]()
        self.name = str(folder.root)

    def labels(self) -> Iterator[Labels]:
        yield Labels(np.array(self._folder.targets, object))

    def features(self, start: int = 0) -> Iterator[np.ndarray]:
        count = len(self._folder)
        with ThreadPoolExecutor(machine.cores()) as pool:  # Pillow decodes without Python's lock
            for begin in range(start, count, _PICTURES):
                rows = range(begin, min(begin + _PICTURES, count))
                yield np.stack([pixels for pixels, _ in pool.map(self._folder.__getitem__, rows)])


class StoredPictures:
    """Pictures that lie in a column of a table, as those of a Hugging Face data set: their files' bytes, or paths."""

    pictures = True

    def __init__(
        self, raws: Sequence[Callable[[], Raw]], files: Sequence[Path], column: str, label: str,
        classes: Sequence[str] | None, config: Config, like: "StoredPictures | None" = None,
    ) -> None:
        self._raws, self.files, self._column, self._label = raws, files, column, label
        self.classes, self.name, self.remarks = classes, str(files[0].parent), list[str]()
        self._sizing: Sizing = Sizing(config, like._sizing if like else None)

    def labels(self) -> Iterator[Labels]:
        for opened in self._raws:
            raw = opened()
            for block in typed.stream(raw, [], self._label, None, [], Rules(frozenset(), False, False)):
                if block.labels is not None:
                    yield Labels(block.labels)

    def features(self, start: int = 0) -> Iterator[np.ndarray]:
        with ThreadPoolExecutor(machine.cores()) as pool:
            row = 0
            for opened in self._raws:
                for [column] in opened().read([self._column]):
                    for begin in range(0, len(column), _PICTURES):
                        cells = column.slice(begin, _PICTURES)
                        begin, row = row, row + len(cells)
                        if row <= start:
                            continue
                        cells = cells.slice(max(0, start - begin)).to_pylist()
                        first = max(start, begin)
                        self._sizing.begin(self._picture(cells[0], first)[0])
                        yield np.stack([*pool.map(lambda place, cell: self._sizing.array(*self._picture(cell, place)),
                                                  range(first, row), cells)])  # fmt: skip

    def _picture(self, cell: Any, row: int) -> tuple[Any, str]:
        content = cell.get("bytes") if isinstance(cell, dict) else cell
        name = f"{self.name}: the picture of row {row}"
        if content is None and isinstance(cell, dict) and cell.get("path"):
            return read_picture(Path(cell["path"])), name
        return read_picture(BytesIO(content or b""), name), name


class Batches:
    """Batches that are given from Python: tuples (x, y) or (x, y, weights) of arrays, gone through anew by
    `batches()`."""

    pictures, classes, files = False, None, ()

    def __init__(self, batches: Callable[[], Iterable[Any]], name: str = "batches") -> None:
        self._batches, self.name, self.remarks = batches, name, list[str]()
        first = next(iter(self._pairs()), None)
        if first is None:
            raise InputError(f"{name} is empty: give at least one batch")
        self._shape, self._bytes = first[0].shape[1:], first[0].dtype == np.uint8

    def _pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        weighed = False
        for number, batch in enumerate(self._batches()):
            name = f"batch {number} of {self.name}"
            if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
                raise InputError(f"{name} is a {type(batch).__name__}: give tuples (x, y) or (x, y, weights) of "
                                 "arrays, or frames")
            x, y, *more = map(as_array, batch)
            if x.ndim < 2 or any(len(x) != len(each) for each in (y, *more)):
                shapes = " and ".join(str(list(each.shape)) for each in (x, y, *more))
                raise InputError(f"{name} must be features of shape [N, ...] and N labels, and N weights if there are "
                                 f"any, not {shapes}")
            if number and bool(more) != weighed:
                raise InputError(f"{name} {'has' if more else 'lacks'} weights, unlike those before: give all alike")
            weighed = bool(more)
            yield x, y, more[0].reshape(-1) if more else None

    def labels(self) -> Iterator[Labels]:
        for _, y, weights in self._pairs():
            yield Labels(y, weights)

    def features(self, start: int = 0) -> Iterator[np.ndarray]:
        row = 0
        for x, _, _ in self._pairs():
            _check_kind(x.dtype, x.shape[1:], self._shape, f"{self.name}, row {row}")
            if self._bytes and x.dtype != np.uint8:
                raise InputError(f"{self.name}, row {row}: values of type {x.dtype}, but the first are uint8: give all "
                                 "alike")
            if row + len(x) > start:
                block = x[max(0, start - row) :]
                yield _finite(block if self._bytes else _float32(block), self.name, max(row, start))
            row += len(x)


def ahead(blocks: Iterator[T]) -> Iterator[T]:
    """The blocks, of which the next is read in a thread while one is worked on."""
    with ThreadPoolExecutor(1) as reader:
        coming = reader.submit(next, blocks, None)
        while (block := coming.result()) is not None:
            coming = reader.submit(next, blocks, None)
            yield block


def spread(function: Callable[[T], U], items: Iterable[T]) -> Iterator[U]:
    """As map, by as many threads as there are cores; a few items wait at a time."""
    cores = machine.cores()
    with ThreadPoolExecutor(cores) as pool:
        coming: deque[Future[U]] = deque()
        for item in items:
            coming.append(pool.submit(function, item))
            if len(coming) > 2 * cores:
                yield coming.popleft().result()
        while coming:
            yield coming.popleft().result()


def as_array(value: Any) -> np.ndarray:
    """An array, tensor or column of a frame as a NumPy array."""
    value = value.detach().cpu() if hasattr(value, "detach") else value
    columnar.refuse_sparse(value)
    return np.asarray(value.to_numpy() if hasattr(value, "to_numpy") else value)


@contextlib.contextmanager
def given(batches: Iterable[Any], config: Config, folder: Path) -> Iterator[Stream]:
    """Batches as a stream. Frames, and what can be gone through once only, are kept in `folder` meanwhile."""
    iterator = iter(batches)
    once = iterator is batches
    first = next(iterator, None)
    frames = first is not None and columnar.is_frame(first)
    if not once:
        iterator = iter(batches)
    else:
        iterator = (batch for rest in ([first] if first is not None else [], iterator) for batch in rest)
    spool = folder / "batches.arrow"
    if frames:
        import pyarrow as pa

        writer = None
        for number, batch in enumerate(iterator):
            try:
                table = pa.Table.from_pandas(batch, preserve_index=False) if hasattr(batch, "iloc") else (
                    batch.to_arrow() if hasattr(batch, "to_arrow") else pa.table(batch))  # fmt: skip
                if writer is None:
                    writer = pa.ipc.new_file(str(spool), table.schema)
                writer.write_table(table.cast(writer.schema) if hasattr(writer, "schema") else table)
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise InputError(f"batch {number} is no frame like the first ({error}): give all alike") from None
        assert writer is not None  # the first is a frame
        writer.close()
        yield Tables([lambda: columnar.file(spool, lambda cells: True)._replace(name="batches")], [], config)
    elif once:
        with spool.open("wb") as file:
            for batch in iterator:
                pickle.dump(tuple(map(as_array, batch)) if isinstance(batch, (tuple, list)) else batch, file)
        yield Batches(lambda: _unpickled(spool))
    else:
        yield Batches(lambda: batches)


def _unpickled(path: Path) -> Iterator[Any]:
    """What `given` has just written itself."""
    with path.open("rb") as file, contextlib.suppress(EOFError):
        while True:
            yield pickle.load(file)


def _float32(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found
        return block.astype(np.float32, copy=False)


def _finite(features: np.ndarray, name: str, row: int) -> np.ndarray:
    # A sum is finite unless a value is not (or unless it overflows): one fast pass, the slow one only if needed.
    if features.dtype == np.float32 and not np.isfinite(features.sum(dtype=np.float64)):
        bad = np.flatnonzero(~np.isfinite(features.reshape(len(features), -1)).all(axis=1))
        if len(bad):
            raise InputError(f"{name}: example {row + bad[0]} {_NOT_FINITE}")
    return features


def _check_kind(dtype: Any, shape: Sequence[int], wanted: Sequence[int], name: str) -> None:
    if np.dtype(dtype).kind not in "uifb" or 0 in shape:
        raise InputError(f"{name}: features must be numbers of shape [examples, ...], not {dtype}")
    if tuple(shape) != tuple(wanted):
        raise InputError(f"{name} has rows of the shape {list(shape)}, but the first {list(wanted)}: they must agree")


class Stored:
    """An array in an .npy file or in an .npz archive, which is read block by block."""

    def __init__(self, path: Path, member: str = "") -> None:
        self._path, self._member = path, member
        self.name = f"{path}: {member.removesuffix('.npy')}" if member else str(path)
        with self._opened() as (_, shape, fortran, dtype):
            self.shape, self._fortran, self.dtype = shape, fortran, dtype
        if not self.shape:
            raise InputError(f"{self.name} is a single value, no array of rows")
        if self.dtype.hasobject:
            raise InputError(f"{self.name} holds Python objects, which are not safe to read: save text as text, as in "
                             "y.astype(str), and all else as numbers")

    def __len__(self) -> int:
        return int(self.shape[0])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, tuple[int, ...], bool, Any]]:
        try:
            with contextlib.ExitStack() as stack:
                file: Any = stack.enter_context(self._path.open("rb"))
                if self._member:
                    archive = stack.enter_context(zipfile.ZipFile(file))
                    file = stack.enter_context(archive.open(self._member))
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                yield file, *read[version](file)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.name} cannot be read as a NumPy array, it may be damaged or truncated ({error}): "
                             "bring back an intact copy") from None

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        """The rows from `start` on."""
        row_bytes = int(self.dtype.itemsize * np.prod(self.shape[1:], dtype=np.int64))
        size = max(1, min(_ROWS, _BYTES // max(1, row_bytes)))
        if self._fortran and len(self.shape) > 1:
            array = np.load(self._path, mmap_mode="r") if not self._member else np.load(self._path)[self._member[:-4]]
            for begin in range(start, len(self), size):
                yield np.ascontiguousarray(array[begin : begin + size])
            return
        with self._opened() as (file, *_):
            file.seek(start * row_bytes, os.SEEK_CUR)
            for begin in range(start, len(self), size):
                rows = min(size, len(self) - begin)
                content = file.read(rows * row_bytes)
                if len(content) < rows * row_bytes:
                    raise ValueError(f"it ends in row {begin + len(content) // max(1, row_bytes)}")
                yield np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:])
