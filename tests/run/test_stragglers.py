"""What a step takes a process by itself, and which of several is named. Real processes: cluster/test_stragglers.py."""

import dataclasses
import math
import re
import time
from typing import Any

import jax
import numpy as np
import pytest
from conftest import make_arrays

from distmlp import Config, model, optim
from distmlp.data.datasets import ArrayDataset
from distmlp.data.loader import NumpyLoader
from distmlp.parallel.feed import Feed, in_dispatches
from distmlp.parallel.layout import make_layout
from distmlp.parallel.own_time import OwnSeconds, OwnTime
from distmlp.parallel.sharded import StateLayout, rows_of
from distmlp.parallel.specs import State
from distmlp.parallel.step import Recipe, make_own_work, make_train_step
from distmlp.run.stragglers import Stragglers, slowest


class Slow(ArrayDataset):
    """Each batch is read in a hundredth of a second."""

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(0.01)
        return super().take(indices)


def make(
    placement: str, reduction: str, dataset: type[ArrayDataset] = ArrayDataset, sharded: bool = False
) -> tuple[Feed, OwnTime, State]:
    config = Config(batch_size=20, num_devices=4, reduction=reduction)
    layout, optimizer = dataclasses.replace(make_layout(config), sharded=sharded), optim.make(config, 10)
    arrays = make_arrays()
    params = model.init_network_params([12, 8, 4], jax.random.key(0))
    whole = jax.tree.map(np.asarray, State(params, optimizer.init(params), np.int32(0), ()))
    held = StateLayout(layout, jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), whole))
    rows = rows_of(held.shapes.params)
    loader = NumpyLoader(dataset(arrays["x_train"], arrays["y_train"], "small"), 20, layout.num_shards,
                         layout.local_shards)  # fmt: skip
    recipe = Recipe(4, rows=rows)
    given, step = in_dispatches(layout, loader, placement, 10), make_train_step(recipe, layout, optimizer)
    feed = Feed(layout, step, given, held.specs, keeps_newest=True)
    own_time = OwnTime(layout, feed, make_own_work(recipe, layout, held.shapes.params), held.specs)
    filled = jax.tree.map(lambda array, like: np.pad(array, [(0, new - old) for new, old in zip(
        like.shape, array.shape, strict=True)]) if array.shape else array, whole, held.abstract)  # fmt: skip
    state = jax.tree.map(lambda array, like: jax.device_put(array, like.sharding), filled, held.abstract)
    feed.compile(state)
    own_time.compile(state)
    return feed, own_time, state


@pytest.mark.parametrize(("placement", "reduction", "sharded"), [
    ("host", "fast", False), ("device", "invariant", False), ("device", "fast", True),
])  # fmt: skip
def test_measuring_waits_for_no_device_and_changes_no_bit(placement: str, reduction: str, sharded: bool) -> None:
    states = []
    for measured in (False, True):
        feed, own, state = make(placement, reduction, sharded=sharded)
        assert math.isnan(own.seconds(state, 1.0).compute)  # before any step
        for step in range(0, 10, 2):
            while int(state.step) < step + 2:
                state, _ = feed.advance(state, int(state.step), step + 2)
            if measured:
                assert all(seconds > 0 for seconds in own.seconds(state, 0.01))
        states.append(jax.tree.map(np.asarray, state))
    jax.tree.map(np.testing.assert_array_equal, *states)
    for program, exchanges in ((own._program, False), (feed._any, True)):
        found = re.search(r"all-reduce|all-to-all|all-gather|collective-permute", program.as_text())
        assert bool(found) == exchanges


def test_no_more_time_is_taken_to_measure_than_is_granted(monkeypatch: pytest.MonkeyPatch) -> None:
    feed, own, state = make("host", "fast")
    state, _ = feed.advance(state, 0, 1)
    program, counts = own._program, []

    def noted(state: Any, arrays: Any, bounds: Any) -> Any:
        counts.append(int(np.diff(np.asarray(bounds))[0]))
        return program(state, arrays, bounds)

    monkeypatch.setattr(own, "_program", noted)
    first = own.seconds(state, 1.0).compute
    own.forget()
    for _ in range(2):
        assert math.isnan(own.seconds(state, 0.8 * first).compute)
    assert own.seconds(state, 0.8 * first).compute > 0  # with what the first has taken, two
    own.seconds(state, 1000.0)
    assert counts == [1, 1, 0, 0, 1, 1]  # at first twice, once to find its programs; then one of a dispatch of one


