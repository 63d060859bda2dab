"""What the loop does between steps: how many a dispatch has, and which are profiled."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tutorial
from conftest import small_config

from distmlp import InputError, train
from distmlp.cluster.group import Group
from distmlp.parallel.feed import DeviceFeed, HostFeed


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What happens: the number of each step from 1, dispatch by dispatch, and when the profiler starts and stops."""
    found: list[Any] = []
    for feed in (HostFeed, DeviceFeed):

        def advance(self: Any, state: Any, step: int, limit: int, advance: Any = feed.advance) -> Any:
            result = advance(self, state, step, limit)
            found.append(list(range(step + 1, step + 1 + len(result[2]))))
            return result

        monkeypatch.setattr(feed, "advance", advance)
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
