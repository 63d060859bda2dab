"""Seconds from the command to the prompt: eight epochs of the tutorial's MNIST at batches of 128, the test set
evaluated after each, every contestant started anew for every repetition. distmlp also saves checkpoints. The tutorial
as it is published evaluates the training set, too.

    python benchmarks/command.py
"""

import importlib
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
from harness import Contestant, Numbers, Work, Worker
from ours import CONFIGS

_PARTS = ("start", "training", "rest")


def train(function: str, work: Work) -> None:
    """What a contestant's process does: the first epochs of a contestant of this folder, one line for each."""
    module, _, name = function.partition(":")
    contestant = getattr(importlib.import_module(module), name)(work)
    for _ in range(work["epochs"]):
        print("epoch", json.dumps(next(contestant)), flush=True)


def peer(work: Work) -> Contestant:
    """Contestant: whole processes of `train`. The start includes what compiles in the first epoch.

    work: function, epochs, and the function's own.
    """
    importlib.import_module(work["function"].partition(":")[0])  # tells whether its packages are there
    yield {}
    program = f"import command; command.train({work['function']!r}, {work!r})"
    while True:
        lines, first, total = _run([sys.executable, "-c", program], Path(__file__).parent)
        seconds = [json.loads(line.removeprefix("epoch"))["seconds"] for line in lines]
        yield _parts([statistics.median(seconds), *seconds[1:]], first, total)


def ours(work: Work) -> Contestant:
    """Contestant: whole commands of launch.train. work: flags."""
    yield {}
    while True:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "launch.train", *work["flags"], f"--workdir={folder}"]
            _, first, total = _run(command, Path.cwd())
            lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        yield _parts([line["seconds"] for line in lines if "seconds" in line], first, total)


def _parts(seconds: list[float], first: float, total: float) -> Numbers:
    """seconds: of each epoch's training. first: when the first epoch's line came. total: when the process ended."""
    start, training = first - seconds[0], sum(seconds)
    return {"seconds": total, "start": start, "training": training, "rest": total - start - training}


def _run(command: list[str], folder: Path) -> tuple[list[str], float, float]:
    """The lines of its epochs; the seconds from its start until the first of them came, and until it ended."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        came = [(line, time.perf_counter() - start) for line in process.stdout or () if line.startswith("epoch")]
    total = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return [line for line, _ in came], came[0][1], total


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5)
    epochs = 2 if args.quick else 8
    work = {"data_dir": str(Path(args.data_dir).absolute()), "batch_size": 128, "epochs": epochs,
            "evaluates": "test"}
    flags = [f"--flagfile={CONFIGS}/tutorial.flags", f"--data_dir={work['data_dir']}", f"--num_epochs={epochs}",
             "--noeval_train"]
    with tempfile.TemporaryDirectory() as cache:
        workers = [
            Worker("distmlp", "command:ours", {"flags": [*flags, f"--compilation_cache_dir={cache}"]}),
            Worker("distmlp, nothing compiled before", "command:ours", {"flags": [*flags, "--compilation_cache_dir="]}),
            Worker("PyTorch, in memory", "command:peer", {"function": "peers:torch_memory"} | work,
                   harness.openmp(args)),
            Worker("Keras on JAX, fit", "command:peer", {"function": "peers:keras_fit"} | work,
                   {"KERAS_BACKEND": "jax"}),
            Worker("tutorial", "command:peer", {"function": "tutorial:epochs"} | work),
            Worker("tutorial, as published", "command:peer",
                   {"function": "tutorial:epochs"} | work | {"evaluates": "train test"}),
        ]
        workers[0].measure()  # fills the cache
        results = harness.compare(workers, 1 if args.quick else args.repetitions, args.patience)
    rows = [[name, *(harness.spread([row[part] for row in measured]) for part in ("seconds", *_PARTS)),
             harness.spread(harness.ratios(results, name, "distmlp"))] for name, measured in results.items()]
    table = harness.table(["", "seconds", *_PARTS, "times distmlp"], rows)
    harness.report(args, "From command to prompt", [table], results)


if __name__ == "__main__":
    main()
