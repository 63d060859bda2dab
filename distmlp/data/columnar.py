"""Tables as they lie in text files, Parquet files and frames: the columns' names, and the columns as Arrow's arrays."""

import codecs
import contextlib
import csv
import json
import re
import secrets
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distmlp.errors import InputError, one_line

_TEXT = (".csv", ".tsv", ".txt", ".data")
_ARROW = (".feather", ".arrow")
SUFFIXES = (*_TEXT, ".parquet", *_ARROW)
_PACKED = (".gz", ".bz2", ".zst")
_FEW = 1024  # rows that are looked at
_BLOCK = 4 << 20  # bytes of a text file, and values of a Parquet file, that are read at a time
_LONGEST = 16 << 20  # bytes of a first line with a quote that nothing has closed yet
_SEPARATORS = ",;\t|"
# A cell in quotes. A quote within other text is a character of it, to Python's reader and to Arrow's.
_QUOTED = rf'(?<![^{_SEPARATORS}\r\n])"(?:[^"]++|"")*+"'
_FIRST_LINE = re.compile(  # that is not empty; less than that up to a quote that is not closed
    rf'(?:[ \t]*+[\r\n])*+((?:[^"\r\n]++|{_QUOTED}|(?<=[^{_SEPARATORS}\r\n])")*+)(\r\n?|\n)?'.encode())
_INDEX = re.compile(r"Unnamed: \d+(\.\d+)*|__index_level_\d+__")  # pandas' names for an index that has none


class _WithLastRow:
    """A text file to which a row is added: where a quote is not closed, Arrow takes all behind it, this row, too, for
    that cell."""

    closed = False

    def __init__(self, stream: Any, separator: str, width: int) -> None:
        self.cell = secrets.token_hex(8)  # of this row, in all columns
        self.row = (separator.join([self.cell] * width) + "\n").encode()
        self._stream, self._last, self._rest = stream, b"\n", b""  # what is still to be read once the file has ended
        self._ended = False

    def readable(self) -> bool:
        return True

    def read(self, size: int) -> bytes:
        content: bytes = b"" if self._ended else self._stream.read(size)
        self._last = content[-1:] or self._last
        if len(content) < size and not self._ended:
            self._ended, self._rest = True, (b"" if self._last in b"\r\n" else b"\n") + self.row
        taken, self._rest = self._rest[: size - len(content)], self._rest[size - len(content) :]
        return content + taken

    def is_last(self, block: Any) -> bool:
        """Whether the last row of this block is the one that was added."""
        return len(block) > 0 and block.columns[0][-1].as_py() == self.cell


class Raw(NamedTuple):
    """A table of which only the columns' names are known yet."""

    name: str  # for messages
    names: list[str]  # of the columns, each of them once
    read: Callable[[Sequence[str]], Iterator[list[Any]]]  # these columns in blocks of rows, each as Arrow's arrays
    indices: frozenset[str] = frozenset()  # columns that are pandas' index
    nameless: frozenset[str] = frozenset()  # other columns without a name, which must be empty
    dtype: Any = np.float32  # of its numbers; uint8 where a frame holds nothing else
    header: bool = True  # whether the names come with the table; else they count the columns
    text: bool = False  # whether it is a text file, whose first line may be names or not
    rows: int | None = None  # how many there are, where that is known before it is read


def counts(names: Sequence[str]) -> bool:
    """Whether names are 0, 1, 2, ..., as pandas names columns that have no names."""
    return [name.strip() for name in names] == [str(place) for place in range(len(names))]


def suffix(path: Path) -> str:
    """The ending that says what a file holds, in small letters and without that of a compression."""
    name = Path(path.name.lower())
    return (Path(name.stem) if name.suffix in _PACKED else name).suffix


def is_table(path: Path) -> bool:
    return suffix(path) in SUFFIXES


def stem(path: Path) -> str:
    """A table's name without its endings."""
    return (Path(path.stem) if path.suffix.lower() in _PACKED else path).stem


