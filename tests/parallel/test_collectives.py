"""The collectives of the compiled training step: what travels between devices, and that nothing goes by the host."""

import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distmlp import model, optim
from distmlp.config import Config
from distmlp.data.batches import Batch
from distmlp.parallel import step
from distmlp.parallel.layout import Layout, make_layout
from distmlp.parallel.specs import BATCH, STATE, State

SIZES = [12, 16, 16, 4]
# XLA's combiner leaves one all-reduce of the loss and all six gradients together.
FAST_ALL_REDUCES = 1


def collectives(text: str) -> dict[str, int]:
    """How often each collective operation occurs in a compiled program."""
    names = re.findall(r" (all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute|send|recv)"
                       r"(?:-start)?\(", text)
    return {name: names.count(name) for name in names}


def compiled_step(**settings: Any) -> str:
    config = Config(batch_size=16, **settings)
    layout = make_layout(config)
    optimizer = optim.make(config, 10)
    params = model.init_network_params(SIZES, jax.random.key(0))
    state = State(params, optimizer.init(params), jnp.int32(0), ())
    state = layout.put(jax.tree.map(np.asarray, state), STATE)
    rows = -(-16 // layout.num_shards)
    shape = (layout.shards_per_device * len(layout.devices), rows)
    batch = Batch(np.zeros((*shape, SIZES[0]), np.uint8), np.zeros(shape, np.int32), np.ones(shape, np.float32),
                  np.float32(16))  # fmt: skip
    wrapped = layout.wrap(step.make_train_step(step.Recipe(SIZES[-1]), layout, optimizer), (STATE, BATCH))
    return str(wrapped.lower(state, layout.put(batch, BATCH)).compile().as_text())


@pytest.mark.parametrize("parallelism", ["shard_map", "pmap"])
@pytest.mark.parametrize("num_devices", [2, 8])
def test_fast_is_one_all_reduce(parallelism: str, num_devices: int) -> None:
    text = compiled_step(parallelism=parallelism, num_devices=num_devices)
    assert collectives(text) == {"all-reduce": FAST_ALL_REDUCES}
    assert "callback" not in text


@pytest.mark.parametrize(("num_devices", "rounds"), [(2, 1), (8, 3)])
def test_fast_in_pairs_has_no_all_reduce(num_devices: int, rounds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What several CPU processes compile."""
    monkeypatch.setattr(Layout, "adds_in_pairs", True)
    found = collectives(compiled_step(parallelism="shard_map", num_devices=num_devices))
    assert found == {"collective-permute": rounds}  # all arrays are small: one message


@pytest.mark.parametrize("num_devices", [2, 8])
def test_invariant_is_one_all_to_all_and_one_all_gather(num_devices: int) -> None:
    text = compiled_step(reduction="invariant", num_devices=num_devices)
    assert collectives(text) == {"all-to-all": 1, "all-gather": 1}
    assert "callback" not in text


@pytest.mark.parametrize("reduction", ["fast", "invariant"])
def test_a_single_device_has_no_collectives(reduction: str) -> None:
    text = compiled_step(parallelism="single", num_devices=1, reduction=reduction)
    assert collectives(text) == {}
    assert "callback" not in text
