"""A memory-mapped data set of 2 GiB in four processes: python -m tests.drills.large_data --folder=/tmp

Prints by how much the processes' anonymous resident memory (RssAnon, sampled; the sum of their peaks) and their time
to start grow over a set of 2 MiB; the first must be below 1 GB, the second a matter of seconds.
"""

import argparse
import contextlib
import re
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np

from . import groups, runs

PROCESSES, FEATURES = 4, 1024
FLAGS = ("--shuffle", "--input_scaling=unit", "--hidden_sizes=128,64", "--batch_size=1024", "--max_steps=100",
         "--eval_every_epochs=0", "--checkpoint_every_steps=50")  # fmt: skip


class Cost(NamedTuple):
    peak: int  # bytes
    start: float  # seconds to the banner, which comes when the data are there
    total: float  # seconds to the end


def make(folder: Path, examples: int) -> None:
    folder.mkdir()
    rng = np.random.default_rng(0)
    images = np.lib.format.open_memmap(folder / "x_train.npy", "w+", np.uint8, (examples, FEATURES))
    for start in range(0, examples, 65536):
        stop = min(start + 65536, examples)
        images[start:stop] = rng.integers(0, 256, (stop - start, FEATURES), dtype=np.uint8)
    images.flush()
    np.save(folder / "y_train.npy", rng.integers(0, 10, examples).astype(np.uint8))
    np.save(folder / "x_test.npy", np.asarray(images[:1000]))
    np.save(folder / "y_test.npy", rng.integers(0, 10, 1000).astype(np.uint8))


def cost(dataset: Path, workdir: Path) -> Cost:
    started, peaks = time.monotonic(), dict.fromkeys(range(PROCESSES), 0)
    group = groups.under_torchrun(workdir, [f"--dataset={dataset}", *FLAGS], PROCESSES)
    while group.popen.poll() is None:
        for rank, pid in enumerate(groups.workers(group.popen.pid)):
            with contextlib.suppress(OSError, TypeError):  # it has just ended
                found = re.search(r"RssAnon:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
                peaks[rank] = max(peaks[rank], 1024 * int(found[1]))  # type: ignore[index]
        time.sleep(0.05)
    if group.wait(10):
        raise runs.DrillError(group.output[-4000:])
    return Cost(sum(peaks.values()), (group.when("workdir ") or 0) - started, time.monotonic() - started)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", help="where there is room for the data")
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        costs = {}
        for what, examples in (("2 MiB", 2 * 2**20 // FEATURES), ("2 GiB", 2 * 2**30 // FEATURES)):
            make(Path(name) / what, examples)
            costs[what] = cost(Path(name) / what, Path(name) / f"run {what}")
            print(f"{what}: RssAnon of {PROCESSES} processes {costs[what].peak / 1e6:.0f} MB, banner after "
                  f"{costs[what].start:.1f} s, end after {costs[what].total:.1f} s", flush=True)  # fmt: skip
    grown, later = (b - a for a, b in zip(costs["2 MiB"][:2], costs["2 GiB"][:2], strict=True))
    good = grown < 1e9 and later < 10
    print(f"large_data drill {'' if good else 'FAILED'}: grown by {grown / 1e6:.0f} MB, {later:+.1f} s to start")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
