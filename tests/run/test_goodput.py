"""Where the time of a run went, over all its starts. Real kills are tests/drills/kill.py's."""

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import small_config
from drills import runs

from distmlp import train
from distmlp.account import Account
from distmlp.cluster.group import Group
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.feed import Feed
from distmlp.run import sessions
from distmlp.run.goodput import described, parts
from distmlp.run.keeping import Keeping
from distmlp.run.log import read_lines
from distmlp.run.sessions import Pulse, Sessions, read_sessions
from distmlp.run.store import Store

HOUR = 30.0  # seconds; of true ones, Orbax would think, while it saves, that its threads hang


class Clock:
    """Real time, and hours that pass when something is called."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.late = 0.0
        self._patch = monkeypatch.setattr
        for name in ("monotonic", "time"):
            real = getattr(time, name)
            self._patch(time, name, lambda real=real: real() + self.late)

    def slow(self, owner: type, method: str, hours: float) -> None:
        call: Callable[..., Any] = getattr(owner, method)

        def slowed(*arguments: Any) -> Any:
            self.late += hours * HOUR
            return call(*arguments)

        self._patch(owner, method, slowed)


def hours(found: dict[str, float]) -> dict[str, int]:
    """Whole ones."""
    return {name: round(seconds / HOUR) for name, seconds in found.items() if seconds > HOUR / 2}


def test_each_hour_has_its_cause_also_those_of_a_start_that_was_killed(
    npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Ten steps, a checkpoint after four, eight and ten, an evaluation at the end. The first start is killed after its
    line of step five, when a pulse has come: what was there then is gone on with."""
    clock = Clock(monkeypatch)
    clock.slow(Feed, "advance", 1)
    clock.slow(Group, "barrier", 2)  # one before the folder is used, one after the compilation
    clock.slow(Evaluator, "__call__", 5)
    clock.slow(Store, "save", 10)
    clock.slow(Keeping, "restored", 100)
    monkeypatch.setattr(sessions, "_FIRST", 0.02)
    monkeypatch.setattr(sessions, "_SHARE", 0.0)
    config = small_config(npz, num_devices=1, steps_per_dispatch=1, checkpoint_every_steps=4, eval_every_epochs=0,
                          stall_seconds=0)  # fmt: skip
    died: list[float] = []

    def killed(line: dict[str, Any]) -> bool:
        while not (tmp_path / "run" / "checkpoints" / "4").exists():
            time.sleep(0.01)
        time.sleep(0.2)  # for a pulse
        died.append(time.time())
        shutil.copytree(tmp_path / "run", tmp_path / "killed")
        return True

    began = time.time()
    assert train(config, on_line=killed).history[-1]["step"] == 5
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "killed").rename(tmp_path / "run")
    first = parts(read_sessions(tmp_path / "run").values)
    assert hours(first) == {"start": 2, "train": 5, "compile": 2, "save": 10, "restore": 100}
    clock.late += 988 * HOUR  # beside those in which the end by on_line was saved, with a barrier
    capsys.readouterr()
    train(config)
    found = parts(read_sessions(tmp_path / "run").values)
    assert hours(found) == {"start": 4, "train": 10, "lost": 1, "compile": 4, "evaluate": 5, "save": 30,
                            "restore": 200, "down": 1000}  # fmt: skip
    assert sum(first.values()) == pytest.approx(died[0] - began, rel=0.01)
    assert sum(found.values()) == pytest.approx(time.time() - began, rel=0.01)
    wall = sum(found.values())
    said = " ".join(capsys.readouterr().out.split())
    told = re.search(rf"goodput {100 * found['train'] / wall:.1f} % of ([\d,.]+) s trained steps that were kept", said)
    assert told
    assert float(told[1].replace(",", "")) == pytest.approx(wall, abs=1)  # it says so before it ends
    assert f"; {100 * found['down'] / wall:.1f} % down, {100 * found['restore'] / wall:.1f} % restoring, " in said


SLOW_STEPS = """
import os, time
from distmlp.parallel.feed import Feed
from distmlp.run import sessions
sessions._FIRST, sessions._SHARE = 0.02, 0.0
advance = Feed.advance
def slow(self, *arguments):
    with open(os.environ["STEPS"], "a") as file:
        file.write(f"{time.time()}\\n")
    time.sleep(0.1)
    return advance(self, *arguments)
Feed.advance = slow
"""


def test_steps_that_a_kill_has_cost_are_lost(npz: str, tmp_path: Path) -> None:
    """A real one, some steps after a checkpoint; a process says of each step when it began."""
    (tmp_path / "sitecustomize.py").write_text(SLOW_STEPS)
    steps, run = tmp_path / "steps", tmp_path / "run"
    env = runs.environment(1)
    env |= {"PYTHONPATH": os.pathsep.join([str(tmp_path), env["PYTHONPATH"]]), "STEPS": str(steps)}
    command = [sys.executable, "-m", "launch.train", f"--dataset={npz}", f"--workdir={run}", "--hidden_sizes=8",
               "--batch_size=20", "--max_steps=16", "--checkpoint_every_steps=8", "--steps_per_dispatch=1",
               "--eval_every_epochs=0"]  # fmt: skip

    def begun() -> list[float]:
        return [float(text) for text in steps.read_text().split()] if steps.exists() else []

    spawned = time.time()
    with subprocess.Popen(command, env=env, stdout=subprocess.DEVNULL) as process:
        while len(begun()) < 14 or not runs.committed(run):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
        killed = time.time()
    first, saved = begun(), max(runs.committed(run))
    subprocess.run(command, env=env, stdout=subprocess.DEVNULL, check=True)
    wall = time.time() - spawned
    found = parts(read_sessions(run).values)
    assert found["lost"] == pytest.approx(killed - first[saved], abs=0.15)
    kept = sum(line.get("seconds", 0.0) for line in read_lines(run).values)
    assert found["train"] == pytest.approx(kept, rel=0.01)
    assert sum(found.values()) == pytest.approx(wall, rel=0.01)


