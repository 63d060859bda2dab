"""MNIST beside the tutorial, its page's tables, and the quick start. All of it: drills/tutorial_parity.py."""

import re
import resource
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import tutorial
from conftest import REPOSITORY, RunTrain
from drills.tutorial_parity import PUBLISHED

from distmlp import Config, train
from distmlp.data import datasets
from distmlp.parallel.digest import params_sha256
from launch import flags


@pytest.fixture(scope="module")
def reference(mnist_dir: str) -> tuple[Any, float]:
    """The tutorial's parameters and test accuracy after one epoch."""
    data = datasets.load(Config(dataset="mnist", data_dir=mnist_dir))
    (x, y), (x_test, y_test) = (part.take(np.arange(len(part))) for part in (data.train, data.test))
    params = tutorial.train_epoch(tutorial.initial([784, 512, 512, 10]), x, y, 128, 10)
    return params, tutorial.accuracy(params, x_test, y_test)


def one_epoch(mnist_dir: str, **changes: Any) -> Any:
    """An epoch of configs/tutorial.flags."""
    config = flags.parse(["train", f"--flagfile={REPOSITORY}/configs/tutorial.flags"])
    changes |= {"data_dir": mnist_dir, "num_epochs": 1, "eval_train": False}
    return train(Config(**config.settings() | changes))


@pytest.mark.full_xla
@pytest.mark.parametrize("placement", ["host", "device"])
def test_one_device_is_the_tutorial(placement: str, mnist_dir: str, reference: tuple[Any, float]) -> None:
    result = one_epoch(mnist_dir, num_devices=1, data_placement=placement)
    assert params_sha256(result.params) == params_sha256(reference[0])
    line = result.history[0]
    assert (line["step"], line["test_count"]) == (469, 10000)
    assert line["test_accuracy"] == round(reference[1], 4)


@pytest.mark.full_xla
def test_eight_devices_are_within_two_test_images(mnist_dir: str, reference: tuple[Any, float]) -> None:
    accuracy = one_epoch(mnist_dir, parallelism="shard_map").history[0]["test_accuracy"]
    assert abs(accuracy - reference[1]) <= 0.0002 + 1e-9


@pytest.mark.full_xla
def test_the_tables_of_the_tutorials_page(mnist_dir: str) -> None:
    config = flags.parse(["train", str(REPOSITORY / "configs/tutorial_published.flags")])
    here = {"data_dir": mnist_dir, "num_epochs": 1, "num_devices": 1, "workdir": None}
    lines = train(Config(**config.settings() | here)).history
    found = [(line["train_accuracy"], line["test_accuracy"]) for line in lines if "test_accuracy" in line]
    np.testing.assert_allclose(found, PUBLISHED[:1], rtol=0, atol=0.0006)


@pytest.mark.full_xla
def test_the_quick_start_reaches_97_percent_within_a_minute(run_train: RunTrain) -> None:
    """A minute of processor time: the time on the clock depends on what else the machine does."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = run_train(f"--flagfile={REPOSITORY}/configs/digits.flags")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert (done.returncode, done.stderr) == (0, "")
    found = re.search(r"final test accuracy ([\d.]+) %", done.stdout)
    assert found is not None
    assert float(found[1]) >= 97
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime <= 60


def test_emulated_devices_do_not_deadlock() -> None:
    """The short form of tests/drills/no_deadlock.py: one run of each way, one of each placement."""
    command = [sys.executable, "-m", "tests.drills.no_deadlock", "--runs=2", "--steps=150", "--timeout=120"]
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