def file(path: Path, is_header: Callable[[list[str]], bool]) -> Raw:
    """The table in a file; of a text file, `is_header` says whether the cells of its first line are names.

    Raises:
      InputError: it is none, or two columns have one name; or later, when it is read, a row that is damaged.
    """
    with _readable(path):
        if suffix(path) == ".parquet":
            return _parquet(path)
        return _arrow(path) if suffix(path) in _ARROW else _text(path, is_header)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What goes wrong with the file within this context is an InputError."""
    import pyarrow as pa

    try:
        yield
    except (OSError, UnicodeError, csv.Error, pa.ArrowException) as error:
        said = one_line(error)
        remedy = "save it as UTF-8" if isinstance(error, UnicodeError) or "invalid UTF8" in said else "mend the file"
        remedy = "change its permissions" if isinstance(error, PermissionError) else remedy
        raise InputError(f"{path} cannot be read as a table ({said}): {remedy}") from None


def _text(path: Path, is_header: Callable[[list[str]], bool]) -> Raw:
    line, skipped = _first_line(path)
    if not line.strip():
        raise InputError(f"{path} cannot be read as a table (it is empty): mend the file")
    unquoted = re.sub(_QUOTED, "", line)
    separator = "\t" if suffix(path) == ".tsv" and "\t" in unquoted else max(_SEPARATORS, key=unquoted.count)
    cells = next(csv.reader([line], delimiter=separator))
    header = is_header(cells)
    if header:
        given = {*cells}
        names = [cell if cell.strip() else _unnamed(place, given) for place, cell in enumerate(cells)]
    else:
        names = [str(place) for place in range(len(cells))]
    leading = next((place for place, name in enumerate(names) if not _INDEX.fullmatch(name)), 0) if header else 0
    blank = {name for name, cell in zip(names, cells, strict=True) if header and not cell.strip()}

    place = {name: str(number) for number, name in enumerate(names)}

    def read(wanted: Sequence[str]) -> Iterator[list[Any]]:
        places = [place[name] for name in wanted]
        with _readable(path):
            yield from _blocks(path, separator, len(names), places, skipped if header else 0, 2 * len(line))

    raw = Raw(str(path), names, read, frozenset(names[:leading]), frozenset(blank - {*names[:leading]}), header=header,
              text=True)
    _check_once(raw.name, names, "" if counts(names) else ", or --header=none if its first line is a row")
    return raw


def _unnamed(place: int, given: set[str]) -> str:
    """What pandas calls a column without a name, also where another one was called so before."""
    name = f"Unnamed: {place}"
    return f"{name}.1" if name in given else name


def _first_line(path: Path) -> tuple[str, int]:
    """The first line that is not empty, which may be of any length, and how many bytes it ends after. An InputError if
    a cell of it has no closing quote."""
    import pyarrow as pa

    with pa.input_stream(str(path), compression="detect") as stream:
        read = stream.read(3)
        mark = len(codecs.BOM_UTF8) if read == codecs.BOM_UTF8 else 0
        read = read[mark:]
        while True:
            more = stream.read(max(1 << 20, len(read)))
            read += more
            found = _FIRST_LINE.match(read)
            assert found is not None  # it matches nothing, too
            if found[2] and (found.end() < len(read) or not more):
                return found[1].decode(), mark + found.end()
            unclosed = found.end() < len(read)
            if unclosed and (not more or len(read) > _LONGEST):
                raise InputError(f"{path} cannot be read as a table (a quote in its first line is not closed): close "
                                 "it, or remove it")
            if not more:
                return found[1].decode(), mark + len(read)


def _blocks(path: Path, separator: str, width: int, places: Sequence[str], skipped: int, line: int) -> Iterator[Any]:
    """Columns of a text file, all as text: what a number is must not depend on the file's first rows."""
    import pyarrow as pa
    from pyarrow import csv

    names = [str(place) for place in range(width)]
    ragged: list[Any] = []

    def note(row: Any) -> str:
        ragged.append(row)
        return "error"

    def blocks(threads: bool) -> Iterator[Any]:
        with pa.input_stream(str(path), compression="detect") as stream:
            if not skipped or stream.read(skipped):
                rows, closed, whole = 0, False, _WithLastRow(stream, separator, width)
                size = _BLOCK + line + 2 * len(whole.row)
                with csv.open_csv(
                    whole,
                    csv.ReadOptions(column_names=names, block_size=size, use_threads=threads),
                    csv.ParseOptions(delimiter=separator, newlines_in_values=True, invalid_row_handler=note,
                                     ignore_empty_lines=width > 1),
                    csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), include_columns=places,
                                       null_values=[""], strings_can_be_null=width == 1,
                                       quoted_strings_can_be_null=False),
                ) as reader:
                    empty = 0
                    for block in reader:
                        closed = whole.is_last(block)
                        block = block.slice(0, len(block) - closed)
                        if not len(block):
                            continue
                        rows += len(block)
                        if width > 1:
                            yield block.columns
                            continue
                        # An empty line is an absent value here, but at the end of the file it is none.
                        cells, there = block.columns[0], np.flatnonzero(block.columns[0].is_valid())
                        filled = there[-1] + 1 if len(there) else 0
                        if filled:
                            yield [pa.concat_arrays([pa.nulls(empty, pa.string()), cells[:filled]])]
                            empty = 0
                        empty += len(cells) - filled
                if not closed:
                    raise InputError(f"{path} cannot be read as a table: a quote that row {rows:,} opens is not "
                                     "closed: close it, or remove it")

    try:
        yield from blocks(threads=True)
    except pa.ArrowInvalid as error:
        if "Empty CSV" in str(error):
            return
        if "straddl" in str(error):
            raise InputError(f"{path} cannot be read as a table: a row has more than {_BLOCK >> 20} MiB, perhaps as a "
                             "quote is not closed: close it, or remove it") from None
        if not ragged:
            raise
        with_number = blocks(threads=False)  # only so are rows counted
        try:
            for _ in with_number:
                pass
        except pa.ArrowInvalid:
            row = ragged[-1]
            raise InputError(f"{path} cannot be read as a table: row {row.number} has {row.actual_columns} cells, but "
                             f"the first line {row.expected_columns}: mend the row") from None


