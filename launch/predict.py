"""Predicts the class of pictures (PNG, JPEG, ...) and of the rows of tables (.csv, .parquet) and arrays (.npy, .npz).

    python -m launch.predict RUN FILE...

Tables are read as in training, and their columns found by name. Of a folder that holds a data set in parts the test set
is predicted, of a folder of pictures all that lie below it. Inputs are scaled as the run scaled its data. Pictures are
brought to what the training set's are like: size, grey or colour, black on white or white on black, and range of
values. A file that cannot be read is one line on the standard error; the others still run, and the exit code is 1, or 2
if nothing could be predicted.

    python -m launch.predict RUN FILE... --output=FILE --columns=ID

Of a sweep's folder, the refitted model predicts, with --ensemble the mean of the members that were kept; then
disagreement is how often two of them, drawn at random, predict different classes.

--output writes one file instead, of any number of rows in constant memory: with a row for each, in their order, the
columns asked for, class and probability. It is written whole or not at all. An .npy file holds probabilities only. Of
several processes, as under torchrun or Slurm, each predicts its part of the rows and writes FILE.i-of-n.
"""

import argparse
import csv
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distmlp import InputError
from launch import verb

if TYPE_CHECKING:  # import jax: --help need not wait for it
    from distmlp.results.ensemble import Ensemble
    from distmlp.results.models import Model
    from distmlp.results.rows import Rows


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    arguments = verb.parser("predict", __doc__)
    arguments.add_argument("run", metavar="RUN", help="a run's folder, its --workdir")
    arguments.add_argument("files", metavar="FILE", nargs="+", help="a picture, a table, an array, or a folder of them")
    verb.add_checkpoint(arguments)
    verb.add_ensemble(arguments)
    verb.add_header(arguments)
    arguments.add_argument("--json", action="store_true", help="print one JSON object for each picture or row")
    arguments.add_argument("--output", default="", metavar="FILE", help="write a .parquet, .csv, .jsonl or .npy file")
    arguments.add_argument("--columns", default="", metavar="NAMES",
                           help="columns of the source that come along in it, separated by commas")
    arguments.add_argument("--probabilities", action="store_true", help="in it, the probability of each class, too")
    given = arguments.parse_args(argv)
    if given.output:
        return _write(given)
    if given.columns or given.probabilities:
        raise InputError("--columns and --probabilities go with --output=FILE")

    from distmlp.results import load, rows

    model, failed, predicted = load.load(Path(given.run), given.checkpoint, given.ensemble), 0, 0
    for file in given.files:
        try:
            for found in rows.read(Path(file), model, given.header):
                if isinstance(found, InputError):
                    print(f"distmlp: error: {found}", file=sys.stderr)
                    failed += 1
                    continue
                _show(found, model, given.json)
                predicted += 1
        except InputError as error:
            print(f"distmlp: error: {error}", file=sys.stderr)
            failed += 1
    return 0 if not failed else 1 if predicted else 2


def _write(given: argparse.Namespace) -> int:
    if given.json:
        raise InputError("--json goes without --output, which may name a .jsonl file")

    from distmlp.cluster.place import find_place
    from distmlp.config import Config
    from distmlp.results import bulk, files, load

    model, output = load.load(Path(given.run), given.checkpoint, given.ensemble), Path(given.output)
    columns = [name.strip() for name in next(csv.reader([given.columns]), []) if name.strip()]
    place = find_place(Config())
    which = (place.process, place.processes) if place else (0, 1)
    done = bulk.write(model, [Path(file) for file in given.files], output, columns, given.probabilities, given.header,
                      *which)  # fmt: skip
    print(f"{bulk.output_of(output, *which)}: {done:,} rows", file=files.remarks(output))
    return 0


def _show(found: "Rows", model: "Model | Ensemble", as_json: bool) -> None:
    disagreement = getattr(model, "disagreement", None)  # an ensemble's
    apart = disagreement(found.features).tolist() if disagreement else []
    for row, (name, probabilities) in enumerate(zip(*model.predict(found.features), strict=True)):
        where = {"file": str(found.file)} if found.picture else {"file": str(found.file), "row": row}
        if as_json:
            print(json.dumps(where | {"class": name.item(), "probability": float(probabilities.max()),
                                      "probabilities": probabilities.tolist()}
                             | ({"disagreement": apart[row]} if apart else {})))  # fmt: skip
        else:
            more = f"  disagreement {100 * apart[row]:.0f} %" if apart else ""
            print(f"{'  row '.join(map(str, where.values()))}  {name}  {100 * probabilities.max():.2f} %{more}")


if __name__ == "__main__":
    verb.run(main)
