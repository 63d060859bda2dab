"""What the caller's function hears of each line, and how it ends a run; and what a notebook shows of one."""

import re
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import make_arrays, small_config
from drills import groups, runs

from distmlp import InputError, notebook, train
from distmlp.training import Result

TIMINGS = {"seconds", "examples_per_second", "total_seconds"}


def untimed(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if name not in TIMINGS} for line in lines]


@pytest.mark.parametrize("workdir", [None, "run"])
def test_it_hears_each_line(workdir: str | None, npz: str) -> None:
    heard: list[dict[str, Any]] = []

    def on_line(line: dict[str, Any]) -> str:
        heard.append(dict(line))
        line.clear()  # a copy: the run's own stays
        return "not True"

    result = train(small_config(npz, num_devices=1, workdir=workdir), on_line=on_line)
    assert heard == result.history
    assert [(line["step"], line.get("final", False)) for line in heard] == [(5, False), (10, False), (10, True)]
    if workdir:
        assert runs.lines(Path(workdir)) == untimed(heard)


@pytest.mark.parametrize("end", [1, 2, 3])
def test_true_ends_the_run_and_the_same_call_goes_on(end: int, npz: str) -> None:
    settings: dict[str, Any] = {"num_epochs": 3, "num_devices": 2, "shuffle": True}
    if end == 3:  # 5 hidden units on 2 devices: their rows are filled up
        settings |= {"state": "sharded", "hidden_sizes": (5,)}
    whole = train(small_config(npz, **settings, workdir="whole"))

    def run(**more: Any) -> Result:
        # Without on_line, the next checkpoint would be that of step 15.
        return train(small_config(npz, **settings, workdir="run", checkpoint_every_steps=1000), **more)

    ended = run(on_line=lambda line: np.bool_(line["epoch"] == end))
    assert untimed(ended.history) == untimed(whole.history[:end])
    if end == 3:
        jax.tree.map(np.testing.assert_array_equal, ended.params, whole.params)
    assert runs.committed(Path("run"))[-1] == 5 * end
    assert f"on_line ended the run after step {5 * end} of 15" in Path("run/log.txt").read_text()
    log = Path("run/log.txt").read_text()
    finished = run(on_line=lambda line: line.get("final", False))  # there is nothing left to end
    assert "on_line ended" not in Path("run/log.txt").read_text().removeprefix(log)
    assert untimed(finished.history) == untimed(whole.history)
    assert finished.history[-1]["params_sha256"] == whole.history[-1]["params_sha256"]


def test_what_is_no_function_is_refused_before_training(npz: str) -> None:
    with pytest.raises(InputError, match=r"^on_line must be a function of a line, not str$"):
        train(small_config(npz), on_line="print")  # type: ignore[arg-type]
    assert not Path("run").exists()


def test_true_ends_a_run_without_a_folder(npz: str) -> None:
    settings = {"num_epochs": 4, "num_devices": 1, "workdir": None}
    whole, ended = train(small_config(npz, **settings | {"num_epochs": 2})), train(
        small_config(npz, **settings), on_line=lambda line: line["epoch"] == 2
    )  # fmt: skip
    assert untimed(ended.history) == untimed(whole.history[:2])
    jax.tree.map(np.testing.assert_array_equal, ended.params, whole.params)
    assert ended.best_params is not None


@pytest.mark.parametrize("kind", [RuntimeError, SystemExit])
def test_an_exception_ends_the_run_and_the_state_is_saved(kind: type[BaseException], npz: str) -> None:
    def on_line(line: dict[str, Any]) -> None:
        raise kind("of the caller")

    with pytest.raises(kind, match="of the caller") as caught:
        train(small_config(npz, num_devices=1, checkpoint_every_steps=1000, eval_every_epochs=0), on_line=on_line)
    assert caught.traceback[-1].name == "on_line"
    assert runs.committed(Path("run")) == [5]
    assert train(small_config(npz, num_devices=1)).history[-1]["final"]
    with pytest.raises(kind, match="of the caller"):
        train(small_config(npz, num_devices=1, workdir=None), on_line=on_line)


@pytest.mark.parametrize("workdir", [None, "run"])
def test_an_exception_at_the_final_line_is_one_too(workdir: str | None, npz: str) -> None:
    def on_line(line: dict[str, Any]) -> bool:
        if line.get("final"):
            raise RuntimeError("of the caller")
        return False

    with pytest.raises(RuntimeError, match="of the caller"):
        train(small_config(npz, num_devices=1, workdir=workdir), on_line=on_line)


SCRIPT = """
from distmlp import Config, train

def run(workdir, end):
    config = Config(dataset={dataset!r}, hidden_sizes=(8,), batch_size=20, num_epochs=3, reduction="invariant",
                    workdir=workdir, checkpoint_every_steps=1000, learning_rate=0.001)
    return train(config, on_line=end)

def heard(line):
    print("heard", line["step"])
    return line["epoch"] == 2

def failing(line):
    raise RuntimeError("of the caller")

print("ended at", run("run", heard).history[-1]["step"], flush=True)
print("went on to", run("run", lambda line: False).history[-1]["step"], flush=True)
try:
    run("other", failing)
except Exception as error:
    print("raised", type(error).__name__, error, flush=True)
"""


def test_all_processes_follow_the_first(tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", **make_arrays())
    (tmp_path / "script.py").write_text(SCRIPT.format(dataset=str(tmp_path / "small.npz")))
    group = groups.by_variables(("script.py",), tmp_path, processes=2)
    assert [process.wait(240) for process in group] == [0, 0], [process.output for process in group]
    said = sorted(line for process in group for _, line in process.lines
                  if line.startswith(("heard", "ended", "went", "raised")))  # fmt: skip
    assert said[:-1] == [
        *["ended at 10"] * 2, "heard 10", "heard 5",
        next(line for line in said if re.match(r"raised ProcessEnded process 0 of 2 on .* \(RuntimeError\)", line)),
        "raised RuntimeError of the caller", "went on to 15",
    ], [process.output for process in group]  # fmt: skip
    assert said[-1] == "went on to 15"
    assert runs.committed(tmp_path / "other") == [5]


def test_a_notebook_names_the_score_that_has_chosen_the_best() -> None:
    lines = [{"step": step, "epoch": step, "test_loss": loss, "test_accuracy": accuracy}
             for step, loss, accuracy in ((1, 0.5, 0.75), (2, 0.25, 0.5))]
    assert "<th style='text-align:left'>best test accuracy</th><td>75.00% at step 1</td>" in notebook.html(lines)
    page = notebook.html([line | {"choose_by": "loss"} for line in lines])
    assert "best test accuracy" not in page
    assert ">best test loss</th><td>0.25000 at step 2</td>" in page
    assert ">test accuracy there</th><td>50.00%</td>" in page
