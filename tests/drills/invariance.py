"""One SHA-256 of the parameters on any devices, however interrupted, however often: python -m tests.drills.invariance

200 steps with momentum, an uneven last batch and many epoch boundaries; every run in a process of its own that has
only the devices it uses.
"""

import argparse
import collections
import itertools
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import runs

# 1,437 examples in batches of 128: 12 steps an epoch. Counted in steps done:
PLACES = {"after the first step": 1, "mid-epoch": 6, "last step of an epoch": 12, "first step of the next": 13}
WAYS = ("shard_map", "pmap", "single")


def devices_and_ways(counts: Sequence[int]) -> Iterator[tuple[int, str, str]]:
    """Every way to use so many devices: count, parallelism, data placement."""
    for devices, way, placement in itertools.product(counts, WAYS, ("host", "device")):
        if way != "single" or devices == 1:
            yield devices, way, placement


class Drill:
    def __init__(self, folder: Path, flags: Sequence[str], steps: int) -> None:
        self.folder, self.flags, self.steps = folder, [*flags, "--eval_every_epochs=0"], steps
        self.found: collections.Counter[str] = collections.Counter()
        self.numbers = itertools.count()

    def train(self, what: str, devices: int, *flags: str, first: tuple[int, int] | None = None) -> None:
        """One run; with `first`, (devices, steps), its first steps are a start of their own."""
        workdir = self.folder / str(next(self.numbers))
        for count, steps in [*([first] if first else []), (devices, self.steps)]:
            sha256 = runs.finish(workdir, [*self.flags, *flags, f"--max_steps={steps}"], count)
        self.found[sha256] += 1
        print(f"{sha256[:16]}  {what}", flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="1,2,3,4,5,6,7,8", help="device counts")
    parser.add_argument("--repeats", type=int, default=10, help="runs of each of 1, 3 and 8 devices")
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("flags", nargs="*", help="further flags of the runs, after --, for instance --dataset=mnist")
    args = parser.parse_args(argv)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        drill = Drill(Path(folder), [*runs.DIGITS, *args.flags], args.steps)
        try:
            for devices, way, placement in devices_and_ways([int(count) for count in args.counts.split(",")]):
                drill.train(f"{devices} devices, {way}, data on the {placement}", devices,
                            f"--parallelism={way}", f"--data_placement={placement}")  # fmt: skip
            for (place, step), (before, after) in itertools.product(PLACES.items(), ((1, 8), (8, 3), (5, 1))):
                drill.train(f"stopped {place} on {before} devices, resumed on {after}", after, first=(before, step))
            for devices, repeat in itertools.product((1, 3, 8), range(args.repeats)):
                drill.train(f"{devices} devices, repeat {repeat + 1}", devices)
        except runs.DrillError as error:
            print(f"invariance drill FAILED: {error}")
            return 1
    verdict = "identical" if len(drill.found) == 1 else f"FAILED, {len(drill.found)} different results"
    print(f"invariance drill: {drill.found.total()} runs of {args.steps} steps, {verdict}: {dict(drill.found)}; "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    return 0 if len(drill.found) == 1 else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
