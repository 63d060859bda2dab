"""Signals and output as a user meets them: at a terminal, in pipes, under batch systems, in a notebook."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import process_env, small_config
from drills import runs

from distmlp import train
from distmlp.errors import STOP_SIGNALS, Interrupted
from distmlp.parallel.digest import params_sha256
from distmlp.parallel.evaluate import Evaluator
from distmlp.run.keeping import Keeping
from distmlp.run.signals import Signals, Watchdog
from launch import flags

FLAGS = ("--dataset=digits", "--hidden_sizes=16", "--reduction=invariant", "--workdir=run")
TRAIN = f"{sys.executable} -m launch.train {' '.join(FLAGS)}"


def shell(script: str, **env: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(["bash", "-c", script], env=process_env() | env, capture_output=True, text=True, timeout=300,
                          check=False)  # fmt: skip


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_every_stop_signal_saves_and_the_handlers_are_put_back(
    signum: int, npz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = params_sha256(train(small_config(npz, workdir="straight")).params)
    before = [signal.getsignal(number) for number in range(1, signal.NSIG)]
    threads = threading.active_count()
    evaluate = Evaluator.__call__
    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", lambda *args: (signal.raise_signal(signum), evaluate(*args))[1])
        with pytest.raises(Interrupted, match="stopped after step 5 of 10; the newest checkpoint is of step 5") as stop:
            train(small_config(npz))
    assert stop.value.exit_code == 128 + signum
    assert [signal.getsignal(number) for number in range(1, signal.NSIG)] == before
    assert threading.active_count() <= threads + 1  # the watchdog's thread may be on its way out
    assert params_sha256(train(small_config(npz)).params) == expected


def test_ctrl_c_twice_is_a_keyboard_interrupt_and_the_program_goes_on(
    npz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def twice(*args: Any) -> None:
        signal.raise_signal(signal.SIGINT)
        time.sleep(0.15)
        signal.raise_signal(signal.SIGINT)
        raise AssertionError("the second one was ignored")

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", twice)
        with pytest.raises(KeyboardInterrupt) as stop:
            train(small_config(npz))
    assert not isinstance(stop.value, Interrupted)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    assert train(small_config(npz)).history[-1]["final"]  # the folder is free, the signals work


def test_the_same_signal_at_once_is_one_and_another_is_no_second() -> None:
    """`timeout` signals the process and its group; batch systems send SIGTERM when SIGUSR1 has not sufficed yet."""
    asked: list[int] = []
    with Signals(lambda: asked.append(1)) as signals:
        for signum in (signal.SIGUSR1, signal.SIGUSR1, signal.SIGTERM, signal.SIGTERM):
            signal.raise_signal(signum)
    assert (signals.received, asked) == (signal.SIGUSR1, [1])


def test_an_ignored_signal_stays_ignored() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals(lambda: None) as signals:
            signal.raise_signal(signal.SIGHUP)
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
        assert signals.received is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_an_error_leaves_nothing_behind(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """In one of several processes, too: only what waits for the others is left out."""
    before = [signal.getsignal(number) for number in range(1, signal.NSIG)]
    watchdogs: list[Any] = []
    made = lambda *args: watchdogs.append(Watchdog(*args)) or watchdogs[-1]  # noqa: E731
    monkeypatch.setattr("distmlp.run.keeping.Watchdog", made)
    leave = Keeping.__exit__

    def left(keeping: Any, *error: Any) -> None:
        keeping.store.wait()  # for the save that this process has begun alone
        keeping.group.several = True
        keeping.store.close = lambda: pytest.fail("waits for processes that may be gone")
        leave(keeping, *error)

    def broken(*args: Any) -> None:
        raise RuntimeError("broken")

    monkeypatch.setattr(Keeping, "__exit__", left)
    monkeypatch.setattr(Evaluator, "__call__", broken)
    with pytest.raises(RuntimeError, match="broken"):
        train(small_config(npz))
    assert [signal.getsignal(number) for number in range(1, signal.NSIG)] == before
    assert all(watchdog._over.is_set() for watchdog in watchdogs)


def test_the_watchdog_ends_a_process_only_if_nothing_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = threading.Event()
    monkeypatch.setattr("distmlp.run.signals.os._exit", lambda code: ends.set())
    monkeypatch.setattr("distmlp.run.signals.faulthandler.dump_traceback", lambda *args: None)
    with Watchdog(1.0) as watchdog:
        for _ in range(15):
            watchdog.beat()
            time.sleep(0.1)
        assert not ends.is_set()
        assert ends.wait(30)


def test_the_watchdog_heeds_signs_of_work_here_and_in_other_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = threading.Event()
    monkeypatch.setattr("distmlp.run.signals.os._exit", lambda code: ends.set())
    monkeypatch.setattr("distmlp.run.signals.faulthandler.dump_traceback", lambda *args: None)
    read, elsewhere = [0], [0]
    with Watchdog(1.0, [lambda: read[0]], lambda own: own + elsewhere[0]):
        for counter in (read, elsewhere):
            for _ in range(15):
                counter[0] += 1
                time.sleep(0.1)
        assert not ends.is_set()
        assert ends.wait(30)


@pytest.fixture
def stalls(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The exit codes of watchdogs, which do not end this process."""
    codes: list[int] = []
    monkeypatch.setattr("distmlp.run.signals.os._exit", codes.append)
    monkeypatch.setattr("distmlp.run.signals.faulthandler.dump_traceback", lambda *args: None)
    return codes


