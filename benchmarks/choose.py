"""How digits.flags and fast.flags were chosen: candidates around them, on training examples that they do not train on.
No test example takes part.

Of the candidates within one standard error of the best mean accuracy: for digits.flags, by five-fold cross-validation
inside the training set, the one with the strongest weight decay, and then the smallest rate; for fast.flags, with the
last 10,000 training images held out, the one with the fewest steps, and then the highest mean.

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
                history = train(config, (x[fit], y[fit]), (x[held], y[held])).history
                found += [line["test_accuracy"] for line in history if "test_accuracy" in line][-1:]
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
            "seeds": 1 if name.startswith("digits") else 2 if args.quick else 3,
        })
        measured = harness.compare([worker], len(candidates))[name]
        results[name] = [candidate | row for candidate, row in zip(candidates, measured, strict=True)]
        tables.append(_table(name, results[name], list(grid)))
    harness.report(args, "The configs' recipes", tables, results)


def _table(name: str, rows: list[dict[str, float]], varied: list[str]) -> str:
    best = max(rows, key=lambda row: row["mean"])
    close = [row for row in rows if row["mean"] >= best["mean"] - best["error"]]
    if name.startswith("digits"):
        chosen = max(close, key=lambda row: (row["weight_decay"], -row["learning_rate"]))
    else:
        chosen = min(close, key=lambda row: (row["max_steps"], -row["mean"]))
    lines = [[*(f"{row[key]:g}" for key in varied), f"{100 * row['mean']:.2f} % ± {100 * row['error']:.2f}",
              f"{100 * row['lowest']:.2f} %", "chosen" if row is chosen else ""] for row in rows]
    return harness.table([*varied, "mean accuracy ± its error", "lowest", name], lines)


if __name__ == "__main__":
    main()
