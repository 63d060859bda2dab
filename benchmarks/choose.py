"""How digits.flags and fast.flags were chosen: candidates around them, on training examples that they do not train on.
No test example takes part.

digits.flags: five-fold cross-validation inside the training set; of the candidates within one standard error of the
best mean accuracy, the one with the strongest weight decay. fast.flags: the last 10,000 training images are held out;
the fewest steps with which every seed reaches 96.7 % of them, and of those the highest mean.

    python benchmarks/choose.py
"""

import dataclasses
import itertools
import tempfile
from collections.abc import Iterator
from typing import Any

import harness
import numpy as np
from harness import Numbers, Work, Worker
from ours import CONFIGS, config_of

_TARGET = 0.967


def accuracies(work: Work) -> Iterator[Numbers]:
    """Contestant: per repetition one candidate's accuracies. work: flags, candidates, folds or held_out, seeds."""
    from sklearn.model_selection import StratifiedKFold

    from distmlp import train
    from distmlp.data import datasets

    base = config_of(work)
    whole = datasets.load(base).train
    x, y = whole[np.arange(len(whole))]
    if work["folds"]:
        parts = list(StratifiedKFold(work["folds"], shuffle=True, random_state=0).split(x, y))
    else:
        parts = [(np.arange(len(y) - work["held_out"]), np.arange(len(y) - work["held_out"], len(y)))]
    yield {}
    for candidate in work["candidates"]:
        found = []
        for (fit, held), seed in itertools.product(parts, range(work["seeds"])):
            with tempfile.TemporaryDirectory() as folder:
                config = dataclasses.replace(base, workdir=folder, seed=seed, eval_train=False,
                                             eval_every_epochs=0, **candidate)
                found.append(train(config, (x[fit], y[fit]), (x[held], y[held])).history[-1]["test_accuracy"])
        yield {"mean": float(np.mean(found)), "lowest": min(found),
               "error": float(np.std(found, ddof=1) / np.sqrt(len(found)))}


def main() -> None:
    args = harness.arguments(__doc__, repetitions=1)
    grids: dict[str, dict[str, list[Any]]] = {
        "digits.flags": {"learning_rate": [0.001, 0.002, 0.004], "weight_decay": [0.3, 1.0, 3.0, 10.0]},
        "fast.flags": {"learning_rate": [0.005, 0.01, 0.02], "max_steps": [300, 340, 380, 420]},
    }
    tables, results = [], {}
    for name, grid in grids.items():
        candidates = [dict(zip(grid, values, strict=True)) for values in itertools.product(*grid.values())]
        candidates = candidates[:2] if args.quick else candidates
        worker = Worker(name, "choose:accuracies", {
            "flags": [f"--flagfile={CONFIGS}/{name}", f"--data_dir={args.data_dir}"], "candidates": candidates,
            "folds": 5 * name.startswith("digits"), "held_out": 10_000,
            "seeds": 2 if args.quick or name.startswith("digits") else 5,
        })
        measured = harness.compare([worker], len(candidates))[name]
        results[name] = [candidate | row for candidate, row in zip(candidates, measured, strict=True)]
        chosen = _digits(results[name]) if name.startswith("digits") else _fast(results[name])
        rows = [[*(f"{row[key]:g}" for key in grid), f"{100 * row['mean']:.2f} % ± {100 * row['error']:.2f}",
                 f"{100 * row['lowest']:.2f} %", "chosen" if row is chosen else ""] for row in results[name]]
        tables.append(harness.table([*grid, "mean accuracy ± its error", "lowest", name], rows))
    harness.report(args, "The configs' recipes", tables, results)


def _digits(rows: list[dict[str, float]]) -> dict[str, float]:
    best = max(rows, key=lambda row: row["mean"])
    close = [row for row in rows if row["mean"] >= best["mean"] - best["error"]]
    return max(close, key=lambda row: (row["weight_decay"], row["mean"]))


def _fast(rows: list[dict[str, float]]) -> dict[str, float] | None:
    enough = [row for row in rows if row["lowest"] >= _TARGET]
    return min(enough, key=lambda row: (row["max_steps"], -row["mean"]), default=None)


if __name__ == "__main__":
    main()
