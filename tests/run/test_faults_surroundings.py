"""A full or read-only disk, data that change, a second trainer, a clock set back: one clear line, nothing lost."""

import errno
import os
import shutil
import stat
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from conftest import RunTrain, make_arrays, process_env, small_config
from drills import runs
from PIL import Image

from distmlp import InputError, load, machine, train
from distmlp.cluster.group import Group
from distmlp.config import resolve_paths
from distmlp.errors import WriteError
from distmlp.parallel.digest import params_sha256
from distmlp.run.workdir import Workdir
from launch import cli, flags

FLAGS = ["--dataset=digits", "--hidden_sizes=128,64", "--momentum=0.9", "--num_epochs=3", "--reduction=invariant"]


def in_mount(script: str, tmp_path: Path) -> "subprocess.CompletedProcess[str]":
    """Runs a shell script in a mount namespace of its own; $TRAIN trains in the file system mounted at $DISK."""
    if subprocess.run(["unshare", "-rm", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs mount namespaces for users: unshare -rm")
    disk = tmp_path / "disk"
    disk.mkdir()
    command = " ".join([sys.executable, "-m", "launch.train", *FLAGS, f"--workdir={disk / 'run'}"])
    return subprocess.run(
        ["unshare", "-rm", "sh", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env=process_env() | {"DISK": str(disk), "TRAIN": command},
    )  # fmt: skip


@pytest.fixture(scope="module")
def parameters(tmp_path_factory: pytest.TempPathFactory) -> str:
    """SHA-256 of the parameters of a run that has all it needs."""
    given = ["train", *FLAGS, "--num_devices=1", f"--workdir={tmp_path_factory.mktemp('roomy') / 'run'}"]
    return params_sha256(train(flags.parse(given)).params)


@pytest.mark.parametrize(("size", "intact"), [("8k", []), ("300k", [12])])
def test_full_disk(size: str, intact: list[int], parameters: str, tmp_path: Path) -> None:
    """8k: no room for the metrics; 300k: for one checkpoint, the second fails in the background."""
    done = in_mount(
        f"mount -t tmpfs -o size={size} tmpfs $DISK && $TRAIN --keep_checkpoints=1 >/dev/null; echo code $?;"
        "ls $DISK/run/checkpoints; mount -o remount,size=64m $DISK && $TRAIN", tmp_path,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr  # with more room it goes on, to the same end
    assert "code 1\n" in done.stdout
    told = [line for line in done.stderr.splitlines() if "there are metrics but no checkpoints" not in line]
    assert len(told) == 1, done.stderr
    assert done.stderr.startswith("distmlp: error: ")
    assert "No space left on device)" in done.stderr
    if intact:
        assert f"intact checkpoints: {intact}\n" in done.stderr
    assert ("\n12\n" in done.stdout) == bool(intact)
    assert ("resuming after step 12" in done.stdout) == bool(intact)
    assert f"parameters {parameters}" in done.stdout


def test_read_only_disk(tmp_path: Path) -> None:
    train(flags.parse(["train", *FLAGS, "--num_devices=1", "--max_steps=12", f"--workdir={tmp_path / 'run'}"]))
    done = in_mount(
        "mount -t tmpfs tmpfs $DISK && cp -r run $DISK && mount -o remount,ro $DISK && $TRAIN;"
        "echo code $?; ls $DISK/run/checkpoints", tmp_path,
    )  # fmt: skip
    assert done.stdout.endswith("code 2\n12\n")
    assert len(done.stderr.splitlines()) == 1
    assert "cannot be written to (Read-only file system)" in done.stderr


def test_changed_data_are_refused(npz: str) -> None:
    train(small_config(npz, max_steps=3))
    arrays = make_arrays()
    arrays["x_train"][17, 5] ^= 1
    np.savez(npz, **arrays)
    with pytest.raises(InputError, match=r"small.npz are not those that the run in --workdir=.*run began with"):
        train(small_config(npz, max_steps=6))
    np.savez(npz, **make_arrays())
    train(small_config(npz, max_steps=6))


@pytest.mark.parametrize("name", ["y_train", "x_test", "x_train"])
def test_changed_mapped_data_are_refused(name: str, tmp_path: Path) -> None:
    """Of mapped features 64 spaced rows are looked at; of labels all."""
    folder = tmp_path / "mapped"
    folder.mkdir()
    for key, array in make_arrays().items():
        np.save(folder / f"{key}.npy", array)
    train(small_config(str(folder), max_steps=3))
    changed = make_arrays()[name]
    changed[-1] ^= 1
    np.save(folder / f"{name}.npy", changed)
    with pytest.raises(InputError, match="are not those that the run"):
        train(small_config(str(folder), max_steps=6))


def test_data_that_are_gone(npz: str) -> None:
    train(small_config(npz, max_steps=3))
    os.rename(npz, npz + ".moved")
    with pytest.raises(InputError, match=r"^--dataset=.* does not exist"):
        train(small_config(npz))
    assert runs.committed(Path("run")) == [3]


def test_the_second_trainer_on_a_workdir_is_refused(npz: str) -> None:
    config = resolve_paths(small_config(npz, max_steps=3))
    first = Workdir(config, Group())
    with pytest.raises(InputError, match="is in use by another process"):
        train(config)
    first.close()
    train(config)


def test_clock_set_back(run_train: RunTrain, npz: str, tmp_path: Path) -> None:
    """A resumed run whose clock is a year behind that of its checkpoints."""
    (tmp_path / "sitecustomize.py").write_text(
        "import time\nnow, ns, year = time.time, time.time_ns, 31536000\n"
        "time.time, time.time_ns = lambda: now() - year, lambda: ns() - year * 10**9\n"
    )
    path = os.pathsep.join([str(tmp_path), process_env()["PYTHONPATH"]])
    settings: dict[str, Any] = {"momentum": 0.9, "checkpoint_every_steps": 1, "reduction": "invariant"}
    train(small_config(npz, **settings, num_devices=1, workdir="straight"))
    train(small_config(npz, **settings, num_devices=1, max_steps=5))
    done = run_train("--flagfile=run/run.flags", "--workdir=run", "--max_steps=10", env={"PYTHONPATH": path})
    assert (done.returncode, done.stderr) == (0, "")
    assert "resuming after step 5 of 10" in done.stdout
    assert runs.committed(Path("run"))[-2:] == [9, 10]
    assert runs.sha256(Path("run")) == runs.sha256(Path("straight"))


def test_a_file_system_that_can_neither_lock_nor_sync_folders(
    npz: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """TensorStore, too, does without, or each save would fail: what it is told is looked at, for it calls no Python."""
    from orbax.checkpoint._src.serialization import tensorstore_utils

    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    def of_files(descriptor: int, fsync: Any = os.fsync) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        fsync(descriptor)

    def noted(get_ts_context: Any = tensorstore_utils.get_ts_context, **options: Any) -> Any:
        context = get_ts_context(**options)
        told.append((context["file_io_locking"].to_json(), context["file_io_sync"].to_json()))
        return context

    told: list[Any] = []
    monkeypatch.setattr(tensorstore_utils, "get_ts_context", noted)
    train(small_config(npz, max_steps=3, workdir="straight"))
    assert {str(item) for item in told} == {"({}, True)"}
    expected = params_sha256(train(small_config(npz, max_steps=6, workdir="straight")).params)
    with monkeypatch.context() as patch:
        patch.setattr("fcntl.flock", flock)
        patch.setattr("os.fsync", of_files)
        told.clear()
        train(small_config(npz, max_steps=3))
        assert params_sha256(train(small_config(npz, max_steps=6)).params) == expected
        assert {str(item) for item in told} == {"({'mode': 'none'}, False)"}
    assert capsys.readouterr().err.count("has no locks: ") == 2
    told.clear()
    train(small_config(npz, max_steps=7))
    assert {str(item) for item in told} == {"({}, True)"}


def test_a_class_with_an_umlaut_in_an_ascii_locale(run_train: RunTrain, tmp_path: Path) -> None:
    """Python then reads the names of folders without knowing their letters."""
    for name in ("Biene", "Käfer"):
        (tmp_path / "set" / name).mkdir(parents=True)
        for number in range(8):
            Image.new("L", (4, 4), 200 * (name == "Biene") + number).save(tmp_path / "set" / name / f"{number}.png")
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    done = run_train("--dataset=set", "--test_fraction=0.25", "--hidden_sizes=4", "--batch_size=6", "--num_epochs=1",
                     "--workdir=run", env=locale)  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "K\\xe4fer" in done.stdout
    log = (tmp_path / "run" / "log.txt").read_text(encoding="utf-8")
    assert "classes      2: Biene, Käfer\n" in log
    assert load(tmp_path / "run").classes == ("Biene", "Käfer")


def test_from_a_folder_of_its_source_a_version_is_unknown(
    npz: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def version(name: str, real: Any = metadata.version) -> str:
        if name == "distmlp":
            raise metadata.PackageNotFoundError(name)
        return real(name)

    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(sys, "argv", ["distmlp", "--version"])
    machine.version.cache_clear()
    try:
        train(small_config(npz, max_steps=1))
        assert f"distmlp unknown, jax {jax.__version__}," in capsys.readouterr().out
        cli.main()
        assert capsys.readouterr().out == "distmlp unknown\n"
    finally:
        machine.version.cache_clear()


@pytest.mark.parametrize("failing", [["6"], ["6", "9"], ["10"], ["10", "10"]], ids=" ".join)
def test_a_save_that_fails_in_the_background(
    failing: list[str], npz: str, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """The next one makes up for it, at the end the same once more; or the run ends."""
    from distmlp.run.store import Store

    expected = params_sha256(train(small_config(npz, workdir="straight", max_steps=10)).params)
    finish: Any = Store._finish
    once = failing.copy()

    def sabotaged(self: Store) -> None:
        for unfinished in self.path.glob("*.*tmp*"):
            if (name := unfinished.name.split(".")[0]) in once:
                once.remove(name)
                shutil.rmtree(unfinished, ignore_errors=True)
        finish(self)

    config = small_config(npz, checkpoint_every_steps=3)
    with monkeypatch.context() as patch:
        patch.setattr(Store, "_finish", sabotaged)
        if len(failing) == 1:
            assert params_sha256(train(config).params) == expected
            (told,) = capfd.readouterr().err.splitlines()
            assert told.startswith(f"distmlp: checkpoint {failing[0]} was not saved (")
            assert told.endswith("); checkpoint 9 was" if failing == ["6"] else "); the second time it was")
            assert runs.committed(Path("run")) == [5, 9, 10]
        else:
            with pytest.raises(WriteError, match=r"a checkpoint was not saved.*intact checkpoints: \[(3, 5|5, 6, 9)\]"):
                train(config)
    assert params_sha256(train(config).params) == expected
