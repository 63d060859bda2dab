"""NaN, infinity and devices that disagree stop a run before its parameters are lost; a stall ends the process."""

import dataclasses
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import RunTrain, process_env, small_config
from drills import runs

from distmlp import train
from distmlp.errors import DivergedError, ReplicaError
from distmlp.parallel import feed
from distmlp.parallel.specs import State

Tamper = Callable[[State], State]


def tampered(monkeypatch: pytest.MonkeyPatch, after: int, tamper: Tamper) -> None:
    """Makes runs with data on the host, a step per dispatch, change their state after a step."""
    advance = feed.Feed.advance

    def changed(self: feed.Feed, state: State, step: int, limit: int) -> Any:
        state, steps = advance(self, state, step, step + 1)
        with jax.transfer_guard("allow"):
            return (tamper(state) if step + 1 == after else state), steps

    monkeypatch.setattr(feed.Feed, "advance", changed)


@pytest.mark.parametrize("placement", ["host", "device"])
def test_a_loss_that_is_not_finite(
    placement: str, run_train: RunTrain, npz: str, capsys: pytest.CaptureFixture[str]
) -> None:
    config = small_config(npz, checkpoint_every_steps=1, data_placement=placement, learning_rate=1e30, num_epochs=5,
                          num_devices=1)  # fmt: skip
    with pytest.raises(DivergedError) as first:
        train(config)
    said = r"the loss or a gradient is not finite at step (\d+)(?:: .*)?; the newest checkpoint is of step (\d+)"
    found = re.fullmatch(said, str(first.value))
    assert found is not None, first.value
    step, saved = map(int, found.groups())
    assert saved == step - 1 == runs.committed(Path("run"))[-1]
    with pytest.raises(DivergedError) as again:  # the checkpoint is good: it goes on from there, to the same end
        train(config)
    assert f"resuming after step {saved} of" in capsys.readouterr().out
    assert str(again.value) == str(first.value)
    if placement == "device":
        done = run_train("--flagfile=run/run.flags", "--workdir=run")
        assert (done.returncode, done.stderr.splitlines()[-1]) == (3, f"distmlp: error: {first.value}")


def test_an_evaluation_that_is_not_finite(npz: str) -> None:
    """The loss of the only step is that of before it; with roc_auc, scikit-learn would raise an error of its own."""
    for choose_by in ("accuracy", "loss", "roc_auc"):
        config = small_config(npz, max_steps=1, learning_rate=1e30, num_devices=1, choose_by=choose_by,
                              validation_fraction=0.3, workdir=None)  # fmt: skip
        with pytest.raises(DivergedError, match=r"^the loss of .* is not finite after step 1: try a lower --learning"):
            train(config)


@pytest.mark.parametrize(("value", "step", "saved"), [(np.nan, 7, 6), (-np.inf, 7, 6), (-np.inf, 10, 9)])
def test_a_weight_that_is_not_finite_is_never_saved(
    value: float, step: int, saved: int, npz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Even where no loss tells: a weight of minus infinity only silences its unit."""

    def one_weight(state: State) -> State:
        (weights, biases), *rest = state.params
        return state._replace(params=[(weights.at[0, 0].set(value), biases), *rest])

    config = small_config(npz, data_placement="host", num_devices=2, checkpoint_every_steps=3)
    with monkeypatch.context() as patch:
        tampered(patch, step, one_weight)
        with pytest.raises(DivergedError, match=rf"not finite (at|after) step .* newest checkpoint is of step {saved}"):
            train(config)
    assert runs.committed(Path("run"))[-1] == saved
    assert train(config).history[-1]["step"] == 10
    if step == 10:  # without a folder no save would tell
        tampered(monkeypatch, step, one_weight)
        with pytest.raises(DivergedError, match=r"not finite after step 10: try a lower"):
            train(dataclasses.replace(config, workdir=None, checkpoint_every_steps=0))


def test_devices_that_disagree(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """One bit, of one weight, on one device."""

    def one_copy(state: State) -> State:
        (weights, biases), *rest = state.params
        arrays = [shard.data for shard in weights.addressable_shards]
        copy = np.array(arrays[2])
        copy.view(np.uint32)[0, 0] ^= np.uint32(1)
        arrays[2] = jax.device_put(copy, arrays[2].device)
        weights = jax.make_array_from_single_device_arrays(weights.shape, weights.sharding, arrays)
        return state._replace(params=[(weights, biases), *rest])

    config = small_config(npz, data_placement="host", num_devices=4, checkpoint_every_steps=4, check_replicas_every=2,
                          eval_every_epochs=0)  # fmt: skip
    with monkeypatch.context() as patch:
        tampered(patch, 5, one_copy)
        with pytest.raises(ReplicaError, match=r"after step 6 .*device 0 and device 2 differ.* of step 4"):
            train(config)
    assert runs.committed(Path("run"))[-1] == 4
    assert train(config).history[-1]["step"] == 10


STALLS = """
import time
import numpy as np
from distmlp import Config, train

class Rows:
    reads = 0

    def __len__(self):
        return 64

    def __getitem__(self, i):
        self.reads += 1
        if self.reads == 5:  # before the first step: a large set takes longer than a step may
            time.sleep(4)
        if self.reads > 64 * 20:  # the fingerprint's and some epochs', which are read ahead
            time.sleep(600)
        return np.full(4, i, np.float32), i % 2

config = Config(num_classes=2, hidden_sizes=(4,), batch_size=8, num_epochs=99, eval_every_epochs=0, stall_seconds=3,
                workdir="run", num_devices=1)
train(config, Rows(), Rows())
"""


def test_a_stalled_run_ends_with_all_stacks(tmp_path: Path) -> None:
    script = tmp_path / "stalls.py"
    script.write_text(STALLS)
    done = subprocess.run(
        [sys.executable, script], cwd=tmp_path, env=process_env(), capture_output=True, text=True, timeout=120,
        check=False,
    )  # fmt: skip
    assert done.returncode == 1
    first, *stacks = done.stderr.splitlines()
    assert first.startswith("distmlp: error: for --stall_seconds=3 no step, no evaluation and no file went on: ")
    assert any("in __getitem__" in line for line in stacks)
    assert done.stderr.count("most recent call first") > 1  # all threads
