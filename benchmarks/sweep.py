"""Many small networks: a sweep beside scikit-learn's GridSearchCV, beside commands of launch.train, and beside Optuna.

The first: handwritten digits (the same 1,437 rows), 64 hidden units, batches of 64, 20 epochs of Adam, 5 folds, from
the command to the prompt, each member scored once, after its last epoch, as GridSearchCV does, and the best settings
trained again at the end. Then 32 learning rates. Then, in one process, wide networks on MNIST: four members of a sweep,
and four runs one after the other.

    python benchmarks/sweep.py [--only=folds|rates|wide]
"""

import dataclasses
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import harness
import numpy as np
from harness import Contestant, Work, Worker

DIGITS = ("--dataset=digits", "--input_scaling=standard", "--shuffle", "--hidden_sizes=64", "--batch_size=64",
          "--num_epochs=20", "--optimizer=adam")  # fmt: skip
GRID = """
import json, sys, warnings
import numpy as np
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

if __name__ == "__main__":
    with np.load(sys.argv[1]) as data:
        x, y, x_test, y_test = (data[name] for name in ("x", "y", "x_test", "y_test"))
    net = MLPClassifier((64,), batch_size=64, max_iter=20, n_iter_no_change=20, alpha=0.0)
    grid = {"mlpclassifier__learning_rate_init": json.loads(sys.argv[2])}
    search = GridSearchCV(make_pipeline(StandardScaler(), net), grid, n_jobs=2, cv=5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        search.fit(x, y)
    print(search.best_score_, search.score(x_test, y_test))
"""
OPTUNA = """
import dataclasses, json, sys
import optuna
from distmlp import train
from launch import flags

optuna.logging.set_verbosity(optuna.logging.WARNING)
rates, folder = json.loads(sys.argv[1]), sys.argv[2]
config = flags.parse(["train", *sys.argv[3:]])

def objective(trial):
    rate = trial.suggest_categorical("learning_rate", rates)
    workdir = f"{folder}/{trial.number}"
    history = train(dataclasses.replace(config, learning_rate=rate, workdir=workdir)).history
    return max(line["validation_accuracy"] for line in history if "validation_accuracy" in line)

study = optuna.create_study(direction="maximize", sampler=optuna.samplers.GridSampler({"learning_rate": rates}))
study.optimize(objective, n_trials=len(rates))
"""


def command(work: Work) -> Contestant:
    """Contestant: processes one after the other, each from its start to its end. work: commands, folder."""
    yield {}
    while True:
        start = time.perf_counter()
        for line in work["commands"]:
            done = subprocess.run(line, capture_output=True, text=True, check=False)
            if done.returncode:
                raise SystemExit(f"{' '.join(line)[:200]} failed:\n{done.stderr[-2000:]}")
        seconds = time.perf_counter() - start
        shutil.rmtree(work["folder"], ignore_errors=True)
        yield {"seconds": seconds}


def wide(work: Work) -> Contestant:
    """Contestant: networks of 512-512 in this process. work: how (sweep or train), rates, flags, folder."""
    from distmlp import sweep, train
    from launch import flags

    config = flags.parse(["train", *work["flags"]])

    def once() -> None:
        if work["how"] == "sweep":
            shutil.rmtree(work["folder"], ignore_errors=True)
            swept = dataclasses.replace(config, workdir=work["folder"])
            sweep(swept, {"learning_rate": work["rates"]}, keep=0, refit=False)
            return
        for rate in work["rates"]:
            train(dataclasses.replace(config, learning_rate=rate, workdir=None))

    once()  # compiles
    yield {}
    while True:
        start = time.perf_counter()
        once()
        yield {"seconds": (time.perf_counter() - start) / len(work["rates"])}


