"""configs/tabular.flags against scikit-learn's MLPClassifier in its defaults: the same splits of scikit-learn's wine,
breast cancer and digits, and of a made set with text labels; five seeds. wine and the made set as CSV, else as arrays.

    python benchmarks/tabular.py
"""

import csv
import dataclasses
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Contestant, Work, Worker
from ours import CONFIGS, config_of

SETS = {"wine": True, "breast_cancer": False, "digits": False, "made, with text labels": True}  # whether as CSV
_NAMES = np.array(["ash", "elm", "fir", "oak"])


def split(name: str, seed: int) -> list[Any]:
    """x_train, x_test, y_train, y_test."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    if name.startswith("made"):
        x, y = datasets.make_classification(1200, 12, n_informative=6, n_classes=4, random_state=0)
        y = _NAMES[y]
    else:
        x, y = getattr(datasets, f"load_{name}")(return_X_y=True)
    return train_test_split(x, y, test_size=0.2, stratify=y, random_state=seed)


def mlp_classifier(work: Work) -> Contestant:
    """Contestant: per repetition one fit, of seed 0, 1, ... work: set."""
    from sklearn.neural_network import MLPClassifier

    warnings.simplefilter("ignore")  # that it did not converge in its 200 epochs
    yield {}
    for seed in range(10**6):
        x_train, x_test, y_train, y_test = split(work["set"], seed)
        start = time.perf_counter()
        fitted = MLPClassifier(random_state=seed).fit(x_train, y_train)
        yield {"seconds": time.perf_counter() - start, "accuracy": fitted.score(x_test, y_test)}


def distmlp(work: Work) -> Contestant:
    """Contestant: per repetition one run, reading, compiling and saving included. work: set, flags."""
    from distmlp import train

    yield {}
    for seed in range(10**6):
        x_train, x_test, y_train, y_test = split(work["set"], seed)
        with tempfile.TemporaryDirectory() as folder:
            config = dataclasses.replace(config_of(work), seed=seed, workdir=f"{folder}/run")
            given = []
            if SETS[work["set"]]:
                config = dataclasses.replace(config, dataset=f"{folder}/set")
                for part, x, y in (("train", x_train, y_train), ("test", x_test, y_test)):
                    _write(Path(folder) / "set" / f"{part}.csv", x, y)
            else:
                given = [(x_train, y_train), (x_test, y_test)]
            start = time.perf_counter()
            history = train(config, *given).history
            seconds = time.perf_counter() - start
        yield {
            "seconds": seconds, "accuracy": next(line["test_accuracy"] for line in history if "test_accuracy" in line),
            "training": sum(line.get("seconds", 0.0) for line in history),
        }


def _write(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*(f"x{i}" for i in range(x.shape[1])), "label"])
        rows.writerows([*row, label] for row, label in zip(x.tolist(), y.tolist(), strict=True))


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5)
    flags = [f"--flagfile={CONFIGS}/tabular.flags", *(["--num_epochs=2"] if args.quick else [])]
    rows, everything = [], {}
    for name in list(SETS)[:1] if args.quick else SETS:
        workers = [
            Worker("distmlp", "tabular:distmlp", {"set": name, "flags": flags}),
            Worker("MLPClassifier", "tabular:mlp_classifier", {"set": name}, harness.openmp(args)),
        ]
        results = harness.compare(workers, 1 if args.quick else args.repetitions, args.patience)
        everything[name] = results
        ours, peer = (results[worker.name] for worker in workers)
        rows.append([
            name, *(f"{100 * np.mean([row['accuracy'] for row in measured]):.2f} %" for measured in (ours, peer)),
            *(harness.spread([row["seconds"] for row in measured]) for measured in (ours, peer)),
            harness.spread([row["training"] for row in ours]),
        ])
    header = ["set", "distmlp", "MLPClassifier", "train(), s", "fit(), s", "of train(): training steps, s"]
    harness.report(args, "Tables: mean test accuracy", [harness.table(header, rows)], everything)


if __name__ == "__main__":
    main()
