"""How far a training is: what is due after which step, the losses of its steps, and the lines that are made of them."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distmlp import scores
from distmlp.account import Account
from distmlp.config import Config
from distmlp.errors import DivergedError, InputError

if TYPE_CHECKING:  # which those who only read lines do not need
    from distmlp.data.datasets import Data, Examples
    from distmlp.parallel.evaluate import Evaluation, Evaluator
    from distmlp.parallel.feed import Steps
    from distmlp.parallel.specs import State

# Dispatches whose losses are still to be read. Reading late keeps the devices busy; never reading lets emulated devices
# deadlock after some dozens.
IN_FLIGHT = 1

Poll = Callable[[], None]
Line = dict[str, Any]  # of metrics.jsonl: `step` counts completed updates, `epoch` completed epochs


def score(line: Line) -> float | None:
    """What an evaluation is compared by, the higher the better: the accuracy, or what the line says that it is chosen
    by; on the validation set, where there is one.

    None: the line has no evaluation, or is the last one of all.
    """
    name = line.get("choose_by", "accuracy")
    found = line.get(f"validation_{name}", line.get(f"test_{name}"))
    return None if found is None or line.get("final") else float(-found if name == "loss" else found)


class Standing(NamedTuple):
    """How the evaluations stand, which the best checkpoint and --patience go by; checkpoints carry it."""

    best: Line = {"step": 0}  # noqa: RUF012 - nobody changes it: the line of the highest score, the first among equals
    stale: int = 0  # evaluations since the best
    step: int = 0  # of the last evaluation that is counted

    def after(self, line: Line) -> Standing:
        """How they stand with this line, unless it is counted already."""
        found, top = score(line), score(self.best)
        if found is None or line["step"] <= self.step:
            return self
        better = top is None or math.isnan(top) or found > top
        return Standing(line, 0, line["step"]) if better else Standing(self.best, self.stale + 1, line["step"])


def best(history: Iterable[Line]) -> Line:
    """The line of the best evaluation, the first among equals; {"step": 0} before any evaluation."""
    return functools.reduce(Standing.after, history, Standing()).best


class Cadence:
    """What is due after a number of completed steps: arithmetic, so that a resumed run does the same things."""

    def __init__(self, config: Config, steps_per_epoch: int, evaluates: bool = True) -> None:
        """`evaluates`: whether there is a set to evaluate on."""
        self._config, self.per_epoch, self.patience = config, steps_per_epoch, config.patience
        self.evaluates = evaluates
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

    def audit(self, step: int) -> bool:
        """Whether the step that this one completes is to be computed twice: by --audit_every, or as there may be a save
        after it."""
        every = self._config.audit_every
        return every > 0 and (_every(every, step) or self.line(step) or self.save(step))

    def next(self, step: int) -> int:
        """The next step after which something may be due: a dispatch must not go beyond it. One that is audited has a
        dispatch of its own."""
        config = self._config
        intervals = (self.per_epoch, config.eval_every_steps, config.checkpoint_every_steps,
                     config.check_replicas_every, self._ledger_digests)
        due = [step - step % interval + interval for interval in intervals if interval]
        end = min(self.total_steps, *due, *(n for n in self.profile if n > step))
        if not config.audit_every:
            return end
        end = min(end, step - step % config.audit_every + config.audit_every)
        return end - 1 if self.audit(end) and end - 1 > step else end

    def dispatch(self, step: int, most: int) -> int:
        """Up to which step a dispatch may go that begins after this one, where only evaluations need the state: the
        next of them, or `most` steps further."""
        end = self.next(step)
        while end - step < most and end < self.total_steps and not self.evaluation(end):
            end = self.next(end)
        return min(end, step + most)

    def longest_dispatch(self, most: int) -> int:
        """The steps of the longest of these dispatches."""
        step = longest = 0
        while step < self.total_steps and longest < most:
            end = self.dispatch(step, most)
            step, longest = end, max(longest, end - step)
        return longest


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
    trained_seconds: float = 0.0  # of all steps up to here, each counted once


class Reached(NamedTuple):
    """How far a training is that goes on, as a checkpoint says it."""

    step: int = 0  # completed updates
    totals: Totals | None = None  # the sums; the line of this step is not in them
    standing: Standing = Standing()  # of the evaluations that it counts


_BEGIN = Reached()


class Progress:
    """The position of one training, its sums, and its lines so far.

    Args:
      reached: where it begins. To its standing the evaluations of later lines, up to its step, are added.
      history: the lines that are there.
      started: when the clock of total_seconds began to run, by time.monotonic; None: now.
      record: is called with each completed step's number and loss, in their order.
      account: of this start's time; None: a new one.
    """

    def __init__(
        self, cadence: Cadence, reached: Reached = _BEGIN, history: Sequence[Line] = (),
        started: float | None = None, record: Callable[[int, float], None] = lambda step, loss: None,
        account: Account | None = None,
    ) -> None:
        self.cadence, self.history = cadence, list(history)
        self.step, totals, self.standing = reached
        self.totals = totals or Totals()
        self.account = account or Account()
        self.kept_seconds = self.totals.trained_seconds  # of steps that earlier starts have left
        best_step = self.standing.best["step"]
        if best_step and not any(line["step"] == best_step and not line.get("final") for line in self.history):
            self.history.append(self.standing.best)  # its line is lost, but the checkpoint has it
            self.history.sort(key=lambda line: (line["step"], bool(line.get("final"))))
        self.standing = functools.reduce(Standing.after, (h for h in history if h["step"] <= self.step), self.standing)
        self.last_loss: float | None = None
        self.idle = True  # whether the devices had nothing left to do when the newest dispatch was made
        self._record = record
        self._pending: deque[tuple[int, Steps]] = deque()
        self._training_since: float | None = None  # up to when the epoch's seconds are counted; None: no step is made
        self._total_clock = time.monotonic() if started is None else started  # up to when total_seconds are

    @property
    def _position(self) -> Line:
        return {"step": self.step, "epoch": self.step // self.cadence.per_epoch}

    @property
    def at_end(self) -> bool:
        """Whether the last step is done, or --patience is over: by the evaluations, so that every start agrees. A start
        with less patience, from a step between two of them, goes on to the next."""
        over = 0 < self.cadence.patience <= self.standing.stale and self.standing.step == self.step
        return over or self.step == self.cadence.total_steps

    @property
    def at_best(self) -> bool:
        """Whether this step's evaluation is the best so far."""
        return 0 < self.step == self.standing.best["step"]

    @property
    def finished(self) -> bool:
        """Whether the lines say that training has ended here, evaluation included if there is anything to evaluate."""
        last, final = self.history[-2:] if len(self.history) > 1 else ({}, {})
        evaluated = score(last) is not None or not self.cadence.evaluates
        ended = final.get("final") and evaluated and last["step"] == final["step"] == self.step
        return bool(ended) and self.at_end

    @property
    def logged(self) -> bool:
        """Whether this step has its line; the lines to come are dropped."""
        return bool(self.history) and bool(self.history[-1]["step"] == self.step)

    def drop_lines_to_come(self) -> None:
        """Drops the lines that training will write again: those beyond this step, and its own if it lacks an
        evaluation that is due."""
        due = self.cadence.evaluation(self.step)
        self.history = [line for line in self.history if not line.get("final")
                        and line["step"] <= self.step - (due and score(line) is None)]  # fmt: skip

    def begin_steps(self) -> None:
        """To be called before each dispatch: the epoch's clock runs from here to `settle`, and what comes between
        `settle` and the next dispatch, as an evaluation or a checkpoint, is no training time.

        Where this step has its line, new sums begin. Until then they are those from before the line, as checkpoints
        have them.
        """
        if self.logged:
            self._begin_sums()
        if self._training_since is None:
            self._training_since = time.monotonic()
            self.account.to("train")

    def add(self, steps: Steps) -> None:
        """Counts the steps of a dispatch, and reads the losses of those before it; raises as `settle`."""
        losses: list[Any] = [before.losses for _, before in self._pending]  # Any: jax does not declare is_ready
        self.idle = all(each.is_ready() for each in losses)
        steps.losses.copy_to_host_async()
        self._pending.append((self.step, steps))
        self.step += len(steps.sizes)
        self._read_losses(IN_FLIGHT)

    def settle(self) -> None:
        """Waits for the devices, reads all losses, and stops the epoch's clock.

        Raises:
          DivergedError: a loss is not finite.
        """
        self._read_losses(0)
        if self._training_since is not None:
            self.totals.epoch_seconds += time.monotonic() - self._training_since
            self._training_since = None
            self.account.to("other")

    def _read_losses(self, in_flight: int) -> None:
        while len(self._pending) > in_flight:
            first, steps = self._pending.popleft()
            told = zip(np.asarray(steps.losses), steps.sizes, steps.weight_sums.tolist(), strict=False)
            for step, (loss, size, weight) in enumerate(told, first + 1):
                if not np.isfinite(loss):
                    self.step = step
                    raise DivergedError(f"the loss or a gradient is not finite at step {step}: try a lower "
                                        "--learning_rate or --clip_norm")
                self.last_loss = float(loss)
                self._record(step, self.last_loss)
                self.totals.loss += self.last_loss * weight
                self.totals.weight += weight
                self.totals.epoch_examples += size

    def count_seconds(self) -> None:
        """Brings total_seconds and trained_seconds up to date."""
        self.totals.trained_seconds = self.kept_seconds + self.account.seconds.get("train", 0.0)
        now = time.monotonic()
        self.totals.total_seconds += now - self._total_clock
        self._total_clock = now

    def add_line(self, evaluated: Line) -> Line:
        """The line of this step: what the steps since the last one add up to, and what an evaluation has found.

        At the end of an epoch, or of the run, it has the speed of the steps since the last line that has one.
        """
        sums, line = self.totals, self._position
        if sums.weight:
            line["train_loss"] = sums.loss / sums.weight
        ends = self.cadence.epoch_end(self.step) or self.step == self.cadence.total_steps
        if ends and sums.epoch_examples and sums.epoch_seconds:
            line |= {"seconds": sums.epoch_seconds, "examples_per_second": sums.epoch_examples / sums.epoch_seconds}
        self.history.append(line | evaluated)
        self.standing = self.standing.after(self.history[-1])
        return self.history[-1]

    def add_final_line(self, sha256: str, tested: Line) -> Line:
        """The last line, when all is done: the parameters' SHA-256, and what a test at the end has found."""
        self.count_seconds()
        ended = {"final": True, "params_sha256": sha256, "total_seconds": self.totals.total_seconds}
        self.history.append(self._position | ended | tested)
        return self.history[-1]

    def _begin_sums(self) -> None:
        """New sums after this step's line; also of the epoch, where that line has said how fast it was.

        A line within an epoch has: the run was to end there, and now goes on.
        """
        self.totals.loss, self.totals.weight = 0.0, 0.0
        if "seconds" in self.history[-1] or self.cadence.epoch_end(self.step):
            self.totals.epoch_examples, self.totals.epoch_seconds = 0, 0.0


