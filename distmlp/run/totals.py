"""The losses of steps in flight, and the sums that the log needs."""

import dataclasses
import time
from collections import deque
from collections.abc import Callable

import jax
import numpy as np

from distmlp.errors import DivergedError


@dataclasses.dataclass
class Totals:
    """Sums that the log needs; checkpoints carry them, so that a resumed run logs the same numbers."""

    loss: float = 0.0  # summed over the examples since the last line
    examples: int = 0  # since the last line
    epoch_examples: int = 0
    epoch_seconds: float = 0.0
    total_seconds: float = 0.0

    def line(self, epoch_end: bool) -> dict[str, float]:
        """What a line of metrics.jsonl says of them; at the end of an epoch, or of the run, its speed, too."""
        line = {"train_loss": self.loss / self.examples} if self.examples else {}
        if self.epoch_seconds and epoch_end:
            line |= {"seconds": self.epoch_seconds, "examples_per_second": self.epoch_examples / self.epoch_seconds}
        return line

    def reset(self, epoch_end: bool) -> None:
        """Begins new sums, after a line."""
        self.loss, self.examples = 0.0, 0
        if epoch_end:
            self.epoch_examples, self.epoch_seconds = 0, 0.0


class Losses:
    """Losses that the devices are still computing; `settle` reads them into the totals, and stops at a NaN."""

    def __init__(self, totals: Totals, record: Callable[[int, float], None] = lambda step, loss: None) -> None:
        """`record` is called with each completed step's number and loss, in their order."""
        self.totals, self._record = totals, record
        self.last: float | None = None
        self._pending: deque[tuple[int, jax.Array, list[int]]] = deque()
        self._clock = time.monotonic()

    def add(self, step: int, losses: jax.Array, counts: list[int]) -> None:
        """The losses of the steps from number `step` on, counted from 0, and their numbers of examples."""
        losses.copy_to_host_async()
        self._pending.append((step, losses, counts))

    def settle(self, in_flight: int) -> None:
        """Reads the losses of all dispatches but the newest `in_flight`.

        Raises:
          DivergedError: one is not finite.
        """
        while len(self._pending) > in_flight:
            first, losses, counts = self._pending.popleft()
            for step, (loss, count) in enumerate(zip(np.asarray(losses), counts, strict=False), start=first + 1):
                if not np.isfinite(loss):
                    raise DivergedError(f"the loss or a gradient is not finite at step {step}: try a lower "
                                        "--learning_rate or --clip_norm")
                self.last = float(loss)
                self._record(step, self.last)
                self.totals.loss += self.last * count
                self.totals.examples += count
                self.totals.epoch_examples += count

    def settle_all(self) -> None:
        """Waits for the devices, and adds the time since the clock was started to the epoch's."""
        self.settle(0)
        now = time.monotonic()
        self.totals.epoch_seconds += now - self._clock
        self._clock = now

    def start_clock(self) -> None:
        """Training goes on now: what was before, an evaluation perhaps, is no training time."""
        self._clock = time.monotonic()
