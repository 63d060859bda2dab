"""Which devices a run uses, and what is said where they are not as asked for."""

from types import SimpleNamespace
from typing import Any

import jax
import pytest

from distmlp import Config, InputError
from distmlp.parallel.layout import make_layout


@pytest.mark.parametrize(("devices", "settings", "words"), [
    (1, {"num_devices": 2}, "--num_devices=2, but there is 1 cpu device: emulate them"),
    (3, {"num_devices": 4}, "--num_devices=4, but there are 3 cpu devices: emulate them"),
    (8, {"num_devices": 2, "expect_devices": 4}, "--expect_devices=4, but there are 2 cpu devices: emulate them"),
    (2, {"expect_devices": 1}, "--expect_devices=1, but there are 2 cpu devices: emulate them"),
    (8, {"parallelism": "single", "num_devices": 2}, "--parallelism=single uses one device, but there are 2 cpu dev"),
    (3, {"num_shards": 2}, "--num_shards=2 is fewer than the 3 devices: give --num_shards=3 or more"),
])  # fmt: skip
def test_devices_that_are_not_as_asked_for(devices: int, settings: dict[str, int], words: str) -> None:
    with pytest.raises(InputError, match=f"^{words}"):
        make_layout(Config(**settings), jax.devices()[:devices])


@pytest.mark.parametrize(("counts", "settings", "words"), [
    ((2, 2), {"num_devices": 2}, "--num_devices=2 goes with one process: 2 processes use all of their 4 devices"),
    ((2, 2), {"parallelism": "pmap"}, "--parallelism=pmap is for one process: give --parallelism=shard_map"),
    ((1, 1), {"parallelism": "single"}, "--parallelism=single is for one process: give --parallelism=shard_map"),
    ((2, 3), {}, "the processes have 2, 3 devices: give each as many"),
])  # fmt: skip
def test_what_several_processes_cannot_do(
    counts: tuple[int, ...], settings: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(jax, "process_count", lambda: len(counts))
    devices: Any = [SimpleNamespace(platform="cpu", process_index=process)
                    for process, count in enumerate(counts) for _ in range(count)]  # fmt: skip
    with pytest.raises(InputError, match=f"^{words}"):
        make_layout(Config(**settings), devices)
