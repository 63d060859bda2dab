"""Looks for a learning rate with Optuna, all in one process: the validation set chooses, the test set is left alone.

    pip install -e '.[examples]' && python examples/sweep.py
"""

import argparse
import tempfile

import optuna

from distmlp import Config, train
from distmlp.errors import DivergedError


def validation_accuracy(learning_rate: float, epochs: int) -> float:
    """Of the best checkpoint of a run at this rate; 0 if it diverges."""
    with tempfile.TemporaryDirectory() as folder:
        config = Config(
            dataset="digits", validation_fraction=0.2, shuffle=True, input_scaling="standard", hidden_sizes=(128,),
            batch_size=64, num_epochs=epochs, optimizer="adam", learning_rate=learning_rate, workdir=f"{folder}/run",
        )
        try:
            history = train(config).history
        except DivergedError:
            return 0.0
    return max(float(line["validation_accuracy"]) for line in history if "validation_accuracy" in line)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--epochs", type=int, default=5)
    given = parser.parse_args()

    def objective(trial: optuna.Trial) -> float:
        return validation_accuracy(trial.suggest_float("learning_rate", 1e-5, 1e-1, log=True), given.epochs)

    study = optuna.create_study(direction="maximize", sampler=optuna.samplers.TPESampler(seed=0))
    study.optimize(objective, n_trials=given.trials)
    print(f"best learning rate {study.best_params['learning_rate']:.2g}: validation accuracy {study.best_value:.2%}")


if __name__ == "__main__":
    main()
