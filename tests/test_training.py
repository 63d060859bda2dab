"""The core: training without a folder, and the moments at which something can be done between steps."""

import signal
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import make_arrays, small_config

from distmlp import Config, InputError, load, train
from distmlp.cluster.group import Group
from distmlp.data import datasets
from distmlp.parallel.layout import make_layout
from distmlp.progress import Line, Progress
from distmlp.training import Program, advance

TIMINGS = {"seconds", "examples_per_second", "total_seconds"}


def untimed(history: list[Line]) -> list[Line]:
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in history]


@pytest.mark.parametrize("devices", [1, 8])
def test_without_a_folder_the_numbers_are_those_of_a_run(devices: int, npz: str, tmp_path: Path) -> None:
    changes: dict[str, Any] = {"num_devices": devices, "shuffle": True, "learning_rate": 0.005, "eval_train": True}
    before = sorted(tmp_path.iterdir())
    found = train(small_config(npz, **changes, num_epochs=8, workdir=None))
    assert sorted(tmp_path.iterdir()) == before
    expected = train(small_config(npz, **changes, num_epochs=8))
    assert untimed(found.history) == untimed(expected.history)
    jax.tree.map(np.testing.assert_array_equal, found.params, expected.params)
    best = load("run", "best")
    assert best.step < 40, "the best of this run must not be its last, else nothing is shown"
    jax.tree.map(np.testing.assert_array_equal, found.best_params, best.params)
    params, history = found
    assert (params, history) == (found.params, found.history)
    assert expected.best_params is None


def test_the_best_by_a_validation_set_and_patience_without_a_folder(tmp_path: Path) -> None:
    arrays = make_arrays()
    sets = ((arrays[f"x_{name}"], arrays[f"y_{name}"]) for name in ("train", "test"))
    data = [*sets, (arrays["x_test"][:30], arrays["y_test"][:30])]
    settings = {"num_epochs": 30, "learning_rate": 0.005, "shuffle": True, "patience": 4}
    found = train(small_config("digits", **settings, workdir=None), *data)
    expected = train(small_config("digits", **settings), *data)
    assert len(found.history) < 30
    assert untimed(found.history) == untimed(expected.history)
    assert {"best_test_accuracy", "validation_accuracy"} <= {name for line in found.history for name in line}


def test_without_a_folder_signal_handlers_are_left_alone(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> None:
        raise AssertionError("a handler was set")

    monkeypatch.setattr(signal, "signal", refuse)
    train(small_config(npz, workdir=None, num_devices=1))


@pytest.mark.parametrize("setting", [{"ledger": True}, {"profile_steps": "1:2"}, {"checkpoint_every_steps": 5}])
def test_what_is_written_needs_a_folder(setting: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=f"--{next(iter(setting))} goes with a folder"):
        train(Config(workdir=None, **setting))


def test_several_processes_need_a_folder(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Group, "join", classmethod(lambda cls, config: cls(0, 2)))
    monkeypatch.setattr(Group, "_fail", lambda self, error: None)  # there is nobody to tell
    with pytest.raises(InputError, match="--workdir must be given with several processes"):
        train(Config(workdir=None))


def test_the_moments_of_a_training(npz: str) -> None:
    """Before each dispatch, after it, and at each line; what was done is in it, and what it says is right."""
    config = small_config(npz, num_devices=2, steps_per_dispatch=3, eval_every_epochs=2, check_replicas_every=4)
    data, layout = datasets.load(config), make_layout(config)
    parts = Program(config, data, layout, layout.device_memory)
    progress = Progress(parts.cadence)
    state = parts.initial_state(())
    found: list[Any] = []
    for moment in advance(parts, state, progress, lambda: None):
        assert int(moment.state.step) == progress.step
        if moment.steps is not None:
            found.append((progress.step, len(moment.steps.sizes), moment.digests is not None))
        elif moment.line is not None:
            found.append({"step": moment.line["step"], "evaluated": "test_accuracy" in moment.line})
        else:
            found.append("before")
    assert found == [
        "before", (3, 3, False), "before", (4, 1, True), "before", (5, 1, False), {"step": 5, "evaluated": False},
        "before", (8, 3, True), "before", (10, 2, False), {"step": 10, "evaluated": True},
    ]  # fmt: skip
    assert [line["step"] for line in progress.history] == [5, 10]
