"""Whether what goes wrong is noticed, and a run goes on with the parameters it would have had."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distmlp import loop, training
from distmlp.config import Config, run_flags
from distmlp.data import datasets
from distmlp.errors import DivergedError, ReplicaError
from distmlp.machine import sync
from distmlp.parallel import backend
from distmlp.parallel.specs import REPLICATED
from distmlp.progress import Progress
from distmlp.run.log import read_lines
from distmlp.verify.here import Here, NotHeld, NotHere

_SAVED = 2  # checkpoints, until a run is killed
_MORE = 12  # steps that it then still has before it
_END_SECONDS = 60.0  # until the others of a killed process have noticed
# Runs a command that the system kills with the process that has started it (PR_SET_PDEATHSIG), however that ends.
_BOUND = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execvp(sys.argv[1], sys.argv[1:])"


def not_finite(here: Here) -> str:
    """A loss that is no number stops the run."""
    config = here.config(learning_rate=1e30)
    with backend.pinned(config), closing(here.program(config, here.load(config))) as parts:
        parts.compile()
        try:
            state = parts.initial_state(parts.scaling())
            for _ in training.advance(parts, state, Progress(parts.cadence), lambda: None):
                pass  # `carry` would look at the last state, too
        except DivergedError as error:
            return str(error)
    raise NotHeld(f"{config.max_steps} steps with --learning_rate=1e30 were made without a word")


def copies(here: Here) -> str:
    """A device whose copy of the state is another is noticed."""
    if here.count == 1:
        raise NotHere("one device has the only copy")
    config = here.config(state="replicated")
    with backend.pinned(config), closing(here.program(config, here.load(config))) as parts:
        state = parts.initial_state(parts.scaling())
        parts.digest.check(state, 0)
        changed = [jax.device_put(np.int32(at == here.count - 1), here.layout.devices[at])
                   for at in here.layout.local_positions]
        step = jax.make_array_from_single_device_arrays((), here.layout.sharding(REPLICATED), changed)
        try:
            parts.digest.check(state._replace(step=step), 0)
        except ReplicaError as error:
            return str(error)
    raise NotHeld(f"one bit of {here.name(here.count - 1)}'s copy was changed, and nobody noticed")


def flipped_bit(here: Here) -> str:
    """A checkpoint with one changed bit is set aside; the run goes on from the one before."""
    folder = _folder(here) / "flipped"
    network: dict[str, Any] = {"hidden_sizes": (300, 200)}  # large enough for its numbers to be most of a file
    kept = network | {"workdir": str(folder), "checkpoint_every_steps": 3, "keep_checkpoints": 3}
    _train(here, here.config(**kept, max_steps=6))
    if here.group.first:
        flip(folder / "checkpoints" / "6")
    here.group.barrier()
    history = _train(here, here.config(**kept, max_steps=9))
    if not (folder / "damaged" / "6").exists():
        raise NotHeld("checkpoint 6 was taken for good")
    here.agree({"with the damage": history[-1]["params_sha256"], "without": here.sha256(max_steps=9, **network)})
    return "checkpoint 6 was set aside, and the run went on from 3 to the same parameters"


def flip(checkpoint: Path, part: float = 0.5) -> None:
    """Changes one bit of the largest of its files, behind this part of it: most of that is numbers, and Orbax would
    restore others."""
    files = [path for path in (checkpoint / "state").rglob("*") if path.is_file()]
    path = max(files, key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[int(len(data) * part)] ^= 1
    path.write_bytes(bytes(data))
    sync(path)


def _train(here: Here, config: Config) -> list[dict[str, Any]]:
    return loop.run(config, here.load, silent=True).history


def _folder(here: Here) -> Path:
    if here.folder is None:
        raise NotHere("the processes see no common folder for temporary files: set TMPDIR to one")
    return here.folder


def killed(here: Here) -> str:
    """kill -9 of a run in processes of its own, one for each that is here; the rest of it on other devices."""
    if not here.command:
        raise NotHere("there is no command that trains")
    if here.layout.devices[0].platform == "tpu":
        raise NotHere("a TPU is one process's at a time, and this one holds it")
    folder = _folder(here) / "killed"
    endless: dict[str, Any] = {
        "dataset": "synthetic", "synthetic_examples": 1000, "synthetic_features": 60, "checkpoint_every_steps": 5,
        "steps_per_dispatch": 1, "platform": here.layout.devices[0].platform, "max_steps": 10**8,
    }  # fmt: skip
    config = here.config(**endless)
    with Job(here, config, folder, "first") as job:
        job.until(lambda: len(_committed(folder)) >= _SAVED)
        job.kill()
    before = max(_committed(folder), default=0)
    last = here.group.decide(before + _MORE)
    fewer = 0 if here.group.several else max(1, here.count // 2)
    endless |= {"max_steps": last, "num_devices": fewer}
    with Job(here, here.config(**endless), folder, "second") as job:
        job.end()
    found = read_lines(folder).values if here.group.first else []
    sha256 = here.group.decide(found[-1].get("params_sha256", "unfinished") if found else "unfinished")
    wanted = here.config(**(endless | {"num_devices": 0}))
    straight = here.sha256(data=datasets.load(wanted), **{**endless, "num_devices": 0, "checkpoint_every_steps": 0,
                                                          "steps_per_dispatch": 16})
    here.agree({"killed and resumed": sha256, "not killed": straight})
    on = here.counted if fewer in (0, here.count) else f"{here.counted}, then on {fewer}"
    return f"killed after step {here.group.decide(before)} on {on}: the same parameters at step {last}"


def _committed(folder: Path) -> list[int]:
    """Steps of the checkpoints under their final names."""
    checkpoints = folder / "checkpoints"
    return [int(path.name) for path in checkpoints.iterdir() if path.name.isdigit()] if checkpoints.exists() else []


class Job:
    """A run in processes of its own: one that each process here has started, on the same devices."""

    def __init__(self, here: Here, config: Config, workdir: Path, name: str) -> None:
        self._here = here
        flags = workdir.with_name(f"{name}.flags")
        if here.group.first:
            flags.write_text(run_flags(config), encoding="utf-8")
        self._output = workdir.with_name(f"{name}-{jax.process_index()}.txt")
        with self._output.open("wb") as output:
            self._process = subprocess.Popen(
                [sys.executable, "-c", _BOUND, *here.command, f"--flagfile={flags}", f"--workdir={workdir}",
                 *_joining(here)], env=_environment(here), stdin=subprocess.DEVNULL, stdout=output,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        here.jobs.append(self._process)

    def __enter__(self) -> "Job":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait()

    def until(self, done: Callable[[], bool]) -> None:
        """Waits, in all processes, until the first finds it done; NotHeld if the run ends before."""
        while self._here.group.first and not done() and self._process.poll() is None:
            time.sleep(0.02)
        self._here.group.barrier()
        self._refuse_an_end()

    def kill(self) -> None:
        """kill -9 of the last one; the others end by themselves, because it is gone."""
        if jax.process_index() == jax.process_count() - 1:
            self._process.send_signal(signal.SIGKILL)
        try:
            self._process.wait(_END_SECONDS)
            ended = True
        except subprocess.TimeoutExpired:
            ended = False
        if not all(self._here.group.exchange(ended)):
            raise NotHeld(f"after kill -9 of one process another went on for {_END_SECONDS:.0f} s")

    def end(self) -> None:
        """Waits for a good one."""
        codes = self._here.group.exchange(self._process.wait())
        if any(codes):
            raise NotHeld(f"the run that goes on ended with exit code {max(codes, key=abs)}: {self._last_line()}")

    def _refuse_an_end(self) -> None:
        codes = [code for code in self._here.group.exchange(self._process.poll()) if code is not None]
        if codes:
            raise NotHeld(f"a run ended by itself, with exit code {codes[0]}: {self._last_line()}")

    def _last_line(self) -> str:
        lines = self._output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return self._here.group.decide(lines[-1][:300] if lines else "it said nothing")


def _joining(here: Here) -> list[str]:
    """Flags by which the processes of a job find one another: their first one is on the host of this job's first."""
    if not here.group.several:
        return []
    with socket.socket() as probe:
        probe.bind(("", 0))
        address = [socket.gethostname(), probe.getsockname()[1]]
    host, port = here.group.decide(address)
    return [f"--coordinator_address={host}:{port}", f"--num_processes={jax.process_count()}",
            f"--process_id={jax.process_index()}"]  # fmt: skip


def _environment(here: Here) -> dict[str, str]:
    """This one, with no more GPUs than this process has."""
    env = dict(os.environ)
    if here.layout.devices[0].platform == "gpu":
        visible: Sequence[str] = [name for name in env.get("CUDA_VISIBLE_DEVICES", "").split(",") if name]
        numbers = [device.local_hardware_id for device in here.local]
        env["CUDA_VISIBLE_DEVICES"] = ",".join(visible[n] if visible else str(n) for n in numbers)
    return env
