"""The workdir's lock, its run.flags, and the default path."""

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from distmlp import Config, InputError
from distmlp.cluster.group import Group
from distmlp.config import resolve_paths
from distmlp.errors import WriteError
from distmlp.run.workdir import Workdir, replace_file
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
