"""Tables and frames as parts of a data set, their features still by name; and the rows of tables as a stream."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.config import Config
from distmlp.data import columnar, typed
from distmlp.data.arrays import Part, Source
from distmlp.data.columnar import Raw
from distmlp.data.columns import Columns, Learner, Unseen, chosen, is_header, matched
from distmlp.data.spread import Spread
from distmlp.data.streams import Labels, ahead, finite
from distmlp.data.typed import Block, Choice, Rules, Table, Words
from distmlp.errors import InputError, listed

_NUMBERS = Rules(frozenset(), one_hot=False, absent=False)


class Reader:
    """Reads tables whose columns are those that training knew, where it knew any: found by name."""

    def __init__(self, config: Config, columns: Columns | None, width: int = 0) -> None:
        """`width`: how many features the model has, which says what a table without known columns holds."""
        self.config, self.columns, self.width = config, columns, width

    def opened(self, path: Path, sure: bool = False) -> Raw:
        """The table in a file; see is_header for `sure`."""
        return columnar.file(path, lambda cells: is_header(cells, str(path), self.config, self.columns, sure))

    def choice(self, raw: Raw, labelled: bool) -> Choice:
        return matched(raw, self.columns, self.config, labelled, self.width)

    def part(self, raw: Raw, labelled: bool) -> tuple[Part, list[str]]:
        """All of a table, and remarks on the columns that are left out."""
        choice = self.choice(raw, labelled)
        table, labels, _ = typed.read(raw, choice, self.rules(choice))
        return Part(self.named(table, choice), labels, raw.name), [*choice.remarks]

    def blocks(self, raw: Raw, choice: Choice, carried: Sequence[str] = (), start: int = 0) -> Iterator[Block]:
        """The same block by block; see typed.stream."""
        for block in typed.stream(raw, choice, self.rules(choice), carried=carried, start=start):
            yield block._replace(table=self.named(block.table, choice))

    def rules(self, choice: Choice) -> Rules:
        """What training allowed, by the names that the columns have in this table."""
        if self.columns is None:
            return _NUMBERS
        here = dict(zip(self.columns.names, choice.features, strict=True))
        words = self.columns.words
        return Rules(frozenset(here[name] for name in words), bool(words), self.columns.absent)

    def named(self, table: Table, choice: Choice) -> Table:
        """The table, its columns with the names that they had in training."""
        names = choice.features if self.columns is None else self.columns.names
        here = dict(zip(choice.features, names, strict=True))
        return table._replace(names=[*names], texts={here[name]: words for name, words in table.texts.items()})

    def features(self, value: Any, name: str) -> tuple[np.ndarray, list[str]]:
        """The features of a frame, and remarks."""
        part, remarks = self.part(columnar.frame(value, name), labelled=False)
        features, more = encoded(part.features, self.columns)
        return features, remarks + more


def encoded(table: Table, columns: Columns | None) -> tuple[np.ndarray, list[str]]:
    """The features of a table, uint8 or float32 [rows, features], and remarks; see Columns.encode."""
    unseen = Unseen()
    return table.numbers if columns is None else columns.encode(table, unseen), unseen.remarks(table.name)


def source(config: Config, files: dict[str, Path]) -> Source:
    """The parts that files hold. The test set's columns, and the validation set's, are found by the training set's."""
    if "train" not in files:
        raise InputError(f"{config.dataset} holds no train.csv or train.parquet, but {', '.join(files)}: "
                         "name the parts train, test and val, or give a single file")
    train, columns, remarks = first(Reader(config, None).opened(files["train"], sure=True), config, labelled=True)
    return _later(Reader(config, columns), {part: path for part, path in files.items() if part != "train"}, remarks,
                  {"train": train}, sure=True)  # fmt: skip


def source_for_model(config: Config, files: dict[str, Path], columns: Columns | None) -> Source:
    """The parts that files hold, for a model that has learned from such columns."""
    found = _later(Reader(config, columns), files, [], {}, sure=False)
    train = found.parts.get("train") or found.parts.get("test")
    if train is None:
        raise InputError(f"{config.dataset} holds no train.csv or test.csv, but {', '.join(files)}: "
                         "name the parts train, test and val, or give a single file")
    return found._replace(parts={"train": train} | found.parts)


def _later(
    reader: Reader, files: dict[str, Path], remarks: list[str], parts: dict[str, Part], sure: bool
) -> Source:
    for part, path in files.items():
        parts[part], more = reader.part(reader.opened(path, sure), labelled=True)
        remarks = remarks + more
    return Source(parts, columns=reader.columns, remarks=remarks)


