"""Images per second of the loaders alone, batches of 128 of MNIST; how long an epoch of many examples takes to begin;
rows per second of a shuffled epoch of a packed table, beside what others read from its .npy file and from its Parquet
parts; the same with and without verifying the pack's blocks; and of packing itself, beside pyarrow and NumPy.

    python benchmarks/loader.py [--only=images|rows|verified]
"""

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Contestant, Work, Worker
from ours import CONFIGS

_SECONDS = 5.0  # for which rows are read, at most


def epoch_start(work: Work) -> Contestant:
    """Contestant: seconds from set_position to the first batch of a shuffled epoch. work: examples."""
    from distmlp.data.datasets import ArrayDataset
    from distmlp.data.loader import NumpyLoader

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


def _pixels(work: Work) -> Path:
    """A folder with a pack of as many rows of 784 bytes; made once."""
    from distmlp import pack

    folder = Path(work["folder"]) / "pixels"
    if not folder.exists():
        rng, most = np.random.default_rng(0), 50_000
        sizes = [min(most, work["rows"] - begin) for begin in range(0, work["rows"], most)]
        pack(((rng.integers(0, 256, (rows, 784), np.uint8), np.arange(rows) % 10) for rows in sizes), folder / "made")
    return folder


def _rows_per_second(sizes: Iterable[int], start: float = 0.0) -> dict[str, float]:
    """Of batches of these sizes: an epoch, or its first seconds, if it takes longer; since `start`, or now."""
    start, count = start or time.perf_counter(), 0
    for size in sizes:
        count += size
        if time.perf_counter() - start > _SECONDS:
            break
    return {"rows_per_second": count / (time.perf_counter() - start)}


def packed(work: Work) -> Contestant:
    """Contestant: a shuffled epoch of the pack, from opening it on, in an order of its own. All its blocks are verified
    meanwhile, if `verify` says so. With `cold`, from the disk: of a copy that nobody else has mapped, for what is
    mapped stays in memory. With `pixels`, of rows of 784 bytes."""
    from distmlp import Config
    from distmlp.data import read
    from distmlp.data.loader import NumpyLoader

    folder, cold = _pixels(work) if work.get("pixels") else _table(work), work.get("cold")
    made = folder / ("cold" if cold else "made")
    if not made.exists():
        shutil.copytree(folder / "made", made)
    config, epoch = Config(dataset=str(made), verify_data=work["verify"]), 0
    yield {}
    while True:
        epoch += 1
        if cold:
            with (made / "x_train.npy").open("rb") as file:
                os.fsync(file.fileno())
                os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        start = time.perf_counter()
        part: Any = read.source(config, False, None).parts["train"].features
        loader = NumpyLoader(part, work["batch_size"], shuffle=True, seed=epoch)
        found = _rows_per_second((int(batch.weight_sum) for batch in loader), start)
        del part, loader  # and with them what is mapped
        gc.collect()
        yield found


def trained(work: Work) -> Contestant:
    """Contestant: a shuffled epoch of a training on the pack, whose network has no hidden layer: it mostly reads."""
    from distmlp import Config, train

    folder = _pixels(work) if work.get("pixels") else _table(work)
    config = Config(dataset=str(folder / "made"), workdir=None, hidden_sizes=(), batch_size=1024, num_epochs=1,
                    shuffle=True, data_placement="host", eval_every_epochs=0, test_fraction=0.01, num_devices=1,
                    verify_data=work["verify"])  # fmt: skip
    yield {}
    while True:
        first = train(config).history[0]
        yield {"rows_per_second": first["examples_per_second"]}


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


def grain_parquet(work: Work) -> Contestant:
    """Contestant: grain over the Parquet parts, interleaved, shuffled within a window of 10,000 rows."""
    import grain

    parts = [grain.experimental.ParquetIterDataset(str(path)) for path in sorted((_table(work) / "parts").iterdir())]
    rows = grain.experimental.InterleaveIterDataset(parts, cycle_length=4)
    batches = grain.experimental.WindowShuffleIterDataset(rows, window_size=10_000, seed=0).batch(work["batch_size"])
    yield {}
    while True:
        yield _rows_per_second(len(np.stack([batch[f"x{place}"] for place in range(50)], axis=1)) for batch in batches)


