"""What the report shows of one run."""

import dataclasses
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.config import Config
from distmlp.data.datasets import Examples
from distmlp.errors import InputError
from distmlp.parallel.evaluate import Seen
from distmlp.progress import best
from distmlp.results import charts, checkpoints, run_data
from distmlp.results.load import load
from distmlp.results.models import Model
from distmlp.results.pictures import PictureShape, picture_shape
from distmlp.run import goodput
from distmlp.run.log import read_lines
from distmlp.run.sessions import read_sessions

_MISTAKES, _NEURONS = 24, 32  # that are shown


@dataclasses.dataclass
class Mistake:
    """An example that the network takes for another class."""

    index: int
    label: Any
    prediction: Any
    probability: float
    picture: str  # an address, empty for rows that are no pictures


@dataclasses.dataclass
class Run:
    """What the page shows of one run."""

    name: str
    path: str
    colour: str
    model: Model
    lines: list[dict[str, Any]]  # of metrics.jsonl, without the final one
    final: dict[str, Any]
    best: dict[str, Any]
    checkpoints: list[tuple[int, str]]  # steps and when they were written
    sessions: list[dict[str, Any]]  # its starts and ends
    goodput: dict[str, float]  # see run/goodput.py
    left_out: list[str]  # which lines of its files are damaged
    steps_per_epoch: int = 0
    problem: str = ""  # why there are no data, if there are none
    evaluation: Any = None
    mistakes: list[Mistake] = dataclasses.field(default_factory=list)
    neurons: list[str] = dataclasses.field(default_factory=list)
    calibration: str = ""

    @property
    def settings(self) -> dict[str, Any]:
        return self.model.config.settings()

    @property
    def tested(self) -> dict[int, float]:
        """Test accuracies by step: what the run logged, at its end only if it has a validation set, and what the shown
        checkpoint has."""
        known = {line["step"]: line["test_accuracy"] for line in self.lines if "test_accuracy" in line}
        for step, name in ((self.best["step"], "best_test_accuracy"), (self.final.get("step"), "test_accuracy")):
            if name in self.final:
                known[step] = self.final[name]
        return known | ({self.model.step: self.evaluation.accuracy} if self.evaluation else {})

    @property
    def class_rows(self) -> list[tuple[Any, ...]]:
        """Name, precision, recall, F1 and number of examples of each class."""
        return list(zip(self.model.classes, *self.evaluation.per_class.values(), strict=True))

    @property
    def matrix(self) -> list[tuple[Any, list[tuple[int, int, bool]]]]:
        """The confusion matrix by rows: counts, their share of the row in percent, and whether they are right."""
        confusion = self.evaluation.confusion
        shares = np.rint(100 * confusion / np.maximum(confusion.sum(axis=1, keepdims=True), 1)).astype(int)
        return [
            (name, [(int(n), max(int(share), 12), row == column)
                    for column, (n, share) in enumerate(zip(confusion[row], shares[row], strict=True))])
            for row, name in enumerate(self.model.classes)
        ]

    @property
    def changed(self) -> list[str]:
        """Names of the settings that are not at their defaults."""
        defaults = Config().settings()
        return [name for name, value in self.settings.items() if value != defaults[name]]

    @property
    def time(self) -> list[tuple[str, float, float]]:
        """What the run's time went to: seconds, and their share of all; steps that were kept first, then the most."""
        wall = sum(self.goodput.values())
        parts = sorted(self.goodput.items(), key=lambda part: (part[0] != "train", -part[1]))
        return [(name, seconds, seconds / wall) for name, seconds in parts if wall and (seconds or name == "train")]

    @property
    def processes(self) -> list[tuple[str, dict[str, float], int]]:
        """Of each of several processes, by the lines with as many as the last one: its host, where a line names it;
        what a step took it by itself, in milliseconds by part, the median of the lines; and how many lines name it as
        the slowest."""
        timed = [line["process_seconds"] for line in self.lines if "process_seconds" in line]
        alike = [each for each in timed if len(each["load"]) == len(timed[-1]["load"])]
        named = [line["slowest"] for line in self.lines if "slowest" in line]
        found = []
        for process in range(len(timed[-1]["load"]) if timed else 0):
            usual = {part: 1000 * float(np.median([each[part][process] for each in alike if part in each]))
                     for part in timed[-1]}
            hosts = [slow["host"] for slow in named if slow["process"] == process]
            found.append((hosts[-1] if hosts else "", usual, len(hosts)))
        return found

    @property
    def end(self) -> str:
        """How the run ended, or that it has not."""
        last = self.lines[-1]["step"] if self.lines else 0
        if self.final:
            return f"finished at step {self.final['step']:,}"
        if self.sessions and "end" in self.sessions[-1]:
            return f"stopped at step {self.sessions[-1]['end']:,}: {self.sessions[-1]['reason']}"
        return f"is training, or was killed, after the line of step {last:,}"