class Measures:
    """What evaluations of a state find, as lines have it; `poll` is called before each step of one, and may raise."""

    def __init__(self, data: Data, evaluator: Evaluator, choose_by: str, eval_train: bool) -> None:
        self._data, self._evaluator, self._choose_by, self._eval_train = data, evaluator, choose_by, eval_train
        chooser = data.chooser
        if self._choose_by == "roc_auc" and len(chooser):
            why = scores.too_many(len(chooser), data.num_classes)
            if not chooser.one_by_one or chooser.labels.any():  # else only reading every example would tell
                why = scores.undefined(np.bincount(chooser.labels, minlength=len(data.called)), data.called)
            if why:
                raise _undefined(chooser, why)

    def evaluated(self, state: State, poll: Poll) -> Line:
        """What is due while training: of the validation set where there is one, else of the test set.

        Raises:
          DivergedError: the loss is not finite.
        """
        line: Line = {}
        if self._eval_train:
            line["train_accuracy"] = self._evaluator(state, self._data.train, poll).accuracy
        name, chooser = "test" if self._data.validation is None else "validation", self._data.chooser
        if self._choose_by != "accuracy":
            line["choose_by"] = self._choose_by
        line |= self._measure(name, state, chooser, poll)
        if not math.isfinite(line[f"{name}_loss"]):
            raise DivergedError(f"the loss of {chooser.name} is not finite after step {int(state.step)}: try a lower "
                                "--learning_rate or --clip_norm")
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
        return measured(name, self._evaluator(state, examples, poll, scores.NEEDS[self._choose_by]), self._choose_by)


def measured(name: str, found: Evaluation, choose_by: str) -> Line:
    """What an evaluation of the set `name` has found, as a line has it; without a score where the loss is not finite.
    """
    line = {f"{name}_loss": found.loss, f"{name}_accuracy": found.accuracy, f"{name}_correct": found.correct,
            f"{name}_count": found.total}  # fmt: skip
    if found.pairs is not None and math.isfinite(found.loss):
        value = scores.score(choose_by, found.pairs, found.labels, found.log_probs)
        line |= {} if value is None else {f"{name}_{choose_by}": value}
    return line


def _undefined(examples: Examples, why: str) -> InputError:
    return InputError(f"--choose_by=roc_auc is not defined for {examples.name}, for {why}: give another of its values")

