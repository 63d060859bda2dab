"""The folder of one run: which process may write to it, and what all its files are written by."""

import contextlib
import fcntl
import itertools
import os
import secrets
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from distmlp.cluster.group import Group
from distmlp.config import FROM_PYTHON, Config, run_flags
from distmlp.errors import InputError, WriteError


class Workdir:
    """WORKDIR, locked for this run: the system frees the lock when the process that holds it ends, however it ends."""

    def __init__(self, config: Config, group: Group) -> None:
        """Creates the folder if need be, and locks it, or raises InputError; of several processes the first does so."""
        name = f"{Path(config.dataset.removeprefix(FROM_PYTHON)).stem or 'run'}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        self.path = Path(config.workdir) if config.workdir else new_path(Path("runs").absolute() / name)
        self._group, self._lock = group, -1
        if self._group.first:
            self._acquire()
        self._check_shared()

    def _acquire(self) -> None:
        try:
            made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self.path.mkdir(parents=True, exist_ok=True)
            for folder in made:
                sync(folder.parent)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"--workdir={self.path} is a file, or lies below one: give a folder") from None
        except BlockingIOError:
            raise InputError(f"--workdir={self.path} is in use by another process: "
                             "wait for it, or give another folder") from None
        except OSError as error:
            raise InputError(f"--workdir={self.path} cannot be written to ({error.strerror}): "
                             "give a folder that can") from None
        if self._group.several:
            os.truncate(self._lock, 0)
            os.write(self._lock, secrets.token_bytes(16))

    def _check_shared(self) -> None:
        """Raises InputError unless every process sees what the first one wrote into the lock file."""
        self._group.barrier()
        lock = self.path / "lock"
        first, *others = self._group.exchange(lock.read_bytes().hex() if lock.exists() else None)
        for process, seen in enumerate(others, start=1):
            if seen != first:
                raise InputError(f"--workdir={self.path} is not shared: process {process} does not see what process "
                                 "0 wrote there; give a folder that all processes see")

    def write_run_flags(self, config: Config) -> None:
        if self._group.first:
            replace_file(self.path / "run.flags", run_flags(config))

    def close(self) -> None:
        if self._lock >= 0:
            os.close(self._lock)


def replace_file(target: Path, text: str) -> None:
    """Writes a text file so that a crash leaves either the old text or the new one."""
    temporary = target.with_name(target.name + ".tmp")
    with writing(target):
        temporary.write_text(text)
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes an OSError within it a WriteError of this path."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, error.strerror or str(error)) from None


def sync(path: Path) -> None:
    """Returns when the disk holds what was written to a file, or which names are in a folder."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def new_path(path: Path) -> Path:
    """This path, or if it exists the first of NAME-2, NAME-3, ... that does not exist."""
    names = itertools.chain([path.name], (f"{path.stem}-{n}{path.suffix}" for n in itertools.count(2)))
    return next(new for name in names if not (new := path.with_name(name)).exists())
