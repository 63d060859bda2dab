"""The folder of one run: who may write to it, and what it holds besides metrics and checkpoints."""

import fcntl
import os
import secrets
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from distmlp import flags
from distmlp.cluster import group
from distmlp.config import FROM_PYTHON, Config, InputError, differences


class WriteError(OSError):
    """A file of the run could not be written; checkpoints saved before are intact."""

    def __init__(self, path: Path, reason: str, note: str = "") -> None:
        super().__init__(f"{path} could not be written ({reason}): make room or mend it, then start again{note}")


class Workdir:
    """WORKDIR, locked for this process; the lock dies with its holder."""

    def __init__(self, config: Config) -> None:
        """Creates the folder if need be, and takes the lock; of several processes, the first one does.

        Raises:
          InputError: it is no folder, cannot be written to, or another run is using it.
        """
        self.path = Path(config.workdir) if config.workdir else _new_path(config)
        self._lock = -1
        failure: InputError | None = None
        if group.is_first():
            try:
                self._acquire()
            except InputError as error:
                failure = error
        if not group.decide(failure is None):
            raise failure or InputError(f"--workdir={self.path}: process 0 cannot use it")
        self._check_shared()

    def _acquire(self) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"--workdir={self.path} is a file, or lies below one: give a folder") from None
        except OSError as error:
            raise InputError(f"--workdir={self.path} cannot be written to ({error.strerror}): "
                             "give a folder that can") from None
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(self._lock)
            raise InputError(f"--workdir={self.path} is in use by another process: "
                             "wait for it, or give another folder") from None
        if group.several():
            os.truncate(self._lock, 0)
            os.write(self._lock, secrets.token_bytes(16))

    def _check_shared(self) -> None:
        """Every process must see what the first one wrote into the lock file."""
        try:
            token = (self.path / "lock").read_bytes()
        except OSError:
            token = b""
        seen = group.gather(zlib.crc32(token) >> 1)
        alien = np.flatnonzero(seen != seen[0])
        if len(alien):
            raise InputError(f"--workdir={self.path} is not shared: process {alien[0]} does not see what process 0 "
                             "wrote there; give a folder that all processes see")

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def check_same_run(self, config: Config) -> None:
        """Raises InputError if the folder holds a run with other settings."""
        run_flags = self.path / "run.flags"
        if run_flags.exists():
            try:
                saved = flags.parse(["", f"--flagfile={run_flags}"]).settings()
            except InputError as error:
                raise InputError(f"{run_flags} is damaged ({error}): bring it back from a copy, "
                                 "or give another --workdir") from None
            refuse_differences(self.path, saved, config)

    def write_run_flags(self, config: Config) -> None:
        """Writes run.flags, whole or not at all."""
        if not group.is_first():
            return
        text, target = flags.run_flags(config), self.path / "run.flags"
        if target.exists() and target.read_text() == text:
            return
        replace_file(target, text)

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)


def refuse_differences(workdir: Path, saved: dict[str, Any], config: Config) -> None:
    """Raises InputError naming every setting of `config` in which it is not the run with the settings `saved`."""
    experiment = {f"--{name}": value for name, value in config.experiment().items()}
    shared = {f"--{name}": value for name, value in saved.items() if f"--{name}" in experiment}
    changed = differences(shared, experiment)
    if changed:
        raise InputError(f"--workdir={workdir} holds another run ({'; '.join(changed)}): "
                         "give the same flags, or another --workdir")


def replace_file(target: Path, text: str) -> None:
    """Writes a text file so that a crash leaves the old or the new one."""
    temporary = target.with_name(target.name + ".tmp")
    try:
        with temporary.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise WriteError(target, error.strerror or str(error)) from None


def _new_path(config: Config) -> Path:
    name = Path(config.dataset.removeprefix(FROM_PYTHON)).stem or "run"
    base = Path("runs").absolute() / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path, n = base, 1
    while path.exists():  # two starts in one second, or a clock set back
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path
