"""Which columns of a table are features, and what training has learned of them: later tables become the same features
by the columns' names."""

import csv
import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from distmlp.config import Config
from distmlp.data.columnar import Raw, counts
from distmlp.data.typed import MOST_WORDS, Choice, Table, is_number, looks_like_data
from distmlp.errors import InputError, listed

_LABEL_NAMES = ("label", "target", "class", "y")
_BLOCK = 8192  # rows that are filled in at a time


@dataclasses.dataclass(frozen=True)
class Columns:
    """The columns of a training set. A checkpoint has this as JSON, and predictions find their columns by it."""

    names: tuple[str, ...]  # of the features' columns, in order; none where the features have no names
    label: str = ""
    ignored: tuple[str, ...] = ()
    words: dict[str, list[str]] = dataclasses.field(default_factory=dict)  # a column of text has a feature for each
    fill: dict[str, float] = dataclasses.field(default_factory=dict)  # what an absent number becomes
    absent: bool = False  # whether there may be absent values; an absent word is 0 in all of its column's features
    weight: str = ""

    @classmethod
    def of_checkpoint(cls, info: dict[str, Any]) -> "Columns | None":
        """From what Data.info said; older runs knew the names only. None for features without names."""
        if known := info.get("table"):
            return cls(**known | {"names": tuple(known["names"]), "ignored": tuple(known["ignored"])})
        return cls(tuple(info["columns"])) if info.get("columns") else None

    def as_json(self) -> dict[str, Any]:
        return dataclasses.asdict(self)

    @property
    def counted(self) -> bool:
        """Whether the names merely count the columns of a table that has no names: with those of other use, if any."""
        return all(name.strip().isdecimal() for name in self.names) and counts(self._places)

    @property
    def _places(self) -> list[str]:
        """The names that count columns, in order, also those of no features."""
        beside = {*self.names, self.label, self.weight, *self.ignored}
        return sorted({name.strip() for name in beside if name.strip().isdecimal()}, key=int)

    @property
    def width(self) -> int:
        """How many columns the training set had that were counted; at least, where its labels came apart from it."""
        return int(self._places[-1]) + 1 if self._places else 0

    def same_places(self, width: int, labelled: bool) -> bool:
        """Whether a table without names that has so many columns surely has the features, and the labels if they are
        asked for, where the training set had them: if it has all columns, or if none but the last ones can lack.
        """
        if width == self.width or (not self.label and width > self.width):
            return True
        used = {*self.names, self.label} if labelled and self.label else {*self.names}
        return width < self.width and {int(name) for name in used} == {*range(len(used))}

    @property
    def features(self) -> list[str]:
        """The names of the network's inputs: the columns', and COLUMN=WORD for each word of a column of text."""
        return [feature for name in self.names
                for feature in ([f"{name}={word}" for word in self.words[name]] if name in self.words else [name])]

    def of_texts(self, texts: Sequence[str], absent: bool) -> "Columns":
        """These columns, some of which are text; which words there are is not known yet."""
        return dataclasses.replace(self, words={name: [] for name in texts}, absent=absent)

    def learned(self, table: Table, config: Config) -> "Columns":
        """With what the training rows alone say: the words that occur, and what stands for absent numbers."""
        learner = Learner(self, config, table.name)
        for start in range(0, len(table.numbers), Learner.ROWS):
            learner.add(table.part(start, start + Learner.ROWS))
        return learner.result()

    def remarks(self, name: str) -> list[str]:
        """What the user should know of the words that were learned from the table of this name."""
        found = []
        for column, words in self.words.items():
            if 2 * sum(is_number(word.replace(",", "")) for word in words) > len(words):  # 1,5 and 1,000 are such, too
                others = [repr(word) for word in words if not is_number(word)]
                what = listed(others, 3) or "text in rows that are held out"
                found.append(f"{name}: column {column} holds numbers and {what}: it is taken as text, each of its "
                             f"{len(words):,} words a feature; mend {what}, or empty these cells and give --missing")
        return found

    def encode(self, table: Table, unseen: "Unseen") -> np.ndarray:
        """The features of a table, whose columns are these in this order, uint8 or float32 [rows, features]. The
        table's own numbers are used up; words that training did not see are counted in `unseen`.
        """
        numbers = table.numbers
        if self.fill and numbers.dtype != np.uint8:  # which has no absent values
            fill = np.array(list(self.fill.values()), np.float32)
            for start in range(0, len(numbers), _BLOCK):
                block = numbers[start : start + _BLOCK]
                np.copyto(block, np.broadcast_to(fill, block.shape), where=np.isnan(block))
        if not self.words:
            return numbers
        features = np.zeros((len(numbers), len(self.features)), np.float32)
        place = number = 0
        for name in self.names:
            if name not in self.words:
                features[:, place] = numbers[:, number]
                place, number = place + 1, number + 1
                continue
            known = {word: place + offset for offset, word in enumerate(self.words[name])}
            codes, words = table.texts[name]
            # Of a column of truths, which has no words of its own, they are these in small letters.
            truths = {word.lower(): at for word, at in known.items() if word.lower() in ("true", "false")}
            places = np.array([*(known.get(word, truths.get(word, -1)) for word in words), -2])[codes]  # -1: not seen
            rows = np.flatnonzero(places >= 0)
            features[rows, places[rows]] = 1
            strange = codes[places == -1]
            if len(strange):
                unseen.add(name, len(strange), [words[code] for code in np.unique(strange)])
            place += len(known)
        return features