def test_no_time_is_counted_twice_or_not_at_all() -> None:
    began = time.monotonic() - 3
    account = Account(began)
    with account.of("save"):
        with account.of("evaluate"):
            assert account.to("train") == "evaluate"
        assert account.to("save") == "save"
    assert account.to("other") == "start"
    assert account.seconds["start"] >= 3
    assert math.isclose(sum(account.seconds.values()), time.monotonic() - began, abs_tol=0.05)
    assert math.isclose(account.began, time.time() - 3, abs_tol=0.05)


def line(began: float, kept: float, **seconds: float) -> dict[str, Any]:
    return {"time": "2026-01-01 00:00:00", "began": began, "seconds": seconds, "kept": kept}


def test_every_moment_has_one_cause_wherever_a_start_was_killed() -> None:
    """The sum is the time from the first beginning to the last line."""
    early = {name: value for name, value in line(1040.0, 0, start=5).items() if name != "kept"}  # killed before steps
    first = line(1000.0, 0, start=4, train=30)
    for second, expected in (
        # Of 32 seconds of steps a checkpoint knows, two more than the line before the kill.
        (line(1060.0, 32, start=5, train=45), {"start": 14, "train": 77, "lost": 0, "down": 19}),
        # And this start was there, by its clock, two seconds before the last line.
        (line(1043.0, 25, start=5, train=62), {"start": 12, "train": 87, "lost": 5, "down": 6}),
        (line(1043.0, 60, start=5, train=62), {"start": 12, "train": 98, "lost": 0, "down": 0}),  # a line is lost
    ):
        found = parts([first, early, second])
        assert found == expected
        assert sum(found.values()) == second["began"] + sum(second["seconds"].values()) - 1000


def test_of_each_start_the_last_line_counts_whatever_else_is_lost() -> None:
    first, second = line(1000.0, 0, start=4, train=30, save=6), line(1100.0, 25, start=5, train=45, evaluate=10)
    sessions = [line(1000.0, 0, start=4), first, {**line(1100.0, 25, start=5), "start": 25}, second]
    expected = {"start": 9, "train": 70, "lost": 5, "save": 6, "evaluate": 10, "down": 60}
    assert parts(sessions) == parts([first, second]) == expected
    assert sum(expected.values()) == 1160 - 1000
    assert described(expected) == (
        "goodput      43.8 % of 160.0 s trained steps that were kept; 37.5 % down,\n"
        "             6.2 % evaluating, 5.6 % start, 3.8 % saving, 3.1 % lost"
    )


def test_starts_of_version_0_2_0_which_did_not_say_where_the_time_went(tmp_path: Path) -> None:
    old = [{"time": "2026-01-01 00:00:00", "start": 0, "hosts": ["a"], "processes": 1, "devices": "1 x cpu"},
           {"time": "2026-01-01 00:01:00", "end": 5, "reason": ""}]  # fmt: skip
    (tmp_path / "sessions.jsonl").write_text("".join(f"{json.dumps(value)}\n" for value in old))
    assert parts(read_sessions(tmp_path).values) == {}
    assert described({}) == ""
    account = Account()
    account.began = 1767225600.0 + 300  # 2026-01-01 00:05:00
    with Sessions(tmp_path, account, enabled=True) as now:
        account.to("train")
        now.begin(0.0, start=5, hosts=["a"], processes=1, devices="1 x cpu")
    found = read_sessions(tmp_path)
    assert (found.damaged, len(found.values)) == ((), 3)
    told = parts(found.values)
    assert (told["not known"], told["down"], told["lost"]) == (300, 0, 0)
    assert told.keys() == {"not known", "down", "lost", "start", "train"}


def test_a_start_that_is_refused_changes_nothing_and_one_that_was_killed_is_taken_over(tmp_path: Path) -> None:
    first, second, third = Account(), Account(), Account()
    first.began, second.began, third.began = 1000.0, 1060.0, 1200.0
    starting = tmp_path / "starting.jsonl"
    with Sessions(tmp_path, second, enabled=True):
        pass
    assert not list(tmp_path.iterdir())
    killed = Sessions(tmp_path, first, enabled=True)
    first._seconds["start"] = 50.0
    killed.tell()
    left = starting.read_bytes()
    with Sessions(tmp_path, second, enabled=True):
        assert starting.read_bytes().startswith(left)
    assert starting.read_bytes() == left
    with Sessions(tmp_path, third, enabled=True) as now:
        assert parts(read_sessions(tmp_path).values) == {}
        now.begin(0.0, start=0, hosts=["a"], processes=1, devices="1 x cpu")
    assert not starting.exists()
    found = parts(read_sessions(tmp_path).values)
    assert found["start"] == pytest.approx(50, abs=0.5)
    assert found["down"] == pytest.approx(150, abs=0.5)


def test_a_week_has_a_thousand_pulses(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pulse = Pulse(lambda: None)

    class Over:
        def wait(self, seconds: float) -> bool:
            waits.append(seconds)
            now[0] += seconds
            return now[0] > 7 * 24 * HOUR

    monkeypatch.setattr(pulse, "_over", Over())
    pulse._beat()
    assert len(waits) < 1000
    assert waits[:100] == [1.0] * 100
    assert max(waits) < 0.01 * now[0]

