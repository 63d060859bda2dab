"""Checkpoints of other versions: gone on with, or refused in one line that says what differs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import optax
import pytest
from conftest import small_config, snapshot

from distmlp import InputError, load, optim, train
from distmlp.config import digest_json
from distmlp.parallel.digest import params_sha256
from distmlp.run import keeping

Change = Callable[[dict[str, Any]], Any]


def config(npz: str, **changes: Any) -> Any:
    return small_config(npz, **{"num_devices": 1, "reduction": "invariant", "optimizer": "adam", **changes})


@pytest.fixture
def change(npz: str) -> Callable[[Change], None]:
    """Trains 7 steps in `run`, and changes what lies beside the arrays, as another version would have written it."""

    def apply(changed: Change) -> None:
        train(config(npz, max_steps=7))
        path = Path("run/checkpoints/7/meta/metadata")
        meta = json.loads(path.read_text())
        del meta["digest"]
        changed(meta)
        path.write_text(json.dumps(meta | {"digest": digest_json(meta)}))

    return apply


def test_what_a_newer_version_has_saved_is_named_and_left_out(
    npz: str, change: Callable[[Change], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def newer(meta: dict[str, Any]) -> None:
        meta["settings"] |= {"new_setting": 3}
        meta["totals"] |= {"new_sum": 1.0}
        meta["standing"] |= {"new_count": 1}
        meta["versions"] |= {"distmlp": "99.1"}
        meta["new_part"] = []

    change(newer)
    said = "checkpoint 7 was saved by distmlp 99.1; this version does not know, and leaves out: --new_setting, new_sum, new_part"
    capsys.readouterr()
    assert load("run").step == 7
    assert capsys.readouterr().err == f"distmlp: {said}\n"
    found = train(config(npz))
    assert capsys.readouterr().err.splitlines()[0] == f"distmlp: {said}"
    assert params_sha256(found.params) == params_sha256(train(config(npz, workdir="straight")).params)


def test_what_an_older_version_has_not_saved_begins_anew(npz: str, change: Callable[[Change], None]) -> None:
    def older(meta: dict[str, Any]) -> None:
        for name in ("standing", "lines", "data_info", "data_modified"):
            del meta[name]
        del meta["totals"]["epoch_seconds"]
        del meta["settings"]["patience"]

    change(older)
    straight = train(config(npz, workdir="straight"))
    found = train(config(npz))
    assert params_sha256(found.params) == params_sha256(straight.params)
    assert [line.get("train_loss") for line in found.history] == [line.get("train_loss") for line in straight.history]


def test_a_checkpoint_without_what_is_needed_is_refused(npz: str, change: Callable[[Change], None]) -> None:
    change(lambda meta: (meta.pop("data"), meta.pop("totals")))
    before = snapshot(Path("run/checkpoints"))
    with pytest.raises(InputError, match=r"is of another form .*: at step 7 it lacks data, totals \(no package has"):
        train(config(npz))
    assert snapshot(Path("run/checkpoints")) == before


def test_an_optimizer_whose_state_has_another_form_is_no_damage(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config(npz, max_steps=7))
    before, make, here = snapshot(Path("run/checkpoints")), optim.make, keeping._versions()
    monkeypatch.setattr(keeping, "_versions", lambda: here | {"optax": "99.1"})
    monkeypatch.setattr(optim, "make", lambda *given: optax.chain(make(*given), optax.trace(0.5)))
    with pytest.raises(InputError) as caught:
        train(config(npz))
    text = str(caught.value)
    assert "\n" not in text
    assert "is of another form than the one trained here: at step 7 it lacks .opt_state[0]" in text
    assert f"(optax was {here['optax']}, is 99.1): install the versions that it was saved by" in text
    assert snapshot(Path("run/checkpoints")) == before


OF_0_2_0 = Path(__file__).parent / "of_0_2_0"


def test_a_run_of_version_0_2_0_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """As its run.flags say: 3 epochs of 6 steps on the digits, stopped after step 8."""
    changes = {"hidden_sizes": (4,), "batch_size": 256, "num_epochs": 3, "learning_rate": 0.01, "shuffle": True,
               "ledger": True, "input_scaling": "unit"}  # fmt: skip
    shutil.copytree(OF_0_2_0, "run")
    meta = json.loads(Path("run/checkpoints/8/meta/metadata").read_text())
    assert meta["versions"]["distmlp"] == "0.2.0"
    assert not {"standing", "lines"} & meta.keys()
    loaded, straight = load("run", 8), train(config("digits", **changes, workdir="straight"))
    images = np.random.default_rng(0).integers(0, 16, (50, 64)).astype(np.float32)
    assert loaded.predict(images).probabilities.shape == (50, 10)
    capsys.readouterr()
    found = train(config("digits", **changes))
    assert capsys.readouterr().err in ("",)
    for a, b in zip(found.params, straight.params, strict=True):
        np.testing.assert_allclose(a[0], b[0], atol=1e-5)
    same_machine = meta["versions"] == keeping._versions()
    if same_machine:
        assert params_sha256(found.params) == params_sha256(straight.params)
