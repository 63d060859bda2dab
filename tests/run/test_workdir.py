"""The workdir's lock, its run.flags, and the default path."""

import errno
import os
import re
import stat
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from distmlp import Config, InputError
from distmlp.cluster.group import Group
from distmlp.config import resolve_paths
from distmlp.errors import WriteError
from distmlp.run.workdir import Workdir, new_path, replace_file
from launch import flags


def config(**changes: object) -> Config:
    return resolve_paths(Config(**{"workdir": "run", **changes}))


def test_one_run_at_a_time_and_the_lock_dies_with_its_holder(tmp_path: Path) -> None:
    code = (
        "from distmlp import Config\nfrom distmlp.cluster.group import Group\nfrom distmlp.run.workdir import Workdir\n"
        f"w = Workdir(Config(workdir={str(tmp_path / 'run')!r}), Group())\nprint('held', flush=True)\ninput()"
    )
    holder = subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    with holder:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InputError, match="is in use by another process"):
            Workdir(config(), Group())
        holder.kill()
    Workdir(config(), Group()).close()


def test_run_flags_are_written_whole(tmp_path: Path) -> None:
    workdir = Workdir(config(), Group())
    workdir.write_run_flags(config(seed=3))
    path = tmp_path / "run" / "run.flags"
    assert flags.parse(["", f"--flagfile={path}"]) == config(seed=3, workdir="")
    before = path.stat()
    workdir.write_run_flags(config(seed=4))
    assert path.stat().st_ino != before.st_ino  # replaced, not written over
    workdir.close()


def test_a_crash_while_a_file_is_replaced_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "file"
    replace_file(target, "old")

    def crash(*_: object) -> None:
        raise OSError(errno.ENOSPC, "disk full")

    monkeypatch.setattr("os.fsync", crash)
    with pytest.raises(WriteError, match="file could not be written"):
        replace_file(target, "new")
    assert target.read_text() == "old"


def test_the_default_workdir_is_new_and_named_after_the_data(tmp_path: Path) -> None:
    paths = []
    for dataset in ("digits", "digits", "some/where/embeddings.npz"):
        workdir = Workdir(config(workdir="", dataset=dataset), Group())
        paths.append(workdir.path)
        workdir.close()
    assert len(set(paths)) == 3
    assert all(path.parent == tmp_path / "runs" for path in paths)
    assert [path.name.split("-")[0] for path in paths] == ["digits", "digits", "embeddings"]


def test_of_two_starts_in_the_same_second_each_has_a_folder_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other one makes its folder between this one's look at the names and its own mkdir."""

    def overtaken(path: Path) -> Path:
        new = new_path(path)
        others.append(new)
        if len(others) == 1:
            new.mkdir(parents=True)
        return new

    others: list[Path] = []
    monkeypatch.setattr("distmlp.run.workdir.new_path", overtaken)
    with closing(Workdir(config(workdir="", dataset="digits"), Group())) as workdir:
        assert workdir.path == others[0].with_name(others[0].name + "-2")
        assert (workdir.path / "lock").exists()


class Several(Group):
    """Two processes, of which this is the first; `barrier` tells what the second one sees."""

    def __init__(self, folder: Path) -> None:
        super().__init__(0, 2)
        self.folder, self.seen = folder, b"not asked"

    def barrier(self) -> None:
        self.seen = (self.folder / "synced").read_bytes()

    def exchange(self, value: Any) -> list[Any]:
        return [value, self.seen.hex() if isinstance(value, str) else value]


