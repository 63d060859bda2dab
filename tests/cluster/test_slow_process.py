"""Four processes, of which one becomes slow: by its loader, and by being stopped nine tenths of the time."""

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from conftest import make_arrays
from drills import groups, runs

from distmlp.run.log import read_lines

TIMEOUT = 240  # seconds, of what takes 20 on two idle cores
# What a process is slowed by, where a file says so; and half of the time is taken to measure, to see it soon.
SLOW_LOADER = """
import os, time
from distmlp.data import datasets
from distmlp.run import stragglers
stragglers._SHARE = 0.5
take = datasets.ArrayDataset.take
def slow(*arguments):
    if os.path.exists(os.environ["SLOW"]):
        time.sleep(0.04)
    return take(*arguments)
datasets.ArrayDataset.take = slow
"""


@contextlib.contextmanager
def mostly_stopped(pid: int) -> Iterator[None]:
    over = threading.Event()

    def stop() -> None:
        while not over.is_set():
            os.kill(pid, signal.SIGSTOP)
            time.sleep(0.027)
            os.kill(pid, signal.SIGCONT)
            time.sleep(0.003)

    thread = threading.Thread(target=stop)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def test_the_slow_one_of_four_is_named_and_for_what(tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", **make_arrays(train=320, features=400))
    workdir, slow = tmp_path / "run", tmp_path / "slow"
    (tmp_path / "sitecustomize.py").write_text(SLOW_LOADER)
    path = os.pathsep.join([str(tmp_path), runs.environment(1)["PYTHONPATH"]])
    flags = (f"--dataset={tmp_path / 'small.npz'}", "--hidden_sizes=256", "--batch_size=32", "--reduction=invariant",
             "--data_placement=host", "--num_epochs=1000000", "--eval_every_epochs=0",
             "--checkpoint_every_steps=1000000", "--heartbeat_seconds=60")  # fmt: skip
    envs = [{"PYTHONPATH": path, "SLOW": str(slow if process == 2 else tmp_path / "never")} for process in range(4)]
    group = groups.by_flags(workdir, [flags] * 4, envs=envs)

    def lines() -> list[dict[str, Any]]:
        return [line for line in read_lines(workdir).values if "process_seconds" in line]

    def wait(holds: Callable[[list[dict[str, Any]]], bool]) -> None:
        deadline, before = time.monotonic() + TIMEOUT, len(lines())
        while not holds(lines()[before:]):
            assert time.monotonic() < deadline, (lines()[before:], [process.output for process in group])
            time.sleep(0.2)

    def named(process: int, part: str) -> Callable[[list[dict[str, Any]]], bool]:
        """Whether four lines of the newest five name this process, and this part is its largest beside the others'."""

        def holds(lines: list[dict[str, Any]]) -> bool:
            def largest(line: dict[str, Any]) -> bool:
                seconds = line["process_seconds"][part]
                return seconds[process] == max(seconds)

            return sum(line.get("slowest", {}).get("process") == process and largest(line) for line in lines[-5:]) > 3

        return holds

    try:
        group[0].wait_for("epoch   3", TIMEOUT)
        slow.touch()
        wait(named(2, "load"))
        slow.unlink()
        with mostly_stopped(group[1].popen.pid):
            wait(named(1, "compute"))
        group[3].popen.send_signal(signal.SIGTERM)
        assert [process.wait(TIMEOUT) for process in group] == [143] * 4, [process.output for process in group]
    finally:
        for process in group:
            process.popen.kill()
            process.popen.wait()
    assert {line["slowest"]["host"] for line in lines() if "slowest" in line} == {socket.gethostname()}
    said = [line for _, line in group[0].lines if " is slow: by itself a step takes it " in line]
    for process in (2, 1):
        assert any(line.startswith(f"distmlp: process {process} of 4 on {socket.gethostname()}") for line in said)
    assert not any(" is slow" in process.output for process in group[1:])
