"""distmlp as a contestant: `train(config)` itself, timed by the lines that it writes to metrics.jsonl."""

import dataclasses
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from harness import Contestant, Numbers, Work, torchrun

from distmlp import Config, train
from launch import flags

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
    """Contestant: per repetition torchrun starts two processes; seconds per epoch, the first left out.

    work: flags, epochs.
    """
    yield {}
    while True:
        with tempfile.TemporaryDirectory() as folder:
            torchrun("-m", "launch.train", *work["flags"], f"--num_epochs={work['epochs']}", "--eval_every_epochs=0",
                     f"--workdir={folder}")
            lines = [json.loads(line) for line in (Path(folder) / "metrics.jsonl").read_text().splitlines()]
        yield {"seconds": float(np.mean(_epoch_seconds(lines)[1:]))}


def loading(work: Work) -> Contestant:
    """Contestant: one pass over NumpyLoader. work: flags."""
    from distmlp.data import datasets
    from distmlp.data.loader import NumpyLoader

    config = config_of(work)
    loader = NumpyLoader(datasets.load(config).train, config.batch_size, shuffle=config.shuffle)
    yield {}
    while True:
        start = time.perf_counter()
        count = sum(int(batch.real.sum()) for batch in loader)
        seconds = time.perf_counter() - start
        yield {"seconds": seconds, "images_per_second": count / seconds}


def first_step(work: Work) -> Contestant:
    """Contestant: per repetition one process is started; seconds from there to its first training step.

    That is when the first epoch's line comes, less the epoch's seconds in it. work: flags.
    """
    yield {}
    while True:
        with tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            command = [sys.executable, "-m", "launch.train", *work["flags"], "--num_epochs=2", "--eval_every_epochs=0",
                       f"--workdir={folder}"]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                came = next(time.perf_counter() for line in process.stdout or () if line.startswith("epoch"))
                process.terminate()
                process.communicate()
            first = json.loads((Path(folder) / "metrics.jsonl").read_text().splitlines()[0])
        yield {"seconds": came - start - first["seconds"]}