class Unseen:
    """Words that training did not see, over the blocks of a table."""

    _MOST = 100_000  # words of a column that are told apart

    def __init__(self) -> None:
        self._rows: Counter[str] = Counter()  # by column
        self._words: dict[str, dict[str, None]] = {}

    def add(self, column: str, rows: int, words: Sequence[str]) -> None:
        self._rows[column] += rows
        known = self._words.setdefault(column, {})
        if len(known) < self._MOST:
            known.update(dict.fromkeys(words))

    def remarks(self, name: str) -> list[str]:
        """What the user should know, of the table of this name."""
        return [f"{name}: in {self._rows[column]:,} rows, column {column} has one of {len(words):,} words that "
                f"training did not see, which count as none: {listed([*words], 3)}"
                for column, words in self._words.items()]


class Learner:
    """What the training rows say of columns: the words that occur, and what stands for absent numbers."""

    ROWS = _BLOCK  # of a block: the sums, and so the last bits of a mean, depend on it

    def __init__(self, columns: Columns, config: Config, name: str) -> None:
        """`name`: of the table, for messages."""
        self._columns, self._missing, self._name = columns, config.missing, name
        self._words: dict[str, set[str]] = {column: set() for column in columns.words}
        self._numbers = [column for column in columns.names if column not in columns.words]
        self._sums, self._present = np.zeros((2, len(self._numbers)))

    def add(self, block: Table) -> None:
        """The next rows: ROWS of them, or fewer at the end."""
        for column, (codes, known) in block.texts.items():
            found = self._words[column]
            found.update(known[code] for code in np.unique(codes) if code >= 0)
            if len(found) > MOST_WORDS:
                raise self._unusable(column)
        if self._missing == "mean":
            there = ~np.isnan(block.numbers)
            self._sums += np.where(there, block.numbers, 0).sum(axis=0, dtype=np.float64)
            self._present += there.sum(axis=0)

    def _unusable(self, column: str) -> InputError:
        return InputError(f"{self._name}: column {column} has {len(self._words[column]):,} different words, and may "
                          f"have 1 to {MOST_WORDS:,}: give --ignore_columns={column}, or numbers instead")

    def result(self) -> Columns:
        for column, found in self._words.items():
            if not found:
                raise self._unusable(column)
        fill = {}
        if self._missing == "zero":
            fill = dict.fromkeys(self._numbers, 0.0)
        elif self._missing == "mean":
            if not self._present.all():
                column = self._numbers[int(np.argmin(self._present))]
                raise InputError(f"{self._name}: column {column} has no value in the training set, and so no mean: "
                                 f"give --ignore_columns={column} or --missing=zero")
            fill = dict(zip(self._numbers, (self._sums / self._present).tolist(), strict=True))
        words = {column: sorted(found) for column, found in self._words.items()}
        return dataclasses.replace(self._columns, words=words, fill=fill, absent=self._missing != "refuse")


