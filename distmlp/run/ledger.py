"""ledger.jsonl: what each step was made of, so that two runs can be compared step by step (results/compare.py).

The first line says how many training examples there are and how many steps an epoch has. Then comes one line a step:

    step      completed updates
    count     examples fetched for it, over all processes; rows that only fill up a shard are not counted
    examples  their `examples_sum`, hexadecimal
    loss      as an exact hexadecimal float
    digests   of the state's arrays after it, where they were taken

A checkpoint is only saved once the lines up to its step are on disk, and a resumed run drops the lines beyond it.
"""

import operator
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.cluster.group import Group
from distmlp.parallel.feed import Steps
from distmlp.run import lines
from distmlp.run.lines import Found, Kind
from distmlp.run.workdir import new_path, writing

_HEADER: Kind = {"examples": operator.index, "steps_per_epoch": operator.index}
_LINE: Kind = {
    "step": operator.index, "count": operator.index, "examples": lambda text: int(text, 16), "loss": float.fromhex,
}  # fmt: skip


def examples_sum(indices: np.ndarray) -> int:
    """The sum, modulo 2^64, of example indices each mixed by a one-to-one function (splitmix64's).

    It does not depend on their order: the examples of a whole epoch always have the sum of 0, 1, ..., N-1.
    """
    mixed = indices.astype(np.uint64).ravel() + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))


def read(workdir: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]], Found]:
    """The first line of a run's ledger, and the others by their steps, as far as they are what was written; and what
    was found. Both are empty where there is no ledger."""
    found = lines.read(workdir / "ledger.jsonl", _HEADER, _LINE)
    header = next((value for value in found.values if value.keys() >= _HEADER.keys()), {})
    return header, {value["step"]: value for value in found.values if value.keys() >= _LINE.keys()}, found


class Ledger:
    """The ledger of a run, kept if `enabled`: each process reports its share of a step, and process 0 writes."""

    def __init__(self, workdir: Path, enabled: bool, examples: int, steps_per_epoch: int, group: Group) -> None:
        self.path, self.enabled, self._group = workdir / "ledger.jsonl", enabled, group
        self._header = {"examples": examples, "steps_per_epoch": steps_per_epoch}
        self._fetched: dict[int, tuple[int, int]] = {}  # count and examples_sum, by step
        self._losses: dict[int, float] = {}
        self._digests: dict[int, dict[str, str]] = {}
        self.count = 0  # lines of steps in the file

    def start(self, step: int, expected: int = 0) -> str:
        """Drops the lines beyond `step`, from where training now goes on; returns a remark if any up to it are lost, or
        if there are lines of a run that now begins anew: these are set aside.

        `expected` is the `count` that there was at that step.
        """
        if not self._group.first or not (self.enabled or self.path.exists()):
            return ""
        _, there, found = read(self.path.parent)
        if step == 0 and there:
            aside = new_path(self.path.with_name("ledger-old.jsonl"))
            with writing(aside):
                self.path.rename(aside)
            if self.enabled:
                lines.renew(found._replace(damaged=()), [self._header])
            return f"there is a ledger but no checkpoint: the run begins anew, and the old ledger is in {aside}"
        kept = [line for at, line in there.items() if at <= step]
        self.count = len(kept)
        return lines.renew(found, [self._header, *kept], expected - len(kept))

    def add(self, last: int, steps: Steps, digests: dict[str, str] | None) -> None:
        """Takes note of this process's examples in a dispatch that has completed update number `last`."""
        if self.enabled:
            first = last - len(steps.sizes) + 1
            for step, (indices, real) in enumerate(zip(steps.indices, steps.real, strict=True), first):
                taken = indices[real > 0]  # others fill up
                self._fetched[step] = len(taken), examples_sum(taken)
            if digests is not None:
                self._digests[last] = digests

    def loss(self, step: int, loss: float) -> None:
        if self.enabled:
            self._losses[step] = loss

    def flush(self) -> None:
        """Writes the lines of all steps whose losses are known, or raises WriteError; a collective."""
        if not self._losses:
            return
        shares = [self._fetched.pop(step) for step in self._losses]
        # Each sum of 64 bits is sent as two integers of 32 bits, for jax has no longer ones.
        halves = np.array([(count, total & 0xFFFFFFFF, total >> 32) for count, total in shares], np.uint32)
        counts, low, high = self._group.gather(halves.view(np.int32)).view(np.uint32).sum(axis=0, dtype=np.uint64).T
        totals = low + (high << np.uint64(32))
        made: list[dict[str, Any]] = []
        for (step, loss), count, total in zip(self._losses.items(), counts, totals, strict=True):
            made.append({"step": step, "count": int(count), "examples": f"{int(total):016x}", "loss": loss.hex()})
            if step in self._digests:
                made[-1]["digests"] = self._digests.pop(step)
        self._losses.clear()
        if self._group.first:
            with writing(self.path):
                lines.append(self.path, map(lines.sealed, made), durable=True)
        self.count += len(made)
