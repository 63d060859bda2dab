"""What lies at a path, tables, arrays, pictures or a pack: read with its labels, to train and to evaluate."""

from collections.abc import Callable
from pathlib import Path

import numpy as np

from distmlp import machine
from distmlp.config import FROM_PYTHON, NAMED_DATASETS, Config
from distmlp.data import arrays, columnar, packed, refused, tables
from distmlp.data.arrays import Part, Source
from distmlp.data.columns import Columns
from distmlp.data.packed import Pack
from distmlp.errors import InputError

_ABOUT = ("readme", "license", "licence", "copying", "notice", "citation", "changelog", "changes", "authors",
          "requirements")  # fmt: skip # what texts beside data are named


def source(
    config: Config, known: bool, columns: Columns | None, picture: Callable[[Path], np.ndarray] | None = None
) -> Source:
    """The parts of what lies at the path that --dataset gives: for a model, if one is `known`, which has learned from
    such columns, and takes such pictures; else to be trained on.
    """
    path = Path(config.dataset)
    if config.dataset.startswith(FROM_PYTHON):
        raise InputError(f"--dataset={path}: the data of this run were given from Python: "
                         "give them to train(config, train_set, test_set) again")
    if not path.exists():
        raise InputError(f"--dataset={path} does not exist: give one of {', '.join(NAMED_DATASETS)}, an .npz, .csv or "
                         ".parquet file, a folder of .npy files, of class folders with pictures, or that distmlp pack "
                         "has made")
    refused.check_place(path)
    if not known or columns is None:
        refused.check_not_saved(path)
    if path.is_dir() and packed.is_pack(path):
        return _packed(config, known, columns, Pack(path))
    if files := tables_at(path):
        found = tables.source_for_model(config, files, columns) if known else tables.source(config, files)
        return found._replace(remarks=[*found.remarks, *_left_out(path, {*files.values()})])
    if path.is_dir() and not any(path.glob("*.npy")) and arrays.visible(path):
        from distmlp.data import pictures

        return pictures.source(config, path, picture)
    found = arrays.source(path)
    if not path.is_dir():
        return found
    trios = arrays.pairs(path, [file.stem for file in path.glob("*.npy")]).values()
    return found._replace(remarks=_left_out(path, {path / f"{name}.npy" for trio in trios for name in trio}))


def _left_out(path: Path, files: set[Path]) -> list[str]:
    """A remark on the tables and arrays beside those files of the parts, of which none is read."""
    others = [file.name for file in sorted(path.iterdir() if path.is_dir() else [])
              if file not in files and (columnar.is_table(file) or file.suffix.lower() in (".npy", ".npz"))
              and file.is_file() and not file.name.startswith((".", "_"))
              and columnar.stem(file).lower() not in _ABOUT]  # fmt: skip
    return arrays.not_read(path, others)


def _packed(config: Config, known: bool, columns: Columns | None, pack: Pack) -> Source:
    """What `pack` has made; the processes of a host share the memory of what is held there."""
    if known:
        pack.check_columns(columns)
    else:
        pack.check_settings(config)
    room = machine.memory() // 4
    parts = {}
    for part in pack.parts:
        examples = pack.examples(part, room, config.verify_data)
        weights = None
        if part == "train" and not known:
            weights = pack.weights(config.verify_data)
            examples.verify_ahead()
        parts[part] = Part(examples, None, examples.name, weights=weights)
    return Source(parts, columns=pack.columns, pictures=pack.info["pictures"], pack=pack)


def tables_at(path: Path) -> dict[str, Path]:
    """The tables at a path by the part that they are, or by name if they are none; a file is the training set. Beside
    folders of pictures, as stray lists of them are, tables without a part are none.
    """
    if not path.is_dir():
        return {"train": path} if columnar.is_table(path) else {}
    if any(path.glob("*.npy")):
        return {}
    from distmlp.data import pictures  # imports Pillow, which is of use for folders only

    files = [file for file in sorted(path.iterdir())
             if file.is_file() and columnar.is_table(file) and not file.name.startswith(".")]
    named = arrays.by_part(files)
    if any(map(pictures.holds_pictures, arrays.visible(path))):
        if "train" in named:
            raise InputError(f"{path} holds {named['train'].name} and folders of pictures, which could both be meant: "
                             f"give --dataset={named['train']}, or move it away")
        return {}
    return named or {columnar.stem(file): file for file in files}
