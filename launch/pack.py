"""Packs data of any size: tables, arrays and pictures become one folder of fixed-width rows, on which training begins
at once.

    python -m launch.pack SOURCE... --output=FOLDER --NAME=VALUE...
    python -m launch.pack --check FOLDER

A SOURCE is a table (.parquet, .feather, .csv, .tsv, also .gz), an array (.npy, .npz), a folder of tables, of arrays or
of class folders with pictures, or a Hugging Face data set that was saved to disk. Files and folders named train, test
and val are parts. Then train with --dataset=FOLDER: what is said here of columns, gaps and parts holds there, too.

The memory that it takes does not grow with the data. If it is stopped, the same command goes on. --check compares all
blocks of rows with their checksums; the exit code is 1 if one is damaged.
"""

import argparse
import dataclasses
import sys
from pathlib import Path
from typing import Any

from distmlp import Config, InputError
from distmlp.config import as_text
from launch import verb

FLAGS = ("label_column", "weight_column", "ignore_columns", "text_columns", "missing", "header", "num_classes",
         "image_size", "image_mode", "test_fraction", "validation_fraction", "seed")  # fmt: skip


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    given = _parser().parse_args(argv)

    from distmlp.data import packed, packing

    if given.check:
        if given.sources or given.output:
            raise InputError("--check goes with one folder that was packed, and nothing else")
        return _check(packed.Pack(Path(given.check)))
    if not given.sources or not given.output:
        raise InputError("give one SOURCE at least, and --output=FOLDER: python -m launch.pack --help says more")
    config = Config(**{name: getattr(given, name) for name in FLAGS})
    config.validate()
    sources, output = [Path(source) for source in given.sources], Path(given.output).absolute()
    made, remarks = packing.pack_sources(sources, output, config, given.partitions == "columns")
    for text in remarks:
        print(f"distmlp: {text}", file=sys.stderr)
    print(made.summary())
    return 0


def _check(pack: Any) -> int:
    found = pack.damage()
    for text in found:
        print(f"distmlp: error: {text}", file=sys.stderr)
    if not found:
        print(f"{pack.summary()}; all is as it was packed")
    return 1 if found else 0


def _parser() -> argparse.ArgumentParser:
    arguments = verb.parser("pack", __doc__)
    arguments.add_argument("sources", action=verb.Named, metavar="SOURCE", nargs="*", help="files and folders")
    arguments.add_argument("--output", action=verb.Named, default="", metavar="FOLDER", help="the folder to make")
    arguments.add_argument("--check", action=verb.Named, default="", metavar="FOLDER", help="a folder that was packed")
    arguments.add_argument("--partitions", default="none", choices=("none", "columns"),
                           help="columns: folders named COLUMN=VALUE are columns of the tables in them")
    for field in dataclasses.fields(Config):
        if field.name in FLAGS:
            kinds: dict[Any, Any] = {int: int, float: float}
            text = f"{field.metadata['help']} ({as_text(field.default) or 'empty'})"
            arguments.add_argument(f"--{field.name}", default=field.default, type=kinds.get(field.type, str),
                                   choices=field.metadata["choices"], help=text.replace("%", "%%"))
    return arguments


if __name__ == "__main__":
    verb.run(main)
