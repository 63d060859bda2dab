"""Seconds from the command to the prompt for the predictions of 400,000 rows of 50 numbers, from .npy to .parquet; and
for networks of several widths the time of a row beside that of the matrix products alone.

    python benchmarks/bulk.py
"""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Contestant, Work, Worker
from ours import CONFIGS

WIDTH = 50
NETWORKS = {"256": 20_000, "1024,1024": 20_000, "4096,4096": 4_000}  # hidden sizes, and rows that are predicted


def trained(folder: Path, hidden_sizes: str) -> Path:
    """A run of two steps with the recipe of tabular.flags, on numbers that mean nothing."""
    from distmlp import train
    from launch import flags

    rng = np.random.default_rng(0)
    x = rng.standard_normal((200, WIDTH), np.float32)
    np.savez(folder / "set.npz", x_train=x, y_train=np.arange(200) % 5, x_test=x, y_test=np.arange(200) % 5)
    run = folder / f"run-{hidden_sizes}"
    train(flags.parse(["", f"--flagfile={CONFIGS}/tabular.flags", f"--dataset={folder}/set.npz", f"--workdir={run}",
                       f"--hidden_sizes={hidden_sizes}", "--max_steps=2"]))  # fmt: skip
    return run


def command(work: Work) -> Contestant:
    """Contestant: the whole command. work: run, rows, folder."""
    folder = Path(work["folder"])
    np.save(folder / "x.npy", np.random.default_rng(1).standard_normal((work["rows"], WIDTH), np.float32))
    predict = [sys.executable, "-m", "launch.predict", work["run"], str(folder / "x.npy"), "--output=p.parquet"]
    yield {}
    while True:
        start = time.perf_counter()
        subprocess.run(predict, check=True, cwd=folder, stdout=subprocess.DEVNULL)
        yield {"seconds": time.perf_counter() - start}


def predicted(work: Work) -> Contestant:
    """Contestant: what the command does once it has started: a file read, predicted, written. work: run, rows."""
    from distmlp import load
    from distmlp.results import bulk

    model = load(work["run"])
    with tempfile.TemporaryDirectory() as name:
        x = Path(name) / "x.npy"
        np.save(x, np.random.default_rng(1).standard_normal((work["rows"], WIDTH), np.float32))
        bulk.write(model, [x], bulk.Output(x.with_name("p.parquet")))
        yield {}
        while True:
            start = time.perf_counter()
            bulk.write(model, [x], bulk.Output(x.with_name("p.parquet")))
            yield {"seconds": time.perf_counter() - start}


def products(work: Work) -> Contestant:
    """Contestant: the matrix products of as many rows, by one XLA program for 4,000 of them. work: run, rows."""
    import jax

    from distmlp import load

    weights = jax.device_put([matrix for matrix, _ in load(work["run"]).params])
    at_once = min(4000, work["rows"])

    @jax.jit
    def all_of_them(x: Any, weights: Any) -> Any:
        for matrix in weights:
            x = x @ matrix.T
        return x

    x = jax.device_put(np.random.default_rng(1).standard_normal((at_once, WIDTH), np.float32))
    jax.block_until_ready(all_of_them(x, weights))
    yield {}
    while True:
        start = time.perf_counter()
        for _ in range(work["rows"] // at_once):
            jax.block_until_ready(all_of_them(x, weights))
        yield {"seconds": time.perf_counter() - start}


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5)
    repetitions, quick = (1, 20) if args.quick else (args.repetitions, 1)
    networks = ["256"] if args.quick else [*NETWORKS]
    with tempfile.TemporaryDirectory() as name:
        runs = {sizes: str(trained(Path(name), sizes)) for sizes in networks}
        rows = 400_000 // quick
        work: dict[str, Any] = {"run": runs["256"], "rows": rows, "folder": name}
        worker = Worker(f"{rows:,} rows, 256 hidden units", "bulk:command", work)
        whole = harness.compare([worker], repetitions, args.patience)
        workers = []
        for sizes in networks:
            work = {"run": runs[sizes], "rows": NETWORKS[sizes] // quick}
            workers += [Worker(sizes, "bulk:predicted", work), Worker(f"{sizes}, products", "bulk:products", work)]
        results = harness.compare(workers, repetitions, args.patience)
    seconds = [[text, harness.spread([row["seconds"] for row in measured])] for text, measured in whole.items()]
    per_row = []
    for sizes in networks:
        base, count = f"{sizes}, products", NETWORKS[sizes] // quick
        times = [harness.spread([1e6 * row["seconds"] / count for row in results[each]]) for each in (sizes, base)]
        per_row.append([sizes, *times, harness.spread(harness.ratios(results, sizes, base))])
    tables = [harness.table(["from command to prompt", "seconds"], seconds),
              harness.table(["hidden sizes", "µs a row", "of the products alone", "ratio"], per_row)]
    harness.report(args, "Predictions of many rows", tables, {"command": whole, "rows": results})


if __name__ == "__main__":
    main()