def main() -> None:
    args = harness.arguments(__doc__, repetitions=3, only="")
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        parts: dict[str, dict[str, Worker]] = {}
        _save_digits(folder / "digits.npz")
        (folder / "grid.py").write_text(GRID)
        (folder / "optuna_trials.py").write_text(OPTUNA)
        wanted = [args.only] if args.only else ["folds", "rates", "wide"]
        for settings in ((2, 4) if args.quick else (8, 80)) if "folds" in wanted else ():
            rates = _rates(settings)
            grid = [sys.executable, f"{folder}/grid.py", f"{folder}/digits.npz", json.dumps(rates)]
            parts[f"{settings} settings x 5 folds"] = {
                "distmlp": _swept(folder, rates, ["--folds=5", "--eval_every_epochs=20"], [*DIGITS]),
                "GridSearchCV": _worker("GridSearchCV", folder / "grid", [grid], harness.openmp(args)),
            }
        if "rates" in wanted:
            rates = _rates(3 if args.quick else 32)
            held = [*DIGITS, "--validation_fraction=0.2"]
            train = [sys.executable, "-m", "launch.train", *held]
            one = [[*train, f"--learning_rate={rate}", f"--workdir={folder}/runs/{rate}"] for rate in rates]
            trials = [sys.executable, f"{folder}/optuna_trials.py", json.dumps(rates), f"{folder}/trials", *held]
            parts[f"{len(rates)} learning rates"] = {
                "distmlp": _swept(folder, rates, [], held),
                "commands of launch.train": _worker("commands", folder / "runs", one),
                "Optuna and train": _worker("Optuna", folder / "trials", [trials]),
            }
        if "wide" in wanted:
            flags = ["--dataset=mnist", f"--data_dir={Path(args.data_dir).absolute()}", "--validation_fraction=0.1",
                     "--hidden_sizes=512,512", f"--max_steps={20 if args.quick else 800}", "--optimizer=adam"]
            work = {"rates": [0.0003, 0.001, 0.002, 0.003], "flags": flags, "folder": f"{folder}/wide"}
            parts["512-512 on MNIST, a member"] = {
                "distmlp": Worker("sweep", "sweep:wide", work | {"how": "sweep"}),
                "train, one after the other": Worker("train", "sweep:wide", work | {"how": "train"}),
            }
        rows, everything = [], {}
        for part, named in parts.items():
            workers = list(named.values())
            for worker, name in zip(workers, named, strict=True):
                worker.name = name
            if part != "512-512 on MNIST, a member":
                workers[0].measure()  # fills the cache of compiled programs
            results = harness.compare(workers, 1 if args.quick else args.repetitions, args.patience)
            everything[part] = results
            rows += [[part, name, harness.spread([row["seconds"] for row in measured]),
                      harness.spread(harness.ratios(results, name, "distmlp"))]
                     for name, measured in results.items()]  # fmt: skip
        table = harness.table(["", "", "seconds", "times distmlp"], rows)
        harness.report(args, "Many networks", [table], everything, "_".join(filter(None, ["sweep", args.only])))


def _rates(count: int) -> list[float]:
    return [float(f"{rate:.4g}") for rate in np.geomspace(0.0003, 0.03, count)]


def _swept(folder: Path, rates: list[float], given: list[str], flags: list[str]) -> Worker:
    line = [sys.executable, "-m", "launch.sweep", *flags, "--vary", "learning_rate", *map(str, rates), *given,
            f"--compilation_cache_dir={folder}/cache", f"--workdir={folder}/swept"]  # fmt: skip
    return _worker("distmlp", folder / "swept", [line])


def _worker(name: str, folder: Path, commands: list[list[str]], env: dict[str, str] | None = None) -> Worker:
    work: dict[str, Any] = {"commands": commands, "folder": str(folder)}
    return Worker(name, "sweep:command", work, env)


def _save_digits(path: Path) -> None:
    """The rows that --dataset=digits trains and tests on."""
    from distmlp import Config
    from distmlp.data import datasets

    data = datasets.load(Config())
    x, y = data.train.take(np.arange(len(data.train)))
    x_test, y_test = data.test.take(np.arange(len(data.test)))
    np.savez(path, x=x.astype(np.float64), y=y, x_test=x_test.astype(np.float64), y_test=y_test)


if __name__ == "__main__":
    main()
