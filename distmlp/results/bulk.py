"""Predictions of any number of rows, written to one file as they are made: in constant memory, on all devices."""

import contextlib
import functools
import itertools
import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from tqdm.auto import tqdm

from distmlp import scores
from distmlp.data import asked, columnar
from distmlp.data.packed import HEADER, npy_header
from distmlp.data.streams import ahead
from distmlp.data.tables import Reader
from distmlp.errors import InputError, remark
from distmlp.results import files
from distmlp.results.ensemble import Ensemble
from distmlp.results.models import Model

if TYPE_CHECKING:  # imports scikit-learn, which predictions do not need
    from distmlp.parallel.evaluate import Seen
    from distmlp.results.evaluation import Watch

SUFFIXES = (".parquet", ".csv", ".jsonl", ".npy")


_OF_TYPES = (".parquet", ".feather", ".arrow")  # what says of which type a column is


class _OtherType(Exception):
    """A column is not of the type of the rows before, and cannot become it."""


class _NotWhole(Exception):
    """A column of text that began as whole numbers does not go on so."""

    def __init__(self, column: str) -> None:
        super().__init__(column)
        self.column = column


class Output(NamedTuple):
    """What is to be written of the rows that are predicted."""

    path: Path  # as --output names it
    columns: Sequence[str] = ()  # of the source, which come along
    probabilities: bool = False  # whether that of each class is written
    process: int = 0  # of so many `processes`, each of which predicts as many rows, and writes a file of its own
    processes: int = 1

    @property
    def file(self) -> Path:
        """The file that this process writes: of several, FILE.i-of-n."""
        if self.processes == 1:
            return self.path
        return self.path.with_name(f"{self.path.name}.{self.process}-of-{self.processes}")

    @property
    def suffix(self) -> str:
        return self.path.suffix.lower()

    def check(self) -> None:
        """Raises InputError if there is no such kind of file, or it has no columns of a source."""
        if self.suffix not in SUFFIXES:
            raise InputError(f"--output={self.path}: give a file whose name ends in one of {', '.join(SUFFIXES)}")
        if self.suffix == ".npy" and self.columns:
            raise InputError(f"--columns={','.join(self.columns)}: an .npy file holds probabilities only; give a "
                             ".parquet, .csv or .jsonl file")


def write(model: Model | Ensemble, paths: Sequence[Path], output: Output, header: str = "") -> int:
    """Predicts the rows at `paths`, and writes what --output names, whole or not at all; how many rows there are.

    The file has a row for each, in their order: the columns of the source, its class, its probability, of an ensemble
    the members' disagreement, and if asked for the probability of each class; an .npy file has the probabilities alone,
    float32 [N, classes].

    Raises:
      InputError: the rows cannot be read or predicted, or the file cannot be written.
    """
    output.check()
    columns, texts = output.columns, set[str]()
    names = _names(columns, model.classes, output.probabilities, isinstance(model, Ensemble))
    if output.processes > 1 and columns:
        texts = _texts(sources(model, header).rows(paths, columns), columns, model.reader(header), sure=bool(header))
    while True:
        rows = sources(model, header).rows(paths, columns)
        try:
            with files.whole(output.file, [*paths, *model.sources]) as new, _WRITERS[output.suffix](new, names) as add:
                done = _write(model, rows, output, names, add, texts)
        except _NotWhole as error:
            texts.add(error.column)
            continue
        for text in dict.fromkeys(text for each in rows for text in each.remarks()):
            remark(text)
        return done


@contextlib.contextmanager
def of_examples(model: Model | Ensemble, output: Output, dataset: str = "") -> "Iterator[Watch]":
    """What an evaluation within this context shows is written to what --output names, whole or not at all: for each
    example its label, the class that was predicted, its probability, and if asked for the probability of each class.
    `dataset`: what is read instead of the data that the model was trained on.
    """
    import pyarrow as pa

    output.check()
    suffix, names = output.suffix, _names(["label"], model.classes, output.probabilities)
    classes = pa.array(_in_unicode(model.classes))
    read = [*map(Path, filter(None, [dataset])), *model.sources]
    with files.whole(output.path, read) as new, _WRITERS[suffix](new, names) as add:

        def watch(seen: "Seen") -> None:
            found = np.exp(seen.log_probs)
            add([found] if suffix == ".npy" else [classes.take(pa.array(seen.labels)),
                                                  *_answers(found, classes, names, seen.predicted)])  # fmt: skip

        yield watch


