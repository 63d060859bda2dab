"""Seconds from the command to the first training step on the tutorial's data: without and with a compilation cache from
the start before; imports alone beside them.

    python benchmarks/startup.py
"""

import subprocess
import sys
import tempfile
import time

import harness
from harness import Contestant, Work, Worker
from ours import CONFIGS


def imports(work: Work) -> Contestant:
    """Contestant: a process that only imports. work: module."""
    yield {}
    while True:
        start = time.perf_counter()
        subprocess.run([sys.executable, "-c", f"import {work['module']}"], check=True)
        yield {"seconds": time.perf_counter() - start}


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5)
    flags = [f"--flagfile={CONFIGS}/tutorial.flags", f"--data_dir={args.data_dir}", "--noeval_train"]
    with tempfile.TemporaryDirectory() as cache:
        workers = [
            Worker("import jax", "startup:imports", {"module": "jax"}),
            Worker("import jax, torch", "startup:imports", {"module": "jax, torch"}),
            Worker("import distmlp.loop", "startup:imports", {"module": "distmlp.loop"}),
            Worker("first step, no cache", "ours:first_step", {"flags": [*flags, "--compilation_cache_dir="]}),
            Worker("first step, cache", "ours:first_step", {"flags": [*flags, f"--compilation_cache_dir={cache}"]}),
        ]
        results = harness.compare(workers, 2 if args.quick else args.repetitions + 1, args.patience)
    for measured in results.values():
        del measured[0]  # a warm-up: the first start with a cache fills it
    rows = [[name, harness.spread([row["seconds"] for row in measured])] for name, measured in results.items()]
    harness.report(args, "Start-up", [harness.table(["", "seconds"], rows)], results)


if __name__ == "__main__":
    main()