def is_header(cells: Sequence[str], name: str, config: Config, known: Columns | None, sure: bool) -> bool:
    """Whether the cells of a text file's first line are names: compared with those that are known, if there are any.

    `sure`: --header is said of this very file, not of the one that was trained on.
    """
    names = {cell.strip() for cell in cells}
    wanted = {column.strip() for column in known.names} if known else set()
    if config.header == "none":
        return not sure and counts(cells) and len(cells) > 3  # a default frame's
    if counts(cells) and len(cells) > 1:
        return True
    data = [looks_like_data(cell) for cell in cells]
    if known and wanted & names:
        # Numbers may be names, too, as years are: these differ from one another, and are no fractions.
        numbers = [cell.strip() for cell, number in zip(cells, data, strict=True) if number and cell.strip()]
        as_names = len({*numbers}) == len(numbers) and all(map(str.isdecimal, numbers)) and not known.counted
        if wanted <= names or as_names or not all(map(str.isdecimal, wanted)):
            return True
    if known is None or len(cells) != len(known.names):
        if sure and all(data):
            raise InputError(f"{name} has numbers for names ({listed(cells, 3)}): give --header=none if "
                             "it is a row, or else names")
        return not all(data)
    if len(known.words) == len(known.names):
        return not all(cell.strip() in known.words[column] for cell, column in zip(cells, known.names, strict=True))
    return not all(fits or column in known.words for fits, column in zip(data, known.names, strict=True))


def chosen(raw: Raw, config: Config, labelled: bool = True) -> tuple[Choice, Columns]:
    """The columns of a training set's table: all but the labels', the weights', pandas' index and --ignore_columns are
    features.

    The labels' column is --label_column, or the one named label, target, class or y.
    """
    ignored = _ignored(raw, config)
    weight = _weight(raw, config.weight_column, ignored)
    label = _label(raw, config.label_column, ignored | {weight or ""}) if labelled else None
    if weight and weight == label:
        raise InputError(f"--weight_column={weight} is the column of labels, too: name two columns")
    beside = {label, weight, *ignored}
    features = [name for name in raw.names
                if name not in beside and name not in raw.indices and name not in raw.nameless]
    if not labelled and config.label_column and (given := config.label_column.strip()) in map(str.strip, features):
        raise InputError(f"--label_column={given} is among the features of {raw.name}: leave it out of x")
    if not features:
        raise InputError(f"{raw.name} has no columns of features beside {listed(raw.names)}: give it one or more")
    index = [name for name in raw.names if name in raw.indices and name not in beside]
    remarks = [f"{raw.name}: {_columns(index)} pandas' index, no feature, and left out"] if index else []
    left_out = tuple(sorted(name.strip() for name in ignored))
    columns = Columns(tuple(features), label or "", left_out, weight=weight or "")
    return Choice(features, label, weight, _empty(raw, columns.ignored), remarks), columns


