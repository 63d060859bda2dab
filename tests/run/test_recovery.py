"""A run goes on after any end, to the numbers it would have had; what it keeps, and what it refuses to go on with."""

import dataclasses
import errno
import json
import logging
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orbax.checkpoint as ocp
import pytest
from conftest import process_env, small_config
from drills import runs

from distmlp import Config, InputError, train
from distmlp.cluster.group import Group
from distmlp.data.datasets import Data
from distmlp.errors import WriteError
from distmlp.parallel.digest import params_sha256
from distmlp.parallel.evaluate import Evaluation, Evaluator
from distmlp.run.meta import origin
from distmlp.run.store import Manager

Evaluate = Callable[..., Evaluation]


def invariant(npz: str, **changes: Any) -> Config:
    """A run whose bits do not depend on where it was interrupted."""
    return small_config(npz, **{"reduction": "invariant", "num_devices": 1, "shuffle": True, **changes})


def steps() -> list[int]:
    return runs.committed(Path("run"))


@pytest.mark.parametrize("failing", [1, 2, 4])
def test_an_error_in_the_test_set_costs_no_step(failing: int, npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = train(invariant(npz, workdir="straight", num_epochs=4))
    evaluate: Evaluate = Evaluator.__call__
    calls = iter(range(1, 99))

    def fails(*args: Any) -> Evaluation:
        if next(calls) == failing:
            raise InputError("example 7 has a value that is NaN")
        return evaluate(*args)

    with monkeypatch.context() as patch:
        patch.setattr(Evaluator, "__call__", fails)
        with pytest.raises(InputError, match="example 7"):
            train(invariant(npz, num_epochs=4))
    assert steps()[-1] == 5 * failing
    assert train(invariant(npz, num_epochs=4)).history[-1]["params_sha256"] == params_sha256(expected.params)
    assert runs.lines(Path("run")) == runs.lines(Path("straight"))


def cut_back(step: int) -> None:
    """Makes of a workdir what a kill after this step's line would have left."""
    for newer in (found for found in steps() if found > step):
        shutil.rmtree(Path("run/checkpoints") / str(newer))
    lines = Path("run/metrics.jsonl").read_text().splitlines(keepends=True)
    Path("run/metrics.jsonl").write_text("".join(line for line in lines if json.loads(line)["step"] <= step))


def test_a_run_that_ends_at_a_step_saved_but_not_evaluated(npz: str, capsys: pytest.CaptureFixture[str]) -> None:
    rare = {"eval_every_epochs": 0, "checkpoint_every_steps": 5}
    train(invariant(npz, **rare))
    cut_back(5)
    assert "test_accuracy" not in runs.lines(Path("run"))[-1]
    train(invariant(npz, **rare, num_epochs=1))
    train(invariant(npz, **rare, num_epochs=1, workdir="straight"))
    assert runs.lines(Path("run")) == runs.lines(Path("straight"))
    assert "test_accuracy" in runs.lines(Path("run"))[-2]
    capsys.readouterr()
    train(invariant(npz, **rare, num_epochs=1))
    assert capsys.readouterr().out.endswith("holds this run finished, at step 5: nothing to do\n")


def test_the_metrics_of_a_run_whose_checkpoints_are_gone_are_kept(npz: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(invariant(npz))
    before = Path("run/metrics.jsonl").read_text()
    shutil.rmtree("run/checkpoints")
    capsys.readouterr()
    train(invariant(npz, seed=1))
    assert Path("run/metrics-old.jsonl").read_text() == before
    assert capsys.readouterr().err.count(str(Path("run/metrics-old.jsonl").absolute())) == 1
    assert runs.sha256(Path("run")) != json.loads(before.splitlines()[-1])["params_sha256"]


@pytest.mark.parametrize("item", ["meta", "state"])
@pytest.mark.parametrize("times", [1, 2])
def test_an_error_of_the_moment_is_no_damage(
    item: str, times: int, npz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(invariant(npz, max_steps=7))
    restore, failures = ocp.CheckpointManager.restore, [OSError(errno.EIO, "Input/output error")] * times

    def flaky(self: Any, step: int, args: Any) -> Any:
        if step == 7 and item in args and failures:
            raise failures.pop()
        return restore(self, step, args=args)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", flaky)
    train(invariant(npz))
    assert sorted(path.name for path in Path("run").glob("damaged/*")) == (["7"] if times == 2 else [])
    assert not failures


def test_adam_and_its_schedule_go_on_where_they_were(npz: str) -> None:
    changes = {"optimizer": "adam", "learning_rate": 0.01, "schedule": "warmup_cosine", "warmup_steps": 3,
               "schedule_steps": 12, "input_scaling": "unit"}  # fmt: skip
    expected = train(invariant(npz, **changes, workdir="straight"))
    train(invariant(npz, **changes, max_steps=6))
    found = train(invariant(npz, **changes))
    assert params_sha256(found.params) == params_sha256(expected.params)


def scripted(monkeypatch: pytest.MonkeyPatch, correct: dict[int, int]) -> None:
    """Makes evaluations find so many of 10 right, by the step."""
    monkeypatch.setattr(Evaluator, "__call__", lambda self, state, *_: Evaluation(1.0, correct[int(state.step)], 10))


@pytest.mark.parametrize(
    ("changes", "kept"),
    [
        ({}, [4, 10]),  # saved where it is evaluated
        ({"checkpoint_every_steps": 5}, [4, 10]),  # the best is saved when it is found
        ({"checkpoint_every_seconds": 1e6}, [4, 10]),
        ({"keep_checkpoints": 3}, [4, 6, 8, 10]),
    ],
    ids=str,
)
def test_the_best_that_is_printed_is_on_disk(
    changes: dict[str, Any], kept: list[int], npz: str, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """The first among equals."""
    scripted(monkeypatch, {2: 3, 4: 7, 6: 5, 8: 7, 10: 6})
    train(invariant(npz, **{"eval_every_epochs": 0, "eval_every_steps": 2, "keep_checkpoints": 1, **changes}))
    assert "best 70.00 % at step 4" in capsys.readouterr().out
    assert steps() == kept


def test_a_best_that_was_saved_after_its_evaluation_is_gone_on_from(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    rare = {"eval_every_steps": 3, "checkpoint_every_steps": 7, "keep_checkpoints": 9}
    with monkeypatch.context() as patch:
        scripted(patch, {3: 5, 5: 1, 6: 7, 9: 2, 10: 2})
        train(invariant(npz, **rare, workdir="straight"))
        train(invariant(npz, **rare))
        assert steps() == [3, 6, 7, 10]
        cut_back(6)
        train(invariant(npz, **rare))
    assert runs.lines(Path("run")) == runs.lines(Path("straight"))


def test_a_best_checkpoint_that_cannot_be_read_costs_its_test_alone(
    npz: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, {2: 3, 4: 7, 6: 6, 8: 5})

    def damage(line: dict[str, Any]) -> None:
        if line["step"] == 8 and not line.get("final"):
            (Path("run") / "checkpoints" / "4" / "meta" / "metadata").write_text("{}")

    config = invariant(npz, max_steps=8, validation_fraction=0.2, eval_every_steps=2)
    *_, final = train(config, on_line=damage).history
    assert (final["test_correct"], "best_test_correct" in final) == (5, False)
    told = capsys.readouterr()
    assert told.err == "distmlp: checkpoint 4, the best, cannot be read: its test accuracy is left out\n"
    assert "  the last checkpoint, step 8: 50.00% (5 of 10)" in told.out


def test_a_run_that_patience_ends_is_saved_where_it_ends(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    scripted(monkeypatch, {2: 3, 4: 7, 6: 6, 8: 7})
    train(invariant(npz, num_epochs=9, validation_fraction=0.2, patience=2, eval_every_steps=2,
                    checkpoint_every_steps=100))  # fmt: skip
    assert steps() == [4, 8]


def test_less_patience_later_goes_on_to_the_next_evaluation(
    npz: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, {2: 7, 4: 6, 6: 6, 8: 5, 10: 4})
    settings = {"num_epochs": 9, "validation_fraction": 0.2, "eval_every_steps": 2, "eval_every_epochs": 0}
    train(invariant(npz, **settings, patience=8, max_steps=8, checkpoint_every_steps=1, keep_checkpoints=9))
    shutil.rmtree("run/checkpoints/8")  # as if it had been stopped after step 7
    for _ in range(2):
        lines = train(invariant(npz, **settings, patience=1)).history
        assert [line["step"] for line in lines] == [2, 4, 6, 8, 8]
    assert "holds this run finished, at step 8" in capsys.readouterr().out


@pytest.mark.parametrize("damage", ["changed", "cut", "emptied", "gone"])
def test_the_best_checkpoint_is_kept_whatever_happens_to_its_line(
    damage: str, npz: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scripted(monkeypatch, {2: 3, 4: 7, 6: 6, 8: 6, 10: 5, 12: 4, 14: 6})
    often = {"eval_every_epochs": 0, "eval_every_steps": 2, "keep_checkpoints": 1, "num_epochs": 3,
             "validation_fraction": 0.2, "patience": 4}  # fmt: skip
    expected = train(invariant(npz, **often, workdir="straight"))
    assert expected.history[-1]["step"] == 12
    train(invariant(npz, **often, max_steps=8))
    assert steps() == [4, 8]
    path = Path("run/metrics.jsonl").absolute()
    text = path.read_text()
    if damage == "gone":
        path.unlink()
    else:
        old, new = {"changed": ('"step": 4', '"stop": 4'), "cut": (text[text.index('{"step": 4') + 9 :], ""),
                    "emptied": (text, "")}[damage]  # fmt: skip
        path.write_text(text.replace(old, new))
    capsys.readouterr()
    found = train(invariant(npz, **often))
    assert params_sha256(found.params) == params_sha256(expected.params)
    assert steps() == [4, 12]
    out, err = capsys.readouterr()
    assert "best validation accuracy 70.00% at step 4" in out
    assert err.count("\n") == 1
    if damage == "changed":
        assert f"{path}: line 2 is not what was written" in err
        assert Path("run/damaged/metrics.jsonl").read_text() != text
        assert runs.lines(Path("run")) == runs.lines(Path("straight"))
    else:
        assert f"{path} lacks {2 if damage == 'cut' else 3} of the lines that it had" in err
        assert {4, 8, 10, 12} <= {line["step"] for line in runs.lines(Path("run"))}
    train(invariant(npz, **often))
    assert "nothing to do" in capsys.readouterr().out


def test_a_run_whose_last_checkpoint_failed_has_not_ended(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    write = Manager.write

    def failing(self: Manager, step: int, *arguments: Any) -> None:
        if step == 10:
            raise OSError(errno.ENOSPC, "No space left on device")
        write(self, step, *arguments)

    with monkeypatch.context() as patch:
        patch.setattr(Manager, "write", failing)
        with pytest.raises(WriteError, match="No space left on device"):
            train(invariant(npz))
    assert not any(line.get("final") for line in runs.lines(Path("run")))
    assert train(invariant(npz)).history[-1]["final"]


@pytest.mark.parametrize(("seconds", "saved"), [(1e-6, [*range(1, 11)]), (1e6, [10])])
def test_saving_by_the_clock(seconds: float, saved: list[int], npz: str) -> None:
    train(invariant(npz, checkpoint_every_seconds=seconds, eval_every_epochs=0, steps_per_dispatch=1,
                    keep_checkpoints=99))  # fmt: skip
    assert steps() == saved


@pytest.mark.parametrize(("process", "due"), [(0, False), (1, True)])
def test_several_processes_save_by_the_clock_of_the_first(
    process: int, due: bool, npz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else one would wait for the others in a save that they do not make. Here the other one has the opposite clock."""
    config = invariant(npz, checkpoint_every_seconds=1e6 if process == 0 else 1e-6, eval_every_epochs=0, max_steps=4,
                       steps_per_dispatch=1, keep_checkpoints=99)  # fmt: skip
    asked: list[Any] = []

    def lead(self: Group, value: Any) -> Any:
        asked.append(value)
        return value if process == 0 else False

    monkeypatch.setattr(Group, "lead", lead)
    train(config)
    assert asked == [due] * 3
    assert steps() == [4]


@pytest.mark.parametrize("reduction", ["invariant", "fast"])
def test_going_on_elsewhere_is_told(
    reduction: str, npz: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train(invariant(npz, reduction=reduction, max_steps=3))
    train(invariant(npz, reduction=reduction, max_steps=5))
    assert capsys.readouterr().err == ""
    here = origin()
    assert {"jax", "processor", "PJRT_NPROC"} <= here.keys()
    monkeypatch.setattr("distmlp.run.keeping.origin", lambda: here | {"jax": "0.1", "PJRT_NPROC": "3"})
    train(invariant(npz, reduction=reduction, max_steps=7))
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert f"PJRT_NPROC was {here['PJRT_NPROC']}, is 3; jax was {here['jax']}, is 0.1" in told
    assert told.endswith(f"; PJRT_NPROC={here['PJRT_NPROC']} in the environment gives XLA as many threads as it had\n")


def test_another_run_is_refused_naming_every_difference(npz: str) -> None:
    config = invariant(npz, max_steps=3)
    train(config)
    Path("run/run.flags").unlink()  # it is for people
    before = {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}
    with pytest.raises(InputError) as caught:
        train(dataclasses.replace(config, seed=4, batch_size=30, eval_every_steps=7, num_epochs=99))
    for words in ("--seed was 0, is 4", "--batch_size was 20, is 30", "give the same flags, or another --workdir"):
        assert words in str(caught.value)
    assert "eval_every" not in str(caught.value)
    assert before == {path: path.stat().st_mtime_ns for path in Path("run").rglob("*") if path.is_file()}


def test_data_may_lie_elsewhere_if_they_are_the_same(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the fingerprint does not cover all values, the path must be the same, too."""
    train(invariant(npz, max_steps=3))
    moved = shutil.copy(npz, "moved.npz")
    assert train(invariant(moved, max_steps=4)).history[-1]["step"] == 4
    with pytest.raises(InputError, match=r"--dataset was .*moved\.npz, is digits\)"):
        train(invariant("digits", max_steps=5))
    arrays = dict(np.load(npz))
    arrays["x_test"][0, 0] ^= 1
    np.savez("other.npz", **arrays)
    with pytest.raises(InputError, match=r"the data of --dataset=.*other\.npz are not those that the run"):
        train(invariant("other.npz", max_steps=5))
    monkeypatch.setattr(Data, "modified", lambda self: [None, 1])
    with pytest.raises(InputError, match=r"--dataset was .*moved\.npz, is .*\)"):
        train(invariant(npz, max_steps=5))
    os.remove("moved.npz")
    os.link(npz, "moved.npz")
    assert train(invariant(npz, max_steps=5)).history[-1]["step"] == 5


def test_a_schedule_that_ends_before_the_run_is_told(npz: str, capsys: pytest.CaptureFixture[str]) -> None:
    changes = {"schedule": "warmup_cosine", "schedule_steps": 7}
    train(invariant(npz, **changes, num_epochs=1))
    assert capsys.readouterr().err == ""
    found = train(invariant(npz, **changes))
    assert "the learning rate is 0 from step 7 on" in capsys.readouterr().err
    longer = train(invariant(npz, **changes, num_epochs=3))
    for one, other in zip(found.params, longer.params, strict=True):
        np.testing.assert_array_equal(one[0], other[0])


def test_the_calling_program_is_left_as_it_was(npz: str) -> None:
    def surroundings() -> list[Any]:
        loggers = [logging.getLogger(), *(logging.getLogger(name) for name in ("absl", "jax", "orbax"))]
        return [sys.unraisablehook, sys.excepthook, warnings.filters[:],
                [(log.filters[:], log.handlers[:], log.level) for log in loggers]]  # fmt: skip

    before = surroundings()
    train(invariant(npz, max_steps=3))
    with pytest.raises(InputError):
        train(invariant(npz, max_steps=3, seed=4))
    assert surroundings() == before
    code = ("import logging, sys, warnings\nimport jax, orbax.checkpoint, torch, optax, tqdm\n"
            "before = logging.getLogger('absl').filters[:], logging.getLogger().filters[:], warnings.filters[:]\n"
            "import distmlp.loop\nassert sys.unraisablehook is sys.__unraisablehook__\n"
            "assert before == (logging.getLogger('absl').filters, logging.getLogger().filters, warnings.filters)")
    subprocess.run([sys.executable, "-c", code], check=True, env=process_env(), timeout=120)
