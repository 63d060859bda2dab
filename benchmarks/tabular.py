"""Tables, beside scikit-learn's MLPClassifier.

First `train` with configs/tabular.flags against its defaults: the same splits of scikit-learn's wine, breast cancer and
digits, and of a made set with text labels; five seeds. wine and the made set as CSV, else as arrays.

Then the estimator with the same network, batch and epochs, each in a process of its own that fits twice: the first fit
has all that a process does once, imports and compiling included. scikit-learn's has a StandardScaler before it, as the
estimator scales by itself. 150 rows are of the wines, and two sets are made.

    python benchmarks/tabular.py                 # both; --only=train or --only=estimator
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
FITTED = {  # the estimator's: how many rows are fitted, and the batch
    "wine": (142, 32), "wine, 150 rows": (150, 32), "breast_cancer": (455, 32), "digits": (1437, 32),
    "made, 10,000 x 50": (10_000, 32), "made, 400,000 x 50": (400_000, 256),
}  # fmt: skip
MANY_ROWS = {"made, 400,000 x 50": {"weight_decay": 0.01}}  # the default is for tables of some thousand rows
_EPOCHS = 40
_NAMES = np.array(["ash", "elm", "fir", "oak"])


def split(name: str, seed: int) -> list[Any]:
    """x_train, x_test, y_train, y_test."""
    from sklearn import datasets
    from sklearn.model_selection import train_test_split

    if name in FITTED and name.startswith("made"):
        x, y = datasets.make_classification(FITTED[name][0] + 10_000, 50, n_informative=20, n_classes=5, random_state=0)
        return train_test_split(x, y, test_size=10_000, random_state=seed)
    if name in FITTED:
        x, y = getattr(datasets, f"load_{name.partition(',')[0]}")(return_X_y=True)
        return train_test_split(x, y, train_size=FITTED[name][0], stratify=y, random_state=seed)
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


def fits(work: Work) -> Contestant:
    """Contestant: two fits in this process, and the accuracy. work: set, seed, epochs, which of the two."""
    x_train, x_test, y_train, y_test = split(work["set"], work["seed"])
    batch = FITTED[work["set"]][1]
    if work["which"] == "distmlp":
        from distmlp import MLPClassifier

        more: Any = MANY_ROWS.get(work["set"], {})
        estimator: Any = MLPClassifier(batch_size=batch, num_epochs=work["epochs"], random_state=work["seed"], **more)
    else:
        from sklearn.neural_network import MLPClassifier as Theirs
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        warnings.simplefilter("ignore")  # that it did not converge
        estimator = make_pipeline(StandardScaler(), Theirs(
            (256,), batch_size=batch, max_iter=work["epochs"], n_iter_no_change=work["epochs"],
            random_state=work["seed"],
        ))  # fmt: skip
    yield {}
    seconds = []
    for _ in range(2):
        start = time.perf_counter()
        estimator.fit(x_train, y_train)
        seconds.append(time.perf_counter() - start)
    yield {"first": seconds[0], "second": seconds[1], "accuracy": estimator.score(x_test, y_test)}


def _write(path: Path, x: np.ndarray, y: np.ndarray) -> None:
    path.parent.mkdir(exist_ok=True)
    with path.open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow([*(f"x{i}" for i in range(x.shape[1])), "label"])
        rows.writerows([*row, label] for row, label in zip(x.tolist(), y.tolist(), strict=True))


def trained(args: Any) -> tuple[list[str], dict[str, Any]]:
    """The table of `train`, and all that was measured."""
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
    return [harness.table(header, rows)], everything


def _accuracy(seeds: list[float]) -> str:
    return f"{np.mean(seeds):.2f} ± {np.std(seeds):.2f} %" if len(seeds) > 1 else f"{seeds[0]:.2f} %"


def fitted(args: Any) -> tuple[list[str], dict[str, Any]]:
    """The table of the estimator, and all that was measured."""
    epochs, rows, everything = 4 if args.quick else _EPOCHS, [], {}
    for name in list(FITTED)[1:5:3] if args.quick else FITTED:
        results: dict[str, list[harness.Numbers]] = {"distmlp": [], "MLPClassifier": []}
        for seed in range(1 if args.quick else args.repetitions):
            for which in sorted(results, reverse=bool(seed % 2)):
                work = {"set": name, "seed": seed, "epochs": epochs, "which": which}
                worker = Worker(which, "tabular:fits", work, harness.openmp(args))
                results[which] += harness.compare([worker], 1, args.patience)[which]
        everything[f"estimator: {name}"] = results
        ours, theirs = results["distmlp"], results["MLPClassifier"]
        scores = [[100 * row["accuracy"] for row in measured] for measured in (ours, theirs)]
        rows.append([
            name, *(_accuracy(score) for score in scores),
            *(harness.spread([row[key] for row in measured])
              for key in ("first", "second") for measured in (ours, theirs)),
        ])
    header = ["set", "distmlp", "scikit-learn", "first fit, s", "its, s", "second fit, s", "its, s"]
    return [harness.table(header, rows)], everything


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5, only="")
    tables, everything = [], {}
    for name, measure in (("train", trained), ("estimator", fitted)):
        if args.only in ("", name):
            more, measured = measure(args)
            tables, everything = tables + more, everything | measured
    harness.report(args, "Tables: mean test accuracy", tables, everything)


if __name__ == "__main__":
    main()