def test_a_long_evaluation_is_no_stall(npz: str, stalls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    evaluate = Evaluator.__call__

    def slow(self: Any, state: Any, dataset: Any, poll: Any, *asked: Any) -> Any:
        for _ in range(28):
            poll()
            time.sleep(0.1)
        return evaluate(self, state, dataset, poll, *asked)

    monkeypatch.setattr(Evaluator, "__call__", slow)
    train(small_config(npz, num_epochs=1, stall_seconds=2))
    assert stalls == []


def test_a_long_save_is_no_stall(npz: str, stalls: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmlp.run.store.sync", lambda path: time.sleep(0.15))  # some 20 files
    train(small_config(npz, num_epochs=1, stall_seconds=2))
    assert stalls == []


def test_examples_that_take_long_are_no_stall(stalls: list[int]) -> None:
    """A batch takes longer than --stall_seconds; 16 examples do not."""
    config = small_config("", num_classes=2, batch_size=48, max_steps=1, num_devices=1, eval_batch_size=48,
                          stall_seconds=2)  # fmt: skip
    train(config, SlowItems(), SlowItems())
    assert stalls == []


class SlowItems:
    """48 examples, of which each takes a twentieth of a second."""

    def __len__(self) -> int:
        return 48

    def __getitem__(self, i: int) -> tuple[np.ndarray, int]:
        time.sleep(0.05)
        return np.full(4, i, np.float32), i % 2


def test_the_watchdog_lets_a_process_live_that_was_stopped_and_goes_on() -> None:
    """Stopped, as a batch system may do, for longer than --stall_seconds, in the middle of a step."""
    code = ("from distmlp.run.signals import Watchdog\n"
            "with Watchdog(2.0) as watchdog:\n"
            "    watchdog.beat()\n"
            "    print('in a step', flush=True)\n"
            "    input()\n"
            "    watchdog.beat()\n"
            "print('done')\n")  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code], env=process_env(), stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        assert process.stdout is not None
        assert process.stdout.readline() == "in a step\n"
        for signum, seconds in ((0, 0.5), (signal.SIGSTOP, 3), (signal.SIGCONT, 0.5)):  # a tick takes 0.2 s
            process.send_signal(signum)
            time.sleep(seconds)
        assert process.communicate("\n", timeout=30) == ("done\n", "")
        assert process.returncode == 0


ENDLESS = f"{TRAIN} --num_epochs=1000000"


def when_it_trains(command: str, then: str) -> str:
    """A shell script: `command` in the background as $P; once it trains, `then`."""
    return f"{command} >log & P=$!; until grep -qs '^epoch' log; do sleep 0.1; done; {then}"


def test_hangup_saves_but_not_under_nohup() -> None:
    done = shell(when_it_trains(ENDLESS, "kill -HUP $P; wait $P; echo code $?"))
    assert done.stdout.endswith("code 129\n")
    assert done.stderr.splitlines()[-1].startswith("distmlp: stopped after step ")
    step = runs.committed(Path("run"))[-1]
    signals = "kill -HUP $P; sleep 1; kill -USR2 $P; wait $P; echo code $?"
    done = shell(when_it_trains(f"rm log; trap '' HUP; {ENDLESS}", signals))
    assert done.stdout.endswith("code 140\n")
    assert "SIGHUP" not in done.stderr
    assert runs.committed(Path("run"))[-1] > step


def test_output_that_goes_away_does_not_cost_the_run() -> None:
    """A reader that leaves, and descriptors that never were, so that a file of the run gets their numbers."""
    expected = params_sha256(train(flags.parse(["train", *FLAGS, "--num_devices=1", "--workdir=straight"])).params)
    piped = shell(f"{TRAIN} 2>&1 | head -2; echo code ${{PIPESTATUS[0]}}")
    assert piped.stdout.splitlines()[-1] == "code 0"
    assert runs.sha256(Path("run")) == expected
    closed = shell(f"{TRAIN} --workdir=closed <&- >&- 2>&-; exit $?")
    assert closed.returncode == 0
    assert runs.sha256(Path("closed")) == expected
    wrong = shell(f"{TRAIN} --batch_size=0 2>&-; exit $?")
    assert (wrong.returncode, wrong.stdout) == (2, "")


def test_the_second_signal_ends_the_command_at_once() -> None:
    """While the first one's stop is held up: here by a save that takes a minute."""
    Path("sitecustomize.py").write_text(
        "import sys, threading, time\n"
        "def slow():\n"
        "    while 'distmlp.run.store' not in sys.modules or not hasattr(\n"
        "            sys.modules['distmlp.run.store'], 'Store'):\n"
        "        time.sleep(0.01)\n"
        "    kind = sys.modules['distmlp.run.store'].Store\n"
        "    save = kind.save\n"
        "    def later(self, step, *args):\n"
        "        if step > 24:\n"
        "            print('saving', flush=True)\n"
        "            time.sleep(60)\n"
        "        save(self, step, *args)\n"
        "    kind.save = later\n"
        "threading.Thread(target=slow, daemon=True).start()\n"
    )
    path = os.pathsep.join([os.getcwd(), process_env()["PYTHONPATH"]])
    command = [sys.executable, "-m", "launch.train", *FLAGS, "--num_epochs=1000000", "--checkpoint_every_steps=1000"]
    with subprocess.Popen(command, env=process_env() | {"PYTHONPATH": path}, stdout=subprocess.PIPE,
                          stderr=subprocess.PIPE, text=True) as process:  # fmt: skip
        assert process.stdout is not None
        while "saving" not in process.stdout.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(10) == 130
        assert process.stderr is not None
        assert process.stderr.read().splitlines()[-1].startswith("distmlp: SIGINT: stopped at once")


def test_ctrl_c_at_once_shows_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text("""
import os, signal, sys
class Press:
    def find_spec(self, name, *rest):
        if name == "distmlp.config":  # which what watches signals imports
            os.kill(os.getpid(), signal.SIGINT)
sys.meta_path.insert(0, Press())
""")
    paths = os.pathsep.join([str(tmp_path), process_env()["PYTHONPATH"]])
    done = subprocess.run([sys.executable, "-m", "launch.cli", "train"], env=process_env() | {"PYTHONPATH": paths},
                          capture_output=True, text=True, check=False, timeout=60)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGINT, "", "")
