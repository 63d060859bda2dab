"""Where numbers go: the console, its progress bar and log.txt; metrics.jsonl; and TensorBoard."""

import contextlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm  # in a notebook, a bar of its own

from distmlp.config import Config
from distmlp.run.workdir import new_path, replace_file, sync, writing

Line = dict[str, Any]


class Metrics:
    """The lines of a run's metrics.jsonl, in memory and on disk.

    `step` counts completed updates and `epoch` completed epochs. A line is on disk before `log` returns: those of
    earlier steps than a checkpoint's always are, that of its own step may be missing yet.
    """

    def __init__(self, path: Path, quiet: bool = False) -> None:
        """Reads the lines that are there. With `quiet`, in all processes but the first, nothing is written."""
        self.path, self.quiet = path, quiet
        self.history: list[Line] = []
        self._events: Any = None
        self._bar: Any = None
        if path.exists():
            for text in path.read_text().splitlines():
                try:
                    self.history.append(json.loads(text))
                except ValueError:
                    break  # a line torn by a crash; what follows it belongs to no committed checkpoint

    @property
    def finished_at(self) -> int | None:
        """The step at which the run ended, if it has, evaluation included."""
        last, final = [{}, {}, *self.history][-2:]
        return final["step"] if final.get("final") and scored([last]) and last["step"] == final["step"] else None

    def start(self, step: int, evaluation: bool, config: Config) -> None:
        """Drops what training will write again from `step` on, and opens the sinks.

        That is what lies beyond it, and its own line if an evaluation is due that it lacks. With no checkpoint to go on
        from, at step 0, lines that are there are set aside.
        """
        if step == 0 and self.history and not self.quiet:
            aside = new_path(self.path.with_name("metrics-old.jsonl"))
            self.path.rename(aside)
            warn(f"there are metrics but no checkpoints: the run begins anew, and the old metrics are in {aside}",
                 self.path.parent)
        self.history = [
            line for line in self.history
            if not line.get("final") and line["step"] <= step - (evaluation and not scored([line]))
        ]
        if not self.quiet:
            from distmlp.run.tensorboard import EventFile  # takes 0.2 s to import

            replace_file(self.path, "".join(json.dumps(line) + "\n" for line in self.history))
            with writing(self.path.parent):
                self._events = EventFile(self.path.parent / "tensorboard", step + 1, config)

    def log(self, line: Line) -> None:
        """Writes one line; its numbers other than step and epoch also become TensorBoard scalars."""
        self.history.append(line)
        if self.quiet:
            return
        with writing(self.path.parent):
            with self.path.open("a") as file:
                file.write(json.dumps(line) + "\n")
            sync(self.path)
            self._events.scalars(line["step"], {
                name: value for name, value in line.items()
                if type(value) in (int, float) and name not in ("step", "epoch")
            })

    def logged(self, step: int) -> bool:
        return any(line["step"] == step and not line.get("final") for line in self.history)

    def say(self, text: str) -> None:
        """A line on the console, above the progress bar if there is one."""
        if not self.quiet:
            tqdm.write(text, file=sys.stdout)
            sys.stdout.flush()
            if self._events is not None:  # else nothing is trained, and the folder stays as it is
                append_log(self.path.parent, text)

    def bar(self, epoch: int, position: int, size: int, loss: float | None) -> None:
        """Shows the progress of an epoch: `position` of `size` examples. Only on a terminal."""
        if self._bar is None:
            self._bar = tqdm(total=size, initial=position, desc=f"epoch {epoch}", unit=" examples", unit_scale=True,
                             leave=False, mininterval=0.2, disable=self.quiet or None)  # None: where it is no terminal
        if loss is not None:
            self._bar.set_postfix(loss=f"{loss:.4f}", refresh=False)
        self._bar.update(position - self._bar.n)

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        self.close_bar()
        if self._events is not None:
            with contextlib.suppress(OSError):  # a full disk, of which `log` has told
                self._events.close()


