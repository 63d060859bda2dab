"""Data given from Python: Datasets as people write them, read here or by spawned workers."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import make_arrays, process_env, small_config

from distmlp import InputError, train
from distmlp.data.datasets import ItemDataset, load
from distmlp.data.loader import NumpyLoader, StepReader
from distmlp.parallel.evaluate import Evaluator, _Steps
from distmlp.parallel.mesh import make_layout


class Vectors(torch.utils.data.Dataset[Any]):
    """The arrays of make_arrays, item by item; `noise` is random augmentation, `broken` cannot be decoded."""

    def __init__(self, kind: str = "train", noise: int = 0, broken: int = -1, listed: bool = False) -> None:
        arrays = make_arrays()
        self.images, self.answers = arrays[f"x_{kind}"], arrays[f"y_{kind}"].astype(int)
        if listed:
            self.targets = self.answers.tolist()
        self.noise, self.broken, self.read = noise, broken, list[int]()

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
        self.read.append(index)
        if index == self.broken:
            raise ValueError(f"cannot decode img{index}.png")
        change = np.random.default_rng().integers(0, self.noise + 1, 12)
        return (self.images[index] // 2 + change).astype(np.uint8), int(self.answers[index])


def test_a_set_with_random_augmentation_can_be_resumed(capsys: pytest.CaptureFixture[str]) -> None:
    def go_on(epochs: int, **changes: Any) -> None:
        train(small_config("digits", num_classes=4, num_epochs=epochs), Vectors(noise=9, **changes), Vectors("test"))

    go_on(1)
    go_on(2)
    assert "resuming after step 5 of 10" in capsys.readouterr().out
    with pytest.raises(InputError, match="are not those that the run"):
        go_on(3, listed=True)


def test_the_fingerprint_of_a_dataset_covers_what_can_be_had_without_its_values() -> None:
    def fingerprint(**changes: Any) -> str:
        return ItemDataset(Vectors(**changes), "x", 4).fingerprint()

    assert fingerprint(noise=9) == fingerprint(noise=9)
    first, changed = Vectors(listed=True), Vectors(listed=True)
    changed.targets[50] += 1
    prints = [ItemDataset(each, "x", 4).fingerprint() for each in (first, changed)]
    assert len({*prints, fingerprint(), fingerprint(kind="test")}) == 4


def test_the_order_is_that_of_the_seed_and_epoch() -> None:
    """As torch's own DistributedSampler draws it."""
    given = Vectors()
    train(small_config("digits", num_classes=4, shuffle=True, seed=7, num_devices=1), given, Vectors("test"))
    epochs = [torch.randperm(96, generator=torch.Generator().manual_seed(7 + epoch)).tolist() for epoch in (0, 1)]
    assert given.read[-192:] == epochs[0] + epochs[1]
    assert epochs[0] != epochs[1]


@pytest.mark.parametrize("devices", [1, 4, 7])
def test_nothing_is_read_for_rows_that_only_fill_up(devices: int) -> None:
    given = Vectors("test")
    dataset = ItemDataset(given, "x", 4)
    given.read.clear()
    config = small_config("digits", num_devices=devices, eval_batch_size=500)
    layout = make_layout(config)
    steps = list(StepReader(dataset, _Steps(layout, 500, 40)))
    assert given.read == list(range(40))
    assert all(images.shape == (500 * devices, 12) for images, _, _ in steps)
    given.read.clear()
    batches = list(NumpyLoader(dataset, 64, local_shards=range(devices + 2), num_shards=devices))
    assert sorted(given.read) == list(range(40))
    assert batches[0].images.shape == (devices + 2, -(-64 // devices), 12)


def test_evaluation_uses_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = ItemDataset(Vectors("test"), "x", 4)
    config = small_config("digits", num_workers=2)
    evaluator, made = Evaluator(config, make_layout(config)), []
    monkeypatch.setattr(torch.utils.data.DataLoader, "__iter__", lambda self: made.append(self.num_workers) or iter([]))
    with pytest.raises(ValueError, match="concatenate"):  # no step was read
        evaluator(None, dataset)  # type: ignore[arg-type]
    assert made == [2]


@pytest.mark.parametrize("workers", [0, 1])
def test_what_a_dataset_raises_keeps_its_cause_and_names_the_index(workers: int) -> None:
    config = small_config("digits", num_classes=4, num_workers=workers)
    with pytest.raises(InputError) as caught:
        train(config, Vectors(broken=50), Vectors("test"))
    assert str(caught.value) == "train_set: example 50 cannot be read (ValueError: cannot decode img50.png)"
    if workers:
        assert 'raise ValueError(f"cannot decode' in caught.value.__notes__[0]
    else:
        assert isinstance(caught.value.__cause__, ValueError)


def test_what_cannot_be_sent_to_workers_is_one_line() -> None:
    given = Vectors()
    given.transform = lambda x: x  # type: ignore[attr-defined]
    with pytest.raises(InputError) as caught:
        train(small_config("digits", num_classes=4, num_workers=1), given, Vectors("test"))
    assert "train_set cannot be sent to the processes of --num_workers=1" in str(caught.value)
    assert "lambdas" in str(caught.value)


def test_items_of_other_types_than_the_first_are_refused() -> None:
    items: Any = [(np.ones(4, np.uint8), 1), (np.full(4, 0.5), 0)]
    with pytest.raises(InputError, match="example 1 has values of type float32, but example 0 of uint8"):
        ItemDataset(items, "x", 2)[[0, 1]]
    items.reverse()
    assert ItemDataset(items, "x", 2)[[0, 1]][0].dtype == np.float32


def test_data_given_from_python_have_their_own_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(small_config("digits", num_classes=4, num_epochs=1, workdir=""), Vectors(), Vectors("test"))
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("Vectors-20")
    text = capsys.readouterr().out
    assert "Vectors: 96 training" in text
    assert "digits" not in text + (run / "run.flags").read_text()
    with pytest.raises(InputError, match=r"--dataset=python:Vectors: .* given from Python"):
        load(small_config("python:Vectors"))


INTERRUPTED = """
import sys, time
import numpy as np
from distmlp import Config, train
from distmlp.run.signals import Interrupted

class Slow:
    def __len__(self):
        return 300
    def __getitem__(self, index):
        time.sleep(0.002)
        return np.full(4, index % 7, np.uint8), index % 3

if __name__ == "__main__":
    config = Config(num_classes=3, num_workers=2, batch_size=10, hidden_sizes=(4,), num_epochs=10**6, workdir="run",
                    checkpoint_every_steps=10**6, compilation_cache_dir="")
    try:
        train(config, Slow(), Slow())
    except Interrupted as stop:
        print(stop)
        sys.exit(stop.exit_code)
"""


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_the_process_group_leaves_the_workers_to_the_trainer(
    signum: int, code: int, tmp_path: Path
) -> None:
    (tmp_path / "script.py").write_text(INTERRUPTED)
    child = subprocess.Popen([sys.executable, "script.py"], env=process_env(), stdout=subprocess.PIPE,
                             stderr=subprocess.STDOUT, text=True, start_new_session=True)  # fmt: skip
    assert child.stdout is not None
    for line in child.stdout:
        if line.startswith("epoch "):
            break
    os.killpg(child.pid, signum)
    output, _ = child.communicate(timeout=120)
    assert child.returncode == code, output
    assert "stopped after step" in output
    assert "exited unexpectedly" not in output
    assert [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
