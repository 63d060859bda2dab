"""--reduction=invariant: the same bits on any devices and after any stop. The long form is drills/invariance.py."""

import functools
from pathlib import Path
from typing import Any

import pytest
from conftest import DEVICES
from drills import invariance, runs

from distmlp import Config, train
from distmlp.parallel.digest import params_sha256

STEPS = 30  # two and a half epochs of 12 steps, the last of each with 29 of 128 examples
# As drills/runs.py's DIGITS.
DIGITS: dict[str, Any] = {
    "dataset": "digits", "input_scaling": "unit", "shuffle": True, "hidden_sizes": (128, 64), "learning_rate": 0.1,
    "momentum": 0.9, "reduction": "invariant", "eval_every_epochs": 0,
}  # fmt: skip


def sha256(workdir: str, max_steps: int = STEPS, **changes: Any) -> str:
    """Trains in this process, with its 8 devices or some of them."""
    return params_sha256(train(Config(**{**DIGITS, "workdir": workdir, "max_steps": max_steps, **changes})).params)


@pytest.fixture
def expected(request: pytest.FixtureRequest) -> str:
    """Of one device, by programs compiled as the test's are."""
    return of_one_device(request.node.get_closest_marker("full_xla") is not None)


@functools.cache
def of_one_device(full_xla: bool) -> str:
    return sha256("one-device", num_devices=1)


@pytest.mark.parametrize(("devices", "way", "placement"), [
    *((devices, "shard_map", "host") for devices in (1, 2, 3, 5)), (8, "pmap", "host"), (1, "pmap", "device"),
    (1, "single", "device"), pytest.param(3, "shard_map", "device", marks=pytest.mark.full_xla),
    pytest.param(DEVICES, "shard_map", "host", marks=pytest.mark.full_xla),
])  # fmt: skip
def test_any_devices(devices: int, way: str, placement: str, expected: str) -> None:
    assert sha256("run", num_devices=devices, parallelism=way, data_placement=placement) == expected


@pytest.mark.full_xla
def test_a_process_that_has_only_one_device(expected: str, tmp_path: Path) -> None:
    flags = [*runs.DIGITS, "--eval_every_epochs=0", f"--max_steps={STEPS}"]
    assert runs.finish(tmp_path / "run", flags, devices=1) == expected


@pytest.mark.parametrize("place", invariance.PLACES)
def test_stopped_and_resumed_on_other_devices(place: str, expected: str) -> None:
    sha256("run", invariance.PLACES[place], num_devices=8)
    assert sha256("run", num_devices=3) == expected


@pytest.mark.parametrize("optimizer", [
    {"clip_norm": 0.5, "weight_decay": 0.01},
    {"optimizer": "adamw", "momentum": 0.0, "learning_rate": 0.01, "schedule": "warmup_cosine", "warmup_steps": 3},
    {"compute_dtype": "bfloat16", "input_scaling": "none", "learning_rate": 0.001},
])  # fmt: skip
def test_other_optimizers_and_types(optimizer: dict[str, Any]) -> None:
    found = {sha256(f"run{devices}", num_devices=devices, **optimizer) for devices in (1, 5)}
    assert len(found) == 1


def test_the_bits_do_depend_on_the_devices_otherwise() -> None:
    """Else the tests above would show nothing."""
    found = {sha256(f"run{devices}", num_devices=devices, num_shards=8, reduction="fast") for devices in (1, 3)}
    assert len(found) > 1


def test_a_resumed_run_must_have_as_many_shards() -> None:
    from distmlp import InputError

    sha256("run", 5, num_devices=8)
    with pytest.raises(InputError, match="--num_shards"):
        sha256("run", num_devices=8, num_shards=16)
