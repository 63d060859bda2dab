"""Where a training stands, by its lines: what a resumed run drops, when it has ended, and what its lines add up."""

from typing import Any

import numpy as np
import pytest

from distmlp import Config
from distmlp.errors import DivergedError
from distmlp.parallel.feed import Steps
from distmlp.progress import Cadence, Line, Progress, Totals


def line(step: int, **more: object) -> Line:
    return {"step": step, "epoch": step // 5, **more}


def progress(step: int, *history: Line, **settings: Any) -> Progress:
    config = Config(num_epochs=3, **settings)
    return Progress(Cadence(config, 5), step, history=history)


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


def test_with_nothing_to_evaluate_no_evaluation_is_due() -> None:
    cadence = Cadence(Config(max_steps=7), 5, evaluates=False)
    assert [step for step in range(1, 8) if cadence.line(step)] == [5, 7]
    assert not any(map(cadence.evaluation, range(8)))
    ended = [line(5), line(7), line(7, final=True)]
    assert Progress(cadence, 7, history=ended).finished
    assert not Progress(cadence, 7, history=ended[:2]).finished


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


def test_a_line_has_the_mean_loss_over_examples_and_an_epochs_speed() -> None:
    config = Config(num_epochs=3)
    recorded: list[tuple[int, float]] = []
    found = Progress(Cadence(config, 5), 3, Totals(loss=6.0, weight=3, epoch_examples=60, epoch_seconds=2.0),
                     record=lambda step, loss: recorded.append((step, loss)))  # fmt: skip

    class Losses(np.ndarray):
        def copy_to_host_async(self) -> None: ...

    def steps(*losses: float) -> Steps:
        return Steps(np.array([*losses, 99.0], np.float32).view(Losses), [20] * len(losses),
                     np.full(len(losses), 30, np.float32), np.empty(0), np.empty(0))  # fmt: skip

    found.add(steps(0.5))
    assert recorded == []  # the newest dispatch is still on its way
    found.add(steps(0.25))
    assert recorded == [(4, 0.5)]
    found.settle()
    assert recorded == [(4, 0.5), (5, 0.25)]
    assert found.last_loss == 0.25
    made = found.add_line({"test_accuracy": 0.5})
    assert made is found.history[-1]
    assert made["train_loss"] == (6.0 + 30 * 0.5 + 30 * 0.25) / 63
    assert made["seconds"] == pytest.approx(2.0, abs=1.0)
    assert made["examples_per_second"] == 100 / made["seconds"]
    found.begin_sums()
    assert (found.totals.weight, found.totals.epoch_examples, found.totals.epoch_seconds) == (0, 0, 0)
    found.add(steps(np.inf))
    with pytest.raises(DivergedError, match="not finite at step 6"):
        found.settle()
