"""Cells of a table as numbers, words and labels, read in blocks of rows so that no second copy of the table is made."""

import contextlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from distmlp.data.columnar import Raw
from distmlp.data.labels import ABSENT, Written
from distmlp.data.spread import Spread
from distmlp.errors import InputError

_BLOCK = 8192  # rows that are moved at a time
MOST_WORDS = 1000  # in a column of text
_NUMBER = re.compile(r"\s*[+-]?(\d+\.?\d*([eE][+-]?\d+)?|\.\d+([eE][+-]?\d+)?|inf(inity)?|nan)\s*", re.IGNORECASE)


class Words(NamedTuple):
    """A column of text: each row's place in the list of the words that occur, or -1 where it has none."""

    codes: np.ndarray  # int32 [rows]
    words: list[str]


class Table(NamedTuple):
    """Rows of features by name."""

    name: str  # for messages
    names: list[str]
    numbers: np.ndarray  # float32 or uint8 [rows, columns that are no text], in the order of the names; absent: NaN
    texts: dict[str, Words]

    def part(self, start: int, stop: int) -> "Table":
        """The rows from `start` to before `stop`, in the memory of this table."""
        texts = {name: Words(codes[start:stop], words) for name, (codes, words) in self.texts.items()}
        return self._replace(numbers=self.numbers[start:stop], texts=texts)

    def take(self, rows: np.ndarray) -> "Table":
        texts = {name: Words(codes[rows], words) for name, (codes, words) in self.texts.items()}
        return self._replace(numbers=self.numbers[rows], texts=texts)

    def keep(self, rows: np.ndarray) -> "Table":
        """The rows at these ascending positions, moved together in this table's own memory, which is used up."""
        for start in range(0, len(rows), _BLOCK):
            block = rows[start : start + _BLOCK]
            self.numbers[start : start + len(block)] = self.numbers[block]
        self.numbers.resize((len(rows), self.numbers.shape[1]), refcheck=False)
        return self._replace(texts={name: Words(codes[rows], words) for name, (codes, words) in self.texts.items()})


def joined(tables: Sequence[Table]) -> Table:
    """The rows of several tables of the same columns, one after the other."""
    if len(tables) == 1:
        return tables[0]
    texts = {}
    for name in tables[0].texts:
        known: dict[str, int] = {}
        codes = []
        for table in tables:
            local, words = table.texts[name]
            place = np.array([*(known.setdefault(word, len(known)) for word in words), -1], np.int32)
            codes.append(place[local])
        texts[name] = Words(np.concatenate(codes), [*known])
    return tables[0]._replace(numbers=np.concatenate([table.numbers for table in tables]), texts=texts)


class Choice(NamedTuple):
    """Of a table's columns, those that are read."""

    features: list[str]  # in the order of the training set
    label: str | None = None
    weight: str | None = None
    empty: Sequence[str] = ()  # columns without a name, which must hold nothing
    remarks: Sequence[str] = ()  # what the user should know of the others

    @property
    def names(self) -> list[str]:
        return [*self.features, *filter(None, (self.label, self.weight)), *self.empty]


class Rules(NamedTuple):
    """What the cells of a table may be."""

    texts: frozenset[str] | None  # the columns of text; None: this table decides
    one_hot: bool  # whether there may be such columns
    absent: bool  # whether cells may be empty


def is_number(cell: str) -> bool:
    """Whether the text of a cell is a number."""
    return bool(_NUMBER.fullmatch(cell))


def looks_like_data(cell: str) -> bool:
    """Whether the text of a cell is a number, True or False, or stands for an absent value."""
    return is_number(cell) or cell.strip() in ABSENT or cell.strip().lower() in ("true", "false")


def read(raw: Raw, choice: Choice, rules: Rules) -> tuple[Table, np.ndarray | None, np.ndarray | None]:
    """A table's features, and its labels and weights if such columns are chosen.

    Raises:
      InputError: a cell is not what the rules allow: its row, the first being 1, and its column are named; or of a
        training set, float32 cannot tell a column's values apart.
    """
    texts = set(rules.texts or ())
    while True:
        numbers = [name for name in choice.features if name not in texts]
        spread = Spread(len(numbers)) if rules.texts is None else None  # of a training set
        reading = _Reading(raw, choice, rules, texts, spread)
        for block in raw.read(choice.names):
            reading.add(block)
            if reading.found and reading.first:
                break  # begin again: these columns are text
        if not reading.found:
            if spread:
                spread.check(raw.name, numbers)
            return reading.result()
        texts |= reading.found


class Block(NamedTuple):
    """Some thousand rows of a table."""

    table: Table
    labels: "np.ndarray | Words | None"  # Words where the labels are text
    weights: np.ndarray | None
    carried: list[Any]  # other columns, as Arrow's arrays


