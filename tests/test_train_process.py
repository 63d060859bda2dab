"""launch.train as a user runs it, and train() as a notebook does: finish, resume, finished already, help."""

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import tutorial
from conftest import RunTrain, make_arrays, process_env, small_config, snapshot
from drills import runs

from distmlp import Config, InputError, train
from distmlp.kept import forget
from distmlp.parallel import step
from distmlp.parallel.digest import params_sha256
from distmlp.parallel.step import gradients
from distmlp.run.log import HEADER
from launch.train import main

FLAGS = ("--hidden_sizes=8", "--batch_size=20", "--num_epochs=3", "--eval_batch_size=16", "--learning_rate=0.001",
         "--momentum=0.9", "--shuffle", "--eval_train", "--workdir=run")  # fmt: skip
TIMINGS = {"seconds", "examples_per_second", "total_seconds", "crc32"}  # and the checksum of all


def lines(workdir: Path) -> list[dict[str, Any]]:
    """metrics.jsonl without its timings."""
    texts = (workdir / "metrics.jsonl").read_text().splitlines()
    return [{name: value for name, value in json.loads(t).items() if name not in TIMINGS} for t in texts]


def test_a_run_from_start_to_finish_and_then_started_again(
    npz: str, tmp_path: Path, run_train: RunTrain, capfd: pytest.CaptureFixture[str]
) -> None:
    done = run_train(f"--dataset={npz}", *FLAGS, devices=2)
    assert (done.returncode, done.stderr) == (0, "")
    run = tmp_path / "run"
    *epochs, final = lines(run)
    assert [(line["step"], line["epoch"]) for line in epochs] == [(5, 1), (10, 2), (15, 3)]
    for line in epochs:
        assert set(line) == {"step", "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy",
                             "test_correct", "test_count"}  # fmt: skip
        assert line["test_count"] == 40
        assert line["test_accuracy"] == line["test_correct"] / 40
    assert set(final) == {"step", "epoch", "final", "params_sha256"}
    assert (final["step"], final["epoch"], final["final"]) == (15, 3, True)
    raw = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert raw["seconds"] > 0
    assert raw["examples_per_second"] == pytest.approx(96 / raw["seconds"])

    # The console: a banner, a line per epoch, and the end.
    for words in ("jax ", "2 x cpu", "shard_map", "96 training and 40 test", "12-8-4: 140 parameters",
                  "20 examples in 2 shards of at most 10, on 2 devices"):  # fmt: skip
        assert words in " ".join(done.stdout.split())
    assert [line.split()[:3] for line in done.stdout.split(HEADER)[1].splitlines()[1:4]] == [
        ["epoch", "1", "5"], ["epoch", "2", "10"], ["epoch", "3", "15"]
    ]  # fmt: skip
    assert all(len(line) <= 80 for line in done.stdout.splitlines() if str(tmp_path) not in line)
    assert f"final test accuracy {100 * epochs[-1]['test_accuracy']:.2f} %" in done.stdout
    assert final["params_sha256"] in done.stdout
    assert str(run) in done.stdout
    assert list((run / "tensorboard").glob("events.out.tfevents.*"))
    best_before_the_last = max(epochs[:2], key=lambda line: line["test_accuracy"])["step"]
    assert runs.committed(run) == sorted({10, 15, best_before_the_last})

    before = snapshot(run)
    capfd.readouterr()
    main(["train", f"--dataset={npz}", *FLAGS])  # on another number of devices, too
    assert capfd.readouterr() == (f"{run} holds this run finished, at step 15: nothing to do\n", "")
    assert snapshot(run) == before

    # run.flags repeats the run elsewhere.
    repeated = run_train("--flagfile=run/run.flags", "--workdir=again", devices=2)
    assert repeated.returncode == 0
    assert lines(tmp_path / "again") == lines(run)


def test_help(run_train: RunTrain) -> None:
    done = run_train("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "--hidden_sizes" in done.stdout
    assert "Exit codes" in done.stdout


def test_help_to_a_reader_that_has_gone_ends_quietly() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-m", "launch.train", "--help"], stdout=writer, stderr=subprocess.PIPE,
                          env=process_env(), check=False)  # fmt: skip
    os.close(writer)
    assert done.returncode in (0, -signal.SIGPIPE)
    assert done.stderr == b""


