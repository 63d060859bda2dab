"""The folder of one run: which process may write to it, and what all its files are written by."""

import contextlib
import errno
import fcntl
import itertools
import os
import secrets
import shutil
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from distmlp.cluster.group import Group
from distmlp.config import FROM_PYTHON, Config, run_flags
from distmlp.errors import InputError, WriteError, one_line, remark
from distmlp.machine import sync

_NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre and CIFS, as they may be mounted


class Workdir:
    """WORKDIR, locked for this run: the system frees the lock when the process that holds it ends, however it ends."""

    def __init__(self, config: Config, group: Group) -> None:
        """Creates the folder if need be, and locks it, or raises InputError; of several processes the first does so."""
        name = f"{Path(config.dataset.removeprefix(FROM_PYTHON)).stem or 'run'}-{datetime.now(UTC):%Y%m%d-%H%M%S}"
        self.path = Path(config.workdir) if config.workdir else new_path(Path("runs").absolute() / name)
        self._group, self._lock, self._given = group, -1, bool(config.workdir)
        if (shown := str(self.path).encode(errors="backslashreplace").decode()) != str(self.path):  # Orbax would fail
            raise InputError(f"--workdir={shown}: in this locale the name is no text: set LC_ALL=C.UTF-8, or give "
                             "another")
        locks = syncs_folders = True
        try:
            if self._group.first:
                locks = self._acquire()
                syncs_folders = self._try_out()
            self._check_shared()
            # Whether its file system can lock files and sync folders.
            self.locks, self.syncs_folders = self._group.decide([locks, syncs_folders])
        except BaseException:
            self.close()  # in a notebook the process lives on
            raise

    def _acquire(self) -> bool:
        """Creates the folder and locks it; False where its file system has no locks."""
        try:
            made = [folder for folder in (self.path, *self.path.parents) if not folder.exists()]
            self._make()
            for folder in made:
                sync(folder.parent)
            self._lock = os.open(self.path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            locks = _lock(self._lock)
            if self._group.several:
                os.truncate(self._lock, 0)
                os.write(self._lock, secrets.token_bytes(16))
                os.fsync(self._lock)  # else another host may see the file of a network file system empty
        except (FileExistsError, NotADirectoryError):
            raise InputError(f"--workdir={self.path} is a file, or lies below one: give a folder") from None
        except BlockingIOError:
            raise InputError(f"--workdir={self.path} is in use by another process: "
                             "wait for it, or give another folder") from None
        except OSError as error:
            raise self._not_writable(error) from None
        if not locks:
            remark(f"the file system of --workdir={self.path} has no locks: start no second run there meanwhile")
        return locks

    def _make(self) -> None:
        """Creates the folder; one that was not given is new, also where another run starts in the same second."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        default = self.path
        while True:
            try:
                self.path.mkdir(exist_ok=self._given)
                return
            except FileExistsError:
                if self._given:
                    raise
                self.path = new_path(default)

    def _try_out(self) -> bool:
        """Does once what the run has to do, in a folder that it then removes; False where folders cannot be synced.

        Raises:
          InputError: the file system cannot do something, as those that stand for a bucket.
        """
        folder, renamed = self.path / ".trial", self.path / ".trial-renamed"
        for left in (folder, renamed):  # by a crash
            shutil.rmtree(left, ignore_errors=True)
        what = "be written to"
        try:
            folder.mkdir()
            file, new = folder / "file", folder / "new"
            file.write_bytes(b"0")
            what = "append to a file"
            with file.open("ab") as opened:
                opened.write(b"1")
            what = "sync a file to disk"
            sync(file)
            what = "replace a file"
            new.touch()
            new.replace(file)
            what = "rename a folder that holds a file"
            folder.rename(renamed)
            what = "sync a folder to disk"
            synced = sync(renamed)
            what = "delete a folder"
            shutil.rmtree(renamed)
        except OSError as error:
            for left in (folder, renamed):
                shutil.rmtree(left, ignore_errors=True)
            if what == "be written to" or error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._not_writable(error) from None
            raise InputError(f"--workdir={self.path}: its file system cannot {what} ({error.strerror}), as a run has "
                             "to: give a folder on a disk or NFS, not one that stands for a bucket") from None
        if not synced:
            remark(f"the file system of --workdir={self.path} cannot sync folders to disk: a power failure may take "
                   "the newest checkpoint")
        return synced

    def _not_writable(self, error: OSError) -> InputError:
        return InputError(f"--workdir={self.path} cannot be written to ({error.strerror}): give a folder that can")

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
    """Writes a text file so that a crash leaves either the old text or the new one.

    It is of UTF-8. Names of files that are not, as in a locale without letters such as ä, keep their bytes.
    """
    temporary = target.with_name(target.name + ".tmp")
    with writing(target):
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape")
        sync(temporary)
        temporary.replace(target)
        sync(target.parent)


@contextlib.contextmanager
def writing(path: Path) -> Iterator[None]:
    """Makes an OSError within it a WriteError of this path."""
    try:
        yield
    except OSError as error:
        raise WriteError(path, error.strerror or one_line(error, 200)) from None


def _lock(descriptor: int) -> bool:
    """Locks an open file until it is closed, or raises BlockingIOError; False where its file system has no locks."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in _NO_LOCKS:
            return False
        raise
    return True


def new_path(path: Path) -> Path:
    """This path, or if it exists the first of NAME-2, NAME-3, ... that does not exist."""
    names = itertools.chain([path.name], (f"{path.stem}-{n}{path.suffix}" for n in itertools.count(2)))
    return next(new for name in names if not os.path.lexists(new := path.with_name(name)))
