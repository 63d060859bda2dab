"""MLflow keeps the settings, and each line's numbers.

    pip install -e '.[examples]' && python examples/mlflow_tracking.py
"""

import mlflow

from distmlp import Config, train

config = Config(dataset="digits", num_epochs=3, workdir=None)
with mlflow.start_run():
    mlflow.log_params(config.settings("experiment", "length"))
    train(config, on_line=lambda line: mlflow.log_metrics(
        {name: value for name, value in line.items() if isinstance(value, float)}, step=line["step"]
    ))  # fmt: skip
