"""Audited steps: the same bits and the same stops as without; and a device that lies is named. The long form is
drills/lying_device.py."""

import re
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import make_arrays, small_config
from drills.lying_device import lying

from distmlp import Config, InputError, train
from distmlp.cluster.group import Group
from distmlp.data.loader import NumpyLoader
from distmlp.errors import AuditError, WriteError
from distmlp.kept import forget
from distmlp.parallel import step
from distmlp.parallel.audit import Audit
from distmlp.parallel.feed import Taken
from distmlp.parallel.layout import make_layout
from distmlp.progress import Cadence
from distmlp.run.keeping import Keeping

SETTINGS: dict[str, Any] = {"reduction": "invariant", "audit_every": 3, "eval_every_epochs": 0, "max_steps": 9,
                            "num_shards": 4}  # which are compiled in half the time of 8  # fmt: skip


@pytest.fixture(autouse=True)
def _programs_are_made_anew() -> Iterator[None]:
    forget()
    yield
    forget()


@pytest.mark.parametrize("changes", [
    {"num_devices": 3, "data_placement": "device"},  # with an empty device
    pytest.param({"num_devices": 5, "num_shards": 8, "data_placement": "host", "state": "sharded", "clip_norm": 0.1,
                  "optimizer": "adam"}, marks=pytest.mark.full_xla),  # and with an empty place
    {"num_devices": 2, "data_placement": "host", "parallelism": "pmap"},
])  # fmt: skip
def test_an_audited_run_has_the_bits_of_another(changes: dict[str, Any], npz: str) -> None:
    def lines(**more: Any) -> list[dict[str, Any]]:
        settings = SETTINGS | {"shuffle": True, "eval_every_steps": 4, "workdir": None} | changes | more
        found = train(small_config(npz, **settings)).history
        return [{name: value for name, value in line.items() if "second" not in name} for line in found]

    assert lines() == lines(audit_every=0)


