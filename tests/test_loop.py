"""What the loop does between steps: how many a dispatch has, and which are profiled."""

import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import numpy as np
import pytest
import tutorial
from conftest import small_config

from distmlp import InputError, train
from distmlp.cluster.group import Group
from distmlp.errors import Interrupted
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.feed import Feed
from distmlp.run.keeping import Keeping
from distmlp.run.log import read_lines
from distmlp.run.store import Store


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens: the number of each step from 1, dispatch by dispatch, and when the profiler starts and stops."""
    found: list[Any] = []
    advance = Feed.advance

    def noted(self: Feed, state: Any, step: int, limit: int) -> Any:
        state, steps = advance(self, state, step, limit)
        found.append(list(range(step + 1, step + 1 + len(steps.sizes))))
        return state, steps

    monkeypatch.setattr(Feed, "advance", noted)
    for original in (jax.profiler.start_trace, jax.profiler.stop_trace):

        def note(*arguments: Any, original: Any = original) -> None:
            original(*arguments)
            found.append(original.__name__)

        monkeypatch.setattr(jax.profiler, original.__name__, note)
    return found


@pytest.mark.parametrize("placement", ["host", "device"])
def test_the_steps_of_a_dispatch(placement: str, npz: str, events: list[Any]) -> None:
    train(small_config(npz, data_placement=placement, steps_per_dispatch=3, num_devices=1))
    assert events == [[1, 2, 3], [4, 5], [6, 7, 8], [9, 10]]  # two epochs of five steps


def test_profile_steps(npz: str, events: list[Any], tmp_path: Path) -> None:
    train(small_config(npz, profile_steps="3:4", steps_per_dispatch=10, num_devices=1))
    assert events == [[1, 2], "start_trace", [3, 4], "stop_trace", [5], [6, 7, 8, 9, 10]]
    assert list((tmp_path / "run/profile").rglob("*.xplane.pb"))


def test_a_run_resumed_within_the_profiled_steps_profiles_the_rest(npz: str, events: list[Any]) -> None:
    train(small_config(npz, max_steps=5, num_devices=1))
    events.clear()
    train(small_config(npz, max_steps=8, profile_steps="3:7", steps_per_dispatch=10, num_devices=1))
    assert events == ["start_trace", [6, 7], "stop_trace", [8]]


def test_a_profile_that_cannot_be_written_costs_no_training(
    npz: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "profile").write_text("no folder")
    assert train(small_config(npz, profile_steps="3:4", num_devices=1)).history[-1]["step"] == 10
    (line,) = [line for line in capfd.readouterr().err.splitlines() if "profile" in line]
    assert line.startswith(f"distmlp: --profile_steps: there is no profile in {tmp_path}/run/profile (")
    assert line in (tmp_path / "run" / "log.txt").read_text(encoding="utf-8").splitlines()


def test_a_disk_that_is_full_at_the_end_of_a_profile(
    npz: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    stop = jax.profiler.stop_trace

    def full() -> None:
        stop()  # type: ignore[no-untyped-call] # jax's
        raise jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: ...; No space left on device")

    monkeypatch.setattr(jax.profiler, "stop_trace", full)
    assert train(small_config(npz, profile_steps="3:4", num_devices=1)).history[-1]["step"] == 10
    assert capfd.readouterr().err.count("run/profile (RESOURCE_EXHAUSTED: ...; No space left on device)") == 1


def test_a_profile_of_somebody_else_costs_no_training(
    npz: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """As of a notebook's cell around the training."""
    with jax.profiler.trace(str(tmp_path / "theirs")):
        train(small_config(npz, profile_steps="3:4", num_devices=1))
    assert "(Profile has already been started. Only one" in capfd.readouterr().err
    assert list((tmp_path / "theirs").rglob("*.xplane.pb"))