def _answers(
    found: np.ndarray, classes: Any, names: Sequence[str], best: np.ndarray | None = None,
    apart: np.ndarray | None = None,
) -> list[Any]:
    """The columns class and probability, the disagreement if there is one, and the columns of each class if they are
    among the names."""
    import pyarrow as pa

    best = found.argmax(axis=1) if best is None else best
    chosen = np.take_along_axis(found, best[:, None], axis=1)[:, 0]
    each = found.T if names[-1].startswith("p_") else ()
    more = [] if apart is None else [pa.array(apart)]
    return [classes.take(pa.array(best)), pa.array(chosen), *more, *map(pa.array, map(np.ascontiguousarray, each))]


def _names(columns: Sequence[str], classes: Sequence[Any], probabilities: bool, apart: bool = False) -> list[str]:
    """Of the file's columns; `apart`: with the disagreement."""
    names = [*columns, "class", "probability", *["disagreement"] * apart,
             *([f"p_{name}" for name in _in_unicode(classes)] if probabilities else [])]  # fmt: skip
    twice = [name for name in names if names.count(name) > 1] if len(names) < 1000 else []
    if len({*names}) < len(names):
        raise InputError(f"--columns={','.join(columns)}: the file would have several columns named "
                         f"{(twice or names)[0]}; leave it out, or rename it in the source")
    return names


def _in_unicode(classes: Sequence[Any]) -> list[Any]:
    """What the labels call the classes, text as Unicode can have it, which not every folder's name is."""
    return [name.encode(errors="backslashreplace").decode() if isinstance(name, str) else name for name in classes]


def sources(model: Model | Ensemble, header: str = "") -> asked.Sources:
    """Finds what there is to predict; `header` is said of it (--header)."""
    from distmlp.results import pictures

    picture = functools.partial(pictures.for_model, model.num_features, model.data_info, model.reading)
    return asked.Sources(model.reader(header), picture, sure=bool(header))


class Block(NamedTuple):
    """Some rows of a source."""

    rows: asked.Asked
    name: str  # of the source
    first: int  # the number there of the first of them: a table's rows are counted from 1, an array's from 0


def blocks(rows: asked.Rows, start: int = 0, stop: int = sys.maxsize) -> Iterator[Block]:
    """The rows of a source from `start` to before `stop`."""
    number = start + isinstance(rows, asked.TableRows)
    for block in rows.blocks(start, stop):
        yield Block(block, rows.name, number)
        number += len(block.features)


def checked(model: Model | Ensemble, blocks: Iterable[Block]) -> Iterator[asked.Asked]:
    """The rows of blocks as the model takes them."""
    for rows, name, first in blocks:
        try:
            yield rows._replace(features=model.check(rows.features, first))
        except InputError as error:
            raise InputError(f"{name}: {error}") from None


class Answers(NamedTuple):
    """What is predicted of some rows."""

    probabilities: np.ndarray  # float32 [rows, classes]
    disagreement: np.ndarray | None  # float32 [rows], of an ensemble's members
    carried: list[Any]  # the other columns that come along
    name: str  # of the source
    first: int  # as in Block


def answers(model: Model | Ensemble, blocks: Iterable[Block]) -> Iterator[Answers]:
    """What is predicted of the rows of blocks."""
    places, carried = list[tuple[str, int]](), list[list[Any]]()  # of the blocks that are on their way

    def noted() -> Iterator[Block]:
        for block in blocks:
            places.append((block.name, block.first))
            yield block

    def features() -> Iterator[np.ndarray]:
        for found, beside in ahead(checked(model, noted())):
            carried.append(beside)
            yield found

    found: Iterator[tuple[np.ndarray, np.ndarray | None]] = (
        model.answers(features()) if isinstance(model, Ensemble) else
        ((probabilities, None) for probabilities in model.probabilities(features()))
    )  # fmt: skip
    for probabilities, apart in found:
        name, first = places.pop(0)
        scores.check_outputs(probabilities, first, f"{name}: row")
        yield Answers(probabilities, apart, carried.pop(0), name, first)