def test_a_run_that_was_extended_logs_what_an_uninterrupted_one_does(
    npz: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Stopped in the middle of an epoch, then continued."""
    given = ["train", f"--dataset={npz}", *FLAGS, "--num_devices=1"]
    main([*given, "--max_steps=7"])
    assert [line["step"] for line in lines(tmp_path / "run")] == [5, 7, 7]
    capfd.readouterr()
    main(given)
    out, err = capfd.readouterr()
    assert ("resuming after step 7 of 15" in out, err) == (True, "")
    train(small_config(npz, num_epochs=3, momentum=0.9, shuffle=True, eval_train=True, workdir="whole",
                       num_devices=1))  # fmt: skip
    assert_same_numbers(tmp_path / "run", tmp_path / "whole", but_for_step=7)


def assert_same_numbers(resumed: Path, whole: Path, but_for_step: int, rtol: float = 1e-5) -> None:
    """The resumed run's lines are the uninterrupted run's.

    The stop itself wrote a line, so that the next one's training loss is the mean from there on: together they are
    the uninterrupted one's.
    """
    found, expected = lines(resumed)[:-1], lines(whole)[:-1]
    stop = next(i for i, line in enumerate(found) if line["step"] == but_for_step)
    partial, rest = found[stop], found[stop + 1]
    first, second = but_for_step % 5 * 20, 96 - but_for_step % 5 * 20
    mean = (partial["train_loss"] * first + rest["train_loss"] * second) / 96
    del found[stop]
    found[stop] = {**rest, "train_loss": mean}
    assert [line.keys() for line in found] == [line.keys() for line in expected]
    for line, reference in zip(found, expected, strict=True):
        assert line == pytest.approx(reference, rel=rtol)


@pytest.mark.parametrize("devices", [1, 3])
def test_saved_on_8_devices_and_continued_on_fewer(devices: int, finished_run: tuple[Any, Path], tmp_path: Path,
                                                   capsys: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    config, workdir = finished_run
    shutil.copytree(workdir, tmp_path / "run")
    settings = config.settings() | {"workdir": str(tmp_path / "run"), "num_epochs": 4}
    history = train(Config(**settings | {"num_devices": devices})).history
    assert "resuming after step 10 of 20" in capsys.readouterr().out
    whole = train(Config(**settings | {"workdir": str(tmp_path / "whole"), "num_devices": 8})).history
    assert [line["step"] for line in history] == [line["step"] for line in whole] == [5, 10, 15, 20, 20]
    for line, reference in zip(history[:-1], whole[:-1], strict=True):
        assert {k: v for k, v in line.items() if k not in TIMINGS} == pytest.approx(
            {k: v for k, v in reference.items() if k not in TIMINGS}, rel=1e-5
        )


def test_resumed_by_itself_with_other_free_settings(finished_run: tuple[Any, Path], tmp_path: Path) -> None:
    config, workdir = finished_run
    shutil.copytree(workdir, tmp_path / "run")
    changes = {"workdir": str(tmp_path / "run"), "num_epochs": 3, "parallelism": "pmap", "num_devices": 5,
               "checkpoint_every_steps": 2, "eval_every_steps": 3, "keep_checkpoints": 1}  # fmt: skip
    history = train(Config(**config.settings() | changes)).history
    assert [line["step"] for line in history] == [5, 10, 12, 15, 15]


@pytest.mark.parametrize("placement", ["host", "device"])
@pytest.mark.parametrize("parallelism", ["shard_map", "pmap"])
def test_the_step_is_compiled_once(
    npz: str, placement: str, parallelism: str, compilations: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Uneven last batches, several epochs and evaluations included; and that once in a process."""
    traced: list[int] = []

    def counting(*args: Any) -> Any:
        traced.append(1)
        return gradients(*args)

    def run(epochs: int, workdir: str) -> list[str]:
        compilations.clear()
        train(small_config(npz, num_epochs=epochs, parallelism=parallelism, workdir=workdir,
                           data_placement=placement))  # fmt: skip
        return list(compilations)

    forget()
    monkeypatch.setattr(step, "gradients", counting)
    first = run(1, "first")
    assert len(traced) == 1
    short, long = run(1, "short"), run(5, "long")
    assert len(traced) == 1
    assert sorted(short) == sorted(long)
    assert len(short) < len(first)


def test_each_accuracy_is_that_of_its_set(npz: str) -> None:
    params, history = train(small_config(npz, eval_train=True, num_epochs=3, input_scaling="unit", learning_rate=0.1))
    arrays = make_arrays()
    for name in ("train", "test"):
        expected = tutorial.accuracy(params, arrays[f"x_{name}"] / np.float32(255), arrays[f"y_{name}"])
        assert history[-2][f"{name}_accuracy"] == pytest.approx(float(expected))
    assert history[-2]["train_accuracy"] != history[-2]["test_accuracy"]


class Vectors(torch.utils.data.Dataset[Any]):
    """A map-style Dataset as a user writes one; spawned workers import it."""

    def __init__(self, name: str, bad: int = -1) -> None:
        arrays = make_arrays()
        self.images, self.labels, self.bad = arrays[f"x_{name}"], arrays[f"y_{name}"], bad

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        label = int(self.labels[index])
        return torch.from_numpy(self.images[index]), 99 if index == self.bad else label


def test_notebook_style_with_torch_datasets_and_a_spawned_worker(npz: str) -> None:
    """The same parameters as from the file, which is read in whole batches."""
    test = Vectors("test")
    tensors = torch.utils.data.TensorDataset(torch.from_numpy(test.images), torch.from_numpy(test.labels))
    given = train(small_config("digits", num_classes=4, num_workers=1, shuffle=True, workdir="given"),
                  Vectors("train"), tensors)  # fmt: skip
    plain = train(small_config(npz, shuffle=True, workdir="plain", data_placement="host"))
    assert params_sha256(given.params) == params_sha256(plain.params) == plain.history[-1]["params_sha256"]
    assert [line.get("test_loss") for line in given.history] == [line.get("test_loss") for line in plain.history]
    assert all(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(given.params))


def test_a_bad_item_ends_in_one_line() -> None:
    """From a worker, too: data/test_given.py."""
    config = small_config("digits", num_classes=4)
    with pytest.raises(InputError) as caught:
        train(config, Vectors("train", bad=50), Vectors("test"))
    assert str(caught.value).startswith("train_set: example 50: label 99 is out of range for 4 classes")
    assert "\n" not in str(caught.value)


def test_a_new_workdir_each_time(npz: str, tmp_path: Path) -> None:
    for _ in range(2):
        train(small_config(npz, num_epochs=1, workdir=""))
    folders = sorted((tmp_path / "runs").iterdir())
    assert len(folders) == 2
    assert all(path.name.startswith("small-20") for path in folders)


@pytest.mark.parametrize(
    ("parallelism", "changes"),
    [
        ("shard_map", {"optimizer": "adam", "compute_dtype": "bfloat16", "clip_norm": 1.0}),
        ("pmap", {"optimizer": "adamw", "weight_decay": 0.1, "schedule": "warmup_cosine", "warmup_steps": 2}),
        ("single", {"num_devices": 1, "num_shards": 3, "learning_rate": 0.5, "momentum": 0.9}),
        ("shard_map", {"num_devices": 3, "num_shards": 8, "reduction": "invariant", "hidden_sizes": ()}),
        ("shard_map", {"batch_size": 3, "eval_every_epochs": 0, "max_steps": 192, "learning_rate": 1.0}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value),
)
def test_every_kind_of_run_trains(parallelism: str, changes: dict[str, Any], npz: str) -> None:
    defaults: dict[str, Any] = {"input_scaling": "standard", "learning_rate": 0.1, "num_epochs": 8}
    history = train(small_config(npz, **defaults | {"parallelism": parallelism} | changes)).history
    losses = [line["train_loss"] for line in history if "train_loss" in line]
    assert np.isfinite(losses).all()
    assert losses[-1] < 0.8 * losses[0]
    assert history[-1]["final"]
