"""One page that shows one run or several, for a browser without a network."""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distmlp import optim
from distmlp.config import Config, InputError
from distmlp.data.datasets import ArrayDataset
from distmlp.results import charts, planned, splits
from distmlp.results.extras import need
from distmlp.results.load import Model, load
from distmlp.results.pictures import PictureShape, picture_shape
from distmlp.run import reader
from distmlp.run.metrics import Metrics, best

_MISTAKES, _NEURONS = 24, 32  # that are shown
_WIDEST = 40  # classes of a confusion matrix that is shown
_POINTS = 300  # of the learning rate's curve


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
    sessions: list[dict[str, Any]]
    steps_per_epoch: int
    problem: str = ""  # why there are no data, if there are none
    evaluation: Any = None
    mistakes: list[Mistake] = dataclasses.field(default_factory=list)
    neurons: list[str] = dataclasses.field(default_factory=list)
    calibration: str = ""
    calibration_error: float = 0.0

    @property
    def settings(self) -> dict[str, Any]:
        return self.model.config.settings()

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
    def end(self) -> str:
        """How the run ended, or that it has not."""
        last = self.lines[-1]["step"] if self.lines else 0
        if self.final:
            return f"finished at step {self.final['step']:,}"
        if self.sessions and "end" in self.sessions[-1]:
            return f"stopped at step {self.sessions[-1]['end']:,}: {self.sessions[-1]['reason']}"
        return f"is training, or was killed, after the line of step {last:,}"


def report(runs: list[Path], checkpoint: str = "", plan: Path | None = None) -> str:
    """The page, HTML, of these runs.

    Args:
      runs: their folders.
      checkpoint: see load.
      plan: a file with what `distmlp plan --json` printed, to be shown beside what the runs did.

    Raises:
      InputError: one is no run, has no such checkpoint, the plan is none, or matplotlib or jinja2 is missing.
    """
    jinja2 = need("jinja2", "report", "the report")
    need("matplotlib", "report", "the report")
    expected = planned.read(plan) if plan else None
    names = _names(runs)
    shown = [_run(path, names[n], charts.COLOURS[n % len(charts.COLOURS)], checkpoint) for n, path in enumerate(runs)]
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["value"] = _value
    environment.filters["svg"] = jinja2.utils.markupsafe.Markup  # of charts only, which hold no text of the user's
    defaults = Config().settings()
    return environment.get_template("report.html").render(  # type: ignore[no-any-return]
        runs=shown, planned=planned.rows(expected, shown) if expected else [], curves=_curves(shown),
        settings=list(defaults), defaults=defaults, widest=_WIDEST,
        different=[name for name in Config().settings("experiment", "length", "conduct")
                   if len({json.dumps(run.settings[name]) for run in shown}) > 1],
        titles=list(dict.fromkeys(_title(run.model) for run in shown)), made=f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
    )


def _title(model: Model) -> str:
    sizes = [model.num_features, *(len(biases) for _, biases in model.params)]
    name = model.data_info.get("name") or Path(model.config.dataset).stem
    return f"{name}, layers {'-'.join(map(str, sizes))}"


def _names(runs: list[Path]) -> list[str]:
    names = [run.absolute().name for run in runs]
    return [str(run.absolute()) if names.count(name) > 1 else name for run, name in zip(runs, names, strict=True)]


