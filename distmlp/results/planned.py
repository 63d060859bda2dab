"""What `distmlp plan --json` expected, beside what runs then did."""

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distmlp.errors import InputError
from distmlp.results.shown import Run

_NEEDED = ("target", "batch", "total_steps", "predicted_step_seconds", "checkpoint_bytes")


def read(file: Path) -> dict[str, Any]:
    """The plan in a file.

    Raises:
      InputError: it cannot be read, or is none.
    """
    remedy = "make one by `distmlp plan CONFIG.flags --json > FILE`"
    try:
        plan = json.loads(file.read_bytes())  # a BOM is allowed for
    except (OSError, ValueError) as error:
        raise InputError(f"--plan={file} cannot be read ({error}): {remedy}") from None
    if not isinstance(plan, dict) or not plan.keys() >= {*_NEEDED}:
        raise InputError(f"--plan={file} is no plan: {remedy}")
    return plan


def rows(plan: dict[str, Any], runs: Sequence[Run]) -> list[list[str]]:
    """Lines of a table: what it is, the plan, each run."""
    batch, seconds = plan["batch"]["global"], plan["predicted_step_seconds"]
    columns = [
        [plan["target"], batch, plan["total_steps"], batch / seconds, plan["checkpoint_bytes"]],
        *(_found(run) for run in runs),
    ]
    table = []
    for devices, batch, steps, rate, size in columns:
        table.append([
            str(devices), f"{batch:,}", f"{steps:,}",
            f"{1e6 * batch / rate:,.0f}" if rate else "not measured", f"{rate:,.0f}" if rate else "not measured",
            f"{size / 1e6:,.1f}",
        ])
    names = ["devices", "examples in a batch", "steps", "µs a step", "examples a second", "checkpoint, MB"]
    return [list(row) for row in zip(names, *table, strict=True)]


def _found(run: Run) -> list[Any]:
    """The same of a run: its median epoch, without the first if there are others, for that one has the warm-up."""
    rates = [line["examples_per_second"] for line in run.lines if "examples_per_second" in line]
    devices = next((session["devices"] for session in reversed(run.sessions) if "devices" in session), "not known")
    newest = Path(run.path) / "checkpoints" / str(run.checkpoints[0][0])
    size = sum(path.stat().st_size for path in newest.rglob("*") if path.is_file())
    steps = run.lines[-1]["step"] if run.lines else 0
    return [devices, run.settings["batch_size"], steps, statistics.median(rates[1:] or rates or [0]), size]
