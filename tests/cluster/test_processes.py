"""Several processes on this machine: the same result, stopping together, and failing together in one line."""

import os
import signal
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from conftest import make_arrays, small_config
from drills import groups, runs
from jax.experimental import multihost_utils

from distmlp import train
from launch import evaluate
from launch.flags import parse

FLAGS = ("--hidden_sizes=8", "--batch_size=20", "--eval_batch_size=16", "--learning_rate=0.001", "--momentum=0.9",
         "--shuffle", "--reduction=invariant", "--heartbeat_seconds=60")  # fmt: skip
HOST = socket.gethostname()
TIMEOUT = 240  # of what takes 10 seconds on two idle cores


@pytest.fixture
def data(tmp_path: Path) -> str:
    np.savez(tmp_path / "small.npz", **make_arrays())
    return f"--dataset={tmp_path / 'small.npz'}"


def end(group: Sequence[groups.Process]) -> list[int]:
    return [process.wait(TIMEOUT) for process in group]


def finish_here(workdir: Path, flags: Sequence[str]) -> None:
    """The run of these flags in this process, on one of its devices."""
    train(parse(["train", *flags, "--num_devices=1", f"--workdir={workdir}"]))


def test_two_processes_under_torchrun_give_the_bits_and_the_metrics_of_one(
    data: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """6 devices for 8 shards: the last process has empty ones. A fifth of the examples have no weight."""
    weights = np.arange(96) % 5 / 3
    np.savez(tmp_path / "small.npz", **make_arrays(), w_train=weights)
    flags = (data, *FLAGS, "--num_epochs=3", "--checkpoint_every_steps=4", "--eval_train", "--input_scaling=standard",
             "--ledger", "--ledger_digests_every=4", "--class_weight=balanced", "--choose_by=roc_auc")
    finish_here(tmp_path / "one", flags)
    group = groups.under_torchrun(tmp_path / "two", flags, processes=2, devices=3)
    assert group.wait(TIMEOUT) == 0, group.output
    assert group.errors == []
    assert runs.sha256(tmp_path / "two") == runs.sha256(tmp_path / "one")
    assert runs.lines(tmp_path / "two") == runs.lines(tmp_path / "one")
    assert (tmp_path / "two" / "ledger.jsonl").read_text() == (tmp_path / "one" / "ledger.jsonl").read_text()
    said = [line.split()[0] for _, line in group.lines if line.startswith(("versions", "epoch", "parameters"))]
    assert said == ["versions", *["epoch"] * 3, "parameters"]  # process 0 alone speaks
    assert "Gloo" not in group.output
    assert f"hosts        1 ({HOST}), 2 processes" in group.output
    assert "devices      6 x cpu" in group.output
    given = (str(tmp_path / "one"), "--json", "--split=train")
    both = groups.by_variables(("-m", "launch.cli", "evaluate", *given, "--output=both.csv"), tmp_path, 2, devices=3)
    assert end(both) == [0, 0], [process.output for process in both]
    capsys.readouterr()
    assert evaluate.main([*given, "--output=one.csv"]) == 0
    said = [line for process in both for _, line in process.lines if line.startswith("{")]
    assert said == capsys.readouterr().out.splitlines()
    assert (tmp_path / "both.csv").read_text() == (tmp_path / "one.csv").read_text()
    assert len((tmp_path / "one.csv").read_text().splitlines()) == 97


@pytest.mark.full_xla  # bits are compared with those of other processes
def test_a_signal_to_one_stops_both_at_the_same_step_and_one_process_goes_on(data: str, tmp_path: Path) -> None:
    """SIGTERM, which jax takes, too; run/signals.py treats all alike."""
    flags = (data, *FLAGS, "--checkpoint_every_steps=1000000", "--data_placement=host", "--ledger")
    workdir = tmp_path / "run"
    group = groups.by_flags(workdir, [[*flags, "--num_epochs=100000"]] * 2, devices=2)
    group[0].wait_for("epoch   3", TIMEOUT)
    group[1].popen.send_signal(signal.SIGTERM)
    assert end(group) == [128 + signal.SIGTERM] * 2, [process.output for process in group]
    step = max(runs.committed(workdir))
    said = [line for process in group for _, line in process.lines if line.startswith("distmlp: stopped")]
    assert len(said) == 1
    assert said[0].startswith(f"distmlp: stopped after step {step} of 500000; ")
    for name in ("run", "never-stopped"):
        finish_here(tmp_path / name, [*flags, f"--max_steps={step + 7}"])
    assert runs.sha256(workdir) == runs.sha256(tmp_path / "never-stopped")
    assert runs.lines(workdir) == runs.lines(tmp_path / "never-stopped")
    assert (workdir / "ledger.jsonl").read_text() == (tmp_path / "never-stopped" / "ledger.jsonl").read_text()


def test_orbax_does_not_ask_whether_to_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its questions at each save, with steps for numbers, would confuse jax's count of ours: SIGTERM was lost."""
    asked: list[int] = []
    monkeypatch.setattr(multihost_utils, "reached_preemption_sync_point", lambda n: asked.append(n) or False)
    np.savez(tmp_path / "small.npz", **make_arrays())
    train(small_config(str(tmp_path / "small.npz"), workdir=str(tmp_path / "run"), checkpoint_every_steps=2))
    assert len(runs.committed(tmp_path / "run")) > 1
    assert asked == []


ENDLESS = ("--num_epochs=100000", "--checkpoint_every_steps=1000000", "--eval_every_epochs=0")


def says_that_another_ended(process: groups.Process, code: int) -> None:
    (line,) = process.errors
    assert code == 1
    assert line.startswith("distmlp: error: another process ended or was cut off (")
    assert "its own output says why; the launcher's restart resumes from the newest checkpoint" in line


@pytest.mark.parametrize(("instant", "signum"), [
    ("log.describe", None),  # at the end of an epoch
    ("group.multihost_utils.reached_preemption_sync_point", signal.SIGTERM),  # where all stop for the signal
])  # fmt: skip
def test_a_process_that_dies_between_two_collectives_ends_the_others_at_once(
    instant: str, signum: signal.Signals | None, data: str, tmp_path: Path
) -> None:
    """Not when jax has missed its heartbeats: while steps are trained nobody waits in jax's coordination service."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal\n"
        "from distmlp.cluster import group\n"
        "from distmlp.run import log\n"
        f"real = {instant}\n"
        "def dying(*args):\n"
        "    result = real(*args)\n"
        "    if result is not False:\n"
        "        os.kill(os.getpid(), signal.SIGKILL)\n"
        "    return result\n"
        f"{instant} = dying\n"
    )
    path = os.pathsep.join([str(tmp_path), runs.environment(1)["PYTHONPATH"]])
    flags = (data, *FLAGS, *ENDLESS, "--heartbeat_seconds=120")
    group = groups.by_flags(tmp_path / "run", [flags] * 2, envs=[{}, {"PYTHONPATH": path}])
    try:
        if signum is not None:
            group[0].wait_for("epoch   2", TIMEOUT)
            group[0].popen.send_signal(signum)
        assert group[1].wait(TIMEOUT) == -signal.SIGKILL, group[1].output
        started = time.monotonic()
        says_that_another_ended(group[0], group[0].wait(100))
        assert time.monotonic() - started < 30
    finally:
        group[0].popen.kill()
        group[0].popen.wait()


@pytest.mark.parametrize(("victim", "signum"), [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)])
def test_a_process_that_dies_or_hangs_ends_the_others(
    victim: int, signum: signal.Signals, data: str, tmp_path: Path
) -> None:
    flags = (data, *FLAGS, *ENDLESS, *(["--heartbeat_seconds=5"] if signum == signal.SIGSTOP else []))
    group = groups.by_flags(tmp_path / "run", [flags] * 2)
    try:
        group[0].wait_for("epoch   2", TIMEOUT)
        group[victim].popen.send_signal(signum)
        started = time.monotonic()
        other = group[1 - victim]
        code = other.wait(60)
        assert time.monotonic() - started < 30  # a second or 3, on an idle machine
        assert "Traceback" not in other.output
        if other.errors:
            says_that_another_ended(other, code)
        else:  # jax was first, as it is when its service is gone, or has given up a silent process
            assert (victim, signum) != (1, signal.SIGKILL), other.output
            assert code == -signal.SIGABRT
            assert "another task died" in other.output
    finally:
        for process in group:
            process.popen.kill()
            process.popen.wait()


def test_a_second_signal_ends_a_process_that_waits_for_another(data: str, tmp_path: Path) -> None:
    """Its main thread is in a collective that does not end."""
    flags = (data, *FLAGS, "--num_epochs=100000", "--heartbeat_seconds=300")
    group = groups.by_flags(tmp_path / "run", [flags] * 2)
    group[0].wait_for("epoch   2", TIMEOUT)
    group[1].popen.send_signal(signal.SIGSTOP)
    try:
        time.sleep(1)
        group[0].popen.send_signal(signal.SIGINT)
        time.sleep(1)
        assert group[0].popen.poll() is None
        group[0].popen.send_signal(signal.SIGINT)
        assert group[0].wait(10) == 130
        assert group[0].lines[-1][1].startswith("distmlp: SIGINT: stopped at once")
    finally:
        for process in group:
            process.popen.kill()
            process.popen.wait()


SHARED = "/proc/self/cwd/"  # one path that each process may see as a folder of its own


def own_folders(tmp_path: Path) -> list[Path]:
    folders = [tmp_path / "host0", tmp_path / "host1"]
    for folder in folders:
        folder.mkdir()
    return folders


def refused(group: Sequence[groups.Process], *parts: str, code: int = 2) -> None:
    """All processes end with the code, and one of them says why, in one line."""
    assert end(group) == [code] * len(group), [process.output for process in group]
    (line,) = [line for process in group for line in process.errors]
    for process in group:
        assert "Traceback" not in process.output
        assert "Check failure" not in process.output  # jax's abort
    for part in parts:
        assert part in line


def test_different_data_are_refused(tmp_path: Path) -> None:
    folders, arrays = own_folders(tmp_path), make_arrays()
    for i, folder in enumerate(folders):
        arrays["x_train"][50, 3] = i
        np.savez(folder / "small.npz", **arrays)
    flags = (f"--dataset={SHARED}small.npz", "--data_dir=/data", *FLAGS)
    group = groups.by_flags(tmp_path / "run", [flags] * 2, cwds=folders)
    refused(group, f"the digest of --dataset={SHARED}small.npz is ", " in process 1")


def test_data_that_one_process_lacks_are_reported_by_both(tmp_path: Path) -> None:
    folders = own_folders(tmp_path)
    np.savez(folders[0] / "small.npz", **make_arrays())
    flags = (f"--dataset={SHARED}small.npz", "--data_dir=/data", *FLAGS)
    group = groups.by_flags(tmp_path / "run", [flags] * 2, cwds=folders)
    refused(group, f"process 1 of 2 on {HOST}: --dataset={SHARED}small.npz does not exist")


def alone(tmp_path: Path, *flags: str, **env: str) -> groups.Process:
    command = (sys.executable, "-m", "launch.train", f"--workdir={tmp_path / 'run'}", *flags)
    process = groups.Process(command, tmp_path, runs.environment(1) | env)
    assert process.wait(TIMEOUT) == 2, process.output
    assert process.errors == process.output.splitlines()
    assert len(process.errors) == 1
    return process


def test_a_coordinator_that_cannot_be_reached_is_named(tmp_path: Path) -> None:
    """By a process that has a launcher and is not the first: only itself knows what it could not do."""
    port = groups.free_port()
    env = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    error = alone(tmp_path, "--startup_seconds=2", **env).errors[0]
    assert f"process 1 of 2 on {HOST} cannot reach the coordinator at 127.0.0.1:{port}" in error
    assert "--startup_seconds=2" in error


def test_processes_that_do_not_come_are_not_waited_for_without_end(tmp_path: Path) -> None:
    port = groups.free_port()
    place = (f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", "--process_id=0", "--startup_seconds=2")
    error = alone(tmp_path, *place).errors[0]
    assert f"process 0 of 2 on {HOST} is at 127.0.0.1:{port}, but not all the others came" in error

