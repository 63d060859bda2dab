"""Which devices a run uses, and what is said where they are not as asked for."""

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
