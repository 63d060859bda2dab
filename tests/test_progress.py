"""Where a training stands, by its lines: what a resumed run drops, when it has ended, and what its lines add up."""

import dataclasses
from typing import Any

import numpy as np
import pytest

from distmlp import Config
from distmlp import progress as progress_module
from distmlp.errors import DivergedError
from distmlp.parallel.feed import Steps
from distmlp.progress import Cadence, Line, Progress, Reached, Standing, Totals, best


def line(step: int, **more: object) -> Line:
    return {"step": step, "epoch": step // 5, **more}


def progress(step: int, *history: Line, **settings: Any) -> Progress:
    config = Config(num_epochs=3, **settings)
    return Progress(Cadence(config, 5), Reached(step), history)


def test_resuming_drops_lines_beyond_the_step_and_the_final_one() -> None:
    history = line(5), line(10), line(15, test_accuracy=0.5), line(15, final=True)
    assert progress(15, *history).finished
    for step, kept in ((15, [5, 10, 15]), (12, [5, 10]), (4, [])):
        found = progress(step, *history)
        found.drop_lines_to_come()
        assert [entry["step"] for entry in found.history] == kept
        assert not found.finished


@pytest.mark.parametrize(("more", "every", "kept"), [
    ({}, 1, [5]), ({}, 0, [5, 10]), ({"test_accuracy": 0.5}, 1, [5, 10]),
])  # fmt: skip
def test_resuming_drops_the_line_of_the_step_if_it_lacks_a_due_evaluation(
    more: Line, every: int, kept: list[int]
) -> None:
    found = progress(10, line(5), line(10, **more), eval_every_epochs=every)
    found.drop_lines_to_come()
    assert [entry["step"] for entry in found.history] == kept
    assert found.logged == (10 in kept)


def test_a_loss_of_nan_is_the_best_only_while_there_is_no_other() -> None:
    lines = [line(step, choose_by="loss", validation_loss=loss) for step, loss in enumerate((np.nan, 0.5, np.nan), 1)]
    assert [best(lines[:count])["step"] for count in (1, 2, 3)] == [1, 2, 2]


def test_a_dispatch_goes_on_to_the_next_evaluation() -> None:
    cadence = Cadence(Config(num_epochs=5, eval_every_epochs=2, eval_every_steps=17), 5)  # due: 10, 17, 20, 25
    assert [cadence.dispatch(step, 100) for step in (0, 3, 10, 17, 20)] == [10, 10, 17, 20, 25]
    assert [cadence.dispatch(step, 4) for step in (0, 3, 9, 10)] == [4, 7, 10, 14]
    assert [cadence.longest_dispatch(most) for most in (4, 100)] == [4, 10]
    assert Cadence(Config(num_epochs=5, eval_every_epochs=0), 5).longest_dispatch(100) == 25


def test_with_nothing_to_evaluate_no_evaluation_is_due() -> None:
    cadence = Cadence(Config(max_steps=7), 5, evaluates=False)
    assert [step for step in range(1, 8) if cadence.line(step)] == [5, 7]
    assert not any(map(cadence.evaluation, range(8)))
    ended = [line(5), line(7), line(7, final=True)]
    assert Progress(cadence, Reached(7), ended).finished
    assert not Progress(cadence, Reached(7), ended[:2]).finished


def test_a_run_is_finished_only_with_its_evaluation_and_its_final_line() -> None:
    evaluated, final = line(15, test_accuracy=0.5), line(15, final=True)
    for lines in ([], [evaluated], [line(15), final], [line(10, test_accuracy=1.0), final], [final]):
        assert not progress(15, *lines).finished
    assert progress(15, evaluated, final).finished
    assert not progress(10, evaluated, final).finished


def test_patience_ends_a_run_after_so_many_evaluations_without_a_better_one() -> None:
    scores = [0.5, 0.7, 0.7, 0.6]
    history = [line(step, validation_accuracy=score) for step, score in enumerate(scores, 1)]
    assert progress(4, *history, patience=2).at_end
    assert not progress(4, *history, patience=3).at_end
    assert not progress(4, *history).at_end


class Losses(np.ndarray):
    ready = True

    def copy_to_host_async(self) -> None: ...

    def is_ready(self) -> bool:
        return self.ready


def test_whether_the_devices_had_done_all_before_a_dispatch() -> None:
    found = progress(0)
    for ready, idle in ((True, True), (False, True), (True, False), (True, True)):
        dispatched = steps(1.0)
        dispatched.losses.ready = ready  # type: ignore[attr-defined] # it is Losses
        found.add(dispatched)
        assert found.idle is idle


def steps(*losses: float) -> Steps:
    weights = np.full(len(losses), 30, np.float32)
    return Steps(np.array([*losses, 99.0], np.float32).view(Losses), [20] * len(losses), weights, np.empty(0),
                 np.empty(0))  # fmt: skip


class Clock:
    now = 1000.0


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr("time.monotonic", lambda: found.now)
    return found


def test_how_evaluations_stand_is_what_all_lines_say_wherever_a_checkpoint_was_saved() -> None:
    scores = {2: 0.5, 4: 0.7, 6: 0.6, 8: 0.7, 10: 0.4}
    lines = [line(step, validation_accuracy=scores[step]) if step in scores else line(step) for step in range(1, 11)]
    assert best(lines) is lines[3]
    whole = progress(10, *lines).standing
    assert whole == Standing(lines[3], 3, 10)
    assert progress(5, *lines).standing == Standing(lines[3], 0, 4)  # what comes later is not counted
    for saved in range(11):  # before its step's line, or after it: nothing is counted twice, nothing left out
        then = Progress(Cadence(Config(num_epochs=3), 5), Reached(saved), lines[:saved]).standing
        for there in (lines, lines[saved:]):
            found = Progress(Cadence(Config(num_epochs=3), 5), Reached(10, None, then), there)
            assert found.standing == whole
            assert not found.at_best
            assert best(found.history) == lines[3]  # also where that line was lost
            assert [entry["step"] for entry in found.history] == sorted({entry["step"] for entry in found.history})
    final = line(10, final=True)
    found = Progress(Cadence(Config(num_epochs=2), 5), Reached(10, None, Standing(lines[9], 0, 10)), [final])
    assert found.history == [lines[9], final]
    assert found.finished


def test_an_evaluation_that_is_made_again_is_not_counted_again() -> None:
    found = progress(5, patience=2)
    found.add_line({"validation_accuracy": 0.5})
    again = Progress(found.cadence, Reached(5, None, found.standing))
    assert (again.at_best, again.standing.stale) == (True, 0)
    again.add_line({"validation_accuracy": 0.5})
    assert (again.at_best, again.standing.stale) == (True, 0)
    again.step = 6
    again.add_line({"validation_accuracy": 0.6})
    assert again.at_best
    for again.step in (7, 8):
        assert not again.at_end
        again.add_line({"validation_accuracy": 0.6})
        assert not again.at_best
    assert again.at_end


def test_no_evaluation_looks_through_those_before_it(monkeypatch: pytest.MonkeyPatch) -> None:
    looks, score = [0], progress_module.score

    def counted(line: Line) -> float | None:
        looks[0] += 1
        return score(line)

    monkeypatch.setattr(progress_module, "score", counted)
    found = Progress(Cadence(Config(num_epochs=100, patience=400), 5))
    for found.step in range(1, 301):
        found.add_line({"validation_accuracy": found.step % 7 / 7})
        assert not found.at_end
    assert found.standing.stale == 300 - 6
    assert looks[0] <= 3 * 300


def test_a_line_has_the_mean_loss_over_examples_and_an_epochs_speed(clock: Clock) -> None:
    config = Config(num_epochs=3)
    recorded: list[tuple[int, float]] = []
    found = Progress(Cadence(config, 5), Reached(3, Totals(6.0, weight=3, epoch_examples=60, epoch_seconds=2.0)),
                     record=lambda step, loss: recorded.append((step, loss)))  # fmt: skip
    found.begin_steps()
    found.add(steps(0.5))
    assert recorded == []  # the newest dispatch is still on its way
    clock.now += 0.25
    found.begin_steps()
    found.add(steps(0.25))
    assert recorded == [(4, 0.5)]
    clock.now += 0.25
    found.settle()
    assert recorded == [(4, 0.5), (5, 0.25)]
    assert found.last_loss == 0.25
    made = found.add_line({"test_accuracy": 0.5})
    assert made is found.history[-1]
    assert made["train_loss"] == (6.0 + 30 * 0.5 + 30 * 0.25) / 63
    assert made["seconds"] == 2.5
    assert made["examples_per_second"] == 100 / 2.5
    found.begin_steps()
    assert (found.totals.weight, found.totals.epoch_examples, found.totals.epoch_seconds) == (0, 0, 0)
    found.add(steps(np.inf))
    with pytest.raises(DivergedError, match="not finite at step 6"):
        found.settle()


def dispatch(found: Progress, clock: Clock, seconds: float, count: int = 1) -> None:
    found.begin_steps()
    clock.now += seconds
    found.add(steps(*[0.5] * count))


def test_only_steps_are_training_time(clock: Clock) -> None:
    found = progress(0)
    clock.now += 100  # compilation
    dispatch(found, clock, 1)
    found.settle()
    clock.now += 100  # a checkpoint
    found.settle()
    clock.now += 100  # an evaluation
    for _ in range(4):
        dispatch(found, clock, 1)
    found.settle()
    found.settle()
    clock.now += 100
    assert found.add_line({})["seconds"] == 5
    dispatch(found, clock, 3, 5)
    found.settle()
    assert found.add_line({})["seconds"] == 3


def test_all_seconds_of_a_run_are_counted_once(clock: Clock) -> None:
    config = Config(num_epochs=3)
    found = Progress(Cadence(config, 5), Reached(3, Totals(total_seconds=10.0)), started=clock.now - 4)
    for _ in range(2):
        found.count_seconds()
        assert found.totals.total_seconds == 14
    clock.now += 6
    assert found.add_final_line("ab", {})["total_seconds"] == 20


def test_a_line_within_an_epoch_leaves_the_epochs_sums(clock: Clock) -> None:
    found = progress(0, eval_every_steps=2)
    dispatch(found, clock, 1, 2)
    found.settle()
    assert found.add_line({"test_accuracy": 0.5}).keys() == {"step", "epoch", "train_loss", "test_accuracy"}
    dispatch(found, clock, 2, 3)
    found.settle()
    assert (found.totals.weight, found.totals.epoch_examples) == (90, 100)
    assert found.add_line({})["seconds"] == 3


def resumed(before: Progress, **settings: Any) -> Progress:
    """From a checkpoint of this step, as the store keeps it."""
    config = Config(num_epochs=3, **settings)
    totals = Totals(**dataclasses.asdict(before.totals))
    found = Progress(Cadence(config, 5), Reached(before.step, totals), [dict(line) for line in before.history])
    found.drop_lines_to_come()
    return found


def test_an_epoch_that_a_run_ended_in_is_counted_once_when_it_goes_on(clock: Clock) -> None:
    found = progress(0, max_steps=3)
    dispatch(found, clock, 3, 3)
    found.settle()
    ended = found.add_line({"test_accuracy": 0.5})
    assert (ended["seconds"], ended["examples_per_second"]) == (3, 20)
    longer = resumed(found)
    assert longer.logged
    dispatch(longer, clock, 4, 2)
    longer.settle()
    whole = longer.add_line({"test_accuracy": 0.5})
    assert (whole["seconds"], whole["examples_per_second"]) == (4, 10)
    assert sum(line["seconds"] for line in longer.history) == 7


def test_a_line_that_is_written_again_says_what_it_said(clock: Clock) -> None:
    """A checkpoint may be saved after the line of its step: at a signal, or when its time has come."""
    found = progress(0, eval_every_epochs=0)
    dispatch(found, clock, 4, 5)
    found.settle()
    said = dict(found.add_line({}))
    assert said["train_loss"] == 0.5
    clock.now += 1
    found.settle()
    again = resumed(found)  # with the evaluation that now is due, the line goes
    assert not again.logged
    assert again.add_line({"test_accuracy": 0.5}) == said | {"test_accuracy": 0.5}


def test_a_line_without_steps_says_no_speed(clock: Clock) -> None:
    reached = Reached(5, Totals(epoch_seconds=0.001))  # of a run of version 0.2.0
    found = Progress(Cadence(Config(num_epochs=3), 5), reached)
    assert found.add_line({}) == {"step": 5, "epoch": 1}
