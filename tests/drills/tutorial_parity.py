"""Test accuracy after each epoch beside the tutorial's, on MNIST: python -m tests.drills.tutorial_parity --data_dir=DIR

On one device the parameters must be the tutorial's to the bit after the last epoch, and the accuracies to 4 decimals
after each; on 8 emulated devices, pmap and shard_map, within 0.0002 after the first epoch and within 0.0006 after each.
The tutorial is computed here (tests/tutorial.py), or by a script that prints one JSON object with test_accuracy and
sha256 per epoch. Last, configs/tutorial_published.flags must give the accuracies that the tutorial's page prints.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from . import runs

RUNS = {"1 device": (1, "single"), "8, shard_map": (8, "shard_map"), "8, pmap": (8, "pmap")}
FIRST, LATER = 0.0002, 0.0006  # accuracy on 8 devices
# Accuracies on the training and the test set after each epoch, as the tutorial's page prints them (to 5 digits).
PUBLISHED = [
    (0.91575, 0.9195), (0.93722, 0.9384), (0.94917, 0.9469), (0.95682, 0.9534),
    (0.96313, 0.9577), (0.96750, 0.9616), (0.97083, 0.9650), (0.97372, 0.9672),
]  # fmt: skip


def reference(data_dir: str, epochs: int, script: str) -> list[tuple[float, str]]:
    """Test accuracy and SHA-256 of the parameters after each epoch of the tutorial, in a process of its own."""
    command = [sys.executable, script] if script else [sys.executable, "-m", "tests.drills.tutorial_parity", "--print"]
    done = subprocess.run(
        [*command, "--data_dir", data_dir, "--epochs", str(epochs)], env=runs.environment(1), check=True,
        capture_output=True, text=True, cwd=None if script else runs.REPOSITORY,
    )  # fmt: skip
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    return [(line["test_accuracy"], line["sha256"]) for line in lines]


def print_tutorial(data_dir: str, epochs: int) -> None:
    """What a reference script prints."""
    sys.path.insert(0, str(Path(__file__).parent.parent))
    import numpy as np
    import tutorial

    from distmlp import Config
    from distmlp.data import datasets
    from distmlp.parallel.digest import params_sha256

    data = datasets.load(Config(dataset="mnist", data_dir=data_dir))
    (x, y), (x_test, y_test) = (part.take(np.arange(len(part))) for part in (data.train, data.test))
    params = tutorial.initial([784, 512, 512, 10])
    for _ in range(epochs):
        params = tutorial.train_epoch(params, x, y, 128, 10)
        accuracy = tutorial.accuracy(params, x_test, y_test)
        print(json.dumps({"test_accuracy": accuracy, "sha256": params_sha256(params)}), flush=True)


def check(found: dict[str, list[float]], expected: list[float], sha256: str, expected_sha256: str) -> list[str]:
    """What does not hold, in words."""
    wrong = []
    if sha256 != expected_sha256:
        wrong.append(f"the parameters on one device have SHA-256 {sha256}, the tutorial's {expected_sha256}")
    for epoch, accuracy in enumerate(expected):
        if round(found["1 device"][epoch], 4) != round(accuracy, 4):
            wrong.append(f"epoch {epoch + 1} on one device: {found['1 device'][epoch]}, the tutorial has {accuracy}")
        for name in list(RUNS)[1:]:
            allowed = FIRST if epoch == 0 else LATER
            if abs(found[name][epoch] - accuracy) > allowed + 1e-9:
                wrong.append(f"epoch {epoch + 1} on {name}: {found[name][epoch]}, more than {allowed} from {accuracy}")
    return wrong


def check_published(lines: list[dict[str, Any]]) -> list[str]:
    """Where the lines of a run are not those of the page, in words."""
    found = [(line["train_accuracy"], line["test_accuracy"]) for line in lines if "test_accuracy" in line]
    return [f"epoch {epoch}: {accuracies}, the page has {printed}"
            for epoch, (accuracies, printed) in enumerate(zip(found, PUBLISHED, strict=False), start=1)
            if any(abs(a - b) > LATER for a, b in zip(accuracies, printed, strict=True))]  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=os.environ.get("DISTMLP_DATA_DIR", "data"))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--reference", default="", help="a script to compare with, instead of tests/tutorial.py")
    parser.add_argument("--print", action="store_true", help=argparse.SUPPRESS)
    args = parser.parse_args(argv)
    args.data_dir = str(Path(args.data_dir).absolute())
    if args.print:
        print_tutorial(args.data_dir, args.epochs)
        return 0
    expected = reference(args.data_dir, args.epochs, args.reference)
    flags = [f"--flagfile={runs.REPOSITORY}/configs/tutorial.flags", f"--data_dir={args.data_dir}",
             f"--num_epochs={args.epochs}", "--noeval_train"]  # fmt: skip
    found, digests = {}, {}
    with tempfile.TemporaryDirectory() as folder:
        for name, (devices, parallelism) in RUNS.items():
            workdir = Path(folder) / parallelism
            digests[name] = runs.finish(workdir, [*flags, f"--parallelism={parallelism}"], devices)
            found[name] = [line["test_accuracy"] for line in runs.lines(workdir) if "test_accuracy" in line]
        page = Path(folder) / "page"
        runs.finish(page, [f"--flagfile={runs.REPOSITORY}/configs/tutorial_published.flags",
                           f"--data_dir={args.data_dir}", f"--num_epochs={args.epochs}"])  # fmt: skip
        wrong = check_published(runs.lines(page))
    print("epoch  tutorial  " + "  ".join(f"{name:>12}" for name in RUNS))
    for epoch, (accuracy, _) in enumerate(expected):
        print(f"{epoch + 1:5}  {accuracy:8.4f}  " + "  ".join(f"{found[name][epoch]:12.4f}" for name in RUNS))
    wrong += check(found, [accuracy for accuracy, _ in expected], digests["1 device"], expected[-1][1])
    print("\n".join(wrong) or f"one device is the tutorial to the bit after epoch {args.epochs}, others within bounds; "
                              "the page's accuracies are there")  # fmt: skip
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
