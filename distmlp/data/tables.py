"""Tables: .csv, .tsv and .parquet files with a column of labels, read by pyarrow."""

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.config import Config
from distmlp.data.arrays import Part, Source
from distmlp.data.labels import read_texts
from distmlp.errors import InputError, listed, one_line

SUFFIXES = (".csv", ".tsv", ".parquet")
_MISSING = ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "N/A", "NA",
            "NULL", "NaN", "n/a", "nan", "null")  # pyarrow's; of features only
_LABEL_NAMES = ("label", "target", "class", "y")


def source(config: Config, files: dict[str, Path], info: dict[str, Any] | None) -> Source:
    """The parts that tables hold; they find their columns by those of the training set, or of a model."""
    if "train" not in files:
        raise InputError(f"{config.dataset} holds no train.csv or train.parquet, but {', '.join(files)}: "
                         "name the parts train, test and val, or give a single file")
    tables = {part: _read(path) for part, path in files.items()}
    label, columns = _columns(config, tables["train"].column_names, files["train"], (info or {}).get("columns"))
    parts = {
        part: Part(_features(table, columns, files[part]), _labels(table, label, files[part]), str(files[part]))
        for part, table in tables.items()
    }
    return Source(parts, columns=columns)


def _read(path: Path) -> Any:
    """The file as a pyarrow.Table; of a text file, all columns are strings."""
    import pyarrow as pa
    from pyarrow import csv, parquet

    try:
        if path.suffix.lower() == ".parquet":
            table = parquet.read_table(path)
        else:
            with path.open(encoding="utf-8-sig") as file:
                header = file.readline()
            layout = csv.ParseOptions(delimiter=max(",;\t|", key=header.count), newlines_in_values=True)
            names = csv.open_csv(path, parse_options=layout).schema.names
            # As strings: what a number is must not depend on the file's first rows.
            types = csv.ConvertOptions(column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=True,
                                       null_values=[""])  # NA and null can be classes
            table = csv.read_csv(path, parse_options=layout, convert_options=types)
    except (pa.ArrowException, OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as a table ({one_line(error)}): mend the file") from None
    twice = {name for name in table.column_names if table.column_names.count(name) > 1}
    if twice:
        raise InputError(f"{path} has several columns named {sorted(twice)[0]}: give each its own name")
    return table


def _columns(config: Config, names: Sequence[str], path: Path, known: list[str] | None) -> tuple[str, list[str]]:
    """The label column's name: --label_column, or the one named label, target, class or y. And those of the features:
    the columns that a model knows already, else all but the labels' and --ignore_columns, in the file's order.
    """
    given = config.label_column
    found = [name for name in names if name == given or (not given and name.strip().lower() in _LABEL_NAMES)]
    if len(found) != 1:
        raise InputError(f"{path} has {len(found) or 'no'} columns named {given or ', '.join(_LABEL_NAMES)}: "
                         f"give --label_column, one of {listed(names)}")
    if known:
        return found[0], known
    ignored = [name.strip() for name in config.ignore_columns.split(",") if name.strip()]
    strange = [name for name in ignored if name not in names]
    if strange:
        raise InputError(f"--ignore_columns={strange[0]}: {path} has no such column, it has {listed(names)}")
    left_out = {found[0], *ignored}
    columns = [name for name in names if name not in left_out]
    if not columns:
        raise InputError(f"{path} has no columns of features beside {listed(sorted(left_out))}")
    return found[0], columns


def _features(table: Any, columns: Sequence[str], path: Path) -> np.ndarray:
    """The columns as float32 [rows, columns], True being 1. Messages name the row of a value, the first being 1."""
    import pyarrow as pa
    import pyarrow.compute as pc

    missing = [name for name in columns if name not in table.column_names]
    if missing:
        raise InputError(f"{path} lacks the column {missing[0]}: it has {listed(table.column_names)}")
    features = np.empty((table.num_rows, len(columns)), np.float32)
    for i, name in enumerate(columns):
        values = table.column(name)
        if _is_text(values):
            values = pc.utf8_trim_whitespace(values)
            values = pc.if_else(pc.is_in(values, pa.array(_MISSING)), pa.scalar(None, values.type), values)
        if values.null_count:
            raise InputError(f"{path}: row {_first_null(values)} of column {name} has no value: remove the row, "
                             f"fill it in, or give --ignore_columns={name}")
        values = _parsed(values, pa.float64(), pa.bool_())
        if pa.types.is_boolean(values.type):
            values = values.cast(pa.uint8())
        if not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
            row = next((i for i, value in enumerate(values.to_pylist()) if not _is_number(value)), 0)
            raise InputError(f"{path}: row {row + 1} of column {name} is {values[row].as_py()!r}, not a number: give "
                             f"--ignore_columns={name}, or replace the column by numbers, one of 0 and 1 for each kind")
        features[:, i] = np.asarray(values.to_numpy(), np.float64)
    return features


def _labels(table: Any, column: str, path: Path) -> np.ndarray:
    """The column as it is, or what the text of a text file stands for; see labels.read_texts."""
    import pyarrow as pa

    if column not in table.column_names:
        raise InputError(f"{path} has no column {column}, without which nothing can be tested on it: train on the "
                         "other file alone, by --dataset and --test_fraction=0.2, and predict this one")
    values = table.column(column)
    if values.null_count:
        raise InputError(f"{path}: row {_first_null(values)} has no label in column {column}: remove the row")
    if pa.types.is_dictionary(values.type):
        values = values.cast(values.type.value_type)
    if not _is_text(values):
        return np.asarray(values.to_numpy())
    coded = values.combine_chunks().dictionary_encode()
    texts = coded.dictionary.to_pylist()
    distinct = np.array(texts, object) if path.suffix.lower() == ".parquet" else read_texts(texts)
    return distinct[coded.indices.to_numpy()]


def _is_text(values: Any) -> bool:
    return str(values.type) in ("string", "large_string")


def _parsed(values: Any, *kinds: Any) -> Any:
    """Text as the first of these types that all of it can be, and as it is if there is none."""
    for kind in kinds if _is_text(values) else ():
        with contextlib.suppress(ValueError):  # pyarrow's ArrowInvalid is one
            return values.cast(kind)
    return values


def _is_number(value: Any) -> bool:
    try:
        float(value)
    except (TypeError, ValueError):
        return False
    return True


def _first_null(values: Any) -> int:
    return values.is_null().index(True).as_py() + 1
