"""WORKDIR/log.txt has what the console had; a terminal that goes away costs no run. (Pipes: test_signals.py.)"""

import io
import os
import pty
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from conftest import process_env, small_config
from drills import runs

from distmlp import InputError, train
from distmlp.errors import Interrupted
from distmlp.parallel.evaluate import Evaluator
from launch import command


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


def test_the_log_ends_with_why_a_run_was_stopped(npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", lambda *args: (signal.raise_signal(signal.SIGUSR1), evaluate(*args))[1])
    with pytest.raises(Interrupted) as stopped:
        train(small_config(npz))
    assert (tmp_path / "run" / "log.txt").read_text().splitlines()[-1] == f"distmlp: {stopped.value}"


def test_a_log_that_cannot_be_written_costs_nothing(npz: str, tmp_path: Path) -> None:
    (tmp_path / "run" / "log.txt").mkdir(parents=True)
    assert train(small_config(npz)).history[-1]["final"]


@pytest.mark.parametrize("read", [True, False])
def test_a_full_pipe_that_does_not_block_costs_nothing(read: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another program may have left it. What is read late comes whole; what nobody reads is given up."""
    monkeypatch.setattr(command, "_PATIENCE", 60 if read else 0.05)
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    text, got = "x" * 300_000, bytearray()

    def slowly() -> None:
        time.sleep(0.1)
        while piece := os.read(reader, 50_000):
            got.extend(piece)

    thread = threading.Thread(target=slowly if read else lambda: None, daemon=True)
    thread.start()
    raw = command._Output(writer, "w")
    with io.TextIOWrapper(io.BufferedWriter(raw)) as output:
        print(text, file=output, flush=True)
    thread.join()
    os.close(reader)
    assert got.decode() == (f"{text}\n" if read else "")
    assert bool(raw.unwritten) != read


def test_a_terminal_that_goes_away_costs_nothing_though_it_shows_a_bar(npz: str, tmp_path: Path) -> None:
    terminal, end = pty.openpty()
    child = subprocess.Popen(
        [sys.executable, "-m", "launch.train", f"--dataset={npz}", "--hidden_sizes=8", "--batch_size=20",
         "--workdir=run", "--num_epochs=40", "--steps_per_dispatch=1", "--eval_every_epochs=10"],
        cwd=tmp_path, env=process_env(), stdin=end, stdout=end, stderr=end,
    )  # fmt: skip
    os.close(end)
    seen = b""
    while b" examples/s" not in seen.partition(b"train loss")[2]:  # the bar's
        seen += os.read(terminal, 1 << 16)
    os.close(terminal)
    assert child.wait(120) == 0
    final = runs.lines(tmp_path / "run")[-1]
    assert (final["final"], runs.committed(tmp_path / "run")[-1]) == (True, final["step"])
    assert "final test accuracy" in (tmp_path / "run" / "log.txt").read_text()
