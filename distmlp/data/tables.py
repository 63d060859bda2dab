"""Tables and frames as parts of a data set: their features, still by name, and their labels."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.config import Config
from distmlp.data import columnar, typed
from distmlp.data.arrays import Part, Source
from distmlp.data.columnar import Raw
from distmlp.data.columns import Choice, Columns, Unseen, chosen, is_header, matched
from distmlp.data.typed import Rules, Table
from distmlp.errors import InputError


def source(config: Config, files: dict[str, Path]) -> Source:
    """The parts that files hold. The test set's columns, and the validation set's, are found by the training set's."""
    if "train" not in files:
        raise InputError(f"{config.dataset} holds no train.csv or train.parquet, but {', '.join(files)}: "
                         "name the parts train, test and val, or give a single file")
    parts: dict[str, Part] = {}
    raw = columnar.file(files["train"], lambda cells: is_header(cells, str(files["train"]), config, None, True))
    parts["train"], columns, remarks = first(raw, config, labelled=True)
    for part, path in files.items():
        if part != "train":
            parts[part], more = later(opened(path, config, columns, sure=True), columns, config, labelled=True)
            remarks += more
    return Source(parts, columns=columns, remarks=remarks)


def source_for_model(config: Config, files: dict[str, Path], columns: Columns | None) -> Source:
    """The parts that files hold, for a model that has learned from such columns."""
    parts: dict[str, Part] = {}
    remarks: list[str] = []
    for part, path in files.items():
        parts[part], more = later(opened(path, config, columns), columns, config, labelled=True)
        remarks += more
    train = parts.get("train") or parts.get("test")
    if train is None:
        raise InputError(f"{config.dataset} holds no train.csv or test.csv, but {', '.join(files)}: "
                         "name the parts train, test and val, or give a single file")
    return Source({"train": train} | parts, columns=columns, remarks=remarks)


def opened(path: Path, config: Config, columns: Columns | None, sure: bool = False) -> Raw:
    """The table in a file, to be read by columns that are known; see is_header for `sure`."""
    return columnar.file(path, lambda cells: is_header(cells, str(path), config, columns, sure))


def first(raw: Raw, config: Config, labelled: bool) -> tuple[Part, Columns, list[str]]:
    """A training set; its columns, of which is only known which are text; and remarks on those that are left out."""
    choice, columns = chosen(raw, config, labelled)
    rules = Rules(None, config.text_columns == "one_hot", config.missing != "refuse")
    table, labels, weights = typed.read(raw, choice.features, choice.label, choice.weight, choice.empty, rules)
    columns = columns.of_texts(list(table.texts), rules.absent)
    return Part(table, labels, raw.name, weights=weights), columns, choice.remarks


def later(
    raw: Raw, columns: Columns | None, config: Config, labelled: bool, width: int = 0
) -> tuple[Part, list[str]]:
    """Another table, whose columns are those that training knew, where it knew any."""
    choice = matched(raw, columns, config, labelled, width)
    names = choice.features if columns is None else columns.names
    table, labels, _ = typed.read(raw, choice.features, choice.label, None, choice.empty, rules_of(columns, choice))
    return Part(by_training(table, choice, names), labels, raw.name), choice.remarks


def by_training(table: Table, choice: Choice, names: Sequence[str]) -> Table:
    """A table whose columns have the names that they had in training."""
    here = dict(zip(choice.features, names, strict=True))
    return table._replace(names=list(names), texts={here[name]: words for name, words in table.texts.items()})


def rules_of(columns: Columns | None, choice: Choice) -> Rules:
    """What training allowed, by the names that the columns have in this table."""
    if columns is None:
        return Rules(frozenset(), False, False)
    here = dict(zip(columns.names, choice.features, strict=True))
    return Rules(frozenset(here[name] for name in columns.words), bool(columns.words), columns.absent)


def features(
    value: Any, name: str, columns: Columns | None, config: Config, width: int
) -> tuple[np.ndarray, list[str]]:
    """The features of a frame that is given to a model, uint8 or float32 [rows, features], and remarks."""
    part, remarks = later(columnar.frame(value, name), columns, config, labelled=False, width=width)
    return encoded(part.features, columns, remarks)


def encoded(table: Table, columns: Columns | None, remarks: Sequence[str]) -> tuple[np.ndarray, list[str]]:
    if columns is None:
        return table.numbers, list(remarks)
    unseen = Unseen()
    found = columns.encode(table, unseen)
    return found, [*remarks, *unseen.remarks(table.name)]
