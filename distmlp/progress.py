"""How far a training is: what is due after which step, the losses of its steps, and the lines that are made of them."""

from __future__ import annotations

import dataclasses
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from distmlp import scores
from distmlp.config import Config
from distmlp.errors import DivergedError, InputError

if TYPE_CHECKING:  # they import torch, which those who only read lines do not need
    from distmlp.data.datasets import Data, Examples
    from distmlp.parallel.evaluate import Evaluator
    from distmlp.parallel.feed import Steps
    from distmlp.parallel.specs import State

# Dispatches whose losses are still to be read. Reading late keeps the devices busy; never reading lets emulated devices
# deadlock after some dozens.
_IN_FLIGHT = 1

Poll = Callable[[], None]
Line = dict[str, Any]  # of metrics.jsonl: `step` counts completed updates, `epoch` completed epochs


def score(line: Line) -> float | None:
    """What counts of a line, higher is better: of the validation set, where there is one, the accuracy or what the line
    says that it is chosen by. None without an evaluation, and of a final line."""
    name = line.get("choose_by", "accuracy")
    value = line.get(f"validation_{name}", line.get(f"test_{name}"))
    return None if value is None or line.get("final") else float(-value if name == "loss" else value)


def scored(history: Sequence[Line]) -> list[tuple[float, Line]]:
    """Each evaluation's line, and its score."""
    return [(found, line) for line in history if (found := score(line)) is not None]


def best(history: Sequence[Line]) -> Line:
    """The line of the highest score, the first among equals; {"step": 0} before any evaluation."""
    return max(scored(history), key=lambda item: item[0], default=(0.0, {"step": 0}))[1]


def stale(history: Sequence[Line]) -> int:
    """How many evaluations there were since the best."""
    lines = [line for _, line in scored(history)]
    return len(lines) - 1 - lines.index(best(history)) if lines else 0