class TextFound(Exception):
    """Columns that were taken for numbers hold text, as `names` says; the table must be read again."""

    def __init__(self, names: set[str]) -> None:
        super().__init__(*sorted(names))
        self.names = names


def stream(
    raw: Raw, choice: Choice, rules: Rules, *, texts: frozenset[str] = frozenset(), carried: Sequence[str] = (),
    start: int = 0, spread: Spread | None = None,
) -> Iterator[Block]:
    """As `read`, but block by block, so that the table need not fit in memory.

    Args:
      texts: where rules.texts is None, the columns that are known to be text.
      carried: columns that come along as they are.
      start: how many rows to leave out.
      spread: is shown the columns of numbers, in their order.

    Raises:
      InputError: as `read`, but for values that are too close together.
      TextFound: a column is text that is not among `texts`, and may be.
    """
    reading, wanted = _Reading(raw, choice, rules, {*(rules.texts or texts)}, spread), choice.names
    once = [*dict.fromkeys([*wanted, *carried])]
    for read in raw.read(once):
        skipped = min(start, len(read[0]))
        if skipped:
            start -= skipped
            reading.skip(skipped)
            read = [column.slice(skipped) for column in read]
            if not len(read[0]):
                continue
        by_name = dict(zip(once, read, strict=True))
        reading.add([by_name[name] for name in wanted])
        if reading.found:
            raise TextFound(reading.found)
        yield Block(*reading.taken(), [by_name[name] for name in carried])


def surely_finite(values: np.ndarray) -> bool:
    """Whether all values are finite, in one fast pass; where it says no, that may be because their sum overflows."""
    with np.errstate(over="ignore", invalid="ignore"):
        return bool(np.isfinite(values.sum()))