def test_what_is_compared_over_a_network_is_on_the_server_before_the_others_look(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fsync = os.fsync

    def synced(descriptor: int) -> None:
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name == "lock":
            (tmp_path / "synced").write_bytes((tmp_path / "run" / "lock").read_bytes())
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", synced)
    Workdir(config(), Several(tmp_path)).close()
    assert len((tmp_path / "synced").read_bytes()) == 16


def test_a_folder_that_the_second_process_does_not_see_is_refused(tmp_path: Path) -> None:
    (tmp_path / "synced").write_bytes(b"of another folder")
    with pytest.raises(InputError, match=r"^--workdir=.*run is not shared: process 1 does not see what process 0 wrot"):
        Workdir(config(), Several(tmp_path))


@pytest.mark.parametrize("function", ["write", "fsync"])
def test_a_disk_that_is_full_for_the_lock(function: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(f"os.{function}", full)
        with pytest.raises(InputError, match=r"^--workdir=.*run cannot be written to \(No space left on device\)"):
            Workdir(config(), Several(tmp_path))
    Workdir(config(), Group()).close()  # the lock is free: a notebook can try again


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", flock)
    with closing(Workdir(config(), Group())) as workdir:
        assert (workdir.locks, workdir.syncs_folders) == (False, True)
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search("--workdir=.*run has no locks: start no second run there", line)


def test_locks_that_fail_otherwise_are_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr("fcntl.flock", flock)
    with pytest.raises(InputError, match="cannot be written to"):
        Workdir(config(), Group())


@pytest.mark.parametrize("number", [errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_that_cannot_sync_folders(
    number: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fsync = os.fsync

    def of_files(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr("os.fsync", of_files)
    with closing(Workdir(config(), Group())) as workdir:
        assert (workdir.locks, workdir.syncs_folders) == (True, False)
        workdir.write_run_flags(config())
        assert sorted(path.name for path in workdir.path.iterdir()) == ["lock", "run.flags"]
    (line,) = capsys.readouterr().err.splitlines()
    assert "cannot sync folders to disk: a power failure may take the newest checkpoint" in line


def test_a_file_that_cannot_be_synced_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr("os.fsync", fsync)
    with pytest.raises(InputError, match=r"file system cannot sync a file to disk \(Invalid argument\)"):
        Workdir(config(), Group())


@pytest.mark.parametrize(("method", "when", "number", "what"), [
    ("rename", lambda path, *_: path.is_dir() and any(path.iterdir()), errno.EMFILE,
     "rename a folder that holds a file (Too many open files)"),  # gcsfuse
    ("rename", lambda path, *_: path.is_dir(), errno.ENOSYS, "rename a folder that holds a file"),
    ("replace", lambda *_: True, errno.ENOSYS, "replace a file (Function not implemented)"),  # mount-s3
    ("open", lambda path, mode="r", *_: "a" in mode, errno.EPERM, "append to a file (Operation not permitted)"),
], ids=["folders with files", "folders", "files", "appending"])  # fmt: skip
def test_a_file_system_that_stands_for_a_bucket_is_refused_at_once(
    method: str, when: Any, number: int, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = getattr(Path, method)

    def limited(path: Path, *arguments: Any, **more: Any) -> Any:
        if when(path, *arguments):
            raise OSError(number, os.strerror(number))
        return real(path, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(Path, method, limited)
        with pytest.raises(InputError) as refused:
            Workdir(config(), Group())
    assert f"its file system cannot {what}" in str(refused.value)
    assert "give a folder on a disk or NFS" in str(refused.value)
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]  # nothing is left behind
    Workdir(config(), Group()).close()


def test_a_disk_that_is_full_for_the_trial_is_no_bucket(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(InputError, match=r"cannot be written to \(No space left on device\): give a folder that can"):
        Workdir(config(), Group())


def test_what_a_crash_left_of_the_trial_is_removed(tmp_path: Path) -> None:
    for name in (".trial", ".trial-renamed"):
        (tmp_path / "run" / name).mkdir(parents=True)
        (tmp_path / "run" / name / "file").touch()
    Workdir(config(), Group()).close()
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]


def test_a_name_that_is_no_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^--workdir=.*K\\udce4fer: in this locale the name is no text: set LC_ALL="):
        Workdir(config(workdir=os.fsdecode(b"K\xe4fer")), Group())
    assert list(tmp_path.iterdir()) == []


def test_names_that_are_no_text_keep_their_bytes(tmp_path: Path) -> None:
    """As argv has them in an ASCII locale, or of a file that another system named."""
    name = os.fsdecode(b"K\xe4fer")
    replace_file(tmp_path / "file", f"--dataset={name}\n")
    assert (tmp_path / "file").read_bytes() == b"--dataset=K\xe4fer\n"