class Cadence:
    """What is due after a number of completed steps: arithmetic, so that a resumed run does the same things."""

    def __init__(self, config: Config, steps_per_epoch: int, evaluates: bool = True) -> None:
        """`evaluates`: whether there is a set to evaluate on."""
        self._config, self.per_epoch, self.patience, self.evaluates = config, steps_per_epoch, config.patience, evaluates
        self._ledger_digests = config.ledger_digests_every if config.ledger else 0
        self.total_steps = config.total_steps(steps_per_epoch)
        # --profile_steps=A:B counts steps from 1: from A - 1 completed steps to B.
        self.profile = [int(n) - 1 + i for i, n in enumerate(config.profile_steps.split(":")) if n]
        if self.profile and self.profile[1] > self.total_steps:
            raise InputError(f"--profile_steps={config.profile_steps} goes beyond the run's {self.total_steps} steps")

    def epoch_end(self, step: int) -> bool:
        return _every(self.per_epoch, step)

    def evaluation(self, step: int) -> bool:
        by_epoch = self.epoch_end(step) and _every(self._config.eval_every_epochs, step // self.per_epoch)
        due = step == self.total_steps or by_epoch or _every(self._config.eval_every_steps, step)
        return due and self.evaluates

    def line(self, step: int) -> bool:
        return self.epoch_end(step) or self.evaluation(step) or step == self.total_steps

    def save(self, step: int) -> bool:
        """Whether a checkpoint is due, apart from --checkpoint_every_seconds."""
        by_evaluation = not self._config.checkpoint_every_steps and not self._config.checkpoint_every_seconds
        by_steps = step == self.total_steps or _every(self._config.checkpoint_every_steps, step)
        return by_steps or (by_evaluation and self.evaluation(step))

    def comparison(self, step: int) -> bool:
        """Whether the devices' copies of the state are to be compared, by digests that the ledger keeps."""
        for_ledger = _every(self._ledger_digests, step) or (self._config.ledger and step == self.total_steps)
        return for_ledger or _every(self._config.check_replicas_every, step)

    def next(self, step: int) -> int:
        """The next step after which something may be due: a dispatch must not go beyond it."""
        config = self._config
        intervals = (self.per_epoch, config.eval_every_steps, config.checkpoint_every_steps,
                     config.check_replicas_every, self._ledger_digests)
        due = [step - step % interval + interval for interval in intervals if interval]
        return min(self.total_steps, *due, *(n for n in self.profile if n > step))


def _every(interval: int, number: int) -> bool:
    return interval > 0 and number > 0 and number % interval == 0


@dataclasses.dataclass
class Totals:
    """Sums that the lines need; checkpoints carry them, so that a resumed run logs the same numbers."""

    loss: float = 0.0  # of the examples since the last line, each by its weight, added up
    weight: float = 0.0  # of these examples together
    epoch_examples: int = 0
    epoch_seconds: float = 0.0
    total_seconds: float = 0.0

    @classmethod
    def of_checkpoint(cls, saved: dict[str, Any]) -> Totals:
        """Those of version 0.2 say the number of examples, each of which weighed 1."""
        return cls(**{"weight" if name == "examples" else name: value for name, value in saved.items()})


class Progress:
    """The position of one training, its sums, and its lines so far.

    Args:
      step: completed updates.
      totals: the sums of a checkpoint that training goes on from; its line of this step is not in them.
      history: the lines that are there.
      started: when the clock of total_seconds began to run, by time.monotonic; None: now.
      record: is called with each completed step's number and loss, in their order.
    """

    def __init__(
        self, cadence: Cadence, step: int = 0, totals: Totals | None = None, history: Sequence[Line] = (),
        started: float | None = None, record: Callable[[int, float], None] = lambda step, loss: None,
    ) -> None:
        self.cadence, self.step, self.totals, self.history = cadence, step, totals or Totals(), list(history)
        self.last_loss: float | None = None
        self._record = record
        self._pending: deque[tuple[int, Steps]] = deque()
        self._clock = time.monotonic()  # up to when the epoch's seconds are counted
        self._total_clock = self._clock if started is None else started  # up to when total_seconds are

    @property
    def _position(self) -> Line:
        return {"step": self.step, "epoch": self.step // self.cadence.per_epoch}

    @property
    def at_end(self) -> bool:
        """Whether the last step is done, or --patience is at its end: by the lines, so that every start agrees."""
        return self.step == self.cadence.total_steps or 0 < self.cadence.patience <= stale(self.history)

    @property
    def finished(self) -> bool:
        """Whether the lines say that training has ended here, evaluation included if there is anything to evaluate."""
        last, final = self.history[-2:] if len(self.history) > 1 else ({}, {})
        evaluated = scored([last]) or not self.cadence.evaluates
        ended = final.get("final") and evaluated and last["step"] == final["step"] == self.step
        return bool(ended) and self.at_end

    @property
    def logged(self) -> bool:
        """Whether this step has its line."""
        return any(line["step"] == self.step and not line.get("final") for line in self.history)

    def drop_lines_to_come(self) -> None:
        """Drops the lines that training will write again: those beyond this step, and its own if it lacks an
        evaluation that is due."""
        due = self.cadence.evaluation(self.step)
        self.history = [line for line in self.history if not line.get("final")
                        and line["step"] <= self.step - (due and not scored([line]))]  # fmt: skip

    def add(self, steps: Steps) -> None:
        """Counts the steps of a dispatch, and reads the losses of those before it; raises as `settle`."""
        steps.losses.copy_to_host_async()
        self._pending.append((self.step, steps))
        self.step += len(steps.sizes)
        self._read_losses(_IN_FLIGHT)

    def settle(self) -> None:
        """Waits for the devices, reads all losses, and adds the time since the clock was started to the epoch's.

        Raises:
          DivergedError: a loss is not finite.
        """
        self._read_losses(0)
        now = time.monotonic()
        self.totals.epoch_seconds += now - self._clock
        self._clock = now

    def _read_losses(self, in_flight: int) -> None:
        while len(self._pending) > in_flight:
            first, steps = self._pending.popleft()
            told = zip(np.asarray(steps.losses), steps.sizes, steps.weight_sums.tolist(), strict=False)
            for step, (loss, size, weight) in enumerate(told, first + 1):
                if not np.isfinite(loss):
                    raise DivergedError(f"the loss or a gradient is not finite at step {step}: try a lower "
                                        "--learning_rate or --clip_norm")
                self.last_loss = float(loss)
                self._record(step, self.last_loss)
                self.totals.loss += self.last_loss * weight
                self.totals.weight += weight
                self.totals.epoch_examples += size

    def start_clock(self) -> None:
        """Training goes on now: what was before, an evaluation perhaps, is no training time."""
        self._clock = time.monotonic()

    def count_seconds(self) -> None:
        """Brings total_seconds up to date."""
        now = time.monotonic()
        self.totals.total_seconds += now - self._total_clock
        self._total_clock = now

    def add_line(self, evaluated: Line) -> Line:
        """The line of this step: what the steps since the last one add up to, and what an evaluation has found.

        At the end of an epoch, or of the run, it has the speed, too.
        """
        sums, line = self.totals, self._position
        if sums.weight:
            line["train_loss"] = sums.loss / sums.weight
        if sums.epoch_seconds and (self.cadence.epoch_end(self.step) or self.step == self.cadence.total_steps):
            line |= {"seconds": sums.epoch_seconds, "examples_per_second": sums.epoch_examples / sums.epoch_seconds}
        self.history.append(line | evaluated)
        return self.history[-1]

    def add_final_line(self, sha256: str, tested: Line) -> Line:
        """The last line, when all is done: the parameters' SHA-256, and what a test at the end has found."""
        self.count_seconds()
        ended = {"final": True, "params_sha256": sha256, "total_seconds": self.totals.total_seconds}
        self.history.append(self._position | ended | tested)
        return self.history[-1]

    def begin_sums(self) -> None:
        """New sums and a new clock, after a line, or where a checkpoint has them from before its line."""
        self.totals.loss, self.totals.weight = 0.0, 0.0
        if self.cadence.epoch_end(self.step):
            self.totals.epoch_examples, self.totals.epoch_seconds = 0, 0.0
        self.start_clock()


class Measures:
    """What evaluations of a state find, as lines have it; `poll` is called before each step of one, and may raise."""

    def __init__(self, config: Config, data: Data, evaluator: Evaluator) -> None:
        self._eval_train, self._data, self._evaluator = config.eval_train, data, evaluator
        self._choose_by = config.choose_by
        chooser = data.chooser
        known = len(chooser) and (not chooser.one_by_one or chooser.labels.any())
        if self._choose_by == "roc_auc" and known and (why := scores.undefined(chooser.labels, data.called)):
            raise _undefined(chooser, why)

    def evaluated(self, state: State, poll: Poll) -> Line:
        """What is due while training: of the validation set where there is one, else of the test set."""
        line: Line = {}
        if self._eval_train:
            line["train_accuracy"] = self._evaluator(state, self._data.train, poll).accuracy
        name, chooser = "test" if self._data.validation is None else "validation", self._data.chooser
        if self._choose_by != "accuracy":
            line["choose_by"] = self._choose_by
        line |= self._measure(name, state, chooser, poll)
        if score(line) is None:
            raise _undefined(chooser, "not every class occurs in it")
        return line

    def tested(self, last: State, best: State | None, poll: Poll) -> Line:
        """Of the test set, where a validation set chose: only now, with nothing left to choose."""
        if self._data.validation is None or not len(self._data.test):
            return {}
        line = {} if best is None else self._measure("best_test", best, self._data.test, poll)
        return line | self._measure("test", last, self._data.test, poll)

    def _measure(self, name: str, state: State, examples: Examples, poll: Poll) -> Line:
        found = self._evaluator(state, examples, poll, scores.NEEDS[self._choose_by])
        line = {f"{name}_loss": found.loss, f"{name}_accuracy": found.accuracy, f"{name}_correct": found.correct,
                f"{name}_count": found.total}  # fmt: skip
        if found.labels is not None:
            value = scores.score(self._choose_by, found.labels, found.predicted, found.log_probs)
            line |= {} if value is None else {f"{name}_{self._choose_by}": value}
        return line


def _undefined(examples: Examples, why: str) -> InputError:
    return InputError(f"--choose_by=roc_auc is not defined for {examples.name}, for {why}: give another of its values")

