"""Predicts the class of pictures (PNG, JPEG, ...) and of the rows of .npy, .npz and .csv files.

    python -m launch.predict RUN FILE...

Inputs are scaled as the run scaled its data. Pictures are brought to what the training set's are like: size, grey or
colour, black on white or white on black, and range of values. A file that cannot be read is one line on the standard
error; the others still run, and the exit code is 1, or 2 if nothing could be predicted.
"""

import json
import sys
from pathlib import Path

from distmlp import InputError
from launch import verb


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    arguments = verb.parser("predict", __doc__)
    arguments.add_argument("run", metavar="RUN", help="a run's folder, its --workdir")
    arguments.add_argument("files", metavar="FILE", nargs="+", help="a picture, or rows in .npy, .npz or .csv")
    verb.add_checkpoint(arguments)
    arguments.add_argument("--json", action="store_true", help="print one JSON object for each picture or row")
    given = arguments.parse_args(argv)

    from distmlp.results import load, rows

    model, failed = load.load(Path(given.run), given.checkpoint), 0
    for file in given.files:
        try:
            predictions = model.predict(rows.read(Path(file), model))
        except InputError as error:
            print(f"distmlp: error: {error}", file=sys.stderr)
            failed += 1
            continue
        several = rows.is_rows(Path(file))
        for row, (name, probabilities) in enumerate(zip(*predictions, strict=True)):
            where = {"file": file, "row": row} if several else {"file": file}
            if given.json:
                print(json.dumps(where | {"class": name.item(), "probability": float(probabilities.max()),
                                          "probabilities": probabilities.tolist()}))
            else:
                print(f"{'  row '.join(map(str, where.values()))}  {name}  {100 * probabilities.max():.2f} %")
    return 0 if not failed else 1 if failed < len(given.files) else 2


if __name__ == "__main__":
    verb.run(main)
