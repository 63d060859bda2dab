"""What a run says, and where: on the console and its progress bar, in log.txt, metrics.jsonl and TensorBoard."""

from __future__ import annotations

import contextlib
import functools
import itertools
import operator
import platform
import shlex
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
from tqdm.auto import tqdm  # in a notebook, a bar of its own

from distmlp import machine
from distmlp.cluster.group import Group
from distmlp.config import Config
from distmlp.errors import counted, listed, printable
from distmlp.parallel import backend
from distmlp.progress import Line, Progress, best
from distmlp.run import lines
from distmlp.run.lines import Found
from distmlp.run.workdir import new_path, writing

if TYPE_CHECKING:  # which those who only read lines do not need
    from distmlp.data.datasets import Data
    from distmlp.training import Program


def read_lines(run: Path) -> Found:
    """The lines of a run's metrics.jsonl."""
    return lines.read(run / "metrics.jsonl", {"step": operator.index, "epoch": operator.index})


class Log:
    """Writes what a run says, in the first process only; `silent`: to its files, and not to the console.

    A line is on disk before `line` returns: the lines of earlier steps than a checkpoint's always are, that of its own
    step may be missing yet.
    """

    def __init__(self, workdir: Path, first: bool = True, silent: bool = False) -> None:
        self.workdir, self._first, self._shown = workdir, first, first and not silent
        self._events: Any = None
        self._bar: Any = None

    @functools.cached_property
    def found(self) -> Found:
        """The lines that earlier starts have left; raises InputError if they cannot be read."""
        return read_lines(self.workdir) if self._first else Found(self.workdir / "metrics.jsonl", [])

    def start(self, step: int, history: Sequence[Line], config: Config, expected: int = 0) -> None:
        """Makes `history` the lines that there are, and opens all files for those of the steps after `step`.

        `expected` is how many lines there were when the checkpoint of that step was saved.
        """
        if self._first:
            from distmlp.run.tensorboard import EventFile  # takes 0.2 s to import

            found = self.found
            if step == 0 and found.values:
                aside = new_path(self.workdir / "metrics-old.jsonl")
                with writing(aside):
                    found.path.rename(aside)
                self.warn("there are metrics but no checkpoints: the run begins anew, and the old metrics are in "
                          f"{aside}")
                found = Found(found.path, [])
            there = sum(line["step"] <= step and not line.get("final") for line in found.values)
            if remark := lines.renew(found, history, expected - there):
                self.warn(remark)
            with writing(self.workdir):
                self._events = EventFile(self.workdir / "tensorboard", step + 1, config.settings(),
                                         config.settings("experiment", "length"))  # fmt: skip

    def line(self, line: Line) -> None:
        """Writes and shows one line; its numbers other than step and epoch also become TensorBoard scalars."""
        if self._first:
            with writing(self.workdir):
                lines.append(self.found.path, [lines.sealed(line)], durable=True)
                self._events.scalars(line)
        if not line.get("final"):
            self.say(describe(line))

    def say(self, text: str) -> None:
        """A remark on the console, above the progress bar if there is one, and in log.txt once a run has begun."""
        if self._shown:
            tqdm.write(printable(text), file=sys.stdout)
            sys.stdout.flush()
        if self._events is not None:  # else nothing is trained, and the folder stays as it is
            self.note(text)

    def warn(self, text: str) -> None:
        """A remark on standard error, and in log.txt."""
        if self._shown:
            print(f"distmlp: {text}", file=sys.stderr)
        self.note(f"distmlp: {text}")

    def note(self, text: str) -> None:
        """A remark in log.txt only. A run goes on where it cannot be written."""
        if self._first:
            with contextlib.suppress(OSError):
                lines.append(self.workdir / "log.txt", [text])

    def show_progress(self, progress: Progress, batch_size: int, size: int) -> None:
        """Shows how far the epoch is, of `size` examples. Only on a terminal."""
        epoch, step = divmod(progress.step - 1, progress.cadence.per_epoch)
        position = min((step + 1) * batch_size, size)
        if self._bar is None:
            self._bar = tqdm(total=size, initial=position, desc=f"epoch {epoch + 1}", unit=" examples", unit_scale=True,
                             leave=False, mininterval=0.2, disable=None if self._shown else True)  # None: no terminal
        if progress.last_loss is not None:
            self._bar.set_postfix(loss=f"{progress.last_loss:.4f}", refresh=False)
        self._bar.update(position - self._bar.n)

    def close_bar(self) -> None:
        if self._bar is not None:
            self._bar.close()
            self._bar = None

    def close(self) -> None:
        self.close_bar()
        if self._events is not None:
            with contextlib.suppress(OSError):  # a full disk, of which `line` has told
                self._events.close()


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    names = ("distmlp", "jax", "jaxlib", "numpy", "torch", "orbax-checkpoint", "optax")
    return {"python": platform.python_version(), **{name: machine.version(name) for name in names}}