def _write(
    model: Model | Ensemble, rows: Sequence[asked.Rows], output: Output, names: Sequence[str],
    add: Callable[[list[Any]], None], texts: set[str],
) -> int:
    """Predicts and adds; how many rows."""
    import pyarrow as pa

    columns, process, processes, array = output.columns, output.process, output.processes, output.suffix == ".npy"
    counts = [each.count() for each in rows] if processes > 1 else []
    total, done = sum(counts), 0
    wanted = (total * process // processes, total * (process + 1) // processes) if counts else (0, 1 << 62)
    whole: dict[str, bool] = {}

    def own() -> Iterator[Block]:
        begin = 0
        for place, each in enumerate(rows):
            end = begin + counts[place] if counts else 1 << 62
            start, stop = max(wanted[0], begin), min(wanted[1], end)
            if start < stop:
                yield from blocks(each, start - begin, stop - begin)
            begin = end if counts else 0

    classes, none = pa.array(_in_unicode(model.classes)), np.zeros((0, len(model.classes)), np.float32)
    apart = none[:, 0] if isinstance(model, Ensemble) else None
    if processes > 1:  # all parts are of the types that the first row has, also those without a row
        first = next(rows[0].blocks(0, 1), None) if columns else None
        beside = first.carried if first else [pa.array([], pa.string())] * len(columns)
        beside = [_typed(*each, rows[0].name, texts, whole)[:0] for each in zip(beside, columns, strict=True)]
        add([none] if array else [*beside, *_answers(none, classes, names, apart=apart)])
    with tqdm(total=wanted[1] - wanted[0] if counts else None, desc="predicting", unit=" rows", unit_scale=True,
              leave=False, disable=None) as bar:  # fmt: skip
        for found, apart, beside, name, _ in answers(model, own()):
            beside = [_typed(*each, name, texts, whole) for each in zip(beside, columns, strict=True)]
            try:
                add([found] if array else [*beside, *_answers(found, classes, names, apart=apart)])
            except _OtherType as error:
                raise InputError(f"--columns={error}, unlike the rows before those of {name}: save it as one type in "
                                 "all files, or write a .jsonl file, which has any") from None
            done += len(found)
            bar.update(len(found))
    if not done and processes == 1:
        raise InputError(f"{rows[0].name} holds no rows")
    return done


def _typed(values: Any, column: str, name: str, texts: set[str], whole: dict[str, bool]) -> Any:
    """A column that comes along from the source of this name; text that is whole numbers throughout, as text files have
    them, as numbers."""
    import pyarrow as pa

    if not _is_text(values.type) or column in texts:
        return values
    plain = columnar.suffix(Path(name)) not in _OF_TYPES and _whole(values)
    if whole.setdefault(column, plain) and not plain:
        raise _NotWhole(column)
    return values.cast(pa.int64()) if whole[column] else values


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _whole(texts: Any) -> bool:
    import pyarrow.compute as pc

    plain = pc.match_substring_regex(texts, r"^(0|-?[1-9]\d{0,17})$")
    return bool(pc.all(plain, skip_nulls=False).as_py())


def _texts(rows: Sequence[asked.Rows], columns: Sequence[str], reader: Reader, sure: bool) -> set[str]:
    """The columns of text that are not whole numbers throughout: of all rows, so that several processes, each of which
    writes some, take them alike."""
    found = set[str]()
    for each in rows:
        raw = reader.opened(Path(each.name), sure)
        here = {name.strip(): name for name in raw.names}
        blocks = raw.read([here[name.strip()] for name in columns])
        for block in blocks if raw.text else itertools.islice(blocks, 1):
            found.update(column for column, values in zip(columns, block, strict=True)
                         if _is_text(values.type) and not (raw.text and _whole(values)))
    return found


@contextlib.contextmanager
def _parquet(path: Path, names: Sequence[str]) -> Iterator[Callable[[list[Any]], None]]:
    from pyarrow import parquet

    with _arrow(parquet.ParquetWriter, path, ".parquet", names) as add:
        yield add


@contextlib.contextmanager
def _csv(path: Path, names: Sequence[str]) -> Iterator[Callable[[list[Any]], None]]:
    from pyarrow import csv

    with _arrow(csv.CSVWriter, path, ".csv", names) as add:
        yield add


@contextlib.contextmanager
def _arrow(
    make: Callable[[Any, Any], Any], path: Path, suffix: str, names: Sequence[str]
) -> Iterator[Callable[[list[Any]], None]]:
    """A writer of Arrow's, which is made for the first rows' types."""
    import pyarrow as pa

    made: list[Any] = []  # the writer and its schema

    def add(columns: list[Any]) -> None:
        plain = [column.dictionary_decode() if pa.types.is_dictionary(column.type) else column for column in columns]
        batch = pa.record_batch(plain, names=[*names])
        try:
            if not made:
                made.extend((make(str(path), batch.schema), batch.schema))
            writer, schema = made
            if len(batch):
                writer.write_batch(pa.record_batch([*map(_as, batch.columns, schema.types, names)], schema))
        except pa.ArrowException:
            _check_types(make, suffix, batch)
            raise

    try:
        yield add
    finally:
        for writer in made[:1]:
            writer.close()


def _check_types(make: Callable[[Any, Any], Any], suffix: str, batch: Any) -> None:
    """Raises InputError where a column is of a type that such a file does not have."""
    import pyarrow as pa

    for field, column in zip(batch.schema, batch.columns, strict=True):
        schema = pa.schema([field])
        try:
            with make(pa.BufferOutputStream(), schema) as writer:
                writer.write_batch(pa.record_batch([column], schema))
        except pa.ArrowException:
            others = " or ".join(other for other in (".parquet", ".jsonl") if other != suffix)
            raise InputError(f"--columns={field.name}: a {suffix} file cannot hold a column of type {field.type}: "
                             f"write a {others} file") from None


def _as(column: Any, kind: Any, name: str) -> Any:
    """A column as one of another type; raises _OtherType where it cannot be, or a value would become another one, as
    the text 007 the number 7."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if column.type == kind:
        return column
    with contextlib.suppress(pa.ArrowException):  # there is no such cast
        made = column.cast(kind)
        if _is_text(kind) or column.null_count == len(column):
            return made
        if pa.types.is_floating(column.type):  # NaN is unlike itself
            changed = pc.and_not(pc.not_equal(made.cast(column.type), column), pc.is_nan(column))
            same = not pc.any(changed).as_py()
        else:
            same = not _is_text(column.type) and made.cast(column.type).equals(column)
        if same:
            return made
    raise _OtherType(f"{name} is {column.type}, not {kind}")


@contextlib.contextmanager
def _lines(path: Path, names: Sequence[str]) -> Iterator[Callable[[list[Any]], None]]:
    keys = [json.dumps(name) + ": " for name in names]

    with path.open("w", encoding="utf-8") as file:

        def add(columns: list[Any]) -> None:
            cells = [[key + json.dumps(value, default=str) for value in _plain(column)]
                     for key, column in zip(keys, columns, strict=True)]  # fmt: skip
            file.writelines(f"{{{', '.join(row)}}}\n" for row in zip(*cells, strict=True))

        yield add


def _plain(column: Any) -> Iterable[Any]:
    """The values; numbers of single precision as the shortest text that is theirs, and None for NaN and infinity, which
    JSON does not have."""
    if str(column.type) == "float":
        return map(_finite, map(float, map(str, column.to_numpy(zero_copy_only=False))))
    return map(_finite, column.to_pylist())


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list):
        return [*map(_finite, value)]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextlib.contextmanager
def _array(path: Path, names: Sequence[str]) -> Iterator[Callable[[list[Any]], None]]:
    shape = [0, 0]
    with path.open("wb") as file:
        file.write(bytes(HEADER))

        def add(columns: list[Any]) -> None:
            file.write(np.ascontiguousarray(columns[0]).data)
            shape[:] = [shape[0] + len(columns[0]), columns[0].shape[1]]

        yield add
        file.seek(0)
        file.write(npy_header(np.float32, (*shape,)))


_WRITERS = dict(zip(SUFFIXES, (_parquet, _csv, _lines, _array), strict=True))
