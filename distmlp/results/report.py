"""One page that shows one run or several, for a browser without a network."""

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distmlp import optim
from distmlp.config import Config
from distmlp.results import charts, planned, shown_sweep
from distmlp.results.extras import need
from distmlp.results.models import Model
from distmlp.results.shown import Run, show
from distmlp.run import swept

_WIDEST = 40  # classes of a confusion matrix that is shown
_POINTS = 300  # of the learning rate's curve


def report(runs: list[Path], checkpoint: str = "", plan: Path | None = None) -> str:
    """The page, HTML, of these runs.

    Args:
      runs: their folders. Of a sweep's, the page shows the sweep, and the refitted model's run.
      checkpoint: see load.
      plan: a file with what `distmlp plan --json` printed, to be shown beside what the runs did.

    Raises:
      InputError: one is no run, has no such checkpoint, the plan is none, or matplotlib or jinja2 is missing.
    """
    jinja2 = need("jinja2", "report", "the report")
    need("matplotlib", "report", "the report")
    expected = planned.read(plan) if plan else None
    names = _names(runs)
    sweeps, shown = [], []
    for n, (path, name) in enumerate(zip(runs, names, strict=True)):
        colour = charts.COLOURS[n % len(charts.COLOURS)]
        if swept.is_sweep(path):
            sweeps.append(shown_sweep.show(path, name, colour))
            if sweeps[-1].found.refit is None:
                continue
            path, name = swept.refitted(path), f"{name}, refitted"
        shown.append(show(path, name, colour, checkpoint))
    environment = jinja2.Environment(
        autoescape=True, loader=jinja2.FileSystemLoader(Path(__file__).parent), trim_blocks=True, lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters["value"], environment.filters["percent"] = _value, _percent
    environment.filters["svg"] = jinja2.utils.markupsafe.Markup  # of charts only, which hold no text of the user's
    defaults = Config().settings()
    return environment.get_template("report.html").render(
        names=names, sweeps=sweeps, runs=shown, curves=_curves(shown),
        planned=planned.rows(expected, shown) if expected else [],
        validated=any("validation_accuracy" in run.best for run in shown),
        other=any(run.model.step != run.best["step"] for run in shown), widest=_WIDEST,
        settings=list(defaults), defaults=defaults,
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


def _percent(share: Any) -> str:
    return f"{100 * share:.2f} %" if isinstance(share, float) else "not known"  # an undefined value of jinja2's


def _curves(runs: list[Run]) -> list[tuple[str, str, str]]:
    """The charts over steps that all runs share: title, SVG and what its lines are."""
    found = []
    for title, label, names, log in (
        ("Loss", "loss", ("train_loss", "validation_loss", "test_loss"), True),
        ("Accuracy", "accuracy", ("train_accuracy", "validation_accuracy", "test_accuracy"), False),
        ("Throughput", "examples a second", ("examples_per_second",), False),
    ):
        curves, dots, kinds = [], [], set()
        for run in runs:
            for name in names:
                points = [(line["step"], line[name]) for line in run.lines if name in line]
                if points:
                    steps, numbers = zip(*points, strict=True)
                    curves.append(charts.Curve(steps, numbers, run.colour, name.startswith("train_")))
                    kinds.add(name.partition("_")[0])
            for name, step in ((f"best_test_{label}", run.best["step"]), (f"test_{label}", run.final.get("step", 0))):
                if name in run.final:
                    dots.append(charts.Curve([step], [run.final[name]], run.colour))
        if curves:
            whole = " set, or ".join(kind for kind in ("validation", "test") if kind in kinds)
            note = f"Broken lines: training set. Whole lines: {whole} set." if len(kinds) > 1 else ""
            note += " Dots: test set, of the best and of the last checkpoint." if dots else ""
            found.append((title, charts.chart([*curves, *dots], label, log=log), note))
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
