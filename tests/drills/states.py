"""One SHA-256, sharded or replicated, on any devices, for each optimizer: python -m tests.drills.states

A table: a row for each optimizer, a column for each number of devices, and 2 processes of 4 devices.
"""

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import groups, runs

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.1},
    "momentum": {"learning_rate": 0.1, "momentum": 0.9},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.01, "clip_norm": 0.05,
              "schedule": "warmup_cosine", "warmup_steps": 3},
}  # fmt: skip
STATES = ("replicated", "sharded")
# Sizes that no number of devices divides; 1,437 examples, the last batch of an epoch with 29.
FLAGS = ("--dataset=digits", "--input_scaling=unit", "--shuffle", "--hidden_sizes=50,33", "--reduction=invariant")


def sha256(workdir: Path, flags: list[str], devices: int) -> str:
    if devices:
        return runs.finish(workdir, flags, devices)
    group = groups.under_torchrun(workdir, flags, processes=2, devices=4)
    if code := group.wait(300):
        raise runs.DrillError(f"2 x 4: exit code {code}:\n{group.output[-4000:]}")
    return runs.sha256(workdir)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="1,2,3,5,8,0", help="device counts; 0: two processes of 4")
    parser.add_argument("--steps", type=int, default=100)
    args = parser.parse_args(argv)
    counts, started, wrong = [int(count) for count in args.counts.split(",")], time.monotonic(), 0
    print("optimizer  state       " + "".join(f"{f'{n} devices' if n else '2 x 4':>14}" for n in counts))
    with tempfile.TemporaryDirectory() as folder:
        try:
            for optimizer, settings in OPTIMIZERS.items():
                found = []
                for state in STATES:
                    flags = [*FLAGS, f"--max_steps={args.steps}", f"--state={state}",
                             *(f"--{name}={value}" for name, value in settings.items())]  # fmt: skip
                    row = [sha256(Path(folder) / f"{optimizer}-{state}-{n}", flags, n) for n in counts]
                    print(f"{optimizer:<11}{state:<12}" + "".join(f"{value[:12]:>14}" for value in row), flush=True)
                    found += row
                wrong += len(set(found)) > 1
        except runs.DrillError as error:
            print(f"states drill FAILED: {error}")
            return 1
    verdict = f"FAILED, {wrong} rows differ" if wrong else "one value a row"
    print(f"states drill: {len(OPTIMIZERS) * len(STATES) * len(counts)} runs of {args.steps} steps, {verdict}; "
          f"{time.monotonic() - started:.0f} s")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
