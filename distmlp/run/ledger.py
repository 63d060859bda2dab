"""ledger.jsonl: what each step was made of, so that two runs can be compared step by step (results/compare.py).

The first line says how many training examples there are and how many steps an epoch has. Then comes one line a step:

    step      completed updates
    count     examples fetched for it, over all processes; rows that only fill up a shard are not counted
    examples  their `examples_sum`, hexadecimal
    loss      as an exact hexadecimal float
    digests   of the state's arrays after it, where they were taken

A checkpoint is only saved once the lines up to its step are on disk, and a resumed run drops the lines beyond it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.cluster.group import Group
from distmlp.errors import InputError
from distmlp.parallel.feed import Steps
from distmlp.run.workdir import replace_file, sync, writing

_HEADER, _LINE = {"examples", "steps_per_epoch"}, {"step", "count", "examples", "loss"}


def examples_sum(indices: np.ndarray) -> int:
    """The sum, modulo 2^64, of example indices each mixed by a one-to-one function (splitmix64's).

    It does not depend on their order: the examples of a whole epoch always have the sum of 0, 1, ..., N-1.
    """
    mixed = indices.astype(np.uint64).ravel() + np.uint64(0x9E3779B97F4A7C15)
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return int((mixed ^ (mixed >> np.uint64(31))).sum(dtype=np.uint64))


def read(workdir: Path) -> tuple[dict[str, Any], dict[int, dict[str, Any]]]:
    """The first line of a run's ledger, and the others by their steps; both are empty where there is no ledger.

    A last line without its end is left out: it is being written, or a crash tore it.

    Raises:
      InputError: another line is not what was written.
    """
    path = workdir / "ledger.jsonl"
    try:
        texts = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
        header, *lines = [json.loads(text) for text in texts] or [{}]
        if not all(line.keys() >= _LINE for line in lines) or (lines and not header.keys() >= _HEADER):
            raise ValueError("a line lacks one of its values")
        return header, {line["step"]: line for line in lines}
    except (ValueError, AttributeError) as error:
        raise InputError(f"{path} is damaged ({error}): bring it back from a copy, or move it away") from None


class Ledger:
    """The ledger of a run, kept if `enabled`: each process reports its share of a step, and process 0 writes."""

    def __init__(self, workdir: Path, enabled: bool, examples: int, steps_per_epoch: int, group: Group) -> None:
        self.path, self.enabled, self._group = workdir / "ledger.jsonl", enabled, group
        self._header = {"examples": examples, "steps_per_epoch": steps_per_epoch}
        self._fetched: dict[int, tuple[int, int]] = {}  # count and examples_sum, by step
        self._losses: dict[int, float] = {}
        self._digests: dict[int, dict[str, str]] = {}

    def start(self, step: int) -> None:
        """Drops the lines beyond `step`, from where training now goes on."""
        if not self._group.first or not (self.enabled or self.path.exists()):
            return
        kept = [self._header, *(line for at, line in read(self.path.parent)[1].items() if at <= step)]
        replace_file(self.path, "".join(json.dumps(line) + "\n" for line in kept))

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
        lines: list[dict[str, Any]] = []
        for (step, loss), count, total in zip(self._losses.items(), counts, totals, strict=True):
            lines.append({"step": step, "count": int(count), "examples": f"{int(total):016x}", "loss": loss.hex()})
            if step in self._digests:
                lines[-1]["digests"] = self._digests.pop(step)
        self._losses.clear()
        if self._group.first:
            with writing(self.path):
                with self.path.open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
                sync(self.path)
