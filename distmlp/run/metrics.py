"""Where numbers go: the console and its progress bar, metrics.jsonl, and TensorBoard."""

import contextlib
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from distmlp.run.workdir import WriteError, replace_file

Line = dict[str, Any]


class Metrics:
    """The lines of a run's metrics.jsonl, in memory and on disk.

    `step` counts completed updates and `epoch` completed epochs. A line is on disk before `log` returns, so a
    checkpoint saved after it never knows more than the file.
    """

    def __init__(self, path: Path, quiet: bool = False) -> None:
        """Reads the lines that are there. With `quiet`, in all processes but the first, nothing is written."""
        self.path, self.quiet = path, quiet
        self.history: list[Line] = []
        self._tensorboard: Any = None
        self._bar: Any = None
        if path.exists():
            for text in path.read_text().splitlines():
                try:
                    self.history.append(json.loads(text))
                except ValueError:
                    break  # a line torn by a crash; what follows it belongs to no committed checkpoint

    @property
    def finished_at(self) -> int | None:
        """The step at which the run ended, if it has."""
        return self.history[-1]["step"] if self.history and self.history[-1].get("final") else None

    def start(self, step: int) -> None:
        """Drops what lies beyond `step`, where training now goes on, and opens the sinks."""
        self.history = [line for line in self.history if line["step"] <= step and not line.get("final")]
        if self.quiet:
            return
        replace_file(self.path, "".join(json.dumps(line) + "\n" for line in self.history))
        from tensorboardX import SummaryWriter

        self._tensorboard = SummaryWriter(str(self.path.parent / "tensorboard"), purge_step=step + 1)

    def log(self, line: Line) -> None:
        """Writes one line; its numbers other than step and epoch also become TensorBoard scalars."""
        self.history.append(line)
        if self.quiet:
            return
        try:
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
                file.flush()
                os.fsync(file.fileno())
            for name, value in line.items():
                if name not in ("step", "epoch") and isinstance(value, (int, float)) and not isinstance(value, bool):
                    self._tensorboard.add_scalar(name, value, line["step"])
            self._tensorboard.flush()
        except OSError as error:
            raise WriteError(self.path.parent, error.strerror or str(error)) from None

    def logged(self, step: int) -> bool:
        return any(line["step"] == step and not line.get("final") for line in self.history)

    def best_step(self, steps: Sequence[int]) -> int | None:
        """Of these steps, the one with the highest test accuracy, the latest among equals; None: none was evaluated."""
        scored = {line["step"]: line["test_accuracy"] for line in self.history if "test_accuracy" in line}
        return max((step for step in steps if step in scored), key=lambda step: (scored[step], step), default=None)

    def say(self, text: str) -> None:
        """A line on the console, above the progress bar if there is one."""
        if not self.quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()

    def bar(self, epoch: int, position: int, size: int, loss: float | None) -> None:
        """Shows the progress of an epoch: `position` of `size` examples. Only on a terminal."""
        if self.quiet or not sys.stderr.isatty():
            return
        if self._bar is None:
            self._bar = tqdm(total=size, initial=position, desc=f"epoch {epoch}", unit=" examples", unit_scale=True,
                             leave=False, mininterval=0.2)
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update(position - self._bar.n)

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        self.close_bar()
        if self._tensorboard is not None:
            with contextlib.suppress(OSError):  # a full disk, of which `log` has told
                self._tensorboard.close()


_COLUMNS = {  # of a line for people: heading, width, format
    "epoch": ("epoch", 5, ""), "step": ("step", 9, ""), "train_loss": ("train loss", 12, ".5f"),
    "test_loss": ("test loss", 11, ".5f"), "train_accuracy": ("train acc", 11, ".2%"),
    "test_accuracy": ("test acc", 11, ".2%"), "seconds": ("seconds", 9, ".2f"),
    "examples_per_second": ("examples/s", 12, ",.0f"),
}  # fmt: skip
HEADER = "".join(f"{heading:>{width}}" for heading, width, _ in _COLUMNS.values())


def describe(line: Line) -> str:
    """One line for people, of 80 columns, below HEADER."""
    cells = (f"{line[name]:>{width}{form}}" if name in line else " " * width
             for name, (_, width, form) in _COLUMNS.items())  # fmt: skip
    return "".join(cells).rstrip()


def summary(history: Sequence[Line]) -> str:
    """What people want to know at the end of a run: final and best test accuracy, and the parameters' SHA-256."""
    *_, last, final = history
    best = max((line for line in history if "test_accuracy" in line), key=lambda line: line["test_accuracy"])
    return (
        f"final test accuracy {100 * last['test_accuracy']:.2f} % ({last['test_correct']} of {last['test_count']}), "
        f"best {100 * best['test_accuracy']:.2f} % at step {best['step']}\nparameters {final['params_sha256']}"
    )
