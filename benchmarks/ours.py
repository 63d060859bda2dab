"""distmlp as a contestant: `train(config)` itself, timed by the lines that it writes to metrics.jsonl."""

import dataclasses
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import Contestant, Numbers, Work

from distmlp import Config, flags, train

CONFIGS = Path(__file__).resolve().parent.parent / "configs"


def config_of(work: Work) -> Config:
    """The flags of work: a list, as on the command line."""
    return flags.parse(["", *work["flags"]])


def _epoch_seconds(history: list[dict[str, float]]) -> list[float]:
    return [line["seconds"] for line in history if "seconds" in line]


def epochs(work: Work) -> Contestant:
    """Contestant: a run of `epochs` epochs per repetition; seconds per epoch. work: flags, epochs."""
    config = dataclasses.replace(config_of(work), num_epochs=work["epochs"], eval_train=False, eval_every_epochs=0)
    for repetition in range(sys.maxsize):
        with tempfile.TemporaryDirectory() as folder:
            seconds = _epoch_seconds(train(dataclasses.replace(config, workdir=folder)).history)
        yield {"seconds": float(np.mean(seconds))} if repetition else {}


def seeds(work: Work) -> Iterator[Numbers]:
    """Contestant: per repetition one whole run, of seed 0, 1, ...; its training seconds. work: flags."""
    config = config_of(work)
    for repetition in range(sys.maxsize):
        seed = max(0, repetition - 1)
        with tempfile.TemporaryDirectory() as folder:
            history = train(dataclasses.replace(config, workdir=folder, seed=seed)).history
        accuracy = [line["test_accuracy"] for line in history if "test_accuracy" in line]
        numbers = {"seconds": sum(_epoch_seconds(history)), "accuracy": accuracy[-1], "seed": seed}
        yield numbers if repetition else {}


def two_processes(work: Work) -> Contestant:
    """Contestant: per repetition two processes train for `epochs` epochs; seconds of the later ones, per epoch.

    work: flags, epochs.
    """
    yield {}
    while True:
        with tempfile.TemporaryDirectory() as folder:
            with socket.socket() as free:
                free.bind(("127.0.0.1", 0))
                address = f"127.0.0.1:{free.getsockname()[1]}"
            command = [sys.executable, "-m", "launch.train", *work["flags"], f"--num_epochs={work['epochs']}",
                       "--eval_every_epochs=0", f"--workdir={folder}", f"--coordinator_address={address}",
                       "--num_processes=2"]
            processes = [subprocess.Popen([*command, f"--process_id={i}"]) for i in range(2)]
            codes = [process.wait() for process in processes]
            if any(codes):
                raise SystemExit("one of the two processes failed")
            lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        yield {"seconds": float(np.mean(_epoch_seconds(lines)[1:]))}


def loading(work: Work) -> Contestant:
    """Contestant: one pass over NumpyLoader. work: flags."""
    from distmlp import datasets
    from distmlp.loader import NumpyLoader

    config = config_of(work)
    loader = NumpyLoader(datasets.load(config).train, config.batch_size, shuffle=config.shuffle)
    yield {}
    while True:
        start = time.perf_counter()
        count = sum(int(batch.weight_sum) for batch in loader)
        seconds = time.perf_counter() - start
        yield {"seconds": seconds, "images_per_second": count / seconds}


def first_step(work: Work) -> Contestant:
    """Contestant: per repetition one process that trains a single step; seconds from its start to its end.

    work: flags, env.
    """
    yield {}
    while True:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            subprocess.run(
                [sys.executable, "-m", "launch.train", *work["flags"], "--max_steps=1", f"--workdir={folder}"],
                check=True, env=os.environ | work.get("env", {}),
            )
        yield {"seconds": time.perf_counter() - start}
