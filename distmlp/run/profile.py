"""The profile of the steps that --profile_steps names, in WORKDIR/profile."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import jax

from distmlp.errors import one_line
from distmlp.progress import Progress


class Profile:
    """A profile of some steps. Where it cannot be made or written, that is said, and training goes on."""

    def __init__(self, folder: Path, steps: Sequence[int], warn: Callable[[str], None]) -> None:
        """`steps`: how many are completed where it begins and where it ends; empty: there is no profile."""
        self._folder, self._warn = folder, warn
        self._first, self._end = steps or (0, 0)
        self._begun = self._runs = False

    def between_steps(self, progress: Progress) -> None:
        """Starts or stops the profiler, if that is due, once the devices have done the steps before."""
        if not self._begun and self._first <= progress.step < self._end:
            progress.settle()
            self._begun = True
            self._runs = self._done(self._start)
        elif self._runs and progress.step == self._end:
            progress.settle()
            self.close()

    def close(self) -> None:
        """Writes the profile, if it has begun."""
        if self._runs:
            self._runs = False
            self._done(jax.profiler.stop_trace)

    def _start(self) -> None:
        self._folder.mkdir(exist_ok=True)
        with tempfile.TemporaryFile(dir=self._folder):  # if JAX only finds at the end that it cannot write, it is stuck
            pass
        jax.profiler.start_trace(str(self._folder))

    def _done(self, call: Callable[[], None]) -> bool:
        """Whether a call of JAX's profiler went well."""
        try:
            call()
        except Exception as error:  # OSError, JAX's own of the disk, RuntimeError where another profile is being made
            self._warn(f"--profile_steps: there is no profile in {self._folder} ({one_line(error, 200)})")
            return False
        return True
