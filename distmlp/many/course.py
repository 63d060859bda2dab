"""How far one member's training is, and what its evaluations have found: what a run alone keeps in its lines."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from distmlp import scores
from distmlp.data.order import Order, check_batch_size
from distmlp.errors import InputError
from distmlp.many.shares import Share
from distmlp.many.vary import Member
from distmlp.parallel.digest import params_sha256
from distmlp.parallel.evaluate import Evaluation
from distmlp.parallel.specs import State
from distmlp.progress import Cadence, Line, Progress, Standing, measured


class Course:
    """One member's training.

    Attributes:
      share: its examples; `order`, in which it learns from them; `cadence`, what is due when.
      step: updates so far.
      lines: as those of metrics.jsonl.
      standing: of its evaluations.
      diverged: whether a loss, or an evaluation's, was not finite; it then ends at that step.
      last, best: its states, NumPy's, once it has ended or waits to go on; None where nobody needs them any more.
      seconds: that its training took.
    """

    def __init__(self, member: Member, share: Share, num_shards: int) -> None:
        """Raises InputError where its settings do not go with its examples."""
        config = member.config
        check_batch_size(config.batch_size, len(share.rows), " of a fold" if member.fold else " of a member")
        self.member, self.share = member, share
        self.order = Order(len(share.rows), config.batch_size, num_shards, config.shuffle, config.seed)
        self.cadence = Cadence(dataclasses.replace(config, check_replicas_every=0), self.order.steps_per_epoch)
        self.last: State | None = None
        self.best: State | None = None
        self.begin_again()

    def begin_again(self) -> None:
        """It has no state any more, and is trained from its first step on."""
        self.step, self.lines, self.standing, self.diverged = 0, list[Line](), Standing(), False
        self.last = self.best = None
        self.seconds = 0.0
        self._loss = self._weight = 0.0  # added up since the last line
        self._examples, self._since = 0, 0.0  # since the last line that has a speed

    @property
    def bytes(self) -> int:
        """Of its states."""
        return sum(leaf.nbytes for leaf in jax.tree.leaves((self.last, self.best)))

    @property
    def ended(self) -> bool:
        """Whether it is not to be trained any further."""
        over = 0 < self.cadence.patience <= self.standing.stale
        return self.diverged or self.step >= self.cadence.total_steps or over

    @property
    def score(self) -> float | None:
        """Of its best evaluation, as its lines have it; None where it diverged."""
        return None if self.diverged else self._told(self.standing.best)

    def _told(self, line: Line) -> float | None:
        """The score that a line has, by --choose_by."""
        return line.get(f"validation_{self.member.config.choose_by}")

    def rungs(self, part: int) -> list[int]:
        """After which steps --halving=`part` compares it: where it is evaluated first after 1/part^2 and 1/part of all.

        Raises:
          InputError: these are not two steps before its end.
        """
        total = self.cadence.total_steps
        wanted = found = [max(1, math.ceil(total * share)) for share in (1 / part**2, 1 / part)]
        while not all(map(self.cadence.evaluation, found)):
            found = [step if self.cadence.evaluation(step) else self.cadence.next(step) for step in found]
        if found[0] < found[1] < total:
            return found
        often = f"give --eval_every_steps={wanted[0]}"
        remedy = often if total > part else f"give more than {part} steps, or leave it out"
        raise InputError(f"--halving={part} saves nothing where members of {total} steps are first compared after "
                         f"steps {found[0]} and {found[1]}: {remedy}")

    def add(self, losses: np.ndarray, weight_sums: np.ndarray, seconds: float) -> None:
        """Counts steps, by their losses, float32 [steps]."""
        wrong = np.flatnonzero(~np.isfinite(losses))
        self.seconds += seconds
        if len(wrong):
            self.step, self.diverged = self.step + int(wrong[0]) + 1, True
            return
        begin = self.step % self.cadence.per_epoch  # of an epoch, whose end these steps do not go beyond
        self._examples += self.order.examples(begin, begin + len(losses))
        self.step += len(losses)
        self._loss += float(np.dot(losses.astype(np.float64), weight_sums))
        self._weight += float(weight_sums.sum(dtype=np.float64))

    def add_line(self, evaluated: Line) -> bool:
        """Writes the line that is due; whether its evaluation is the best so far."""
        line: Line = {"step": self.step, "epoch": self.step // self.cadence.per_epoch}
        if self._weight:
            line["train_loss"] = self._loss / self._weight
        ends = self.cadence.epoch_end(self.step) or self.step == self.cadence.total_steps
        if ends and self._examples and self.seconds > self._since:
            spent = self.seconds - self._since
            line |= {"seconds": spent, "examples_per_second": self._examples / spent}
            self._examples, self._since = 0, self.seconds
        self._loss = self._weight = 0.0
        self.lines.append(line | evaluated)
        self.standing = self.standing.after(self.lines[-1])
        return self.standing.best["step"] == self.step

    def took(self, progress: Progress, last: State | None, best: State | None) -> None:
        """Takes over how far another kind of training has come; there is no last state where it diverged."""
        self.step, self.lines, self.standing = progress.step, progress.history, progress.standing
        self.seconds = self._since = sum(line.get("seconds", 0.0) for line in self.lines)
        self.last, self.best = last, None if last is None else best or last

    def restored(
        self, step: int, lines: list[Line], standing: Standing, seconds: float, last: State, best: State
    ) -> None:
        """Takes over what was saved of it."""
        self.step, self.lines, self.standing, self.seconds = step, lines, standing, seconds
        self.last, self.best = last, best

    def told(self) -> dict[str, Any]:
        """Its line in sweep.jsonl; its last state must be there, unless it diverged."""
        top, name = self.standing.best, self.member.config.choose_by
        sha256 = None if self.last is None or self.diverged else params_sha256(self.last.params)
        curve = [[line["step"], line.get("train_loss"), self._told(line)] for line in self.lines]
        return {
            "member": self.member.number, "settings": self.member.settings, "fold": self.member.fold,
            "score": self.score, "choose_by": name, "best_step": top["step"], "steps": self.step,
            "seconds": self.seconds, "params_sha256": sha256, "curve": curve,
            **({"diverged": True} if self.diverged else {}),
        }  # fmt: skip

    def finished_lines(self) -> list[Line]:
        """The lines of metrics.jsonl of a run that is over."""
        assert self.last is not None
        final = {"step": self.step, "epoch": self.step // self.cadence.per_epoch, "final": True,
                 "params_sha256": params_sha256(self.last.params), "total_seconds": self.seconds}  # fmt: skip
        return [*self.lines, final]


def evaluated(outcomes: np.ndarray, labels: np.ndarray, choose_by: str) -> Line:
    """What a line has of an evaluation.

    Args:
      outcomes: as Members.evaluate gives them of one member: float32 [blocks, 3 (+ classes), rows].
      labels: of the examples, int32 [N]; what lies behind them fills up the last block.
    """
    rows = np.swapaxes(outcomes, 0, 1).reshape(outcomes.shape[1], -1)[:, : len(labels)]
    each, correct, predicted = rows[:3].astype(np.float64)
    asked = scores.NEEDS[choose_by]
    pairs = _pairs(labels, predicted.astype(np.int32)) if asked else None
    known = (labels, rows[3:].T) if asked == "log_probs" else (None, None)
    found = Evaluation(float(each.sum() / len(labels)), int(correct.sum()), len(labels), pairs, *known)
    return ({} if choose_by == "accuracy" else {"choose_by": choose_by}) | measured("validation", found, choose_by)


def _pairs(labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """As Evaluation has them."""
    both, counts = np.unique(np.stack([labels, predicted]), axis=1, return_counts=True)
    return np.column_stack([both.T, counts]).astype(np.int64)


def undefined(choose_by: str, labels: np.ndarray, called: Sequence[Any]) -> str:
    """Why that score is not defined for examples with these labels; "" if it is."""
    counts = np.bincount(labels, minlength=len(called))
    return scores.undefined(counts, called) if choose_by == "roc_auc" else ""
