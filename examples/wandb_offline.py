"""Weights & Biases keeps each line in a folder, for `wandb sync`.

    pip install wandb && python examples/wandb_offline.py
"""

import wandb

from distmlp import Config, train

config = Config(dataset="digits", num_epochs=3, workdir=None)
with wandb.init(project="digits", mode="offline", config=config.settings("experiment", "length")) as run:
    train(config, on_line=run.log)
