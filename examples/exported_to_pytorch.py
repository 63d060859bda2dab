"""Uses an exported network from PyTorch: nothing of distmlp or JAX is imported.

    distmlp train digits.flags --workdir=runs/exported
    distmlp export runs/exported --format=safetensors --output=model.safetensors
    python examples/exported_to_pytorch.py model.safetensors
"""

import argparse
import itertools
import json

import numpy as np
import safetensors
import torch
from sklearn.datasets import load_digits


class Scaling(torch.nn.Module):
    """What training did to its inputs, where the file has that beside the layers; else they do it themselves."""

    def __init__(self, shift: torch.Tensor, scale: torch.Tensor) -> None:
        super().__init__()
        self.shift, self.scale = shift, scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x - self.shift) * self.scale


def load(path: str) -> tuple[torch.nn.Module, list[str]]:
    """The network, of whatever layers, and the names of its classes; it takes inputs as training did, unscaled."""
    with safetensors.safe_open(path, framework="pt") as file:
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no dict
        metadata = file.metadata()
    scaling = [Scaling(tensors.pop("shift"), tensors.pop("scale"))] if "shift" in tensors else []
    weights = [tensors[f"{2 * n}.weight"] for n in range(len(tensors) // 2)]
    layers: list[torch.nn.Module] = []
    for weight in weights:
        layers += [torch.nn.Linear(weight.shape[1], weight.shape[0]), torch.nn.ReLU()]
    net = torch.nn.Sequential(*itertools.islice(layers, len(layers) - 1))  # no ReLU at the end
    net.load_state_dict(tensors)
    return torch.nn.Sequential(*scaling, net), json.loads(metadata["classes"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", help="of distmlp export --format=safetensors")
    given = parser.parse_args()

    net, classes = load(given.file)
    images, digits = load_digits(return_X_y=True)
    with torch.no_grad():
        probabilities = torch.softmax(net(torch.as_tensor(images, dtype=torch.float32)), dim=1)
    named = np.array(classes)[probabilities.argmax(dim=1)]
    right = int((named == np.array([classes[digit] for digit in digits])).sum())
    print(f"{right} of {len(digits)} right, training images included")


if __name__ == "__main__":
    main()
