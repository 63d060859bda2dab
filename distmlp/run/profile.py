"""A profile of some steps, by JAX's profiler."""

from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import jax

from distmlp.run.totals import Losses


class Profile(ExitStack):
    """Within this context profiles the steps between two numbers of completed ones, `span`; nothing, if it is empty."""

    def __init__(self, span: Sequence[int], folder: Path) -> None:
        super().__init__()
        self._first, self._end = span or (0, 0)
        self._folder, self._started = folder, False

    def at(self, step: int, losses: Losses) -> None:
        """Starts or stops after so many completed steps, once the devices have done those in flight."""
        if not self._started and self._first <= step < self._end:
            losses.settle(0)
            jax.profiler.start_trace(str(self._folder))
            self.callback(jax.profiler.stop_trace)
            self._started = True
        elif self._started and step == self._end:
            losses.settle(0)
            self.close()
