"""Seconds from the command to the prompt: eight epochs of the tutorial's MNIST at batches of 128, each contestant
started anew for every repetition. distmlp also evaluates the test set and saves checkpoints; the others only train.

    python benchmarks/command.py
"""

import importlib
import itertools
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import harness
from harness import Contestant, Work, Worker
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
        ended, total = _run([sys.executable, "-c", program], Path(__file__).parent)
        epoch = statistics.median(after - before for before, after in itertools.pairwise(ended))
        training = ended[-1] - ended[0] + epoch
        yield {"seconds": total, "start": ended[0] - epoch, "training": training, "rest": total - ended[-1]}


def ours(work: Work) -> Contestant:
    """Contestant: whole commands of launch.train. work: flags."""
    yield {}
    while True:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "launch.train", *work["flags"], f"--workdir={folder}"]
            ended, total = _run(command, Path.cwd())
            lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        seconds = [line["seconds"] for line in lines if "seconds" in line]
        start, training = ended[0] - seconds[0], sum(seconds)
        yield {"seconds": total, "start": start, "training": training, "rest": total - start - training}


def _run(command: list[str], folder: Path) -> tuple[list[float], float]:
    """When the lines of its epochs came, and when it ended: seconds from its start."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder) as process:
        ended = [time.perf_counter() - start for line in process.stdout or () if line.startswith("epoch")]
    total = time.perf_counter() - start
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed with exit code {process.returncode}")
    return ended, total


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5)
    epochs = 2 if args.quick else 8
    work = {"data_dir": str(Path(args.data_dir).absolute()), "batch_size": 128, "epochs": epochs}
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
        ]
        workers[0].measure()  # fills the cache
        results = harness.compare(workers, 1 if args.quick else args.repetitions, args.patience)
    rows = [[name, *(harness.spread([row[part] for row in measured]) for part in ("seconds", *_PARTS)),
             harness.spread(harness.ratios(results, name, "distmlp"))] for name, measured in results.items()]
    table = harness.table(["", "seconds", *_PARTS, "times distmlp"], rows)
    harness.report(args, "From command to prompt", [table], results)


if __name__ == "__main__":
    main()