def hugging_face(work: Work) -> Contestant:
    """Contestant: Hugging Face datasets. With `streaming` over the Parquet parts, shuffled within a buffer of 10,000
    rows; else over its own copy of them, memory-mapped, shuffled exactly."""
    import datasets

    folder = _table(work)
    rows = datasets.load_dataset("parquet", data_files=str(folder / "parts" / "*.parquet"), split="train",
                                 streaming=work["streaming"], cache_dir=str(folder / "hugging"))  # fmt: skip
    yield {}
    while True:
        shuffled = rows.shuffle(seed=0, buffer_size=10_000) if work["streaming"] else rows.shuffle(seed=0)
        batches = shuffled.with_format("numpy").iter(work["batch_size"])
        yield _rows_per_second(len(np.stack([batch[f"x{place}"] for place in range(50)], axis=1)) for batch in batches)


def mosaic(work: Work) -> Contestant:
    """Contestant: MosaicML streaming over shards of its own, shuffled as it does by itself, by torch's DataLoader."""
    import streaming
    from torch.utils.data import DataLoader

    folder = _table(work)
    shards = folder / "mosaic"
    if not shards.exists():
        x = np.load(folder / "made" / "x_train.npy", mmap_mode="r")
        y = np.load(folder / "made" / "y_train.npy", mmap_mode="r")[:, 0]
        with streaming.MDSWriter(out=str(shards), columns={"x": "ndarray:float32:50", "y": "int"}) as writer:
            for row, label in zip(x, y, strict=True):
                writer.write({"x": np.asarray(row), "y": int(label)})
    rows = streaming.StreamingDataset(local=str(shards), shuffle=True, batch_size=work["batch_size"])
    loader = DataLoader(rows, work["batch_size"])
    yield {}
    while True:
        yield _rows_per_second(len(batch["y"]) for batch in loader)


def packing(work: Work) -> Contestant:
    """Contestant: pack of the Parquet parts."""
    from distmlp import Config
    from distmlp.data.packing import pack_sources

    folder = _table(work)
    yield {}
    while True:
        start = time.perf_counter()
        pack_sources([folder / "parts"], folder / "packed", Config())
        seconds = time.perf_counter() - start
        shutil.rmtree(folder / "packed")
        yield {"rows_per_second": work["rows"] / seconds}


def parquet_to_npy(work: Work) -> Contestant:
    """Contestant: pyarrow.dataset reads the same files to NumPy, which writes features and labels, and syncs them."""
    from pyarrow import dataset

    folder = _table(work)
    yield {}
    while True:
        start = time.perf_counter()
        rows = 0
        with (folder / "x.bin").open("wb") as x, (folder / "y.bin").open("wb") as y:
            for batch in dataset.dataset(folder / "parts").to_batches():
                *columns, labels = (column.to_numpy() for column in batch.columns)
                x.write(np.stack(columns, axis=1).data)
                y.write(labels.astype(np.int32).data)
                rows += len(labels)
            for file in (x, y):
                file.flush()
                os.fsync(file.fileno())
        yield {"rows_per_second": rows / (time.perf_counter() - start)}


def images(args: Any, repetitions: int) -> None:
    """The loaders alone."""
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
    sizes = [10**4, 10**5] if args.quick else [10**4, 10**5, 10**6, 10**7]
    starts = harness.compare([Worker(f"{n:,}", "loader:epoch_start", {"examples": n}) for n in sizes], repetitions)
    start_rows = [[name, harness.spread([row["seconds"] for row in measured])] for name, measured in starts.items()]
    tables = [_compared(results, "loader", "images", "tutorial"),
              harness.table(["examples", "seconds until a shuffled epoch's first batch"], start_rows)]
    harness.report(args, "Loaders", tables, {"loaders": results, "epoch_start": starts})


_Results = dict[str, list[harness.Numbers]]