def _parquet(path: Path) -> Raw:
    from pyarrow import parquet

    with parquet.ParquetFile(path) as opened:
        schema, count = opened.schema_arrow, opened.metadata.num_rows

    def batches(columns: Sequence[int], size: int) -> Iterator[Any]:
        chosen = [schema.names[place] for place in columns]
        # Unbuffered, for else whole row groups are held.
        with _readable(path), parquet.ParquetFile(path, pre_buffer=False, buffer_size=1 << 16) as opened:
            yield from opened.iter_batches(size, columns=chosen)

    return _with_schema(path, schema, count, batches)


def _arrow(path: Path) -> Raw:
    """A file of Arrow's, as Feather is one, or a stream of its batches, which Hugging Face's data sets are."""
    import pyarrow as pa

    @contextlib.contextmanager
    def opened(columns: Sequence[int] | None = None) -> Iterator[tuple[Any, Iterator[Any]]]:
        """The schema, and the batches of rows."""
        options = pa.ipc.IpcReadOptions(included_fields=None if columns is None else [*columns])
        with pa.OSFile(str(path)) as source:  # a mapped file would count as memory
            if source.read(6) == b"ARROW1":
                reader = pa.ipc.open_file(source, options=options)
                yield reader.schema, map(reader.get_batch, range(reader.num_record_batches))
            else:
                source.seek(0)
                reader = pa.ipc.open_stream(source, options=options)
                yield reader.schema, iter(reader)

    with opened() as (schema, every):
        count = sum(map(len, every))

    def batches(columns: Sequence[int], size: int) -> Iterator[Any]:
        with _readable(path), opened(columns) as (_, every):
            for batch in every:
                yield from (batch.slice(start, size) for start in range(0, len(batch), size))

    return _with_schema(path, schema, count, batches)