def matched(raw: Raw, columns: Columns | None, config: Config, labelled: bool, width: int = 0) -> Choice:
    """The columns of a later table that a model knows: found by name, or by place where one side has no names.

    A model that knows no names takes all columns, but for one of labels, unless it takes `width` of them.
    """
    known = columns or Columns(())
    by_name = {name.strip(): name for name in raw.names}
    if "Unnamed: 0" in by_name:  # as a text table's column without a name is called
        by_name.setdefault("", "Unnamed: 0")
    label = by_name.get(known.label.strip()) if known.label else None
    if labelled:
        if known.label and not label:
            raise InputError(f"{raw.name} has no column {known.label}, without which nothing can be tested on it: "
                             "train on the other file alone, by --dataset and --test_fraction=0.2, and predict this")
        features = frozenset(by_name.get(name.strip(), "") for name in known.names)
        label = label or _label(raw, config.label_column, features)
    elif columns is None and len(raw.names) != width:
        label = next(iter(_label_candidates(raw, config.label_column, frozenset())), None)
    weight = by_name.get(known.weight.strip()) if known.weight else None
    beside = {label, weight, *raw.indices, *raw.nameless}
    others = [name for name in raw.names if name not in beside]
    empty, label = _empty(raw, known.ignored), label if labelled else None
    if columns is None:
        return Choice(others, label, None, empty)
    wanted = [by_name.get(name.strip()) for name in known.names]
    missing = [name for name, found in zip(known.names, wanted, strict=True) if found is None]
    own = [name for name in raw.names if name not in raw.indices and name not in raw.nameless]
    if not raw.header:
        by_place = len(raw.names) == len(wanted)  # else a file like the training set's, if that had no names, too
        others = raw.names if by_place else others
    else:
        others = own if counts(own) and len(own) == len(wanted) and not labelled else others  # none is of other use
        # Names of which some are the training set's may be those, without a column that it had.
        unnamed = known.counted or (counts(others) and not {*map(str.strip, others)} & {*map(str.strip, known.names)})
        by_place = bool(missing) and len(others) == len(wanted) and unnamed
    if by_place and not (raw.header is False and label):
        return Choice(others, label, None, empty)
    numbers = all(name.strip().isdecimal() for name in known.names)
    counted = known.counted or (numbers and not known.label)  # a frame's label may lie between its columns
    if missing or not (raw.header or counted):
        several = "s" if len(missing) > 1 else ""
        hint = "; give --header=none if its first line is a row" if raw.text and raw.header and numbers else ""
        raise InputError(f"{raw.name} lacks the column{several} {listed(missing or known.names)}: it has "
                         f"{listed(raw.names)}; the run was trained on {len(wanted):,} columns, found by name{hint}")
    if counted and counts(own) and not known.same_places(len(own), labelled):
        alone = "" if labelled else f", or the {len(wanted):,} of the features alone"
        raise InputError(f"{raw.name} has {len(own):,} columns without names, and the training set {known.width:,}: "
                         f"which these are, nothing says; give all {known.width:,}{alone}")
    extra = [name for name in raw.names if name not in {*wanted, *beside} and name.strip() not in known.ignored]
    remarks = [f"{raw.name}: {_columns(extra)} not known to the run, and ignored"] if extra else []
    if weight:
        remarks.append(f"{raw.name}: column {weight}, the weights of training, is ignored here")
    return Choice([name for name in wanted if name is not None], label, None, empty, remarks)


def _empty(raw: Raw, ignored: Sequence[str]) -> list[str]:
    return [name for name in raw.names if name in raw.nameless and name.strip() not in ignored]


def _columns(names: Sequence[str]) -> str:
    return f"column {names[0]} is" if len(names) == 1 else f"the columns {listed(names)} are"


def _ignored(raw: Raw, config: Config) -> frozenset[str]:
    """The columns that --ignore_columns leaves out; of a column of lists, which text files do not have, all that its
    elements have become."""
    given = next(csv.reader([config.ignore_columns], skipinitialspace=True), [])
    ignored: set[str] = set()
    for name in filter(None, map(str.strip, given)):
        found = {column for column in raw.names if column.strip() == name}
        if not found and not raw.text:
            found = {column for column in raw.names if column.strip().rpartition("[")[0] == name}
        if not found:
            raise InputError(f"--ignore_columns={name}: {raw.name} has no such column, it has {listed(raw.names)}")
        ignored |= found
    return frozenset(ignored)


def _weight(raw: Raw, given: str, ignored: frozenset[str]) -> str | None:
    found = [name for name in raw.names if given and name.strip() == given.strip()]
    if given and not found:
        raise InputError(f"--weight_column={given}: {raw.name} has no such column, it has {listed(raw.names)}")
    if {*found} & ignored:
        raise InputError(f"--weight_column={given} is among --ignore_columns, too: leave it out of one")
    return found[0] if found else None


def _label_candidates(raw: Raw, given: str, ignored: frozenset[str]) -> list[str]:
    if given:
        return [name for name in raw.names if name.strip() == given.strip()]
    return [name for name in raw.names
            if name.strip().lower() in _LABEL_NAMES and name not in ignored and name not in raw.indices]


def _label(raw: Raw, given: str, ignored: frozenset[str]) -> str:
    found = _label_candidates(raw, given, ignored)
    if len(found) != 1:
        hint = ", or --header=none if its first line is a row" if raw.text and raw.header else ""
        raise InputError(f"{raw.name} has {len(found) or 'no'} columns named {given or ', '.join(_LABEL_NAMES)}: "
                         f"give --label_column, one of {listed([n for n in raw.names if n not in raw.indices])}{hint}")
    return found[0]
