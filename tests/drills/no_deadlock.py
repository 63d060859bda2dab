"""Runs in a row on 8 emulated devices, none of which may hang or abort: python -m tests.drills.no_deadlock

Emulated devices share one thread pool. Where it is too small, or too many steps are started ahead, they wait for one
another in a collective for ever, or until XLA aborts the process.
"""

import argparse
import itertools
import sys
import tempfile
import time
from pathlib import Path

from . import runs

FLAGS = ["--dataset=digits", "--batch_size=64", "--hidden_sizes=64,64", "--input_scaling=unit", "--shuffle",
         "--eval_every_epochs=10", "--checkpoint_every_steps=1000"]  # fmt: skip
WAYS = [("shard_map", "device"), ("pmap", "host"), ("shard_map", "host"), ("pmap", "device")]


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--devices", type=int, default=8)
    parser.add_argument("--timeout", type=float, default=600, help="seconds after which a run counts as hung")
    args = parser.parse_args(argv)
    for number, (parallelism, placement) in zip(range(args.runs), itertools.cycle(WAYS), strict=False):
        with tempfile.TemporaryDirectory() as folder:
            workdir, started = Path(folder) / "run", time.monotonic()
            flags = [*FLAGS, f"--max_steps={args.steps}", f"--parallelism={parallelism}",
                     f"--data_placement={placement}", f"--expect_devices={args.devices}"]  # fmt: skip
            done = runs.run(workdir, flags, args.devices, args.timeout)
            if done.returncode or runs.lines(workdir)[-1]["step"] != args.steps:
                print(f"run {number + 1}: exit code {done.returncode}\n{done.stderr[-4000:]}")
                return 1
            print(f"run {number + 1} of {args.runs}: {args.steps} steps, {parallelism}, data on the {placement}, "
                  f"{time.monotonic() - started:.0f} s", flush=True)  # fmt: skip
    print(f"{args.runs} runs of {args.steps} steps on {args.devices} emulated devices: none hung, none aborted")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
