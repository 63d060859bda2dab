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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from distmlp import InputError
from distmlp.errors import own_errors, remark
from launch import verb

if TYPE_CHECKING:  # import jax: --help need not wait for it
    from distmlp.data.asked import Rows
    from distmlp.results.ensemble import Ensemble
    from distmlp.results.models import Model

T = TypeVar("T")


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    arguments = verb.parser("predict", __doc__)
    arguments.add_argument("run", action=verb.Named, metavar="RUN", help="a run's folder, its --workdir")
    arguments.add_argument("files", action=verb.Named, metavar="FILE", nargs="+",
                           help="a picture, a table, an array, or a folder of them")
    verb.add_checkpoint(arguments)
    verb.add_ensemble(arguments)
    verb.add_header(arguments)
    arguments.add_argument("--json", action="store_true", help="print one JSON object for each picture or row")
    arguments.add_argument("--output", action=verb.Named, default="", metavar="FILE",
                           help="write a .parquet, .csv, .jsonl or .npy file")
    arguments.add_argument("--columns", default="", metavar="NAMES",
                           help="columns of the source that come along in it, separated by commas")
    arguments.add_argument("--probabilities", action="store_true", help="in it, the probability of each class, too")
    given = arguments.parse_args(argv)
    if given.output:
        return _write(given)
    if given.columns or given.probabilities:
        raise InputError("--columns and --probabilities go with --output=FILE")

    from distmlp.results import bulk, load

    model, failed, predicted = load.load(Path(given.run), given.checkpoint, given.ensemble), 0, 0
    sources = bulk.sources(model, given.header)

    def attempt(function: Callable[..., T], *arguments: Any) -> T | None:
        nonlocal failed
        try:
            return function(*arguments)
        except InputError as error:
            print(f"distmlp: error: {error}", file=sys.stderr)
            failed += 1
            return None

    for file in given.files:
        for opened in attempt(sources.at, Path(file), (), True) or ():
            shown = _show(opened, model, given.json)
            while attempt(next, shown, 0):
                predicted += 1
    return 0 if not failed else 1 if predicted else 2


def _write(given: argparse.Namespace) -> int:
    if given.json:
        raise InputError("--json goes without --output, which may name a .jsonl file")

    from distmlp.cluster.place import find_place, own_gpus
    from distmlp.config import Config
    from distmlp.parallel import backend
    from distmlp.results import bulk, files, load

    config = Config()
    columns = [name.strip() for name in next(csv.reader([given.columns]), []) if name.strip()]
    place = find_place(config)
    which = (place.process, place.processes) if place else (0, 1)
    output = bulk.Output(Path(given.output), columns, given.probabilities, *which)
    output.check()  # what is wrong with that, all processes see
    with backend.settings(own_gpus(place, config)), own_errors():
        model = load.load(Path(given.run), given.checkpoint, given.ensemble)
        done = bulk.write(model, [Path(file) for file in given.files], output, given.header)
    print(f"{output.file}: {done:,} rows", file=files.remarks(output.path))
    return 0


def _show(opened: "Callable[[], Rows]", model: "Model | Ensemble", as_json: bool) -> Iterator[int]:
    """Prints what is predicted of the rows that are opened; with each, how many were."""
    from distmlp.results import bulk

    rows, shown = opened(), 0
    for found, disagreement, _, name, first in bulk.answers(model, bulk.blocks(rows)):
        for at, probabilities in enumerate(found):
            where: dict[str, Any] = {"file": name} if rows.picture else {"file": name, "row": first + at}
            called, most = model.classes[probabilities.argmax()], float(probabilities.max())
            apart = {} if disagreement is None else {"disagreement": float(disagreement[at])}
            if as_json:
                print(json.dumps(where | {"class": called, "probability": most, "probabilities": probabilities.tolist()}
                                 | apart))  # fmt: skip
            else:
                more = "".join(f"  {what} {100 * share:.0f} %" for what, share in apart.items())
                print(f"{'  row '.join(map(str, where.values()))}  {called}  {100 * most:.2f} %{more}")
            shown += 1
            yield shown
    if not shown:
        raise InputError(f"{rows.name} holds no rows")
    for text in rows.remarks():
        remark(text)


if __name__ == "__main__":
    verb.run(main)