def caught(npz: str, device: int, at: int | None, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> tuple[int, str]:
    """The step at which a run with a lying device has stopped, and what it said."""
    forget()
    config = small_config(npz, **(SETTINGS | changes))
    with monkeypatch.context() as patched:
        patched.setattr(step, "shard_gradients", lying(step.shard_gradients, device, at))
        with pytest.raises(AuditError) as error:
            train(config)
    forget()
    assert error.value.exit_code == 3
    text = str(error.value)
    assert "\n" not in text
    found = re.match(r"the audit of step (\d+): ", text)
    assert found
    return int(found[1]), text


@pytest.mark.parametrize(("devices", "device", "at", "way"), [
    (3, 0, None, {"data_placement": "host", "workdir": None}), (3, 2, 5, {"num_shards": 3}),
    (2, 1, 5, {"state": "sharded", "workdir": None}),
])  # fmt: skip
def test_the_device_that_lies_is_named(
    devices: int, device: int, at: int | None, way: dict[str, Any], npz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found, text = caught(npz, device, at, monkeypatch, num_devices=devices, **way)
    assert found == (3 if at is None else 6)
    named = {int(number) for number in re.findall(r"device (\d) \(cpu, number \d, on [\w.-]+\)", text)}
    assert named == ({0, 1} if devices == 2 else {device})
    assert "the gradients that they found differ" in text
    if "workdir" not in way:
        assert text.endswith("there is no checkpoint yet")  # though one would have been due at the end


def test_checkpoints_that_no_audit_has_confirmed_are_set_aside(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways: dict[str, Any] = {"num_devices": 3, "num_shards": 4, "checkpoint_every_steps": 2}
    for audit_every, confirmed in ((0, []), (3, [4])):  # of the steps before the device begins to lie
        run = Path(f"run-{audit_every}")
        settings = ways | {"workdir": str(run), "eval_every_epochs": 0, "reduction": "invariant"}
        train(small_config(npz, **settings, max_steps=4, audit_every=audit_every))
        found, text = caught(npz, 1, None, monkeypatch, **(settings | {"audit_every": 5}))
        assert found == 5
        assert re.findall(r"device (\d) \(cpu", text) == ["1"]
        left = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
        assert sorted(left) == ([2, 4] if confirmed else [])
        aside = run / "damaged"
        assert sorted(path.name for path in aside.iterdir()) == ["2", "4"] if not confirmed else not aside.exists()
        assert ("no audit has confirmed checkpoint 2, 4: set aside in " in text) == (not confirmed)


def test_checkpoints_that_cannot_be_set_aside_do_not_hide_the_audit() -> None:
    def full(after: int) -> list[int]:
        raise WriteError(Path("run/damaged/6"), "No space left on device")

    keeping: Any = SimpleNamespace(store=SimpleNamespace(set_aside=full), _agreed=4)
    assert Keeping.left_after(keeping, AuditError()) == (
        "no audit has confirmed the checkpoints after step 4, and run/damaged/6 could not be written (No space left on "
        "device): make room or mend it, then start again"
    )


def test_a_save_that_was_not_foreseen_follows_an_audit(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    ways = {"num_devices": 3, "audit_every": 100, "checkpoint_every_seconds": 1e-6, "steps_per_dispatch": 1}
    found, text = caught(npz, 2, 2, monkeypatch, **ways)
    assert found == 2
    assert text.endswith("the newest checkpoint is of step 1")


def test_examples_that_are_others_when_read_again_are_no_gradients(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = NumpyLoader.read

    def read(self: NumpyLoader, *args: Any) -> Any:
        batch = honest(self, *args)
        batch.images[0, 0, 0] ^= 1
        return batch

    monkeypatch.setattr(NumpyLoader, "read", read)
    with pytest.raises(AuditError, match=r"the examples that they were given differ .*: device 0 .* is wrong"):
        train(small_config(npz, **SETTINGS, num_devices=3, data_placement="host", workdir=None))


def test_a_dataset_that_gives_others_each_time_accuses_no_device() -> None:
    class Augmented(list[Any]):
        def __getitem__(self, index: Any) -> Any:
            return super().__getitem__(index)[0] + random.standard_normal(12, np.float32), index % 4

    random, arrays = np.random.default_rng(0), make_arrays()
    items = Augmented(zip(arrays["x_train"], arrays["y_train"], strict=True))
    config = small_config("python:items", **SETTINGS, num_devices=3, num_classes=4, workdir=None)
    with pytest.raises(InputError, match=r"^the audit of step 3: examples of train_set were others .* leave --audit_"):
        train(config, items, (arrays["x_test"], arrays["y_test"]))


def test_a_save_by_the_clock_may_follow_an_audited_step() -> None:
    taken = Taken(None, 0, [20], *[np.ones(1)] * 3)
    audit: Any = SimpleNamespace(
        _batches=SimpleNamespace(take=lambda *_: taken), _layout=SimpleNamespace(put=lambda *_: None),
        _step=lambda *_: (None, np.ones(1), None), _compare=lambda *_: None,
    )
    _, steps = Audit.advance(audit, None, 0)  # type: ignore[arg-type] # no state is needed
    cadence = Cadence(Config(audit_every=1, checkpoint_every_seconds=1.0), 5)
    keeping: Any = SimpleNamespace(cadence=cadence, config=Config(checkpoint_every_seconds=1.0), group=Group(),
                                   _saved_at=time.monotonic() - 2)  # fmt: skip
    assert Keeping.save_is_due(keeping, steps, SimpleNamespace(step=3))


def test_where_nothing_can_be_compared_it_is_refused() -> None:
    with pytest.raises(InputError, match=r"^--audit_every=5 goes with --reduction=invariant: with fast .*$"):
        Config(audit_every=5).validate()
    with pytest.raises(InputError, match=r"^--audit_every=5 needs another device .*, but there is 1 cpu device: .*$"):
        make_layout(Config(audit_every=5, reduction="invariant", num_devices=1))