def _value(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _run(path: Path, name: str, colour: str, checkpoint: str) -> Run:
    model = load(path, checkpoint)
    history = Metrics(path / "metrics.jsonl", quiet=True).history
    lines = [line for line in history if not line.get("final")]
    final = next((line for line in history if line.get("final")), {})
    times = [(step, _time(path / "checkpoints" / str(step))) for step in reader.steps(path)]
    sessions = path / "sessions.jsonl"
    noted = [json.loads(line) for line in sessions.read_text().splitlines()] if sessions.exists() else []
    run = Run(name, str(path.absolute()), colour, model, lines, final, best(lines), times, noted, 0)
    run.neurons = _neurons(model)
    try:
        run.steps_per_epoch = -(-len(splits.split(model, "train")) // model.config.batch_size)
        _evaluate(run, splits.split(model, "test"))
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
    if model.data_info.get("columns") or (model.data_info and len(given) < 2):
        return None
    try:
        return picture_shape(model.num_features, model.data_info, model.config)
    except InputError:
        return None


def _neurons(model: Model) -> list[str]:
    """Pictures of the first layer's weights, of the neurons with the largest ones."""
    shape, weights = _shape(model), model.params[0][0]
    if shape is None or shape.channels != 1:
        return []
    strongest = np.argsort(-np.linalg.norm(weights, axis=1))[:_NEURONS]
    return [charts.weight_picture(weights[n].reshape(shape.height, shape.width)) for n in strongest]


def _evaluate(run: Run, dataset: Any) -> None:
    """Fills in what needs the test set."""
    model = run.model
    run.evaluation = model.evaluate_set(dataset)
    examples, labels = dataset[slice(None) if isinstance(dataset, ArrayDataset) else np.arange(len(dataset))]
    probabilities = model.predict(examples).probabilities
    confidence, correct = probabilities.max(axis=1), run.evaluation.predicted == labels
    run.calibration, run.calibration_error = charts.calibration(confidence, correct, run.colour)
    wrong = np.flatnonzero(~correct)
    for index in wrong[np.argsort(-confidence[wrong], kind="stable")][:_MISTAKES]:
        number = run.evaluation.predicted[index]
        run.mistakes.append(Mistake(
            int(index), model.classes[labels[index]], model.classes[number], float(probabilities[index, number]),
            _example_picture(_shape(model), examples[index]),
        ))


def _example_picture(shape: PictureShape | None, values: np.ndarray) -> str:
    if shape is None:
        return ""
    size = (shape.height, shape.width)
    if shape.channels == 1:
        return charts.picture(values.reshape(size), shape.largest)
    if shape.channels_first:
        return charts.picture(values.reshape(3, *size).transpose(1, 2, 0), shape.largest)
    return charts.picture(values.reshape(*size, 3), shape.largest)


def _curves(runs: list[Run]) -> list[tuple[str, str, str]]:
    """The charts over steps that all runs share: title, SVG and what its lines are."""
    found = []
    for title, label, names, log in (
        ("Loss", "loss", ("train_loss", "validation_loss", "test_loss"), True),
        ("Accuracy", "accuracy", ("train_accuracy", "validation_accuracy", "test_accuracy"), False),
        ("Throughput", "examples a second", ("examples_per_second",), False),
    ):
        curves, kinds = [], []
        for run in runs:
            for name in names:
                points = [(line["step"], line[name]) for line in run.lines if name in line]
                if points:
                    steps, numbers = zip(*points, strict=True)
                    curves.append(charts.Curve(steps, numbers, run.colour, name.startswith("train_")))
                    kinds.append(name)
        if curves:
            whole = "validation set, and test set at the end" if any("validation" in k for k in kinds) else "test set"
            note = f"Broken lines: training set. Whole lines: {whole}." if len({*kinds}) > 1 else ""
            found.append((title, charts.chart(curves, label, log=log), note))
    rates = [curve for run in runs if (curve := _learning_rate(run)) is not None]
    if rates:
        found.append(("Learning rate", charts.chart(rates, "learning rate"), ""))
    return found


def _learning_rate(run: Run) -> charts.Curve | None:
    config, last = run.model.config, max([line["step"] for line in run.lines], default=0)
    if not last or not run.steps_per_epoch:
        return None
    rate = optim.learning_rate(config, config.schedule_steps or config.total_steps(run.steps_per_epoch))
    steps = np.unique(np.linspace(0, last, _POINTS).astype(np.int32))
    with jax.numpy_dtype_promotion("standard"):  # optax multiplies floats by whole numbers
        values = [float(rate(step)) if callable(rate) else float(rate) for step in steps]
    return charts.Curve(steps.tolist(), values, run.colour)
