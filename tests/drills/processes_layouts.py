"""1 process x 8 devices, 2 x 4, 4 x 2 and 8 x 1 under torchrun: python -m tests.drills.processes_layouts --data_dir=DIR

One epoch of MNIST, of the tutorial's network and batch. With --reduction=invariant all must end with the same
SHA-256 and the same metrics, timings aside; with fast the accuracies must be within 0.0002.
"""

import argparse
import sys
import tempfile
from pathlib import Path

from . import groups, runs

LAYOUTS = ((1, 8), (2, 4), (4, 2), (8, 1))
FLAGS = ("--dataset=mnist", "--num_epochs=1", "--expect_devices=8", "--startup_seconds=300", "--eval_train")


def one_epoch(workdir: Path, flags: list[str], processes: int, devices: int) -> None:
    group = groups.under_torchrun(workdir, [*FLAGS, *flags], processes, devices)
    if code := group.wait(1800):
        raise runs.DrillError(f"{processes} x {devices}: exit code {code}:\n{group.output[-4000:]}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", required=True)
    args = parser.parse_args(argv)
    data = f"--data_dir={Path(args.data_dir).absolute()}"
    with tempfile.TemporaryDirectory() as folder:
        try:
            for reduction in ("invariant", "fast"):
                accuracies, results = [], []
                for processes, devices in LAYOUTS:
                    workdir = Path(folder) / f"{reduction}-{processes}"
                    one_epoch(workdir, [data, f"--reduction={reduction}"], processes, devices)
                    line, final = runs.lines(workdir)
                    accuracies.append((line["train_accuracy"], line["test_accuracy"]))
                    results.append([line, final])
                    print(f"{reduction}, {processes} x {devices}: accuracies {accuracies[-1]}, "
                          f"{final['params_sha256'][:16]}", flush=True)  # fmt: skip
                spread = max(max(column) - min(column) for column in zip(*accuracies, strict=True))
                if spread > 0.0002 or (reduction == "invariant" and any(result != results[0] for result in results)):
                    raise runs.DrillError(f"{reduction}: {results}")
                print(f"{reduction}: accuracies within {spread:.6f}", flush=True)
        except runs.DrillError as error:
            print(f"processes_layouts drill FAILED: {error}")
            return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
