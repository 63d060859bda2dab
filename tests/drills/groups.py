"""Runs of several processes, and what they say when; shared by the drills and the tests of processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path

from . import runs

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone")


class Process:
    """A process whose output is read line by line, with the time of each."""

    def __init__(self, command: Sequence[str], cwd: Path, env: dict[str, str]) -> None:
        self.popen = subprocess.Popen(
            command, cwd=cwd, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
        )
        self.lines: list[tuple[float, str]] = []
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.popen.stdout is not None
        with self.popen.stdout as output:
            for line in output:
                self.lines.append((time.monotonic(), line.rstrip("\n")))

    def wait(self, timeout: float) -> int:
        """Its exit code; it is killed, with its children, if it has none in time."""
        try:
            code = self.popen.wait(timeout)
        except subprocess.TimeoutExpired:
            for pid in [*workers(self.popen.pid), self.popen.pid]:
                os.kill(pid, signal.SIGKILL)
            raise runs.DrillError(f"still running after {timeout} s:\n{self.output[-4000:]}") from None
        self._reader.join(10)
        return code

    @property
    def output(self) -> str:
        return "\n".join(line for _, line in self.lines)

    @property
    def errors(self) -> list[str]:
        """The lines of distmlp's own errors."""
        return [line for _, line in self.lines if line.startswith("distmlp: error: ")]

    def when(self, pattern: str, after: float = 0.0) -> float | None:
        """The time of the first line later than `after` that begins with `pattern`."""
        return next((at for at, line in self.lines if at > after and re.match(pattern, line)), None)

    def wait_for(self, pattern: str, timeout: float, after: float = 0.0) -> float:
        deadline = time.monotonic() + timeout
        while (at := self.when(pattern, after)) is None:
            if time.monotonic() > deadline or (self.popen.poll() is not None and not self._reader.is_alive()):
                raise runs.DrillError(f"no line {pattern!r}, exit code {self.popen.poll()}:\n{self.output[-4000:]}")
            time.sleep(0.05)
        return at


def under_torchrun(
    workdir: Path, flags: Sequence[str], processes: int, devices: int = 1, restarts: int = 0
) -> Process:
    """So many processes with so many emulated devices each."""
    command = (f"--max_restarts={restarts}", "-m", "launch.train", *flags, f"--workdir={workdir}")
    return torchrun(command, workdir.parent, processes, devices)


def torchrun(command: Sequence[str], cwd: Path, processes: int, devices: int = 1) -> Process:
    """Any command under torchrun, in so many processes with so many emulated devices each."""
    env = runs.environment(devices) | {"OMP_NUM_THREADS": "1"}
    return Process((*TORCHRUN, f"--nproc_per_node={processes}", *command), cwd, env)


def by_variables(command: Sequence[str], cwd: Path, processes: int, devices: int = 1) -> list[Process]:
    """Any command in so many processes that are told of one another as torchrun does it, but without its agent."""
    env = runs.environment(devices) | {
        "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()),
    }  # fmt: skip
    return [Process((sys.executable, *command), cwd, env | {"RANK": str(rank)}) for rank in range(processes)]


def by_flags(
    workdir: Path,
    flags: Sequence[Sequence[str]],
    devices: int = 1,
    cwds: Sequence[Path] | None = None,
    envs: Sequence[dict[str, str]] | None = None,
) -> list[Process]:
    """One process for each of `flags`, started without a launcher."""
    port, group = free_port(), []
    for i, own in enumerate(flags):
        place = (f"--coordinator_address=127.0.0.1:{port}", f"--num_processes={len(flags)}", f"--process_id={i}")
        command = (sys.executable, "-m", "launch.train", f"--workdir={workdir}", *place, *own)
        env = runs.environment(devices) | (envs[i] if envs else {})
        group.append(Process(command, cwds[i] if cwds else workdir.parent, env))
    return group


def workers(torchrun_pid: int) -> list[int]:
    """The pids of the trainers that a torchrun has started, in the order of their ranks."""
    ranks = {}
    for children in Path(f"/proc/{torchrun_pid}/task").glob("*/children"):
        for pid in map(int, children.read_text().split()):
            try:
                rank = re.search(rb"(?:^|\0)RANK=(\d+)\0", Path(f"/proc/{pid}/environ").read_bytes())
            except OSError:  # gone meanwhile
                continue
            if rank:
                ranks[int(rank[1])] = pid
    return [ranks[rank] for rank in sorted(ranks)]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
