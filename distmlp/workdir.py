"""The folder of one run: who may write to it, and what it holds besides metrics and checkpoints."""

import fcntl
import os
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from distmlp import flags
from distmlp.config import Config, InputError, differences


class Workdir:
    """WORKDIR, locked for this process; the lock dies with its holder."""

    def __init__(self, config: Config) -> None:
        """Creates the folder if need be, and takes the lock.

        Raises:
          InputError: it is no folder, cannot be written to, or another process trains in it.
        """
        self.path = Path(config.workdir) if config.workdir else _new_path(config)
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

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    def check_same_run(self, config: Config) -> None:
        """Raises InputError if the folder holds a run with other settings."""
        run_flags = self.path / "run.flags"
        if run_flags.exists():
            refuse_differences(self.path, flags.parse(["", f"--flagfile={run_flags}"]).settings(), config)

    def write_run_flags(self, config: Config) -> None:
        """Writes run.flags, whole or not at all."""
        text, target = flags.run_flags(config), self.path / "run.flags"
        if target.exists() and target.read_text() == text:
            return
        replace_file(target, text)

    def close(self) -> None:
        os.close(self._lock)


def refuse_differences(workdir: Path, saved: dict[str, Any], config: Config) -> None:
    """Raises InputError naming every setting of `config` in which it is not the run with the settings `saved`."""
    experiment = config.experiment()
    changed = differences({name: saved[name] for name in experiment if name in saved}, experiment)
    if changed:
        raise InputError(f"--workdir={workdir} holds another run ({'; '.join(changed)}): "
                         "give the same flags, or another --workdir")


def replace_file(target: Path, text: str) -> None:
    """Writes a text file so that a crash leaves the old or the new one."""
    temporary = target.with_name(target.name + ".tmp")
    with temporary.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(target)


def _new_path(config: Config) -> Path:
    name = Path(config.dataset).stem or "run"
    base = Path("runs").absolute() / f"{name}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
    path, n = base, 1
    while path.exists():  # two starts in one second, or a clock set back
        n += 1
        path = base.with_name(f"{base.name}-{n}")
    return path
