"""Bad input ends in one line that names the flag or file and the remedy, with exit code 2, and changes no file."""

import os
import re
import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunTrain, make_arrays, snapshot

Refused = Callable[..., str]


@pytest.fixture
def refused(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Refused:
    """refused(*flags): the error line of launch.train's main, in this process; checks what all bad input shares."""
    from launch import command, train

    def run(*flags: str) -> str:
        before = snapshot(tmp_path)
        capfd.readouterr()
        with pytest.raises(Exception) as caught:  # noqa: PT011 - `ending` tells them apart
            train.main(["train", *flags])
        assert capfd.readouterr().err == ""
        code, error = command.ending(caught.value)
        error += "\n"
        assert_one_line(code, error)
        after = snapshot(tmp_path)
        for name, (_, digest) in before.items():
            assert after[name][1] == digest, f"{name} was changed"
        return error

    return run


def assert_one_line(code: int, error: str) -> None:
    assert code == 2, error
    assert error.startswith("distmlp: error: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")


@pytest.mark.parametrize(
    ("flags", "names", "remedy"),
    [
        (["--nonsense=1"], "--nonsense", "--helpfull lists them all"),
        (["--batch_siz=8"], "--batch_siz", "did you mean --batch_size"),
        (["stray"], "'stray'", "--name=value"),
        (["--flagfile=absent.flags"], "--flagfile=absent.flags", "give an existing file"),
        (["--dataset=cifar"], "--dataset=", "give one of digits, mnist"),
        (["--batch_size=0"], "--batch_size=0", "at least 1"),
        (["--batch_size=-4"], "--batch_size=-4", "at least 1"),
        (["--batch_size=1438"], "--batch_size=1438", "give at most 1437"),
        (["--hidden_sizes=a,b"], "--hidden_sizes=a,b", "as in 512,512"),
        (["--hidden_sizes=0"], "--hidden_sizes=0", "as in 512,512"),
        (["--learning_rate=-1"], "--learning_rate=-1.0", "above 0"),
        (["--learning_rate=fast"], "--learning_rate=fast", "give a number"),
        (["--num_epochs=0"], "--num_epochs=0", "at least 1"),
        (["--parallelism=model"], "--parallelism=model", "choose one of auto, single, pmap, shard_map"),
        (["--optimizer=lion"], "--optimizer=lion", "choose one of sgd, adam, adamw"),
        (["--compute_dtype=float8"], "--compute_dtype=float8", "choose one of float32, bfloat16"),
        (["--num_devices=9"], "--num_devices=9", "xla_force_host_platform_device_count=9"),
        (["--expect_devices=16"], "--expect_devices=16", "configs/"),
        (["--parallelism=single"], "--parallelism=single", "--num_devices=1"),
        (["--num_shards=3"], "--num_shards=3", "--num_shards=8"),
        (["--num_classes=4"], "--dataset=digits", "--num_classes=10"),
        (["--schedule=warmup_cosine", "--warmup_steps=100", "--num_epochs=1"], "--warmup_steps=100", "below"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_flags(flags: list[str], names: str, remedy: str, refused: Refused) -> None:
    line = refused(*flags)
    assert names in line
    assert remedy in line


@pytest.mark.parametrize("flag", ["dataset", "data_dir", "workdir", "compilation_cache_dir"])
@pytest.mark.parametrize("url", ["gs://bucket/run", "s3://bucket/run", "file:///tmp/run", "https://host/x.npz"])
def test_urls_as_paths(url: str, flag: str, tmp_path: Path, refused: Refused) -> None:
    line = refused(f"--{flag}={url}")
    assert f"--{flag}={url}: give a path, not a URL; buckets can be mounted" in line
    assert not list(tmp_path.iterdir())


def with_change(name: str, change: Callable[[np.ndarray], np.ndarray]) -> dict[str, np.ndarray]:
    arrays = make_arrays()
    arrays[name] = change(arrays[name])
    return arrays


def nan(array: np.ndarray) -> np.ndarray:
    array = array.astype(np.float32)
    array[5, 3] = np.nan
    return array


@pytest.mark.parametrize("kind", ["npz", "npy"])
@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({name: array for name, array in make_arrays().items() if name != "y_train"}, "y_train"),
        (with_change("y_train", lambda y: y * 1.5), "is no class"),
        (with_change("y_train", lambda y: y.astype(int) - 1), "does not have the label 3 of example"),
        (with_change("y_test", lambda y: y + 3), "out of range for 4 classes"),
        (with_change("x_train", nan), "example 5 has a value that is NaN"),
        (with_change("y_test", lambda y: y[1:]), "40 examples but 39 labels"),
        (with_change("x_test", lambda x: x[:, 1:]), "12 features"),
        (with_change("x_train", lambda x: x[:0]), "is empty"),
    ],
    ids=["missing", "fractions", "not in training", "range", "nan", "lengths", "widths", "empty"],
)  # fmt: skip
def test_arrays(arrays: dict[str, np.ndarray], words: str, kind: str, tmp_path: Path, refused: Refused) -> None:
    path = tmp_path / f"set.{kind}"
    if kind == "npz":
        np.savez(path, **arrays)
    else:
        path.mkdir()
        for name, array in arrays.items():
            np.save(path / f"{name}.npy", array)
    line = refused(f"--dataset={path}", "--batch_size=20", "--hidden_sizes=8")
    assert str(path) in line
    assert words in line


@pytest.mark.parametrize("damage", ["truncated", "corrupt", "empty", "text"])
@pytest.mark.parametrize("kind", ["npz", "npy", "mnist images", "mnist labels"])
def test_damaged_files(kind: str, damage: str, tmp_path: Path, refused: Refused) -> None:
    arrays = make_arrays()
    if kind == "npz":
        named = damaged = tmp_path / "set.npz"
        np.savez(named, **arrays)
    elif kind == "npy":
        for name, array in arrays.items():
            np.save(tmp_path / name, array)
        named = damaged = tmp_path / "y_test.npy"
    else:
        named = write_idx(tmp_path, arrays)
        damaged = named / ("train-images-idx3-ubyte" if kind == "mnist images" else "t10k-labels-idx1-ubyte")
    content = damaged.read_bytes()
    # npy and idx have no checksum: hurt the header
    middle = content.index(arrays["x_train"].tobytes()) + 500 if kind == "npz" else 2
    damaged.write_bytes({
        "truncated": content[:-7], "corrupt": content[:middle] + b"\xee\xee" + content[middle + 2 :],
        "empty": b"", "text": b"<html>not found</html>\n",
    }[damage])  # fmt: skip
    where = {"npz": f"--dataset={named}", "npy": f"--dataset={tmp_path}"}.get(kind, "--dataset=mnist")
    line = refused(where, f"--data_dir={tmp_path}", "--batch_size=20")
    assert str(named) in line
    assert "damaged" in line


def write_idx(folder: Path, arrays: dict[str, np.ndarray]) -> Path:
    """MNIST's four files, as torchvision unpacks them."""
    raw = folder / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, file in (("train", "train"), ("test", "t10k")):
        images, labels = arrays[f"x_{name}"].reshape(-1, 3, 4), arrays[f"y_{name}"]
        for array, suffix in ((images, "images-idx3-ubyte"), (labels, "labels-idx1-ubyte")):
            header = bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes()
            (raw / f"{file}-{suffix}").write_bytes(header + array.tobytes())
    return raw


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist"])
def test_a_data_set_that_is_absent_without_network(
    name: str, refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(urllib.request, "urlopen", unreachable)
    line = refused(f"--dataset={name}", "--data_dir=here")
    assert f"--dataset={name} is not in" in line
    assert "--data_dir=FOLDER" in line


SMALL = ("--hidden_sizes=8", "--batch_size=20", "--num_epochs=2", "--eval_batch_size=16", "--learning_rate=0.001")


@pytest.fixture
def run_copy(finished_run: tuple[Any, Path], tmp_path: Path) -> tuple[str, Path]:
    """--dataset of a finished run, started with the flags SMALL, and a copy of its workdir."""
    config, workdir = finished_run
    shutil.copytree(workdir, tmp_path / "run")
    return f"--dataset={config.dataset}", tmp_path / "run"


@pytest.mark.parametrize(
    ("flag", "words"),
    [
        ("--hidden_sizes=9", "--hidden_sizes was 8, is 9"),
        ("--hidden_sizes=8,8", "--hidden_sizes was 8, is 8,8"),
        ("--optimizer=adam", "--optimizer was sgd, is adam"),
        ("--seed=1", "--seed was 0, is 1"),
        ("--dataset=digits", "--dataset was"),
    ],
)
def test_a_workdir_that_holds_another_run(
    flag: str, words: str, run_copy: tuple[str, Path], refused: Refused
) -> None:
    dataset, workdir = run_copy
    before = snapshot(workdir)
    line = refused(dataset, *SMALL, f"--workdir={workdir}", flag)
    assert f"--workdir={workdir} holds another run" in line
    assert words in line
    assert "another --workdir" in line
    assert snapshot(workdir) == before


def test_a_checkpoint_of_another_architecture_moved_into_a_workdir(
    run_copy: tuple[str, Path], tmp_path: Path, refused: Refused
) -> None:
    dataset, workdir = run_copy
    other = tmp_path / "other"
    other.mkdir()
    shutil.move(workdir / "checkpoints", other / "checkpoints")
    line = refused(dataset, *SMALL, f"--workdir={other}", "--hidden_sizes=16,8")
    assert "--hidden_sizes was 8, is 16,8" in line


def test_data_that_changed_since_the_run_began(run_copy: tuple[str, Path], refused: Refused) -> None:
    dataset, workdir = run_copy
    path = Path(dataset.removeprefix("--dataset="))
    arrays, whole = make_arrays(), path.read_bytes()
    arrays["x_train"][0, 0] ^= 1
    np.savez(path, **arrays)
    try:
        line = refused(dataset, *SMALL, f"--workdir={workdir}")
    finally:
        path.write_bytes(whole)
    assert "are not those that the run" in line


def test_fewer_steps_than_the_run_has_made(run_copy: tuple[str, Path], refused: Refused) -> None:
    dataset, workdir = run_copy
    line = refused(dataset, *SMALL, f"--workdir={workdir}", "--num_epochs=1")
    assert "--num_epochs" in line
    assert "is at step 10" in line


@pytest.mark.parametrize("path", ["a_file", "a_file/below"])
def test_a_workdir_that_is_a_file(path: str, npz: str, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "a_file").write_text("precious")
    line = refused(f"--dataset={npz}", *SMALL, f"--workdir={path}")
    assert f"--workdir={tmp_path / path} is a file" in line
    assert (tmp_path / "a_file").read_text() == "precious"


@pytest.fixture
def read_only(tmp_path: Path, run_copy: tuple[str, Path]) -> Iterator[Path]:
    """A folder that cannot be written to, `run` with a finished run in it."""
    folder = tmp_path / "read_only"
    folder.mkdir()
    if os.geteuid():  # root ignores permissions
        shutil.move(run_copy[1], folder / "run")
        modes = [folder, *folder.rglob("*")]
        for path in modes:
            path.chmod(path.stat().st_mode & ~0o222)
        yield folder
        for path in modes:
            path.chmod(path.stat().st_mode | 0o200)
        return
    source = tmp_path / "source"
    source.mkdir()
    shutil.move(run_copy[1], source / "run")
    for command in (["mount", "--bind", source, folder], ["mount", "-o", "remount,bind,ro", folder]):
        if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
            subprocess.run(["umount", folder], capture_output=True, check=False)
            pytest.skip("root needs a read-only mount for this, and may not mount here")
    yield folder
    subprocess.run(["umount", folder], check=True)


@pytest.mark.parametrize("name", ["new", "run"])
def test_a_workdir_that_cannot_be_written_to(
    name: str, read_only: Path, run_copy: tuple[str, Path], refused: Refused
) -> None:
    line = refused(run_copy[0], *SMALL, f"--workdir={read_only / name}")
    assert f"--workdir={read_only / name} cannot be written to" in line
    assert "give a folder that can" in line


def test_a_workdir_that_another_process_trains_in(run_copy: tuple[str, Path], refused: Refused) -> None:
    import fcntl

    with (run_copy[1] / "lock").open("rb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        line = refused(run_copy[0], *SMALL, f"--workdir={run_copy[1]}")
    assert "is in use by another process" in line


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--nonsense=1", "--batch_size=8"], "--nonsense"),
        (["--dataset=mnist", "--data_dir=here"], "could not be downloaded"),
        (["--dataset=damaged.npz"], "damaged"),
        (["--num_devices=2", "--dataset=synthetic"], "--num_devices=2"),
    ],
    ids=["flag", "absent", "damaged", "devices"],
)  # fmt: skip
def test_as_a_process(flags: list[str], words: str, tmp_path: Path, run_train: RunTrain) -> None:
    """Nothing else reaches stderr either, from the libraries or from the interpreter's end."""
    (tmp_path / "damaged.npz").write_bytes(b"PK\x03\x04 no more")
    proxies = dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), "http://127.0.0.1:1")
    done = run_train("--batch_size=8", *flags, env=proxies)
    assert_one_line(done.returncode, done.stderr)
    assert words in done.stderr
    assert not re.search("Traceback", done.stdout)