class _Reading:
    """One pass over a table."""

    def __init__(
        self, raw: Raw, choice: Choice, rules: Rules, texts: set[str], spread: Spread | None = None
    ) -> None:
        """`spread` is shown the columns of numbers, in their order."""
        self._raw, self._choice, self._rules, self._rows, self._spread = raw, choice, rules, 0, spread
        features, label = choice.features, choice.label
        if len({*features}) < len(features):  # of one of the two, nothing would be written
            twice = next(name for name in features if features.count(name) > 1)
            raise InputError(f"{raw.name} has one column {twice}, and the run was trained on several of that name: "
                             "give each its own name, and train again")
        self._texts: dict[str, tuple[list[np.ndarray], dict[Any, int]]] = {
            name: ([], {}) for name in features if name in texts}  # fmt: skip
        numbers = [name for name in features if name not in texts]
        self._places = {name: place for place, name in enumerate(numbers)}
        self._numbers = np.empty((0, len(numbers)), raw.dtype)
        self._labels: _Labels | None = _Labels(raw.name, label, raw.text) if label else None
        self._weights = [np.zeros(0)]
        self._truths: set[str] = set()  # columns in which True or False were seen as text
        self._written: set[str] = set()  # columns of numbers that came as text
        self._counts: set[str] = set()  # of these, those in which others than 0 and 1 were among the rows taken
        self.found: set[str] = set()  # columns that were taken for numbers until one of their cells was none
        self.first = True  # whether one block has been read at most

    def add(self, block: Sequence[Any]) -> None:
        self.first = self._rows == 0
        begin, rows = len(self._numbers), len(block[0]) if block else 0
        if begin:
            # The system moves pages instead of copying them, so that no second array of this size is ever needed.
            self._numbers.resize((begin + rows, len(self._places)), refcheck=False)
        else:
            self._numbers = np.empty((rows, len(self._places)), self._raw.dtype)
        for name, values in zip(self._choice.features, block, strict=False):
            if name in self._texts:
                self._add_words(name, values)
            elif name not in self.found:
                self._add_numbers(name, values, begin)
        if not self.found:  # else columns are not written, and all is read again
            self._check_finite(self._numbers[begin:])
        rest = block[len(self._choice.features) :]
        if self._labels is not None:
            self._labels.add(rest[0], self._rows)
            rest = rest[1:]
        if self._choice.weight:
            self._add_weights(self._choice.weight, rest[0])
            rest = rest[1:]
        for name, values in zip(self._choice.empty, rest, strict=True):
            self._check_nameless(name, values)
        self._rows += rows

    def _add_numbers(self, name: str, values: Any, begin: int) -> None:
        numbers, truths = _numbers(values)
        if _is_text(values.type):
            self._written.add(name)
        column = self._numbers[:, self._places[name]]
        if numbers is not None and (truths or name in self._truths):
            self._truths.add(name)
            if (truths and name in self._counts) or not _binary(column[:begin] if truths else numbers):
                numbers = None  # True beside numbers
        if numbers is None:
            if self._rules.one_hot and self._rules.texts is None and _is_text(values.type):
                self.found.add(name)
                return
            raise self._no_number(name, values)
        absent = np.isnan(numbers)
        if not self._rules.absent and absent.any():
            raise self._no_value(name, int(absent.argmax()))
        with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, for _check_finite to find
            column[begin:] = numbers
        if self._spread is not None:
            self._spread.add(numbers, self._places[name])

    def _check_finite(self, rows: np.ndarray) -> None:
        if surely_finite(rows):
            return
        for row, place in np.argwhere(np.isinf(rows))[:1]:
            name = next(name for name, at in self._places.items() if at == place)
            raise InputError(f"{self._raw.name}: row {self._rows + row + 1} of column {name} is infinite, or beyond "
                             "float32: mend it, or remove the row")

    def _add_words(self, name: str, values: Any) -> None:
        codes, known = self._texts[name]
        local, words = _words(values)
        for word in words:
            known.setdefault(word, len(known))
        if self._rules.texts is None and len(known) > MOST_WORDS:
            raise InputError(f"{self._raw.name}: column {name} has more than {MOST_WORDS:,} different words, as "
                             f"{words[0]!r}: give --ignore_columns={name}, or numbers instead")
        if not self._rules.absent and (local < 0).any():
            raise self._no_value(name, int((local < 0).argmax()))
        place = np.array([*(known[word] for word in words), -1], np.int32)
        codes.append(place[local])

    def _add_weights(self, name: str, values: Any) -> None:
        numbers, _ = _numbers(values)
        if numbers is None or np.isnan(numbers).any():
            cells = values.to_pylist()
            absent = [not _NUMBER.fullmatch(str(cell)) for cell in cells] if numbers is None else np.isnan(numbers)
            row = int(np.argmax(absent))
            raise InputError(f"{self._raw.name}: row {self._rows + row + 1} of column {name} is {cells[row]!r}, no "
                             "weight: mend it, or remove the row")
        self._weights.append(numbers)

    def _check_nameless(self, name: str, values: Any) -> None:
        _, words = _words(values)
        if words:
            number = int(name.removesuffix(".1").rpartition(" ")[2]) + 1
            raise InputError(f"{self._raw.name}: column {number} has no name, but values, as {words[0]!r}: name it in "
                             f"the first line, or give --ignore_columns='{name}'")

    def _no_value(self, name: str, row: int) -> InputError:
        remedy = f"remove the row, fill it in, or give --missing=mean, --missing=zero or --ignore_columns={name}"
        if self._rules.texts is not None:
            remedy = "remove the row, or fill it in: the run was trained with --missing=refuse"
        return InputError(f"{self._raw.name}: row {self._rows + row + 1} of column {name} has no value: {remedy}")

    def _no_number(self, name: str, values: Any) -> InputError:
        later = self._rules.texts is not None
        if not _is_text(values.type):
            remedy = ("in training this column had numbers; mend it" if later else
                      f"give --ignore_columns={name}, or replace the column by numbers")
            return InputError(f"{self._raw.name}: column {name} is of the type {values.type}, not of numbers: {remedy}")
        cells = _plain(_decoded(values)).to_pylist()
        row = next((i for i, cell in enumerate(cells) if cell is not None and not _NUMBER.fullmatch(cell)), 0)
        where = f"{self._raw.name}: row {self._rows + row + 1} of column {name} is {cells[row]!r}, not a number"
        if later:
            return InputError(f"{where}: in training this column had numbers only; mend it")
        return InputError(f"{where}: give --ignore_columns={name}, --text_columns=one_hot, or numbers instead")

    def result(self) -> tuple[Table, np.ndarray | None, np.ndarray | None]:
        return self._table(), self._labels.result() if self._labels else None, self._weighed()

    def _table(self) -> Table:
        texts = {name: Words(np.concatenate([np.zeros(0, np.int32), *codes]), [*words])
                 for name, (codes, words) in self._texts.items()}
        return Table(self._raw.name, list(self._choice.features), self._numbers, texts)

    def _weighed(self) -> np.ndarray | None:
        return np.concatenate(self._weights) if self._choice.weight else None

    def skip(self, rows: int) -> None:
        """Counts rows that are left out."""
        self._rows += rows

    def taken(self) -> tuple[Table, "np.ndarray | Words | None", np.ndarray | None]:
        """The rows since the last call, which are no longer kept."""
        table, weights = self._table(), self._weighed()
        for name in self._written - self._counts:
            if not _binary(table.numbers[:, self._places[name]]):
                self._counts.add(name)
        self._numbers = np.empty((0, len(self._places)), self._raw.dtype)
        self._texts = {name: ([], {}) for name in self._texts}
        self._weights = [np.zeros(0)]
        return table, self._labels.taken() if self._labels else None, weights


