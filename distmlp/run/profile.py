"""A profile of some steps, by JAX's profiler."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

import jax


class Profile(ExitStack):
    """Within this context profiles the steps between two numbers of completed ones, `span`; nothing, if it is empty."""

    def __init__(self, span: Sequence[int], folder: Path) -> None:
        super().__init__()
        self._first, self._end = span or (0, 0)
        self._folder, self._started = folder, False

    def at(self, step: int, settle: Callable[[], None]) -> None:
        """Starts or stops after `step` completed steps, if that is due, once `settle` has waited for the devices."""
        if not self._started and self._first <= step < self._end:
            settle()
            jax.profiler.start_trace(str(self._folder))
            self.callback(jax.profiler.stop_trace)
            self._started = True
        elif self._started and step == self._end:
            settle()
            self.close()
