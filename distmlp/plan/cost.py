"""How long a step takes: a model of few figures, to see what bounds a run and how far it scales.

    step = max(FLOPs / rate of products, bytes / memory bandwidth, kernels x time of a kernel) + messages

The batch of a device is what it works on; products are counted from the layers' shapes. Bytes are what must be read and
written if nothing stays in a cache: each layer's weights and activations for each of its products, then the update.
A message of b bytes among n devices takes the shorter of

    ring  2 (n-1)/n b / link + 2 (n-1) hop,    tree  2 b / link + 2 ceil(log2 n) hop

(an all-to-all or a gather half of it). GPUs do that within each host, and then, each with its part of the message, over
the network between hosts. What the model leaves out: products that are too small to fill a card, cuBLAS's choice of
kernels, messages sent while the step still computes, and the time of hosts.
"""

import dataclasses
import itertools
import math
from collections.abc import Mapping, Sequence

from distmlp.plan.cards import Card

DEVICE_COUNTS = [2**power for power in range(13)]  # 1 to 4,096


@dataclasses.dataclass(frozen=True)
class Step:
    """What one device does in a step."""

    flops: float
    memory_bytes: float
    kernels: int
    messages: Mapping[str, tuple[int, int]]  # kind of collective -> how many, and their bytes (see `message`)


@dataclasses.dataclass(frozen=True)
class Seconds:
    """The parts of a step's time."""

    arithmetic: float
    memory: float
    launches: float
    communication: float

    @property
    def bound(self) -> str:
        """What bounds a device's own work."""
        parts = {"arithmetic": self.arithmetic, "memory": self.memory, "kernel launches": self.launches}
        return max(parts, key=lambda name: parts[name])

    @property
    def compute(self) -> float:
        return max(self.arithmetic, self.memory, self.launches)

    @property
    def step(self) -> float:
        return self.compute + self.communication


def flops(sizes: Sequence[int], examples: int) -> int:
    """Of the matrix products of a step: forwards, each layer's weights, and each layer's inputs but the first's."""
    products = [m * n for m, n in itertools.pairwise(sizes)]
    return 2 * examples * (3 * sum(products) - products[0])


def largest(sizes: Sequence[int]) -> tuple[int, int]:
    """The inputs and outputs of the layer that has the most weights."""
    return max(itertools.pairwise(sizes), key=math.prod)


def memory_bytes(sizes: Sequence[int], examples: int, input_bytes: int, state_bytes: int, value_bytes: int) -> int:
    """Read and written by a step.

    Args:
      sizes: of the layers.
      examples: rows of the batch.
      input_bytes: of one number of the data set.
      state_bytes: of parameters and optimizer state.
      value_bytes: of one number in the matrix products.
    """
    total = examples * sizes[0] * (input_bytes + 4) + 2 * state_bytes
    for layer, (m, n) in enumerate(itertools.pairwise(sizes)):
        forwards, weights, inputs = (m * n + examples * (m + n) for _ in range(3))
        total += value_bytes * (forwards + weights + (inputs if layer else 0)) + 4 * m * n
    return total


def predict(step: Step, card: Card, rate: float, devices: int) -> Seconds:
    """The time of a step on so many devices, each of which does `step`; `rate` is of its products, in FLOP/s."""
    communication = sum(
        count * message(kind, size // max(count, 1), devices, card) for kind, (count, size) in step.messages.items()
    )
    return Seconds(
        step.flops / rate, step.memory_bytes / card.bandwidth, step.kernels * card.kernel_seconds, communication
    )


def message(kind: str, size: int, devices: int, card: Card) -> float:
    """Seconds of one collective of so many bytes, those of the whole array that is added up or gathered."""
    share = 1.0 if kind == "all-reduce" else 0.5
    inner = min(devices, card.per_host or devices)
    outer = -(-devices // inner)
    inside = _all_reduce(size, inner, card.link, card.link_seconds)
    return share * (inside + _all_reduce(size / inner, outer, card.host_link, card.host_seconds))


def _all_reduce(size: float, count: int, link: float, hop: float) -> float:
    if count == 1:
        return 0.0
    ring = 2 * (count - 1) / count * size / link + 2 * (count - 1) * hop
    tree = 2 * size / link + 2 * math.ceil(math.log2(count)) * hop
    return min(ring, tree)
