"""A disk that fails, or hangs, in one of two processes; and one that is slow: each run ends, or goes on."""

import os
import shutil
import signal
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import make_arrays
from drills import groups, runs

from distmlp import train
from launch.flags import parse

FLAGS = ("--hidden_sizes=8", "--batch_size=4", "--eval_batch_size=16", "--learning_rate=0.001", "--shuffle",
         "--reduction=invariant", "--eval_every_epochs=0")  # fmt: skip
TIMEOUT = 240  # of what takes 10 seconds on two idle cores
# Where reading the arrays fails: before Orbax's restore begins, or within it.
PLACES = {"before": ("ocp.CheckpointManager.restore", "'state' in kwargs['args']"),
          "within": ("ocp.StandardCheckpointHandler.restore", "True")}  # fmt: skip


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """The flags of a run, and its folder after four steps."""
    folder = tmp_path_factory.mktemp("begun")
    np.savez(folder / "small.npz", **make_arrays())
    flags = [f"--dataset={folder / 'small.npz'}", *FLAGS]
    train(parse(["train", *flags, "--max_steps=4", "--num_devices=1", f"--workdir={folder / 'run'}"]))
    return flags, folder / "run"


@pytest.fixture
def flags(begun: tuple[list[str], Path], tmp_path: Path) -> list[str]:
    """The flags of a run that goes on from that folder."""
    shutil.copytree(begun[1], tmp_path / "run")
    return begun[0]


def two(tmp_path: Path, flags: Sequence[str], patch: str) -> list[groups.Process]:
    """Two processes, of which the second runs this code before anything else."""
    (tmp_path / "sitecustomize.py").write_text(patch)
    path = os.pathsep.join([str(tmp_path), runs.environment(1)["PYTHONPATH"]])
    return groups.by_flags(tmp_path / "run", [flags] * 2, envs=[{}, {"PYTHONPATH": path}])


def failing(place: str, act: str) -> str:
    """Code that does this there before anything is read."""
    name, condition = PLACES[place]
    return (
        "import errno, time\nimport orbax.checkpoint as ocp\n"
        f"real, calls = {name}, []\n"
        "def failing(self, where, **kwargs):\n"
        f"    if {condition}:\n"
        f"        calls.append(where)\n        {act}\n"
        "    return real(self, where, **kwargs)\n"
        f"{name} = failing\n"
    )


@pytest.mark.parametrize("place", PLACES)
def test_a_read_error_in_one_of_two_processes_that_lasts_ends_both(
    place: str, flags: list[str], tmp_path: Path
) -> None:
    group = two(tmp_path, [*flags, "--max_steps=8"], failing(place, "raise OSError(errno.EIO, 'Input/output error')"))
    assert [process.wait(TIMEOUT) for process in group] == [2, 2], [process.output for process in group]
    (line,) = [line for process in group for line in process.errors]
    assert "holds no intact checkpoint (4: process 1 cannot read it)" in line
    assert runs.committed(tmp_path / "run") == [4]


def test_a_read_error_of_the_moment_in_one_of_two_processes_costs_nothing(flags: list[str], tmp_path: Path) -> None:
    act = "if len(calls) == 1: raise OSError(errno.EIO, 'Input/output error')"
    group = two(tmp_path, [*flags, "--max_steps=8"], failing("within", act))
    assert [process.wait(TIMEOUT) for process in group] == [0, 0], [process.output for process in group]
    assert group[0].when("resuming after step 4 of 8")
    assert runs.committed(tmp_path / "run") == [4, 8]


@pytest.mark.parametrize("end", ["signal", "watchdog"])
def test_a_disk_that_hangs_in_one_of_two_processes_holds_neither_for_ever(
    end: str, flags: list[str], tmp_path: Path
) -> None:
    stall = "--stall_seconds=3" if end == "watchdog" else "--stall_seconds=600"
    act = "print('hangs', flush=True); time.sleep(600)"
    group = two(tmp_path, [*flags, "--max_steps=8", stall, "--heartbeat_seconds=10"], failing("within", act))
    group[1].wait_for("hangs", TIMEOUT)
    started = time.monotonic()
    if end == "signal":
        time.sleep(1)
        group[0].popen.send_signal(signal.SIGTERM)
        assert group[0].wait(10) == 128 + signal.SIGTERM
    codes = [process.wait(60) for process in group]
    assert time.monotonic() - started < 40
    if end == "watchdog":
        assert 1 in codes
        assert any("for --stall_seconds=3 no step, no evaluation and no file went on" in line
                   for process in group for line in process.errors)  # fmt: skip


def test_slow_steps_of_two_processes_are_no_stall_and_a_signal_does_not_wait_long(
    begun: tuple[list[str], Path], tmp_path: Path
) -> None:
    """24 steps an epoch, of 0.2 s in the second process: many in one dispatch would take longer than a step may."""
    patch = (
        "import time\nfrom distmlp.parallel import feed\nreal = feed.Feed.advance\n"
        "def slow(*args):\n    state, steps = real(*args)\n    time.sleep(0.2 * len(steps.sizes))\n"
        "    return state, steps\nfeed.Feed.advance = slow\n"
    )
    group = two(tmp_path, [*begun[0], "--num_epochs=100000", "--stall_seconds=5"], patch)
    group[0].wait_for("epoch   1", TIMEOUT)
    started = time.monotonic()
    group[0].popen.send_signal(signal.SIGTERM)
    assert [process.wait(TIMEOUT) for process in group] == [128 + signal.SIGTERM] * 2
    assert time.monotonic() - started < 6
