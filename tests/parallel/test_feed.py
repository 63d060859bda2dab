"""Both feeds run the same steps on the same examples, from any position, in dispatches of any size."""

from typing import Any

import jax
import numpy as np
import pytest
from conftest import make_arrays

from distmlp import Config, InputError, model, optim
from distmlp.data.batches import NumpyLoader
from distmlp.data.datasets import ArrayDataset
from distmlp.parallel.feed import choose_placement, make_feed
from distmlp.parallel.layout import make_layout
from distmlp.parallel.specs import STATE, State
from distmlp.parallel.step import make_train_step

TOTAL = 13  # steps: two epochs of five and a part of the third


def dataset() -> ArrayDataset:
    arrays = make_arrays()
    return ArrayDataset(arrays["x_train"], arrays["y_train"], "small")


def run(kind: str, devices: int, begin: tuple[int, Any] | None = None, stop: int = TOTAL, per_dispatch: int = 0) -> Any:
    """The state at step `stop`, on the host, and the losses and example counts of the steps made."""
    config = Config(batch_size=20, shuffle=True, num_devices=devices, momentum=0.9, reduction="invariant",
                    steps_per_dispatch=per_dispatch)  # fmt: skip
    layout, optimizer = make_layout(config), optim.make(config, TOTAL)
    loader = NumpyLoader(dataset(), 20, layout.num_shards, layout.local_shards, shuffle=True)
    step_function = make_train_step(config, layout, 4, optimizer)
    feed = make_feed(config, layout, loader, step_function, kind, TOTAL)
    params = model.init_network_params([12, 8, 4], jax.random.key(0))
    step, host_state = begin or (0, jax.tree.map(np.asarray, State(params, optimizer.init(params), np.int32(0), ())))
    state = layout.put(host_state, STATE)
    feed.compile(state)
    losses: list[float] = []
    counts: list[int] = []
    while step < stop:
        state, made = feed.advance(state, step, stop)
        losses += np.asarray(made.losses)[: len(made.sizes)].tolist()
        counts += made.sizes
        step += len(made.sizes)
    assert step == stop
    return jax.tree.map(np.asarray, state), losses, counts


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_host_and_device_feed_give_the_same_bits(devices: int) -> None:
    state, losses, counts = run("host", devices)
    assert counts == [20, 20, 20, 20, 16] * 2 + [20, 20, 20]
    assert int(state.step) == TOTAL
    for per_dispatch in (0, 1, 4):
        other, other_losses, other_counts = run("device", devices, per_dispatch=per_dispatch)
        jax.tree.map(np.testing.assert_array_equal, state, other)
        assert (other_losses, other_counts) == (losses, counts)


@pytest.mark.parametrize("kind", ["host", "device"])
@pytest.mark.parametrize("stop", [3, 5, 8])
def test_a_run_continued_from_any_step_is_the_same(kind: str, stop: int) -> None:
    whole, losses, counts = run(kind, 2)
    state, first, first_counts = run(kind, 2, stop=stop)
    state, rest, rest_counts = run(kind, 2, begin=(stop, state))
    jax.tree.map(np.testing.assert_array_equal, state, whole)
    assert (first + rest, first_counts + rest_counts) == (losses, counts)


def test_mapped_sets_are_not_put_on_the_devices(tmp_path: Any) -> None:
    np.save(tmp_path / "x.npy", make_arrays()["x_train"])
    mapped = ArrayDataset(np.load(tmp_path / "x.npy", mmap_mode="r"), make_arrays()["y_train"], "mapped")
    memory = make_layout(Config()).device_memory
    assert choose_placement(Config(), mapped, memory)[0] == "host"
    assert choose_placement(Config(), dataset(), memory)[0] == "device"
    with pytest.raises(InputError, match="--data_placement=device needs data in memory"):
        choose_placement(Config(data_placement="device"), mapped, memory)
