"""Short forms of drills/kill.py, interrupt.py and damage.py, and what those reach by chance only."""

import random
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from drills import damage, interrupt, kill

from distmlp import Config, InputError, train
from distmlp.errors import Interrupted
from distmlp.parallel.digest import params_sha256
from distmlp.parallel.evaluate import Evaluator


def test_kill(capfd: pytest.CaptureFixture[str]) -> None:
    """In a save, of four devices; one goes on."""
    assert kill.main(["--kills=1", "--epochs=3", "--seed=125"]) == 0, capfd.readouterr().out


def test_interrupt(capfd: pytest.CaptureFixture[str]) -> None:
    """By SIGINT amid steps, of four devices with a sharded state; two go on with one that is not."""
    assert interrupt.main(["--signals=1", "--epochs=3", "--seed=346", "--seconds=100"]) == 0, capfd.readouterr().out


def test_damage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distmlp.run.store._PAUSE_SECONDS", 0)  # between two tries to read: most cases need both
    restores = damage.Restores(tmp_path)
    rng = random.Random(0)
    newest = restores.original / "checkpoints" / str(damage.STEPS[-1])
    cases = list(damage.cases(newest, 2, rng))
    outcomes = {restores.restore(case) for case in [*rng.sample(cases[:-2], 7), *cases[-2:]]}
    assert outcomes == {"fell back", "restored past it", "not noticed, state right"}


@pytest.mark.usefixtures("undrawn")
def test_damage_of_a_file_that_is_no_checkpoints(tmp_path: Path) -> None:
    files, rng = damage.Files(tmp_path), random.Random(1)
    by_file: dict[str, list[damage.Case]] = {}
    for case in files.cases(2, rng):
        by_file.setdefault(case.what.partition(":")[0], []).append(case)
    assert {"metrics.jsonl", "ledger.jsonl", "sessions.jsonl", "log.txt", "run.flags", "lock"} <= by_file.keys()
    chosen = [rng.choice(cases) for cases in [*by_file.values(), by_file["metrics.jsonl"]]]
    assert {files.go_on(case) for case in chosen} == {"right", "said"}


def digits(**changes: Any) -> Config:
    return Config(**{
        "dataset": "digits", "input_scaling": "unit", "hidden_sizes": (32,), "momentum": 0.9, "num_epochs": 3,
        "reduction": "invariant", "num_devices": 2, "checkpoint_every_steps": 5, "keep_checkpoints": 3,
        "eval_batch_size": 50, "workdir": "run", **changes,
    })  # fmt: skip


def without_timings(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in line.items() if not k.endswith("seconds") and k != "examples_per_second"}
            for line in history]  # fmt: skip


def test_a_damaged_run_goes_on_and_ends_right(capfd: pytest.CaptureFixture[str]) -> None:
    expected = train(digits(workdir="reference"))
    train(digits(max_steps=22))
    data = Path("run/checkpoints/22/state")
    largest = max((path for path in data.rglob("*") if path.is_file()), key=lambda path: path.stat().st_size)
    damage.flip(largest.stat().st_size // 2, 5)(largest)
    capfd.readouterr()
    found = train(digits())
    assert params_sha256(found.params) == params_sha256(expected.params)
    told = [line for line in capfd.readouterr().err.splitlines() if line.startswith("distmlp:")]
    assert len(told) == 1
    assert "checkpoint 22 is damaged (" in told[0]
    assert Path("run/damaged/22").is_dir()


def test_nothing_is_changed_when_no_checkpoint_is_intact() -> None:
    train(digits(max_steps=12))
    for path in Path("run/checkpoints").iterdir():
        (path / "meta" / "metadata").unlink()
    before = damage.tree(Path("run"))
    with pytest.raises(InputError, match="holds no intact checkpoint"):
        train(digits())
    assert damage.tree(Path("run")) == before


def test_leftovers_of_crashes_are_cleared_away() -> None:
    expected = train(digits(workdir="reference"))
    train(digits(max_steps=12))
    folder = Path("run/checkpoints")
    shutil.copytree(folder / "12", folder / "17.orbax-checkpoint-tmp")
    shutil.copytree(folder / "12" / "state", folder / "trash" / "5" / "state")  # killed while emptying the trash
    found = train(digits())
    assert params_sha256(found.params) == params_sha256(expected.params)
    assert not list(folder.glob("*tmp*"))
    assert not (folder / "trash").exists()


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_stopped_in_evaluation_then_killed_after_its_line(signum: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint has the epoch's sums in it, its line is in the log: they are not to be counted twice."""
    expected = train(digits(workdir="reference"))
    evaluate: Callable[..., Any] = Evaluator.__call__
    monkeypatch.setattr(Evaluator, "__call__", lambda *args: (signal.raise_signal(signum), evaluate(*args))[1])
    with pytest.raises(Interrupted, match="stopped after step 12 of 36; the newest checkpoint is of step 12") as stop:
        train(digits())
    assert stop.value.exit_code == 128 + signum
    monkeypatch.setattr(Evaluator, "__call__", evaluate)
    train(digits(max_steps=14))
    for step in ("14", "15"):
        shutil.rmtree(Path("run/checkpoints") / step, ignore_errors=True)
    lines = Path("run/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("run/metrics.jsonl").write_text(lines[0] + '{"torn')
    found = train(digits())
    assert without_timings(found.history) == without_timings(expected.history)
