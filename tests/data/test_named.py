"""Data sets by name: MNIST's files are read as torchvision reads them."""

import fcntl
import os
import struct
from pathlib import Path

import numpy as np
import pytest

from distmlp import Config, InputError
from distmlp.data import datasets, named

FILES = {"train-images-idx3-ubyte": (20, 28, 28), "train-labels-idx1-ubyte": (20,),
         "t10k-images-idx3-ubyte": (10, 28, 28), "t10k-labels-idx1-ubyte": (10,)}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, shape in FILES.items():
        values = rng.integers(0, 256, shape) if len(shape) == 3 else np.arange(shape[0]) % 10
        header = struct.pack(f">4B{len(shape)}i", 0, 0, 8, len(shape), *shape)
        (raw / name).write_bytes(header + values.astype(np.uint8).tobytes())
    return tmp_path


def test_mnist_is_what_torchvision_reads(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from torchvision.datasets import MNIST  # slow

    monkeypatch.setattr(named, "_torchvision", lambda *_: pytest.fail("torchvision was asked, which takes a second"))
    data = datasets.load(Config(dataset="mnist", data_dir=str(folder)))
    for part, train in ((data.train, True), (data.test, False)):
        images, labels = part.take(np.arange(len(part)))
        expected = MNIST(str(folder), train=train)
        assert np.array_equal(images, expected.data.reshape(len(part), -1).numpy())
        assert images.dtype == np.uint8
        assert np.array_equal(labels, expected.targets.numpy())


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"\0\0\x0d" + data[3:], lambda data: b""])
def test_damaged_files_are_named(folder: Path, damage: object) -> None:
    file = folder / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(damage(file.read_bytes()))
    with pytest.raises(InputError, match=r"--dataset=mnist.*raw"):
        datasets.load(Config(dataset="mnist", data_dir=str(folder)))


def test_two_processes_do_not_download_at_the_same_time(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with named._one_at_a_time(str(folder)):
        other = os.open(folder, os.O_RDONLY)
        with pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    os.close(other)
