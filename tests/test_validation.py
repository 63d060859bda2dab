"""A model chosen by a validation set, and a run that stops when that set says so; the test set only looks on."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import make_arrays, small_config

from distmlp import Config, InputError, train
from distmlp.parallel.evaluate import Evaluator
from distmlp.progress import Progress
from distmlp.run.keeping import Keeping

ARRAYS = make_arrays(test=80)
CHANGES: dict[str, Any] = {"num_epochs": 30, "learning_rate": 0.005, "shuffle": True, "reduction": "invariant"}


@pytest.fixture
def with_validation(tmp_path: Path) -> str:
    """96 training, 40 validation and 40 test examples."""
    x, y = ARRAYS["x_test"], ARRAYS["y_test"]
    names = {"x_train": ARRAYS["x_train"], "y_train": ARRAYS["y_train"]}
    np.savez(tmp_path / "parts.npz", **names, x_val=x[:40], y_val=y[:40], x_test=x[40:], y_test=y[40:])
    return str(tmp_path / "parts.npz")


@pytest.fixture
def without(tmp_path: Path) -> str:
    """The same without the validation set."""
    x, y = ARRAYS["x_test"], ARRAYS["y_test"]
    names = {"x_train": ARRAYS["x_train"], "y_train": ARRAYS["y_train"]}
    np.savez(tmp_path / "plain.npz", **names, x_test=x[40:], y_test=y[40:])
    return str(tmp_path / "plain.npz")


def test_the_best_is_chosen_by_validation_and_the_test_set_read_once_at_the_end(
    with_validation: str, without: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    evaluated: list[str] = []
    evaluate = Evaluator.__call__

    def listening(self: Evaluator, state: Any, data: Any, poll: Any, *more: Any) -> Any:
        evaluated.append(data.name)
        return evaluate(self, state, data, poll, *more)

    monkeypatch.setattr(Evaluator, "__call__", listening)
    *lines, final = train(small_config(with_validation, **CHANGES)).history
    text = capsys.readouterr().out
    assert [name.partition(": ")[2] for name in evaluated] == ["x_val, y_val"] * 30 + ["x_test, y_test"] * 2
    assert all(line["validation_count"] == 40 and "test_accuracy" not in line for line in lines)
    best = max(lines, key=lambda line: line["validation_accuracy"])
    assert best is not lines[-1]  # else nothing is shown
    steps = [int(path.name) for path in Path("run/checkpoints").iterdir() if path.name.isdigit()]
    assert best["step"] in steps

    # Without a validation set the test accuracy of every checkpoint is known.
    tests = {line["step"]: line for line in train(small_config(without, **CHANGES, workdir="plain")).history[:-1]}
    assert "(the best was chosen on the test set; --validation_fraction avoids that)" in capsys.readouterr().out
    for name, step in (("best_test", best["step"]), ("test", lines[-1]["step"])):
        for key in ("loss", "accuracy", "correct", "count"):
            assert final[f"{name}_{key}"] == tests[step][f"test_{key}"], (name, key)
    assert "val loss" in text
    assert "test loss" not in text
    assert "96 training, 40 validation and 40 test" in text
    step = best["step"]
    assert f"best validation accuracy {best['validation_accuracy']:.2%} at step {step}; on the test set:" in text
    assert f"  the best checkpoint, step {step}: {final['best_test_accuracy']:.2%} (" in text
    assert f"  the last checkpoint, step 150: {final['test_accuracy']:.2%} (" in text


class Killed(Exception):
    pass


def test_an_early_stop_is_the_same_after_kills_and_on_other_devices(
    with_validation: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def config(workdir: str, **more: Any) -> Config:
        return small_config(with_validation, **CHANGES, patience=4, workdir=workdir, **more)

    *lines, final = train(config("whole", num_devices=1)).history
    accuracies = [line["validation_accuracy"] for line in lines]
    assert len(lines) < 30
    assert accuracies.index(max(accuracies)) == len(lines) - 5  # four evaluations that are no better
    assert all(max(accuracies[: end - 4]) < max(accuracies[:end]) for end in range(5, len(lines)))  # and not before

    record = Keeping.record
    for devices, kill in zip((3, 8, 2), (3, 16, 21), strict=True):
        def killed(self: Any, steps: Any, digests: Any, progress: Progress, kill: int = kill) -> None:
            record(self, steps, digests, progress)
            if progress.step >= kill:
                raise Killed

        monkeypatch.setattr(Keeping, "record", killed)
        with pytest.raises(Killed):
            train(config("broken", num_devices=devices, steps_per_dispatch=1))
    monkeypatch.setattr(Keeping, "record", record)
    broken = train(config("broken", num_devices=5)).history
    timings = {"seconds", "examples_per_second", "total_seconds"}
    strip = [{name: value for name, value in line.items() if name not in timings} for line in broken]
    assert strip == [{k: v for k, v in line.items() if k not in timings} for line in [*lines, final]]
    capsys.readouterr()
    train(config("broken"))
    assert "nothing to do" in capsys.readouterr().out
    # With more patience it goes on.
    assert train(small_config(with_validation, **CHANGES, workdir="broken")).history[-1]["step"] == 150


def test_patience_needs_a_validation_set(without: str) -> None:
    with pytest.raises(InputError, match=r"--patience=3 goes by a validation set: give --validation_fraction"):
        train(small_config(without, patience=3))
    with pytest.raises(InputError, match=r"--patience=3 counts evaluations, .* at the end: give --eval_every_epochs=1"):
        Config(patience=3, validation_fraction=0.1, eval_every_epochs=0).validate()
    Config(patience=3, validation_fraction=0.1, eval_every_epochs=0, eval_every_steps=5).validate()


def test_a_chosen_checkpoint_that_is_damaged_is_said(
    with_validation: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    finish = Keeping.finish

    def after_damage(self: Any, state: Any, progress: Progress, poll: Any) -> None:
        self.store.wait()
        best = max(progress.history, key=lambda line: line["validation_accuracy"])["step"]
        for path in Path("run/checkpoints", str(best)).rglob("*"):
            if path.is_file():
                path.write_bytes(b"")
        finish(self, state, progress, poll)

    monkeypatch.setattr(Keeping, "finish", after_damage)
    final = train(small_config(with_validation, **CHANGES)).history[-1]
    assert "test_accuracy" in final
    assert "best_test_accuracy" not in final
    assert "the best, cannot be read" in capsys.readouterr().err


def test_scaling_sees_the_training_part_alone(tmp_path: Path) -> None:
    from distmlp.data.datasets import input_scaling, load

    np.savez(tmp_path / "one.npz", x=np.arange(100, dtype=np.float32)[:, None] ** 2, y=np.arange(100) % 2)
    fractions = {"test_fraction": 0.2, "validation_fraction": 0.2}
    config = Config(dataset=str(tmp_path / "one.npz"), **fractions)
    data = load(config)
    shift, scale = input_scaling("standard", data)
    rows = data.train.take(np.arange(len(data.train)))[0]
    assert len(rows) == 64
    np.testing.assert_allclose((shift, 1 / scale), (rows.mean(axis=0), rows.std(axis=0)), rtol=1e-5)
