"""Both feeds run the same steps on the same examples, from any position, in dispatches of any size."""

from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import make_arrays

from distmlp import Config, InputError, machine, model, optim
from distmlp.data.datasets import ArrayDataset
from distmlp.data.loader import NumpyLoader
from distmlp.parallel import feed
from distmlp.parallel.feed import Feed, Pace, choose_placement, in_dispatches
from distmlp.parallel.layout import make_layout
from distmlp.parallel.specs import STATE, State
from distmlp.parallel.step import Recipe, make_train_step

TOTAL = 13  # steps: two epochs of five and a part of the third


def dataset() -> ArrayDataset:
    arrays = make_arrays()
    return ArrayDataset(arrays["x_train"], arrays["y_train"], "small")


def run(kind: str, devices: int, begin: tuple[int, Any] | None = None, stop: int = TOTAL, per_dispatch: int = 0) -> Any:
    """The state at step `stop`, on the host, and the losses and example counts of the steps made."""
    config = Config(batch_size=20, shuffle=True, num_devices=devices, momentum=0.9, reduction="invariant")
    layout, optimizer = make_layout(config), optim.make(config, TOTAL)
    loader = NumpyLoader(dataset(), 20, layout.num_shards, layout.local_shards, shuffle=True)
    step_function = make_train_step(Recipe(4), layout, optimizer)
    steps = Feed(layout, step_function, in_dispatches(layout, loader, kind, TOTAL, per_dispatch))
    params = model.init_network_params([12, 8, 4], jax.random.key(0))
    step, host_state = begin or (0, jax.tree.map(np.asarray, State(params, optimizer.init(params), np.int32(0), ())))
    state = layout.put(host_state, STATE)
    steps.compile(state)
    losses: list[float] = []
    counts: list[int] = []
    while step < stop:
        state, made = steps.advance(state, step, stop)
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


def test_a_dispatch_has_no_room_for_more_steps_than_an_epoch_has() -> None:
    config = Config(batch_size=20, num_devices=1)
    layout = make_layout(config)
    loader = NumpyLoader(dataset(), 20, layout.num_shards, layout.local_shards)
    step_function = make_train_step(Recipe(4), layout, optim.make(config, TOTAL))
    steps = Feed(layout, step_function, in_dispatches(layout, loader, "device", TOTAL, 10**6))
    assert steps.batches.like().weights.shape[0] == 5


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
    assert choose_placement("auto", mapped, memory)[0] == "host"
    assert choose_placement("auto", dataset(), memory)[0] == "device"
    with pytest.raises(InputError, match="--data_placement=device needs data in memory"):
        choose_placement("device", mapped, memory)


@pytest.mark.parametrize(("groups", "limit"), [
    ("0::/pod/box\n", "pod/memory.max"), ("4:memory:/docker/abc\n0::/\n", "memory/docker/memory.limit_in_bytes"),
])  # fmt: skip
def test_a_containers_limit_decides_where_data_lie(
    groups: str, limit: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of control groups of both versions, and of one around the process's own."""
    (tmp_path / "cgroup").write_text(groups)
    file = tmp_path / "groups" / limit
    file.parent.mkdir(parents=True)
    monkeypatch.setattr(machine, "_OWN_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(machine, "_CONTROL_GROUPS", tmp_path / "groups")
    size = dataset().images.nbytes
    for memory, where in ((2 * 4 * size, "device"), (2 * 4 * size - 1, "host")):
        file.write_text(f"{memory}\n")
        found = make_layout(Config(num_devices=2)).device_memory
        assert found == memory // 2
        assert choose_placement("auto", dataset(), found)[0] == where


class Clock:
    """A made-up time, in seconds, that passes only as told."""

    def __init__(self) -> None:
        self.now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(feed, "time", clock)
    return clock


def dispatches(pace: Pace, clock: Clock, count: int, step_seconds: float) -> list[int]:
    """The sizes of so many dispatches, whose steps take so long."""
    sizes = []
    for _ in range(count):
        pace.tick()
        sizes.append(pace.steps)
        clock.now += pace.steps * step_seconds
    return sizes


def test_a_dispatch_has_as_many_steps_as_take_a_quarter_of_a_second(clock: Clock) -> None:
    pace = Pace(0, 512, lambda steps: steps)
    assert dispatches(pace, clock, 5, 19.0) == [1] * 5
    assert dispatches(pace, clock, 12, 0.004)[-4:] == [32] * 4  # 0.128 s
    assert 1 in dispatches(pace, clock, 7, 19.0)  # by halving
    assert dispatches(pace, clock, 100, 1e-5)[-1] == 512


def test_the_processes_go_by_the_clock_of_the_first_and_meet_some_times_a_second(clock: Clock) -> None:
    """On a GPU, 64 steps take some milliseconds; the others' clocks say something else."""
    orders: list[int] = []
    first = Pace(0, 64, lambda steps: orders.append(steps) or steps)
    other = Pace(0, 64, lambda steps: orders[-1])
    asked = []
    for _ in range(200):
        met = first.tick()
        asked.append(len(orders))
        before, clock.now = clock.now, clock.now + 1000 * len(asked)
        assert (other.tick(), other.steps) == (met, first.steps)
        clock.now = before + first.steps * 1e-4
    assert first.steps == 64
    assert asked[-1] - asked[-101] < 10  # in 100 dispatches of 6.4 ms
    assert max(orders) <= 64 * 40  # a quarter of a second


def test_a_number_that_is_given_is_kept(clock: Clock) -> None:
    pace = Pace(7, 16, lambda steps: pytest.fail("asked"))
    assert dispatches(pace, clock, 3, 19.0) == [7] * 3
    assert dispatches(pace, clock, 3, 0.0) == [7] * 3
