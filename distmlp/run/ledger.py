"""ledger.jsonl: what each step was made of, so that two runs can be compared step by step (results/compare.py).

The first line says how many training examples there are and how many steps an epoch has. Then comes one line a step:

    step      completed updates
    count     examples fetched for it, over all processes; rows that only fill up a shard are not counted
    examples  their `examples_sum`, hexadecimal
    loss      as an exact hexadecimal float
    digests   of the state's arrays after it, where they were taken

A checkpoint is only saved once the lines up to its step are on disk, and a resumed run drops those beyond it.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.cluster import group, rank
from distmlp.errors import InputError
from distmlp.run.workdir import replace_file, sync, writing

_HEADER, _LINE = {"examples", "steps_per_epoch"}, {"step", "count", "examples", "loss"}


def examples_sum(indices: np.ndarray) -> int:
    """The sum, modulo 2^64, of example indices each mixed by a one-to-one function (splitmix64's).

    It does not depend on their order: those of a whole epoch always give that of 0..N-1.
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
    """The ledger of a run, kept if `enabled`; its methods but `start` and `flush` see one process's share of a step."""

    def __init__(self, workdir: Path, enabled: bool, examples: int, steps_per_epoch: int) -> None:
        self.path, self.enabled = workdir / "ledger.jsonl", enabled
        self._header = {"examples": examples, "steps_per_epoch": steps_per_epoch}
        self._fetched: dict[int, tuple[int, int]] = {}  # count and examples_sum, by step; some steps ahead
        self._losses: dict[int, float] = {}
        self._digests: dict[int, dict[str, str]] = {}

    def start(self, step: int) -> None:
        """Drops what lies beyond `step`, where training now goes on."""
        if not rank.is_first() or not (self.enabled or self.path.exists()):
            return
        kept = [self._header, *(line for at, line in read(self.path.parent)[1].items() if at <= step)]
        replace_file(self.path, "".join(json.dumps(line) + "\n" for line in kept))

    def fetched(self, step: int, indices: np.ndarray, weights: np.ndarray) -> None:
        """The examples that this process fetched for the update that completes `step`; weight 0 fills up."""
        if self.enabled:
            taken = indices[weights > 0]
            self._fetched[step] = len(taken), examples_sum(taken)

    def loss(self, step: int, loss: float) -> None:
        if self.enabled:
            self._losses[step] = loss

    def digests(self, step: int, digests: dict[str, str]) -> None:
        if self.enabled:
            self._digests[step] = digests

    def flush(self) -> None:
        """Writes the lines of all steps whose losses are known; a collective.

        Raises:
          WriteError: they could not be written.
        """
        if not self._losses:
            return
        shares = [self._fetched.pop(step) for step in self._losses]
        # 64 bits travel as two halves: jax has integers of 32.
        halves = np.array([(count, total & 0xFFFFFFFF, total >> 32) for count, total in shares], np.uint32)
        counts, low, high = group.gather(halves.view(np.int32)).view(np.uint32).sum(axis=0, dtype=np.uint64).T
        totals = low + (high << np.uint64(32))
        lines: list[dict[str, Any]] = [
            {"step": step, "count": int(count), "examples": f"{int(total):016x}", "loss": loss.hex()}
            for (step, loss), count, total in zip(self._losses.items(), counts, totals, strict=True)
        ]
        for line in lines:
            if line["step"] in self._digests:
                line["digests"] = self._digests.pop(line["step"])
        self._losses.clear()
        if rank.is_first():
            with writing(self.path):
                with self.path.open("a") as file:
                    file.writelines(json.dumps(line) + "\n" for line in lines)
                sync(self.path)
