"""Tries out on the devices that are here what distmlp promises: a row for each
promise, with held, not held, or why it does not apply here.

    python -m launch.verify [--minutes=3] [--json] [--output=FILE.html]

The first thing to run on a new machine. It needs no data and no network. With
several processes start it as training, as in `torchrun --nproc-per-node=8 -m
launch.verify`. Exit codes: 0 all that applies here holds; 1 something does not,
or was not finished within --minutes; 2 bad input.
"""

import json
import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from distmlp import Config, InputError
from launch import command, verb

if TYPE_CHECKING:
    from distmlp.verify.verify import Result, Row

_HELD = {True: "held", False: "NOT HELD", None: "-"}


def main(argv: list[str]) -> int:
    """Runs the command line and returns its exit code; raises InputError."""
    arguments = verb.parser("verify", __doc__)
    arguments.add_argument("--minutes", default="3", metavar="N", help="stop after so many; default: 3")
    arguments.add_argument("--json", action="store_true", help="print one JSON object")
    arguments.add_argument("--output", action=verb.Named, default="", metavar="FILE.html",
                           help="also write a page for a browser")
    given = arguments.parse_args(argv)
    minutes = _minutes(given.minutes)

    from distmlp.cluster.place import find_place
    from distmlp.results import files
    from distmlp.verify.page import page
    from distmlp.verify.verify import verify

    if given.output and ((place := find_place(Config())) is None or place.process == 0):  # the one that writes
        files.check(Path(given.output))  # before minutes have gone into what it shall show

    def tell(row: "Row") -> None:
        text = f"{_HELD[row.held]:<9} {row.seconds:6.1f} s  {row.name}: {row.detail}"
        print(text, file=sys.stderr if given.json else sys.stdout, flush=True)

    def write(result: "Result") -> None:
        if given.json:
            print(json.dumps(result.as_json()), flush=True)
        else:
            print(_summary(result), flush=True)
        if given.output:
            files.write(Path(given.output), page(result).encode())
            print(f"{given.output}: the same for a browser", file=sys.stderr, flush=True)

    return verify(minutes, command.BEGAN, [sys.executable, "-m", "launch.train"], tell, write)


def _minutes(text: str) -> float:
    try:
        minutes = float(text)
    except ValueError:
        minutes = math.nan
    if not 0 < minutes < math.inf:
        raise InputError(f"--minutes={text}: give a number above 0")
    return minutes


def _summary(result: "Result") -> str:
    """The last line."""
    count = {held: sum(row.held is held and row.finished for row in result.rows) for held in (True, False, None)}
    late = [row.name for row in result.rows if not row.finished]
    texts = [f"{count[True]} held", f"{count[False]} not held", f"{count[None]} do not apply here"]
    if late:
        texts.append(f"{len(late)} not finished, from {late[0]!r} on: give more --minutes")
    count_of = len(result.devices)
    return f"{', '.join(texts)}; {count_of} device{'s' if count_of != 1 else ''}"


if __name__ == "__main__":
    verb.run(main)