def test_training_time_is_of_steps_only(npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint or an evaluation that takes an hour, by the clock."""
    late, monotonic, save, evaluate = [0.0], time.monotonic, Store.save, Evaluator.__call__

    def slowed(call: Callable[..., Any]) -> Callable[..., Any]:
        def slow(*arguments: Any) -> Any:
            late[0] += 3600
            return call(*arguments)

        return slow

    monkeypatch.setattr("time.monotonic", lambda: monotonic() + late[0])
    monkeypatch.setattr(Store, "save", slowed(save))
    monkeypatch.setattr(Evaluator, "__call__", slowed(evaluate))
    history = train(small_config(npz, checkpoint_every_steps=2, eval_every_steps=3, stall_seconds=0)).history
    assert late[0] > 8 * 3600
    assert [line["step"] for line in history if "seconds" in line] == [5, 10]
    assert all(line["seconds"] < 3600 for line in history if "seconds" in line)
    assert history[-1]["total_seconds"] > 8 * 3600


def test_steps_that_the_run_does_not_have_cannot_be_profiled(npz: str) -> None:
    with pytest.raises(InputError, match="--profile_steps=9:11 goes beyond the run's 10 steps"):
        train(small_config(npz, profile_steps="9:11"))


def test_processes_must_agree_on_the_experiment_not_on_their_hosts(
    npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As each was given them: relative paths mean different folders on hosts whose home or working folders differ."""
    agreed: dict[str, Any] = {}
    monkeypatch.setattr(Group, "agree", lambda self, facts: agreed.update(facts))
    train(small_config(Path(npz).name, max_steps=1, data_dir="~/data", compilation_cache_dir="~/cache"))
    assert agreed["--dataset"] == Path(npz).name
    assert {"--seed", "--num_epochs", "--data_placement", "jax"} <= agreed.keys()
    assert not {"--data_dir", "--compilation_cache_dir", "--num_workers", "--workdir", "--process_id"} & agreed.keys()


def test_the_logged_loss_is_the_mean_over_all_examples(npz: str) -> None:
    """96 examples in batches of 20: the last one has 16. The parameters hardly move: one evaluation tells it."""
    history = train(small_config(npz, num_epochs=1, learning_rate=1e-12)).history
    arrays = np.load(npz)
    images, targets = arrays["x_train"].astype(np.float32), tutorial.one_hot(arrays["y_train"], 4)
    expected = tutorial.loss(tutorial.initial([12, 8, 4]), images, targets)
    assert history[0]["train_loss"] == pytest.approx(float(expected), rel=1e-5)


def test_an_evaluation_comes_after_the_save_of_its_step(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that an error in the test set costs no training."""
    found: list[tuple[str, int]] = []
    save, evaluate = Store.save, Evaluator.__call__

    def saving(self: Store, step: int, *arguments: Any) -> None:
        found.append(("save", step))
        save(self, step, *arguments)

    def evaluating(self: Evaluator, state: Any, *arguments: Any) -> Any:
        found.append(("evaluate", int(state.step)))
        return evaluate(self, state, *arguments)

    monkeypatch.setattr(Store, "save", saving)
    monkeypatch.setattr(Evaluator, "__call__", evaluating)
    train(small_config(npz, num_devices=1))
    assert found == [("save", 5), ("evaluate", 5), ("save", 10), ("evaluate", 10)]


@pytest.mark.parametrize(
    ("several", "error", "closes"),
    [(False, None, True), (False, ValueError(), True), (True, None, True), (True, Interrupted(15, ""), True),
     (True, ValueError(), False), (True, KeyboardInterrupt(), False)],
)
def test_a_store_is_closed_alone_or_where_all_close(
    several: bool, error: BaseException | None, closes: bool
) -> None:
    """Closing waits for the other processes: after an error of this one alone, they do not come."""
    closed: list[bool] = []
    store = SimpleNamespace(close=lambda: closed.append(True))
    keeping = SimpleNamespace(
        _begun=None, _open=ExitStack(), group=SimpleNamespace(several=several), store=store
    )
    Keeping.__exit__(keeping, None, error, None)  # type: ignore[arg-type] # of a Keeping, what is used here
    assert closed == [True] * closes


@pytest.mark.parametrize(("dispatch", "step", "lines"), [(1, 3, []), (2, 5, [5]), (3, 8, [5])])
def test_a_stop_comes_between_steps_after_what_is_due(
    dispatch: int, step: int, lines: list[int], npz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The state of that step is saved, its line is written, and nothing is trained beyond it."""
    done, evaluating = [0], [False]
    advance, evaluate = Feed.advance, Evaluator.__call__

    def counted(self: Feed, state: Any, step: int, limit: int) -> Any:
        done[0] += 1
        return advance(self, state, step, limit)

    with monkeypatch.context() as patch:
        patch.setattr(Feed, "advance", counted)

        def asked(self: Group, signum: int | None) -> int | None:
            """While the dispatch is made, not while something is evaluated after it."""
            return 15 if done[0] >= dispatch and not evaluating[0] else None

        def evaluated(self: Evaluator, *arguments: Any) -> Any:
            evaluating[0] = True
            try:
                return evaluate(self, *arguments)
            finally:
                evaluating[0] = False

        patch.setattr(Evaluator, "__call__", evaluated)
        patch.setattr(Group, "stop_point", asked)
        with pytest.raises(Interrupted, match=rf"stopped after step {step} of 10; .* checkpoint is of step {step};"):
            train(small_config(npz, steps_per_dispatch=3, num_devices=1))
    assert done[0] == dispatch
    assert [line["step"] for line in read_lines(Path("run")).values] == lines
    assert train(small_config(npz, num_devices=1)).history[-1]["step"] == 10
