"""Images per second of the loaders alone, batches of 128 of MNIST; how long an epoch of many examples takes to begin;
and rows per second of a shuffled epoch of a packed table, beside its .npy file by torch and its Parquet parts.

    python benchmarks/loader.py
"""

import os
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
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


def _table(work: Work) -> Path:
    """A folder with Parquet parts and the pack of them, which has x_train.npy; made once. work: folder, rows."""
    import pyarrow as pa
    from pyarrow import parquet

    from distmlp import Config
    from distmlp.data.packing import pack_sources

    folder = Path(work["folder"])
    if not (folder / "made").exists():
        rng = np.random.default_rng(0)
        (folder / "parts").mkdir()
        for part, begin in enumerate(range(0, work["rows"], 250_000)):
            x = rng.standard_normal((min(250_000, work["rows"] - begin), 50), dtype=np.float32)
            columns = {f"x{place}": x[:, place] for place in range(50)} | {"label": (x[:, 0] > 0).astype(np.int64)}
            parquet.write_table(pa.table(columns), folder / "parts" / f"{part:03}.parquet")
        pack_sources([folder / "parts"], folder / "made", Config())
    return folder


def _rows_per_second(sizes: Iterable[int]) -> dict[str, float]:
    start = time.perf_counter()
    count = sum(sizes)
    return {"rows_per_second": count / (time.perf_counter() - start)}


def packed(work: Work) -> Contestant:
    """Contestant: a shuffled epoch of the pack, opened anew, so that all its blocks are verified, if `verify` says so;
    with `cold`, from the disk."""
    from distmlp.data.batches import NumpyLoader
    from distmlp.data.packed import Pack

    folder = _table(work)
    yield {}
    while True:
        if work.get("cold"):
            with (folder / "made" / "x_train.npy").open("rb") as file:
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        examples = Pack(folder / "made").examples("train", 0, work["verify"])
        loader = NumpyLoader(examples, work["batch_size"], shuffle=True)
        yield _rows_per_second(int(batch.weight_sum) for batch in loader)


def torch_npy(work: Work) -> Contestant:
    """Contestant: torch's DataLoader, shuffled, over the memory-mapped .npy file, as its documentation has it."""
    import torch

    folder = _table(work)
    x = np.load(folder / "made" / "x_train.npy", mmap_mode="r")
    y = np.load(folder / "made" / "y_train.npy", mmap_mode="r")[:, 0]

    class Rows(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return len(x)

        def __getitem__(self, index: int) -> Any:
            return x[index].copy(), int(y[index])

    loader = torch.utils.data.DataLoader(Rows(), work["batch_size"], shuffle=True)
    yield {}
    while True:
        yield _rows_per_second(len(labels) for _, labels in loader)


def parquet_in_order(work: Work) -> Contestant:
    """Contestant: pyarrow.dataset over the Parquet parts, in the order of the rows, as NumPy arrays."""
    from pyarrow import dataset

    folder = _table(work)
    names = [f"x{place}" for place in range(50)]
    yield {}
    while True:
        batches = dataset.dataset(folder / "parts").to_batches(columns=names, batch_size=work["batch_size"])
        yield _rows_per_second(len(np.stack([column.to_numpy() for column in batch.columns], axis=1))
                               for batch in batches)  # fmt: skip


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
    with tempfile.TemporaryDirectory() as folder:
        table: dict[str, Any] = {"folder": folder, "rows": 100_000 if args.quick else 2_000_000, "batch_size": 128}
        read = harness.compare([  # the first one makes the files
            Worker("packed", "loader:packed", table | {"verify": True}),
            Worker("packed, not verified", "loader:packed", table | {"verify": False}),
            Worker("packed, from the disk", "loader:packed", table | {"verify": True, "cold": True}),
            Worker(".npy, torch DataLoader", "loader:torch_npy", table),
            Worker("Parquet, in order", "loader:parquet_in_order", table),
        ], repetitions, args.patience)  # fmt: skip
    read_rows = [[name, harness.spread([row["rows_per_second"] for row in measured]),
                  harness.spread(harness.ratios(read, name, "packed", "rows_per_second"))]
                 for name, measured in read.items()]
    tables = [harness.table(["a shuffled epoch of 50 columns", "rows/s", "times the pack's"], read_rows),
              harness.table(["loader", "images/s", "times the tutorial's"], rows),
              harness.table(["examples", "seconds until a shuffled epoch's first batch"], start_rows)]
    harness.report(args, "Loaders", tables, {"loaders": results, "epoch_start": starts, "packed": read})


if __name__ == "__main__":
    main()