def show(path: Path, name: str, colour: str, checkpoint: str) -> Run:
    """What there is of the run in this folder; raises InputError as load does."""
    model = load(path, checkpoint)
    found, sessions = read_lines(path), read_sessions(path)
    lines = [line for line in found.values if not line.get("final")]
    final: dict[str, Any] = next((line for line in found.values if line.get("final")), {})
    times = [(step, _time(path / "checkpoints" / str(step))) for step in checkpoints.steps(path)]
    left_out = [file.damage for file in (found, sessions) if file.damaged]
    ends = [line for line in sessions.values if line.keys() & {"start", "end"}]
    spent = goodput.parts(sessions.values)
    run = Run(name, str(path.absolute()), colour, model, lines, final, best(lines), times, ends, spent, left_out)
    run.neurons = _neurons(model)
    try:
        data = run_data.read(model)
        run.steps_per_epoch = -(-len(data.train) // model.config.batch_size)
        _evaluate(run, data.test)
    except InputError as error:
        run.problem = str(error)
    return run


def _time(folder: Path) -> str:
    try:
        return f"{datetime.fromtimestamp(folder.stat().st_mtime, UTC):%Y-%m-%d %H:%M:%S}"
    except OSError:
        return "deleted since"


def _shape(model: Model) -> PictureShape | None:
    """What the run's pictures are like; None if it was trained on rows of other things."""
    given = [size for size in model.data_info.get("shape") or [] if size != 1]
    if model.data_info and len(given) < 2:
        return None
    try:
        return picture_shape(model.num_features, model.data_info, model.reading)
    except InputError:
        return None


def _neurons(model: Model) -> list[str]:
    """Pictures of the first layer's weights, of the neurons with the largest ones."""
    shape, weights = _shape(model), model.params[0][0]
    if shape is None or shape.channels != 1:
        return []
    strongest = np.argsort(-np.linalg.norm(weights, axis=1))[:_NEURONS]
    return [charts.weight_picture(weights[n].reshape(shape.height, shape.width)) for n in strongest]


class _Answers:
    """Of examples that are shown to the network some at a time, those of its worst mistakes."""

    def __init__(self) -> None:
        self._seen = 0
        self.worst: list[tuple[int, int, int, float, np.ndarray]] = []  # index, label, prediction, confidence, features

    def watch(self, seen: Seen) -> None:
        images, labels, predicted, log_probs = seen
        assert images is not None  # of a single process
        confidence = np.exp(log_probs.max(axis=1))
        for i in np.flatnonzero(predicted != labels):
            mistake = (self._seen + int(i), int(labels[i]), int(predicted[i]), float(confidence[i]), images[i].copy())
            self.worst.append(mistake)
        self.worst = sorted(self.worst, key=lambda mistake: -mistake[3])[:_MISTAKES]
        self._seen += len(labels)


def _evaluate(run: Run, dataset: Examples) -> None:
    """Fills in what needs the test set, each example of which is read once."""
    model, answers = run.model, _Answers()
    run.evaluation = model.evaluate_set(dataset, answers.watch)
    sure, right = run.evaluation.calibration
    run.calibration = charts.calibration(sure, right, run.colour)
    run.mistakes = [
        Mistake(index, model.classes[label], model.classes[prediction], sure, _example_picture(_shape(model), features))
        for index, label, prediction, sure, features in answers.worst
    ]


def _example_picture(shape: PictureShape | None, values: np.ndarray) -> str:
    if shape is None:
        return ""
    size = (shape.height, shape.width)
    if shape.channels == 1:
        values = values.reshape(size)
    elif shape.channels_first:
        values = values.reshape(3, *size).transpose(1, 2, 0)
    else:
        values = values.reshape(*size, 3)
    return charts.picture(values, shape.largest, shape.smallest)
