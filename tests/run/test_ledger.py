"""--ledger: what each step was made of, the same on any devices and after any end."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import small_config

from distmlp import train
from distmlp.cluster.group import Group
from distmlp.parallel.feed import Steps
from distmlp.run.ledger import Ledger, examples_sum
from distmlp.run.store import Store


def read(workdir: str | Path) -> list[dict[str, Any]]:
    """Without the checksums."""
    lines = [json.loads(line) for line in (Path(workdir) / "ledger.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "crc32"} for line in lines]


def test_the_sum_of_examples_does_not_depend_on_their_order_but_on_each_of_them() -> None:
    indices = np.arange(1000)
    whole = examples_sum(indices)
    assert examples_sum(np.random.default_rng(0).permutation(indices)) == whole
    assert (examples_sum(indices[:400]) + examples_sum(indices[400:])) % 2**64 == whole
    doubled = indices.copy()
    doubled[5], doubled[6] = 4, 7  # the plain sum stays
    assert doubled.sum() == indices.sum()
    assert examples_sum(doubled) != whole
    assert examples_sum(indices[:0]) == 0


@pytest.mark.parametrize("placement", ["host", "device"])
def test_the_ledger_is_of_the_examples_whatever_the_devices(npz: str, placement: str) -> None:
    ledgers = []
    for devices in (1, 3, 8):
        config = small_config(npz, workdir=f"run{devices}", shuffle=True, ledger=True, num_devices=devices,
                              data_placement=placement)
        train(config)
        header, *lines = read(config.workdir)
        assert header == {"examples": 96, "steps_per_epoch": 5}
        assert [line["step"] for line in lines] == list(range(1, 11))
        assert [line["count"] for line in lines] == [20, 20, 20, 20, 16] * 2
        for epoch in (lines[:5], lines[5:]):
            total = sum(int(line["examples"], 16) for line in epoch) % 2**64
            assert total == examples_sum(np.arange(96))
        ledgers.append([(line["count"], line["examples"]) for line in lines])
    assert ledgers[0] == ledgers[1] == ledgers[2]
    assert ledgers[0][:5] != ledgers[0][5:]  # shuffled


def test_losses_are_exact_and_digests_are_those_of_the_checkpoints(npz: str) -> None:
    config = small_config(npz, ledger=True, ledger_digests_every=4, num_devices=1)
    history = train(config).history
    _, *lines = read(config.workdir)
    mean = sum(float.fromhex(line["loss"]) * line["count"] for line in lines[:5]) / 96
    assert mean == history[0]["train_loss"]
    assert [line["step"] for line in lines if "digests" in line] == [4, 8, 10]
    meta = json.loads(Path(config.workdir, "checkpoints", "10", "meta", "metadata").read_text())
    assert lines[-1]["digests"] == meta["digests"]


@pytest.mark.parametrize("placement", ["host", "device"])
def test_a_resumed_run_has_the_ledger_of_an_uninterrupted_one(npz: str, placement: str) -> None:
    common = {"shuffle": True, "ledger": True, "ledger_digests_every": 2, "num_devices": 1, "num_epochs": 3,
              "data_placement": placement}
    whole = small_config(npz, workdir="whole", **common)
    train(whole)
    train(small_config(npz, workdir="parts", max_steps=7, **common))
    path = Path("parts/ledger.jsonl")
    *kept, last = path.read_text().splitlines()
    assert len(kept) == 7
    assert "digests" in last
    beyond = json.dumps({"step": 8, "count": 1, "examples": "0", "loss": "0x0p+0"})
    path.write_text("\n".join([*kept, last, beyond, '{"step": 9, "cou']))  # as a crash leaves it
    train(small_config(npz, workdir="parts", **common))
    lines = read("parts")
    assert lines[7].pop("digests")  # of the end that step 7 was
    assert lines == read("whole")


def test_a_resumed_run_without_the_flag_leaves_no_stale_lines(npz: str) -> None:
    train(small_config(npz, max_steps=4, ledger=True))
    path = Path("run/ledger.jsonl")
    path.write_text(path.read_text() + json.dumps({"step": 5, "count": 1, "examples": "0", "loss": "0x0p+0"}) + "\n")
    train(small_config(npz))
    assert [line["step"] for line in read("run")[1:]] == [1, 2, 3, 4]


@pytest.mark.parametrize("enabled", [True, False])
def test_the_ledger_of_a_run_whose_checkpoints_are_gone_is_kept(enabled: bool, tmp_path: Path) -> None:
    path, old = tmp_path / "ledger.jsonl", tmp_path / "ledger-old.jsonl"
    first = Ledger(tmp_path, True, 96, 5, Group())
    assert first.start(0) == ""
    assert Ledger(tmp_path, True, 96, 5, Group()).start(0) == ""  # of which no step has been made
    before = path.read_text() + json.dumps({"step": 1, "count": 1, "examples": "0", "loss": "0x0p+0"}) + "\n"
    before = before.replace(', "crc32"', ', "was"')  # as version 0.2.0 wrote it
    path.write_text(before)
    assert Ledger(tmp_path, enabled, 96, 5, Group()).start(0) == (
        f"there is a ledger but no checkpoint: the run begins anew, and the old ledger is in {old}"
    )
    assert old.read_text() == before
    assert (read(tmp_path) == [{"examples": 96, "steps_per_epoch": 5}]) if enabled else not path.exists()


def test_the_lines_up_to_a_checkpoint_are_on_disk_before_it_is_saved(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[int, int]] = []
    save = Store.save

    def saving(self: Store, step: int, *arguments: Any) -> None:
        seen.append((step, read("run")[-1]["step"]))
        save(self, step, *arguments)

    monkeypatch.setattr(Store, "save", saving)
    train(small_config(npz, ledger=True, checkpoint_every_steps=4, num_devices=1))
    assert seen[:3] == [(4, 4), (5, 5), (8, 8)]  # the evaluation of step 5 is the best so far


def test_a_damaged_ledger_is_kept_and_a_new_one_has_what_is_whole(
    npz: str, capsys: pytest.CaptureFixture[str]
) -> None:
    common = {"ledger": True, "num_devices": 1}
    train(small_config(npz, max_steps=7, **common))
    path, whole = Path("run/ledger.jsonl").absolute(), read("run")
    damaged = path.read_bytes().replace(b'"step": 3', b'"step": 4', 1)
    path.write_bytes(damaged)
    capsys.readouterr()
    train(small_config(npz, max_steps=8, **common))
    kept = path.parent / "damaged" / "ledger.jsonl"
    assert capsys.readouterr().err == (f"distmlp: {path}: line 4 is not what was written, and left out; the file as it "
                                       f"was is {kept}\n")  # fmt: skip
    assert kept.read_bytes() == damaged
    assert [line["step"] for line in read("run")[1:]] == [1, 2, 4, 5, 6, 7, 8]
    assert read("run")[4]["examples"] == whole[5]["examples"]
    train(small_config(npz, max_steps=9, **common))
    assert capsys.readouterr().err == ""
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:5]))
    train(small_config(npz, max_steps=10, **common))
    assert capsys.readouterr().err == f"distmlp: {path} lacks 4 of the lines that it had\n"


def test_no_ledger_unless_asked_for(npz: str) -> None:
    train(small_config(npz))
    assert not Path("run/ledger.jsonl").exists()


def test_a_ledger_that_cannot_be_written_is_a_write_error(tmp_path: Path) -> None:
    from distmlp.errors import WriteError

    ledger = Ledger(tmp_path / "absent", True, 4, 1, Group())
    ledger.add(1, Steps(None, [4], np.ones(1), np.arange(4)[None], np.ones((1, 4))), None)
    ledger.loss(1, 0.5)
    with pytest.raises(WriteError, match=r"ledger\.jsonl could not be written"):
        ledger.flush()
