"""Seconds from the kill -9 of one of two to four processes under torchrun to the first line of training after it: the
drill of the tests, which checks the result, too, is tests/drills/processes_kill.py. Repetitions are kills, of which
some end all processes and are not measured.

    python benchmarks/after_a_death.py
"""

import sys
import tempfile
from pathlib import Path

import harness

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))


def main() -> None:
    args = harness.arguments(__doc__, repetitions=16, start_up=4.0)
    from tests.drills.processes_kill import Drill

    with tempfile.TemporaryDirectory() as folder:
        drill = Drill(Path(folder), 0, args.start_up)
        drill.all_kills(2 if args.quick else args.repetitions)
    seconds = drill.seconds
    table = harness.table(["deaths", "seconds to training again", "longest"],
                          [[str(len(seconds)), harness.spread(seconds), f"{max(seconds):.3g}"]])
    harness.report(args, "After a death", [table], {"seconds": seconds, "processes": drill.sizes})


if __name__ == "__main__":
    main()