class _Labels:
    """The column of labels; of a text file, what they are is for all of them together to say."""

    def __init__(self, table: str, column: str, text: bool) -> None:
        self._table, self._column, self._text = table, column, text
        self._arrays: list[np.ndarray] = []
        self._words: dict[Any, int] = {}  # text: each word once, for it may be long

    def add(self, values: Any, begin: int) -> None:
        values = _decoded(values)
        if _is_text(values.type):
            local, words = _words(values, absent=("",))
            place = np.array([*(self._words.setdefault(word, len(self._words)) for word in words), -1], np.int32)
            array, absent = place[local], local < 0
        else:
            absent = np.asarray(values.is_null().to_numpy(zero_copy_only=False))
            array = np.zeros(0) if absent.all() else np.asarray(values.to_numpy(zero_copy_only=False))
        if absent.any():
            raise InputError(f"{self._table}: row {begin + int(absent.argmax()) + 1} has no label in column "
                             f"{self._column}: remove the row")
        self._arrays.append(array)

    def result(self) -> np.ndarray:
        if not self._arrays:
            return np.zeros(0, np.int64)
        array = np.concatenate(self._arrays)
        if not self._words:
            return array
        words = [Written(word) if self._text else word for word in self._words]
        return np.array(words, object)[array]

    def taken(self) -> "np.ndarray | Words":
        """The labels since the last call, which are no longer kept."""
        arrays, words = self._arrays, [*self._words]
        self._arrays, self._words = [], {}
        array = np.concatenate(arrays) if arrays else np.zeros(0, np.int64)
        return Words(array, words) if words else array


def _is_text(kind: Any) -> bool:
    import pyarrow as pa

    kind = kind.value_type if pa.types.is_dictionary(kind) else kind
    return str(kind) in ("string", "large_string", "string_view")


def _decoded(values: Any) -> Any:
    """The cells without a dictionary, and text as strings: Arrow's functions for text take no others."""
    import pyarrow as pa

    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if str(values.type) == "string_view":  # which older versions of pyarrow cannot cast
        values = pa.array(values.to_numpy(zero_copy_only=False), pa.string())
    return values


def _plain(values: Any, absent: Sequence[str] = ABSENT) -> Any:
    """Text without blanks at its ends, and null where it stands for an absent value."""
    import pyarrow as pa
    import pyarrow.compute as pc

    values = pc.utf8_trim_whitespace(values)
    return pc.if_else(pc.is_in(values, pa.array(absent, values.type)), pa.scalar(None, values.type), values)


def _numbers(values: Any) -> tuple[np.ndarray | None, bool]:
    """A column as floating-point numbers, absent ones NaN, or None if they are none; and whether it was True and False
    as text."""
    import pyarrow as pa

    kinds, values = pa.types, _decoded(values)
    if not _is_text(values.type):
        if kinds.is_boolean(values.type):
            values = values.cast(pa.uint8())
        kind = values.type
        if not (kinds.is_integer(kind) or kinds.is_floating(kind) or kinds.is_decimal(kind) or kinds.is_null(kind)):
            return None, False
        if not kinds.is_floating(kind):
            values = values.cast(pa.float64(), safe=False)
        return np.asarray(values.to_numpy(zero_copy_only=False)), False
    with contextlib.suppress(ValueError):  # pyarrow's ArrowInvalid is one
        return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False)), False
    values = _plain(values)
    with contextlib.suppress(ValueError):
        return np.asarray(values.cast(pa.float64()).to_numpy(zero_copy_only=False)), False
    with contextlib.suppress(ValueError):
        return np.asarray(values.cast(pa.bool_()).cast(pa.float64()).to_numpy(zero_copy_only=False)), True
    return None, False


def _binary(numbers: np.ndarray) -> bool:
    return bool(((numbers == 0) | (numbers == 1) | np.isnan(numbers)).all())


def _words(values: Any, absent: Sequence[str] = ABSENT) -> tuple[np.ndarray, list[str]]:
    """A column as places in a list of words, int64 [rows], -1 where there is none; and the list."""
    import pyarrow as pa

    values = _decoded(values)
    if not _is_text(values.type):
        values = values.cast(pa.string())
    coded = _plain(values, absent).dictionary_encode()
    return np.asarray(coded.indices.fill_null(-1)), coded.dictionary.to_pylist()