def _with_schema(
    path: Path, schema: Any, count: int, batches: Callable[[Sequence[int], int], Iterator[Any]]
) -> Raw:
    """The table in a file that says its columns' types and its `count` of rows. `batches` gives the columns at some
    places, in their order, in blocks of at most so many rows.
    """
    metadata = schema.metadata or {}
    pandas = json.loads(metadata.get(b"pandas", b"{}"))
    index = {name for name in pandas.get("index_columns", ()) if isinstance(name, str)}
    index |= {name for name in schema.names if _INDEX.fullmatch(name)}
    fields = _fields(str(path), schema.names, schema.types,
                     lambda place: (block.columns[0] for block in batches([place], _FEW)))  # fmt: skip

    def read(wanted: Sequence[str]) -> Iterator[list[Any]]:
        columns = sorted({fields[name][0] for name in wanted})
        for block in batches(columns, max(1, min(1 << 15, _BLOCK // max(1, len(columns))))):
            by_place = dict(zip(columns, block.columns, strict=True))
            yield _elements(by_place, wanted, fields, str(path))

    return Raw(str(path), [*fields], read, frozenset(index & {*fields}), rows=count)


def with_constants(raw: Raw, constants: dict[str, str]) -> Raw:
    """A table with more columns, each of one text for all rows; an InputError if it has one of these names already."""
    import pyarrow as pa

    def read(wanted: Sequence[str]) -> Iterator[list[Any]]:
        own = [name for name in wanted if name not in constants]
        for block in raw.read(own or raw.names[:1]):
            columns = dict(zip(own, block, strict=False))
            rows = len(block[0])
            yield [columns[name] if name in columns else pa.repeat(pa.scalar(constants[name]), rows) for name in wanted]

    _check_once(raw.name, [*raw.names, *constants])
    return raw._replace(names=[*raw.names, *constants], read=read)


def frame(table: Any, name: str) -> Raw:
    """A frame of pandas or polars, or a table of Arrow; an InputError names the column that cannot be converted."""
    import pyarrow as pa

    if hasattr(table, "iloc"):
        names = [str(column) for column in table.columns]
        columns = [_series(table.iloc[:, place], f"{name}: column {column}") for place, column in enumerate(names)]
        index: set[str] = set()
    else:
        table = table.to_arrow() if hasattr(table, "to_arrow") else pa.table(table)
        names, columns = table.column_names, [column.combine_chunks() for column in table.columns]
        pandas = json.loads((table.schema.metadata or {}).get(b"pandas", b"{}"))
        index = {column for column in pandas.get("index_columns", ()) if column in names}
    index |= {column for column in names if _INDEX.fullmatch(column)}  # of the file that it was read from
    fields = _fields(name, names, [column.type for column in columns], lambda place: iter([columns[place]]))

    def read(wanted: Sequence[str]) -> Iterator[list[Any]]:
        if len(table):
            yield _elements(columns, wanted, fields, name)

    only_bytes = all(str(column.type) == "uint8" and not column.null_count for column in columns)
    return Raw(name, [*fields], read, frozenset(index), dtype=np.uint8 if only_bytes else np.float32)


def is_frame(value: Any) -> bool:
    """Whether a value is a table that has columns by name."""
    known = any(hasattr(value, name) for name in ("iloc", "to_arrow", "column_names"))
    return known and hasattr(value, "columns") and len(value.shape) == 2


def refuse_sparse_or_masked(value: Any) -> None:
    """Raises InputError for a sparse matrix of SciPy's, which NumPy would take for a single object; and for masked
    cells, whose values NumPy would take."""
    if isinstance(value, np.ma.MaskedArray) and value.mask.any():
        raise InputError(f"{value.mask.sum():,} cells of an array are masked: fill them, as in x.filled(0), or "
                         "give a frame with NaN in them, and --missing=mean")
    if hasattr(value, "tocsr") and hasattr(value, "toarray"):
        raise InputError(f"the features are a sparse matrix ({type(value).__name__}): give x.toarray(), which takes "
                         f"{4e-9 * value.shape[0] * value.shape[-1]:.1g} GB")


def _series(series: Any, name: str) -> Any:
    """A column of a pandas frame as Arrow's."""
    import pyarrow as pa

    try:
        made = pa.array(series.to_numpy() if str(series.dtype).startswith("Sparse") else series, from_pandas=True)
        return made.combine_chunks() if isinstance(made, pa.ChunkedArray) else made
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise InputError(f"{name} cannot be converted to numbers or text ({one_line(error, 100)}): give it one kind of "
                         "values, or leave it out") from None


_Field = tuple[int, int | None, int]  # a column's place; of a column of lists, which of how many elements


def _is_list(kind: Any) -> bool:
    import pyarrow.types as kinds

    return bool(kinds.is_list(kind) or kinds.is_large_list(kind) or kinds.is_fixed_size_list(kind))


def _fields(
    table: str, names: Sequence[str], types: Sequence[Any], blocks: Callable[[int], Iterator[Any]]
) -> dict[str, _Field]:
    """Where the column of each name is found; an InputError if two have one. Lists of one length, as embeddings are,
    become a column an element; of the column at a place, `blocks` gives the rows, until one has a list that holds
    anything."""
    import pyarrow.compute as pc

    _check_once(table, names)
    fields: list[tuple[str, _Field]] = []
    for place, (name, kind) in enumerate(zip(names, types, strict=True)):
        size = getattr(kind, "list_size", 0)
        if _is_list(kind) and not size:
            longest = (pc.max(pc.list_value_length(block)).as_py() for block in blocks(place))
            size = next(filter(None, longest), 0)
        if size:
            fields += [(f"{name}[{element}]", (place, element, size)) for element in range(size)]
        else:
            fields.append((name, (place, None, 1)))  # of lists that hold nothing, one that is refused as no numbers
    _check_once(table, [name for name, _ in fields])
    return dict(fields)


def _elements(columns: Any, wanted: Sequence[str], fields: dict[str, _Field], table: str) -> list[Any]:
    """The columns of these names, of those by their place."""
    import pyarrow as pa
    import pyarrow.compute as pc

    found, checked = [], set[int]()
    for name in wanted:
        place, element, size = fields[name]
        array = columns[place]
        if element is not None and place not in checked and not pa.types.is_fixed_size_list(array.type):
            checked.add(place)
            lengths = pc.list_value_length(array)
            other = pc.index(pc.not_equal(lengths, size), True).as_py()
            if other >= 0:
                raise InputError(f"{table}: a list in column {name.rpartition('[')[0]} has {lengths[other]} values, "
                                 f"but another {size}: all must have as many")
        found.append(array if element is None else pc.list_element(array, element))
    return found


def _check_once(table: str, names: Sequence[str], hint: str = "") -> None:
    """Raises InputError if two of a table's columns have one name, blanks at its ends left aside."""
    twice = [name for name, times in Counter(map(str.strip, names)).items() if times > 1]
    if twice:
        raise InputError(f"{table} has several columns named {twice[0]}: give each its own name{hint}")