def test_a_slow_loader_shows_in_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for dataset, slow in ((ArrayDataset, False), (Slow, True)):
        feed, own, state = make("host", "fast", dataset)
        for step in range(5):
            state, _ = feed.advance(state, step, step + 1)
        load, send, _ = own.seconds(state, 0.0)
        assert (load >= 0.01) == slow
        assert send < 0.01


@pytest.mark.parametrize(("milliseconds", "named"), [
    ([(1, 1, 8), (1, 1, 8), (4, 1, 8), (1, 1, 8)], (2, 1.3)),  # 13 of 10
    ([(1, 1, 8), (1, 1, 8), (3, 1, 8), (1, 1, 8)], None),
    ([(0, 0, 10), (0, 0, 5)], (0, 2.0)),
    ([(0, 0, 5), (0, 0, 6)], None),
    ([(1, 0, math.nan), (2, 1, math.nan), (1, 0, math.nan)], (1, 3.0)),  # computing is not known
    ([(0, 0, math.nan)] * 2, None),
])  # fmt: skip
def test_the_slowest_is_named_from_1_3_times_the_median_on(
    milliseconds: list[tuple[float, ...]], named: tuple[int, float] | None
) -> None:
    found = slowest([OwnSeconds(*(0.001 * part for part in each)) for each in milliseconds])
    assert found == (named and (named[0], pytest.approx(named[1])))


class Group:
    """Four processes, of which this is the first; what the others take comes from a list."""

    def __init__(self) -> None:
        self.computing = [0.004] * 4

    def exchange(self, host: str) -> list[str]:
        return ["a", "a", "b", "b"]

    def gather(self, own: np.ndarray) -> np.ndarray:
        return np.array([(0.001, 0.0, seconds) for seconds in self.computing], np.float32).view(np.int32)


class Own:
    computes = True

    def __init__(self) -> None:
        self.granted: list[float] = []
        self.forgotten = 0

    def seconds(self, state: Any, granted: float) -> OwnSeconds:
        self.granted.append(granted)
        return OwnSeconds(0.0, 0.0, 0.0)

    def forget(self) -> None:
        self.forgotten += 1


def test_a_line_has_every_process_and_people_hear_of_the_second_line_in_a_row() -> None:
    said: list[tuple[int, str]] = []
    lines: list[dict[str, Any]] = []
    group, own = Group(), Own()
    found = Stragglers(own, group, lambda text: said.append((len(lines), text)))
    for number, slow in enumerate((None, 2, None, 2, 2, 2, 3, 3), start=1):
        group.computing = [0.004] * 4
        if slow is not None:
            group.computing[slow] = 0.009
        lines.append({"step": number, "epoch": number})
        found.add(lines[-1], None, 10.0 * number)
    assert lines[0] == {"step": 1, "epoch": 1, "process_seconds": {
        "load": [0.001] * 4, "send": [0.0] * 4, "compute": [0.004] * 4}}  # fmt: skip
    assert lines[1]["slowest"] == {"process": 2, "host": "b", "times_median": 2.0}
    assert lines[1]["process_seconds"]["compute"] == [0.004, 0.004, 0.009, 0.004]
    assert said == [(number, f"process {process} of 4 on b is slow: by itself a step takes it 2.0 times as long as the "
                             "median, 1 ms to load, 0 ms to send, 9 ms to compute")
                    for number, process in ((5, 2), (8, 3))]  # fmt: skip
    assert own.granted == pytest.approx([0.1] * 8)  # a hundredth of the time since the line before
    assert own.forgotten == 8
    group.computing[1] = math.nan
    line = {"step": 9, "epoch": 9}
    found.add(line, None, 90.0)
    assert line == {"step": 9, "epoch": 9}  # until all have measured it
    assert own.forgotten == 8