def banner(config: Config, data: Data, parts: Program, workdir: Path, group: Group) -> str:
    """The lines a run starts with: everything that a reader of its log will want to know."""
    layout, sizes, hosts = parts.layout, parts.sizes, group.hosts()
    devices = layout.devices
    kinds = sorted({devices[0].platform, *(device.device_kind for device in devices)})
    parameters = sum((m + 1) * n for m, n in itertools.pairwise(sizes))
    validation = f", {len(data.validation):,} validation" if data.validation else ""
    rows = {
        "versions": ", ".join(f"{name}\u00a0{version}" for name, version in versions().items()),
        "hosts": f"{len(hosts)} ({', '.join(hosts)}), {counted(jax.process_count(), 'process', 'processes')}",
        "devices": f"{len(devices)} x {', '.join(kinds)}: {layout.parallelism}, {config.reduction} reduction",
        "audit": config.audit_every and f"of every {counted(config.audit_every, 'step')}, and before each save",
        "NVIDIA GPU": (reason := backend.unused_gpu(config)) and f"not used: {reason}",
        "data": f"{data.name}: {len(data.train):,} training{validation} and {len(data.test):,} test examples, "
                "training set on the {} ({})".format(*parts.placement),
        "classes": data.classes and f"{len(data.classes)}: {listed(data.classes)}",
        "state": len(devices) > 1 and f"{layout.state}, {parts.held.bytes / 1e6:,.1f} MB on each device "
                                      f"({parts.state_why})",
        "layers": f"{'-'.join(map(str, sizes))}: {parameters:,} parameters, {config.compute_dtype}, "
                  f"{config.matmul_precision} precision",
        "batch": f"{counted(config.batch_size, 'example')} in {counted(layout.num_shards, 'shard')} of at most "
                 f"{-(-config.batch_size // layout.num_shards)}, on {counted(len(devices), 'device')}",
    }
    wrap = textwrap.TextWrapper(80, subsequent_indent=" " * 13, break_on_hyphens=False, break_long_words=False)
    texts = [wrap.fill(f"{name:<12} {value}") for name, value in rows.items() if value]
    return "\n".join([*texts, f"{'workdir':<12} {workdir}"]).replace("\u00a0", " ")


_COLUMNS = {  # of a line for people, behind its epoch: heading, width, format
    "step": ("step", 8, ""), "train_loss": ("train loss", 11, ".5f"), "test_loss": ("test loss", 10, ".5f"),
    "train_accuracy": ("train acc", 11, ".2%"), "test_accuracy": ("test acc", 10, ".2%"),
    "seconds": ("seconds", 9, ".2f"), "examples_per_second": ("examples/s", 12, ",.0f"),
}  # fmt: skip
HEADER = " " * 9 + "".join(f"{heading:>{width}}" for heading, width, _ in _COLUMNS.values())


_SHORT = {"balanced_accuracy": "bal. acc", "macro_f1": "macro F1", "roc_auc": "ROC AUC"}  # beside accuracy and loss


def header(config: Config, validation: bool) -> str:
    """The headings of the lines per epoch."""
    text = HEADER.replace("test", " val") if validation else HEADER
    free = config.choose_by in _SHORT and not config.eval_train  # the column of training accuracies
    return text.replace("train acc", f"{_SHORT[config.choose_by]:>9}") if free else text


def describe(line: Line) -> str:
    """One line for people, of 80 columns, below `header`."""
    line = {name.replace("validation", "test"): value for name, value in line.items()}
    if (name := line.get("choose_by")) in _SHORT and f"test_{name}" in line:
        line = {"train_accuracy": line[f"test_{name}"]} | line  # as the heading says
    cells = (f"{line[name]:>{width}{form}}" if name in line else " " * width
             for name, (_, width, form) in _COLUMNS.items())  # fmt: skip
    return f"epoch {line['epoch']:>3}{''.join(cells)}".rstrip()


def summary(history: Sequence[Line], workdir: Path, goodput: str = "") -> str:
    """The end of a run: its accuracy, the parameters' SHA-256, the time it took, `goodput`'s lines about it, and what
    there is to go on with."""
    (*_, last, final), top = history, best(history)
    chosen_by = top.get("choose_by", "accuracy")

    def score(line: Line, part: str) -> str:
        """Beside the accuracy."""
        value = None if chosen_by == "accuracy" else line.get(f"{part}_{chosen_by}")
        return "" if value is None else f", {chosen_by.replace('_', ' ')} {value:.5f}"

    if "validation_accuracy" in top:
        texts = [f"best validation accuracy {top['validation_accuracy']:.2%}{score(top, 'validation')} "
                 f"at step {top['step']}; on the test set:"]
        for which, name, step in (("best", "best_test", top["step"]), ("last", "test", final["step"])):
            if f"{name}_accuracy" in final:
                texts.append(f"  the {which} checkpoint, step {step}: {final[f'{name}_accuracy']:.2%} "
                             f"({final[f'{name}_correct']} of {final['test_count']}){score(final, name)}")
    elif not top["step"]:
        texts = ["nothing was evaluated: there is no test set"]
    else:
        texts = [f"final test accuracy {100 * last['test_accuracy']:.2f} % "
                 f"({last['test_correct']} of {last['test_count']}){score(last, 'test')}"]
        if sum("test_accuracy" in line for line in history[:-1]) > 1:  # else there was no choice
            texts = [f"{texts[0]}, best {100 * top['test_accuracy']:.2f} %{score(top, 'test')} at step {top['step']}",
                     "(the best was chosen on the test set; --validation_fraction avoids that)"]
    other = top["step"] and top["step"] != last["step"]
    steps = f"{last['step']}" + (f", and the best one, {top['step']}," if other else "")
    training = sum(line.get("seconds", 0) for line in history)
    return "\n".join((
        *texts,
        f"parameters {final['params_sha256']}",
        f"time         {final['total_seconds']:.1f} s, of which {training:.1f} s training steps",
        *([goodput] if goodput else []),
        f"checkpoints  {steps} in {workdir / 'checkpoints'}",
        f"next         python -m launch.evaluate {shlex.quote(str(workdir))}",
        f"workdir      {workdir}",
    ))  # fmt: skip
