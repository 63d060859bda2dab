"""Where the time of a run went, over all its starts. Real kills are tests/drills/kill.py's."""

import json
import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import small_config

from distmlp import Config, train
from distmlp.account import Account
from distmlp.cluster.group import Group
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.feed import Feed
from distmlp.run import goodput
from distmlp.run.goodput import described, parts
from distmlp.run.keeping import Keeping
from distmlp.run.log import Log, read_sessions
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
    monkeypatch.setattr(goodput, "_FIRST", 0.02)
    monkeypatch.setattr(goodput, "_SHARE", 0.0)
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
    assert f"goodput {100 * found['train'] / wall:.1f} % of {wall:,.1f} s trained steps that were kept; " in said
    assert f"; {100 * found['down'] / wall:.1f} % down, {100 * found['restore'] / wall:.1f} % restoring, " in said


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
    log = Log(tmp_path)
    log.start(5, [], Config())
    began = 1767225600.0 + 300  # 2026-01-01 00:05:00
    log.session(start=5, hosts=["a"], processes=1, devices="1 x cpu", began=began, seconds={"start": 2}, kept=0)
    log.session(began=began, seconds={"start": 2, "train": 10}, kept=0)
    log.close()
    found = read_sessions(tmp_path)
    assert (found.damaged, len(found.values)) == ((), 4)
    assert parts(found.values) == {"not known": 300, "down": 0, "start": 2, "train": 10, "lost": 0}


def test_a_week_has_a_thousand_pulses(monkeypatch: pytest.MonkeyPatch) -> None:
    now, waits = [0.0], []
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    pulse = goodput.Pulse(lambda: None)

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

