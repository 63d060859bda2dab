"""Trains on a PyTorch Dataset of your own: handwritten digits, moved by up to a pixel at each reading.

    python examples/custom_dataset.py
"""

import argparse

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import Dataset

from distmlp import Config, train


class MovedDigits(Dataset[tuple[np.ndarray, int]]):
    """Images of 8 x 8 pixels and their digits. With `move`, each is moved at random, so that there is more to learn."""

    def __init__(self, images: np.ndarray, digits: np.ndarray, move: bool) -> None:
        self.images, self.targets, self.move = images.astype(np.uint8), digits.tolist(), move
        self.rng = np.random.default_rng(0)

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        image = self.images[index]
        if self.move:
            image = np.roll(image, self.rng.integers(-1, 2, size=2), axis=(0, 1))
        return image, self.targets[index]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--workdir", default="")
    given = parser.parse_args()

    images, digits = load_digits(return_X_y=True)
    parts = train_test_split(images.reshape(-1, 8, 8), digits, test_size=0.2, stratify=digits, random_state=0)
    train_images, test_images, train_digits, test_digits = parts
    config = Config(shuffle=True, input_scaling="unit", batch_size=64, num_epochs=given.epochs, optimizer="adam",
                    learning_rate=0.002, schedule="warmup_cosine", eval_every_epochs=5, workdir=given.workdir)
    _, history = train(
        config, MovedDigits(train_images, train_digits, move=True), MovedDigits(test_images, test_digits, move=False)
    )
    evaluated = [line for line in history if "test_correct" in line]
    print(f"{evaluated[-1]['test_correct']} of {evaluated[-1]['test_count']} right")


if __name__ == "__main__":  # processes of --num_workers import this file, too
    main()