def scored(history: Sequence[Line]) -> list[tuple[float, Line]]:
    """Each evaluation's line, and the accuracy that counts: the validation set's, where there is one."""
    found = [(line.get("validation_accuracy", line.get("test_accuracy")), line) for line in history]
    return [(float(score), line) for score, line in found if score is not None and not line.get("final")]


def best(history: Sequence[Line]) -> Line:
    """The line of the highest accuracy that counts, the first among equals; {"step": 0} before any evaluation."""
    return max(scored(history), key=lambda item: item[0], default=(0.0, {"step": 0}))[1]


def stale(history: Sequence[Line]) -> int:
    """How many evaluations there were since the best."""
    lines = [line for _, line in scored(history)]
    return len(lines) - 1 - lines.index(best(history)) if lines else 0


def warn(text: str, workdir: Path) -> None:
    """A line on standard error and in the log, for the first process to call."""
    print(f"distmlp: {text}", file=sys.stderr)
    append_log(workdir, f"distmlp: {text}")


def append_log(workdir: Path, text: str) -> None:
    """Adds a line of the console to WORKDIR/log.txt; that cannot be written costs no run."""
    with contextlib.suppress(OSError), (workdir / "log.txt").open("a", encoding="utf-8") as file:
        file.write(f"{text}\n")


_COLUMNS = {  # of a line for people, behind its epoch: heading, width, format
    "step": ("step", 8, ""), "train_loss": ("train loss", 11, ".5f"), "test_loss": ("test loss", 10, ".5f"),
    "train_accuracy": ("train acc", 11, ".2%"), "test_accuracy": ("test acc", 10, ".2%"),
    "seconds": ("seconds", 9, ".2f"), "examples_per_second": ("examples/s", 12, ",.0f"),
}  # fmt: skip
HEADER = " " * 9 + "".join(f"{heading:>{width}}" for heading, width, _ in _COLUMNS.values())


def header(validation: bool) -> str:
    """The headings of the lines per epoch."""
    return HEADER.replace("test", " val") if validation else HEADER


def describe(line: Line) -> str:
    """One line for people, of 80 columns, below `header`."""
    line = {name.replace("validation", "test"): value for name, value in line.items()}
    cells = (f"{line[name]:>{width}{form}}" if name in line else " " * width
             for name, (_, width, form) in _COLUMNS.items())  # fmt: skip
    return f"epoch {line['epoch']:>3}{''.join(cells)}".rstrip()


def summary(history: Sequence[Line], workdir: Path) -> str:
    """The end of a run: its accuracy, the parameters' SHA-256, the time it took, and what there is to go on with."""
    (*_, last, final), top = history, best(history)
    steps = f"{last['step']}" if top["step"] == last["step"] else f"{last['step']}, and the best one, {top['step']},"
    training = sum(line.get("seconds", 0) for line in history)
    return "\n".join((
        *_accuracies(last, final, top),
        f"parameters {final['params_sha256']}",
        f"time         {final['total_seconds']:.1f} s, of which {training:.1f} s training steps",
        f"checkpoints  {steps} in {workdir / 'checkpoints'}",
        f"next         python -m launch.evaluate {workdir}",
        f"workdir      {workdir}",
    ))  # fmt: skip


def _accuracies(last: Line, final: Line, top: Line) -> list[str]:
    """Those of the last and of the best checkpoint, and what the best one was chosen by."""
    if "validation_accuracy" not in top:
        return [
            f"final test accuracy {100 * last['test_accuracy']:.2f} % "
            f"({last['test_correct']} of {last['test_count']}), "
            f"best {100 * top['test_accuracy']:.2f} % at step {top['step']}",
            "(the best was chosen on the test set; --validation_fraction avoids that)",
        ]
    found = [f"best validation accuracy {top['validation_accuracy']:.2%} at step {top['step']}; on the test set:"]
    for which, name, step in (("best", "best_test", top["step"]), ("last", "test", final["step"])):
        if f"{name}_accuracy" in final:
            found.append(f"  the {which} checkpoint, step {step}: {final[f'{name}_accuracy']:.2%} "
                         f"({final[f'{name}_correct']} of {final['test_count']})")
    return found