def first(raw: Raw, config: Config, labelled: bool) -> tuple[Part, Columns, list[str]]:
    """A training set; its columns, of which is only known which are text; and remarks on those that are left out."""
    choice, columns = chosen(raw, config, labelled)
    rules = _of_training(config)
    table, labels, weights = typed.read(raw, choice, rules)
    columns = columns.of_texts([*table.texts], rules.absent)
    return Part(table, labels, raw.name, weights=weights), columns, [*choice.remarks]


def _of_training(config: Config) -> Rules:
    return Rules(None, config.text_columns == "one_hot", config.missing != "refuse")


class Tables:
    """The rows of tables, one after the other; of all but the first, columns are found by name."""

    pictures = False

    def __init__(
        self, raws: Sequence[Callable[[], Raw]], files: Sequence[Path], config: Config, known: Columns | None = None,
        classes: dict[str, Sequence[str]] | None = None,
    ) -> None:
        """`raws`: open a table each. `known`: the columns of the training set, if this is not it: they may be learned
        later. `classes`: by column."""
        self._raws, self.files, self._config = raws, files, config
        first = raws[0]()
        self.name = first.name if len(raws) == 1 else f"{first.name} and {len(raws) - 1:,} more"
        self.columns: Columns
        if known is None:
            choice, self.columns = chosen(first, config)
        else:
            choice, self.columns = matched(first, known, config, labelled=True), known
        self._remarks = choice.remarks
        self.classes = (classes or {}).get(self.columns.label)
        self._first, self._learned = known is None, known is not None
        self.counts: list[int] = []  # of each table's rows, once they have been read
        self.unseen = Unseen()

    @property
    def remarks(self) -> list[str]:
        learned = self.columns.remarks(self.name) if self._first and self._learned else []
        return [*self._remarks, *learned, *self.unseen.remarks(self.name)]

    def _opened(self) -> Iterator[tuple[Raw, Choice]]:
        for place, opened in enumerate(self._raws):
            raw = opened()
            if place == 0 and self._first:
                yield raw, chosen(raw, self._config)[0]
                continue
            choice, weight = matched(raw, self.columns, self._config, labelled=True), self.columns.weight.strip()
            if weight and self._first:
                column = next((name for name in raw.names if name.strip() == weight), None)
                if column is None:
                    raise InputError(f"--weight_column={weight}: {raw.name} has no such column, it has "
                                     f"{listed(raw.names)}")
                choice = choice._replace(weight=column)
            yield raw, choice

    def labels(self) -> Iterator[Labels]:
        counts: list[int] = []
        for raw, choice in self._opened():
            count = 0
            for block in typed.stream(raw, Choice([], choice.label, choice.weight), _NUMBERS):
                if block.labels is not None:
                    values = block.labels
                    count += len(values.codes if isinstance(values, Words) else values)
                    yield Labels(values, block.weights, raw.text)
            counts.append(count)
        self.counts = counts  # only now: features may be read beside this

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

    def features(self, start: int = 0, spread: Spread | None = None) -> Iterator[np.ndarray]:
        row = start
        numbers = [name for name in self.columns.names if name not in self.columns.words]
        if spread:
            spread.begin(len(numbers))
        for table in self._tables(self.columns, frozenset(), start, spread):
            features = self.columns.encode(table, self.unseen)
            yield finite(features, self.name, row)
            row += len(features)
        if spread:
            spread.check(self.name, numbers)

    def _tables(
        self, columns: Columns | None, texts: frozenset[str], start: int, spread: Spread | None = None
    ) -> Iterator[Table]:
        """By what was learned, or, to learn, with these columns of text."""
        reader = Reader(self._config, columns or self.columns)
        if columns is not None:
            texts = frozenset(columns.words)
        for place, (raw, choice) in enumerate(self._opened()):
            count = self.counts[place] if self.counts else raw.rows
            if count is not None and start >= count:
                start -= count
                continue
            rules = _of_training(self._config) if columns is None or self._first else reader.rules(choice)
            here = dict(zip(choice.features, self.columns.names, strict=True))
            text = frozenset(name for name, learned in here.items() if learned in texts)
            try:
                for block in typed.stream(_ahead(raw), choice._replace(label=None, weight=None), rules, texts=text,
                                          start=start, spread=spread):  # fmt: skip
                    yield reader.named(block.table, choice)
            except typed.TextFound as error:
                raise typed.TextFound({here[name] for name in error.names}) from None
            start = 0


def _ahead(raw: Raw) -> Raw:
    """The table, of which a thread decodes a block while the one before it is made into numbers."""
    return raw._replace(read=lambda wanted: ahead(raw.read(wanted)))


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
