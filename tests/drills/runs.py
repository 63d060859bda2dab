"""Runs of the trainer in processes of their own, and what they leave behind; shared by the drills."""

import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

SKIPPED = 77  # exit code of a drill that this machine cannot run, as in automake: it has shown nothing
REPOSITORY = Path(__file__).resolve().parents[2]
# And the checksum of all.
TIMINGS = ("seconds", "examples_per_second", "total_seconds", "process_seconds", "slowest", "crc32")
# A run of the handwritten digits: 1,437 examples, so that each epoch of 12 steps ends with an uneven batch.
DIGITS = (
    "--dataset=digits", "--input_scaling=unit", "--shuffle", "--hidden_sizes=128,64", "--batch_size=128",
    "--learning_rate=0.1", "--momentum=0.9", "--reduction=invariant",
)  # fmt: skip
# The same with frequent evaluation and saving, so that a random instant often lands in them.
RESTLESS = (*DIGITS, "--checkpoint_every_steps=4", "--eval_train", "--eval_batch_size=25")


class DrillError(Exception):
    """A promise did not hold."""


def with_devices(xla_flags: str, devices: int) -> str:
    """XLA_FLAGS that ask for so many CPU devices; the other flags stay."""
    count = "--xla_force_host_platform_device_count="
    return " ".join([*(flag for flag in xla_flags.split() if not flag.startswith(count)), f"{count}{devices}"])


def environment(devices: int) -> dict[str, str]:
    """This environment, less its JAX settings, with so many emulated devices; XLA's other flags stay."""
    kept = {k: v for k, v in os.environ.items() if k not in ("PJRT_NPROC", "JAX_NUM_CPU_DEVICES")}
    path = os.pathsep.join(filter(None, [str(REPOSITORY), kept.get("PYTHONPATH")]))
    flags = with_devices(kept.get("XLA_FLAGS", ""), devices)
    return kept | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": flags, "PYTHONPATH": path, "PYTHONUNBUFFERED": "1"}


def run(
    workdir: Path, flags: Sequence[str], devices: int = 1, timeout: float = 300
) -> "subprocess.CompletedProcess[str]":
    """`python -m launch.train` to its end."""
    return subprocess.run(
        [sys.executable, "-m", "launch.train", *flags, f"--workdir={workdir}"], env=environment(devices),
        capture_output=True, text=True, timeout=timeout, check=False, cwd=workdir.parent,
    )  # fmt: skip


def finish(workdir: Path, flags: Sequence[str], devices: int = 1) -> str:
    """Runs to the end, which must be a good one; returns the parameters' SHA-256."""
    done = run(workdir, flags, devices)
    if done.returncode:
        raise DrillError(f"exit code {done.returncode}:\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")
    return sha256(workdir)


def lines(workdir: Path, file: str = "metrics.jsonl") -> list[dict[str, Any]]:
    """The lines of a run's file without what may differ between two runs: the timings."""
    parsed = map(json.loads, (workdir / file).read_text().splitlines())
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in parsed]


def sha256(workdir: Path) -> str:
    last = lines(workdir)[-1]
    if not last.get("final"):
        raise DrillError(f"{workdir}: metrics.jsonl does not end with the final line but with {last}")
    return str(last["params_sha256"])


def committed(workdir: Path) -> list[int]:
    """Steps of the checkpoints under their final names, ascending."""
    folder = workdir / "checkpoints"
    return sorted(int(path.name) for path in folder.iterdir() if path.name.isdigit()) if folder.exists() else []


def random_devices(rng: random.Random) -> tuple[int, list[str]]:
    """A device count from 1 to 8 and the flags of a way to use them, with the state replicated or sharded."""
    devices = rng.randint(1, 8)
    ways = ["shard_map", "pmap", "single"] if devices == 1 else ["shard_map", "pmap"]
    way, placement, state = rng.choice(ways), rng.choice(["host", "device"]), rng.choice(["replicated", "sharded"])
    return devices, [f"--parallelism={way}", f"--data_placement={placement}",
                     f"--state={'replicated' if way == 'pmap' else state}"]  # fmt: skip


def heed(signals: Sequence[signal.Signals]) -> None:
    """Has this process, and what it starts, heed these, though nohup, or a shell that put it behind, did not."""
    for signum in signals:
        if signal.getsignal(signum) is signal.SIG_IGN:
            signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)


class Child:
    """A run whose phase the drill can see, so that it can aim: tests/drills/phases.py around launch.train."""

    def __init__(self, workdir: Path, flags: Sequence[str], devices: int) -> None:
        self._phase, self._output = workdir.with_suffix(".phase"), workdir.with_suffix(".out")
        self._phase.write_text("start")
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, Path(__file__).with_name("phases.py"), self._phase, *flags, f"--workdir={workdir}"],
                env=environment(devices), stdout=output, stderr=subprocess.STDOUT, cwd=workdir.parent,
            )  # fmt: skip

    @property
    def phase(self) -> str:
        """start, imports, setup, compile, train, evaluate, save, final (the last save) or end."""
        return self._phase.read_text().strip()

    @property
    def output(self) -> str:
        return self._output.read_text(errors="replace")

    def resumed_at(self) -> int | None:
        """The step it said it goes on after, if it came so far; 0 for a new run."""
        found = re.search(r"^resuming after step (\d+) of", self.output, re.MULTILINE)
        return int(found[1]) if found else 0 if re.search(r"^workdir +/", self.output, re.MULTILINE) else None