def _verifying(table: Work, repetitions: int, patience: float) -> dict[str, _Results]:
    """What verifying costs: packed rows with it and without, by what they are. Each is short, and so done often."""
    measured = {}
    for name, more in (("50 float32", {}), ("784 bytes", {"pixels": True})):
        work = table | more | {"cold": False}
        measured[name] = harness.compare([  # the first one makes the files
            Worker("verified", "loader:packed", work | {"verify": True}),
            Worker("not verified", "loader:packed", work | {"verify": False}),
            Worker("from the disk, verified", "loader:packed", work | {"verify": True, "cold": True}),
            Worker("from the disk, not verified", "loader:packed", work | {"verify": False, "cold": True}),
            Worker("in a training, verified", "loader:trained", work | {"verify": True}),
            Worker("in a training, not verified", "loader:trained", work | {"verify": False}),
        ], 4 * repetitions, patience)  # fmt: skip
    return measured


def _verified_tables(measured: dict[str, _Results]) -> list[str]:
    """Rows per second, and the time with verifying, as a multiple of the time without."""
    tables = []
    for name, results in measured.items():
        lines = []
        for place in ("", "from the disk, ", "in a training, "):
            pair = [f"{place}verified", f"{place}not verified"]
            speeds = [harness.spread([row["rows_per_second"] for row in results[each]]) for each in pair]
            lines.append([place.strip(", ") or "from memory", *speeds,
                          harness.spread(harness.ratios(results, pair[1], pair[0], "rows_per_second"))])
        tables.append(harness.table([f"rows/s of a shuffled epoch of {name}", "verified", "not verified",
                                     "time, verified / not"], lines))
    return tables


def verified(args: Any, repetitions: int) -> None:
    """What verifying costs, alone."""
    with tempfile.TemporaryDirectory() as folder:
        measured = _verifying(_made(args, folder), repetitions, args.patience)
    harness.report(args, "Verified rows", _verified_tables(measured), measured, "verified")


def _made(args: Any, folder: str) -> dict[str, Any]:
    """What is made in a folder."""
    return {"folder": folder, "rows": 100_000 if args.quick else args.rows, "batch_size": 128}


def rows(args: Any, repetitions: int) -> None:
    """Packed rows, and packing."""
    with tempfile.TemporaryDirectory() as folder:
        table = _made(args, folder)
        read = harness.compare([  # the first one makes the files
            Worker("packed", "loader:packed", table | {"verify": True}),
            Worker(".npy, torch DataLoader", "loader:torch_npy", table),
            Worker("Parquet, in order", "loader:parquet_in_order", table),
            Worker("Parquet, grain", "loader:grain_parquet", table),
            Worker("Arrow, Hugging Face datasets", "loader:hugging_face", table | {"streaming": False}),
            Worker("Parquet, Hugging Face datasets", "loader:hugging_face", table | {"streaming": True}),
            Worker("MosaicML streaming", "loader:mosaic", table),
        ], repetitions, args.patience)  # fmt: skip
        made = harness.compare([
            Worker("pack", "loader:packing", table),
            Worker("pyarrow.dataset to NumPy to the disk", "loader:parquet_to_npy", table),
        ], repetitions, args.patience)  # fmt: skip
        checked = _verifying(table, repetitions, args.patience)
    tables = [_compared(read, "a shuffled epoch of 50 columns", "rows", "packed"),
              *_verified_tables(checked),
              _compared(made, "Parquet of 50 columns to rows of one width", "rows", "pack")]
    harness.report(args, "Packed rows", tables, {"packed": read, "verified": checked, "packing": made}, "packed")


def _compared(results: dict[str, list[harness.Numbers]], what: str, unit: str, base: str) -> str:
    """A table of the contestants' speeds."""
    key = f"{unit}_per_second"
    lines = [[name, harness.spread([row[key] for row in measured]),
              harness.spread(harness.ratios(results, name, base, key))] for name, measured in results.items()]
    return harness.table([what, f"{unit}/s", f"times {base}"], lines)


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5, only="", rows=500_000)
    for name, measure in (("images", images), ("rows", rows), ("verified", verified)):
        if args.only == name or (not args.only and name != "verified"):  # which is a part of rows
            measure(args, 1 if args.quick else args.repetitions)


if __name__ == "__main__":
    main()
