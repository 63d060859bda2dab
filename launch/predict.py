"""Predicts the class of pictures (PNG, JPEG, ...) and of the rows of tables (.csv, .parquet) and arrays (.npy, .npz).

    python -m launch.predict RUN FILE...

Tables are read as in training, and their columns found by name. Of a folder that holds a data set in parts the test set
is predicted, of a folder of pictures all that lie below it. Inputs are scaled as the run scaled its data. Pictures are
brought to what the training set's are like: size, grey or colour, black on white or white on black, and range of
values. A file that cannot be read is one line on the standard error; the others still run, and the exit code is 1, or 2
if nothing could be predicted.
"""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distmlp import InputError
from launch import verb

if TYPE_CHECKING:  # import jax: --help need not wait for it
    from distmlp.results.load import Model
    from distmlp.results.rows import Rows


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    arguments = verb.parser("predict", __doc__)
    arguments.add_argument("run", metavar="RUN", help="a run's folder, its --workdir")
    arguments.add_argument("files", metavar="FILE", nargs="+", help="a picture, a table, an array, or a folder of them")
    verb.add_checkpoint(arguments)
    verb.add_header(arguments)
    arguments.add_argument("--json", action="store_true", help="print one JSON object for each picture or row")
    given = arguments.parse_args(argv)

    from distmlp.results import load, rows

    model, failed, predicted = load.load(Path(given.run), given.checkpoint), 0, 0
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


def _show(found: "Rows", model: "Model", as_json: bool) -> None:
    for row, (name, probabilities) in enumerate(zip(*model.predict(found.features), strict=True)):
        where = {"file": str(found.file)} if found.picture else {"file": str(found.file), "row": row}
        if as_json:
            print(json.dumps(where | {"class": name.item(), "probability": float(probabilities.max()),
                                      "probabilities": probabilities.tolist()}))
        else:
            print(f"{'  row '.join(map(str, where.values()))}  {name}  {100 * probabilities.max():.2f} %")


if __name__ == "__main__":
    verb.run(main)
