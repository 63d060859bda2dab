"""Checkpoints of sharded states: what replicated ones are, saved and restored on any devices."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import flip_bit, small_config

from distmlp import train
from distmlp.results import checkpoints
from distmlp.results.load import load
from distmlp.run.keeping import Keeping

# Of 12 features, 11 and 9 units and 4 classes, no count divides them all: rows are filled up, some devices have none.
SETTINGS: dict[str, Any] = {"hidden_sizes": (11, 9), "reduction": "invariant", "optimizer": "adam", "max_steps": 12,
                            "checkpoint_every_steps": 4, "keep_checkpoints": 9}  # fmt: skip
SHARDED, REPLICATED = {"state": "sharded"}, {"state": "replicated"}


def run(data: str, workdir: str, **changes: Any) -> str:
    return str(train(small_config(data, workdir=workdir, **(SETTINGS | changes))).history[-1]["params_sha256"])


def test_a_checkpoint_does_not_tell_how_its_state_was_held(npz: str) -> None:
    run(npz, "whole", num_devices=3, **REPLICATED)
    run(npz, "parts", num_devices=8, **SHARDED)
    for step in (4, 8, 12):
        whole, parts = (checkpoints.read(Path(name), step) for name in ("whole", "parts"))
        assert whole.meta["digests"] == parts.meta["digests"]
        for name, array in whole.arrays.items():
            np.testing.assert_array_equal(parts.arrays[name], array, strict=True)
    assert load("parts").params[0][0].shape == (11, 12)


@pytest.mark.parametrize(("before", "after"), [
    ({"num_devices": 8, **SHARDED}, {"num_devices": 3, **SHARDED}),
    ({"num_devices": 3, **SHARDED}, {"num_devices": 8, **REPLICATED}),
    ({"num_devices": 5, **REPLICATED}, {"num_devices": 8, **SHARDED}),
    ({"num_devices": 2, **SHARDED}, {"num_devices": 1, **SHARDED}),
])  # fmt: skip
def test_a_run_goes_on_in_another_state(before: dict[str, Any], after: dict[str, Any], npz: str) -> None:
    expected = run(npz, "straight", num_devices=1)
    run(npz, "run", **{**before, "max_steps": 4})
    assert run(npz, "run", **after) == expected


def test_a_damaged_part_is_found(npz: str, capsys: pytest.CaptureFixture[str]) -> None:
    expected = run(npz, "run", num_devices=4, **SHARDED)
    run(npz, "other", num_devices=4, max_steps=8, **SHARDED)
    flip_bit(Path("other/checkpoints/8"))
    assert run(npz, "other", num_devices=4, **SHARDED) == expected
    assert "checkpoint 8 is damaged" in capsys.readouterr().err


def test_a_network_of_another_size_is_not_taken_for_one_that_is_filled_up(npz: str) -> None:
    from distmlp import InputError

    run(npz, "run", num_devices=4, **SHARDED)
    with pytest.raises(InputError, match="--hidden_sizes was 11,9"):
        run(npz, "run", num_devices=4, hidden_sizes=(12, 9), **SHARDED)


def test_a_run_of_0_2_0_whose_gradient_is_clipped_is_told_of_the_new_order(
    npz: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    meta = Keeping._meta
    with monkeypatch.context() as version:  # whose checkpoints do not say how their state was held
        version.setattr(Keeping, "_meta", lambda self, *args: {
            name: value for name, value in meta(self, *args).items() if name != "state"})
        run(npz, "run", num_devices=1, clip_norm=0.5, max_steps=4)
    run(npz, "run", num_devices=1, clip_norm=0.5, max_steps=8)
    assert "--clip_norm adds up the gradient's norm in another order than version 0.2.0" in capsys.readouterr().err
    run(npz, "run", num_devices=1, clip_norm=0.5, max_steps=12)
    assert "--clip_norm" not in capsys.readouterr().err
