"""What a step takes a process by itself, and which of several is named. Real processes: cluster/test_stragglers.py."""

import math
import re
import time
from typing import Any

import jax
import numpy as np
import pytest
from conftest import make_arrays

from distmlp import Config, model, optim
from distmlp.data.batches import NumpyLoader
from distmlp.data.datasets import ArrayDataset
from distmlp.parallel.feed import Feed, OwnSeconds, make_feed
from distmlp.parallel.layout import make_layout
from distmlp.parallel.specs import STATE, State
from distmlp.parallel.step import make_own_work, make_train_step
from distmlp.run.stragglers import Stragglers, slowest


class Slow(ArrayDataset):
    """Each batch is read in a hundredth of a second."""

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        time.sleep(0.01)
        return super().take(indices)


def make(placement: str, reduction: str, dataset: type[ArrayDataset] = ArrayDataset) -> tuple[Feed, State]:
    config = Config(batch_size=20, num_devices=4, reduction=reduction)
    layout, optimizer = make_layout(config), optim.make(config, 10)
    arrays = make_arrays()
    loader = NumpyLoader(dataset(arrays["x_train"], arrays["y_train"], "small"), 20, layout.num_shards,
                         layout.local_shards)  # fmt: skip
    feed = make_feed(config, layout, loader, make_train_step(config, layout, 4, optimizer), placement, 10,
                     own_work=make_own_work(config, layout, 4))  # fmt: skip
    params = model.init_network_params([12, 8, 4], jax.random.key(0))
    state = layout.put(jax.tree.map(np.asarray, State(params, optimizer.init(params), np.int32(0), ())), STATE)
    feed.compile(state)
    return feed, state


@pytest.mark.parametrize(("placement", "reduction"), [("host", "fast"), ("device", "invariant")])
def test_measuring_waits_for_no_device_and_changes_no_bit(placement: str, reduction: str) -> None:
    states = []
    for measured in (False, True):
        feed, state = make(placement, reduction)
        assert math.isnan(feed.own_seconds(state, 1.0).compute)  # before any step
        for step in range(0, 10, 2):
            while int(state.step) < step + 2:
                state, _ = feed.advance(state, int(state.step), step + 2)
            if measured:
                own = feed.own_seconds(state, 0.01)
                assert all(seconds > 0 for seconds in own)
        states.append(jax.tree.map(np.asarray, state))
    jax.tree.map(np.testing.assert_array_equal, *states)
    for program, exchanges in ((feed._own, False), (feed._any, True)):
        found = re.search(r"all-reduce|all-to-all|all-gather|collective-permute", program.as_text())
        assert bool(found) == exchanges


def test_where_there_is_too_little_time_what_was_measured_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    feed, state = make("host", "fast")
    state, _ = feed.advance(state, 0, 1)
    own, counts = feed._own, []

    def noted(state: Any, arrays: Any, bounds: Any) -> Any:
        counts.append(int(np.diff(np.asarray(bounds))[0]))
        return own(state, arrays, bounds)

    monkeypatch.setattr(feed, "_own", noted)
    first = feed.own_seconds(state, 0.0).compute
    assert feed.own_seconds(state, 0.5 * first).compute == first
    feed.own_seconds(state, 1000 * first)
    assert counts == [1, 1, 0, 1]  # at first twice, once to find its programs; and at most the newest dispatch's steps


def test_a_slow_loader_shows_in_what_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    for dataset, slow in ((ArrayDataset, False), (Slow, True)):
        feed, state = make("host", "fast", dataset)
        for step in range(5):
            state, _ = feed.advance(state, step, step + 1)
        load, send, _ = feed.own_seconds(state, 0.0)
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
    asked: list[float] = []  # noqa: RUF012

    def own_seconds(self, state: Any, most: float) -> OwnSeconds:
        self.asked.append(most)
        return OwnSeconds(0.0, 0.0, 0.0)


def test_a_line_has_every_process_and_people_hear_of_the_second_line_in_a_row() -> None:
    said: list[str] = []
    group, own = Group(), Own()
    found = Stragglers(own, group, said.append)
    lines: list[dict[str, Any]] = []
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
    assert said == [f"process {process} of 4 on b is slow: by itself a step takes it 2.0 times as long as the median, "
                    "1 ms to load, 0 ms to send, 9 ms to compute" for process in (2, 3)]  # fmt: skip
    assert own.asked == pytest.approx([0.1] * 8)  # a hundredth of the time since the line before
