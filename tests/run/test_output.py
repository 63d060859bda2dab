"""Output that goes away costs no run, signals save it, and WORKDIR/log.txt has what the console had."""

import os
import pty
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import process_env, small_config
from drills import runs

from distmlp import InputError, train

Start = Callable[..., "subprocess.Popen[str]"]
ENDLESS = ("--num_epochs=1000000",)


@pytest.fixture
def start(npz: str, tmp_path: Path, process_home: Path) -> Iterator[Start]:
    """start(*flags, shell="", **popen): a training process in the workdir `run`, ended with the test."""
    children = []

    def run(*flags: str, shell: str = "", **popen: Any) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "launch.train", f"--dataset={npz}", "--hidden_sizes=8", "--batch_size=20",
                   "--workdir=run", *flags]
        if shell:
            command = ["sh", "-c", shell, "sh", *command]
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        children.append(subprocess.Popen(
            command, cwd=tmp_path, env=process_env() | {"HOME": str(process_home)}, text=True, **(options | popen),
        ))
        return children[-1]

    yield run
    for child in children:
        child.kill()
        child.communicate()


def wait_for(child: "subprocess.Popen[str]", words: str) -> None:
    assert child.stdout is not None
    assert any(words in line for line in child.stdout), "it ended"


def assert_finished(run: Path) -> None:
    final = runs.lines(run)[-1]
    assert final["final"]
    assert runs.committed(run)[-1] == final["step"]
    assert "final test accuracy" in (run / "log.txt").read_text()


def test_the_log_has_what_the_console_had(npz: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    config = small_config(npz, schedule="warmup_cosine", schedule_steps=7)  # which warns
    train(config)
    shown = capfd.readouterr()
    log = (tmp_path / "run" / "log.txt").read_text()
    assert shown.err.startswith("distmlp: the learning rate is 0 from step 7 on")
    assert sorted(log.splitlines()) == sorted((shown.out + shown.err).splitlines())
    train(config)  # nothing to do
    assert (tmp_path / "run" / "log.txt").read_text() == log
    with pytest.raises(InputError):
        train(small_config(npz, batch_size=96))  # not this run: its folder is left alone
    assert (tmp_path / "run" / "log.txt").read_text() == log


def test_the_log_may_be_what_cannot_be_written(npz: str, tmp_path: Path) -> None:
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    assert train(small_config(npz)).history[-1]["final"]


def test_a_reader_that_goes_away_costs_nothing(start: Start, tmp_path: Path) -> None:
    child = start("--num_epochs=40")
    wait_for(child, "versions")
    for pipe in (child.stdout, child.stderr):
        assert pipe is not None
        pipe.close()
    assert child.wait(120) == 0
    assert_finished(tmp_path / "run")


def test_closed_from_the_start(start: Start, tmp_path: Path) -> None:
    child = start("--num_epochs=2", shell='exec "$@" <&- >&- 2>&-', stdout=None, stderr=None)
    assert child.wait(120) == 0
    assert_finished(tmp_path / "run")


def test_a_terminal_that_goes_away_costs_nothing_though_there_is_a_progress_bar(start: Start, tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    child = start("--num_epochs=40", "--steps_per_dispatch=1", stdout=end, stderr=end)
    os.close(end)
    seen = b""
    while b" examples/s" not in seen.partition(b"train loss")[2]:  # the bar's
        seen += os.read(terminal, 1 << 16)
    os.close(terminal)
    assert child.wait(120) == 0
    assert_finished(tmp_path / "run")


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_other_signals_save_as_sigterm_does(signum: signal.Signals, start: Start, tmp_path: Path) -> None:
    child = start(*ENDLESS)
    wait_for(child, "epoch   2")
    child.send_signal(signum)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 128 + signum, error
    assert f"{signum.name}: saving at the next step" in error
    step = runs.committed(tmp_path / "run")[-1]
    end = error.splitlines()[-1]
    assert end.startswith(f"distmlp: stopped after step {step} of ")
    assert (tmp_path / "run" / "log.txt").read_text().splitlines()[-1] == end


def test_under_nohup_a_lost_connection_is_none_of_its_business(start: Start) -> None:
    child = start(*ENDLESS, shell='trap "" HUP; exec "$@"')
    wait_for(child, "epoch   2")
    child.send_signal(signal.SIGHUP)
    wait_for(child, "epoch  ")
    child.send_signal(signal.SIGUSR1)
    _, error = child.communicate(timeout=60)
    assert child.returncode == 128 + signal.SIGUSR1
    assert "SIGHUP" not in error
