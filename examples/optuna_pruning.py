"""Optuna ends runs that fall behind: pip install -e '.[examples]' && python examples/optuna_pruning.py"""

import optuna

from distmlp import Config, train


def objective(trial: optuna.Trial) -> float:
    rate = trial.suggest_float("learning_rate", 1e-3, 0.3, log=True)

    def on_line(line: dict[str, int]) -> bool:
        if not line.get("final"):
            trial.report(line["validation_accuracy"], line["step"])
        return trial.should_prune()

    _, history = train(Config(validation_fraction=0.2, num_epochs=4, learning_rate=rate, workdir=None), on_line=on_line)
    if trial.should_prune():
        raise optuna.TrialPruned
    return float(history[-2]["validation_accuracy"])


optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0)).optimize(objective, n_trials=8)
