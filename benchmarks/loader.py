"""Images per second of the loaders alone, batches of 128 of MNIST; and how long an epoch of many examples takes to
begin.

    python benchmarks/loader.py
"""

import time
from typing import Any

import harness
import numpy as np
from harness import Contestant, Work, Worker
from ours import CONFIGS


def epoch_start(work: Work) -> Contestant:
    """Contestant: seconds from set_position to the first batch of a shuffled epoch. work: examples."""
    from distmlp.data.batches import NumpyLoader
    from distmlp.data.datasets import ArrayDataset

    images = np.zeros((work["examples"], 1), np.uint8)
    loader = NumpyLoader(ArrayDataset(images, images[:, 0], "zeros"), 128, shuffle=True)
    epoch = 0
    yield {}
    while True:
        epoch += 1  # an order of its own, which is not in any cache
        start = time.perf_counter()
        loader.set_position(epoch)
        next(iter(loader))
        yield {"seconds": time.perf_counter() - start}


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5)
    repetitions = 1 if args.quick else args.repetitions
    work: dict[str, Any] = {"data_dir": args.data_dir, "batch_size": 128}
    ours = [f"--flagfile={CONFIGS}/tutorial.flags", f"--data_dir={args.data_dir}"]
    workers = [
        Worker("tutorial", "tutorial:loading", work),
        Worker("torch DataLoader", "peers:torch_loading", work | {"num_workers": 0}),
        Worker("torch DataLoader, 2 workers", "peers:torch_loading", work | {"num_workers": 2}),
        Worker("grain", "peers:grain_loading", work),
        Worker("distmlp", "ours:loading", {"flags": ours}),
        Worker("distmlp, shuffled", "ours:loading", {"flags": [*ours, "--shuffle"]}),
    ]
    results = harness.compare(workers, repetitions, args.patience)
    rows = [[name, harness.spread([row["images_per_second"] for row in measured]),
             harness.spread(harness.ratios(results, name, "tutorial", "images_per_second"))]
            for name, measured in results.items()]
    sizes = [10**4, 10**5] if args.quick else [10**4, 10**5, 10**6, 10**7]
    starts = harness.compare([Worker(f"{n:,}", "loader:epoch_start", {"examples": n}) for n in sizes], repetitions)
    start_rows = [[name, harness.spread([row["seconds"] for row in measured])] for name, measured in starts.items()]
    tables = [harness.table(["loader", "images/s", "times the tutorial's"], rows),
              harness.table(["examples", "seconds until a shuffled epoch's first batch"], start_rows)]
    harness.report(args, "Loaders", tables, {"loaders": results, "epoch_start": starts})


if __name__ == "__main__":
    main()
