"""Checkpoints of other versions: gone on with, or refused in one line that says what differs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
import pytest
from conftest import small_config, snapshot

from distmlp import InputError, load, optim, train
from distmlp.config import differences, digest_json
from distmlp.data import order as order_module
from distmlp.parallel.digest import params_sha256
from distmlp.results import run_data
from distmlp.run.meta import origin

OF_0_2_0 = "1b1236b907ab479c979b7a6d9432626b2cd2bea5e23bc69fc8cbdfe544264ea4"  # the parameters of its unbroken run
Change = Callable[[dict[str, Any]], Any]


def config(npz: str, **changes: Any) -> Any:
    settings = {"num_devices": 1, "reduction": "invariant", "optimizer": "adam", "shuffle": True}
    return small_config(npz, **(settings | changes))


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
    said = ("checkpoint 7 was saved by distmlp 99.1; this version does not know, and leaves out: --new_setting, "
            "new_sum, new_part")
    capsys.readouterr()
    assert load("run", 7).step == 7
    assert capsys.readouterr().err == f"distmlp: {said}\n"
    found = train(config(npz))
    assert capsys.readouterr().err.splitlines()[0] == f"distmlp: {said}"
    assert params_sha256(found.params) == params_sha256(train(config(npz, workdir="straight")).params)


def test_what_an_older_version_has_not_saved_begins_anew(npz: str, change: Callable[[Change], None]) -> None:
    def older(meta: dict[str, Any]) -> None:
        for name in ("standing", "lines", "data_info", "data_modified", "order"):
            del meta[name]
        del meta["totals"]["epoch_seconds"]
        del meta["settings"]["patience"]

    change(older)
    straight = train(config(npz, workdir="straight"))
    found = train(config(npz))
    assert params_sha256(found.params) == params_sha256(straight.params)
    assert [line.get("test_loss") for line in found.history if line["step"] != 7] == [
        line.get("test_loss") for line in straight.history
    ]


def test_an_order_that_is_made_in_another_way_is_not_gone_on_with(
    npz: str, change: Callable[[Change], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Above a number of examples a shuffled order is computed, which versions before did not do, nor say."""
    change(lambda meta: meta.pop("order"))
    before = snapshot(Path("run/checkpoints"))
    order_module._permutation.cache_clear()
    with monkeypatch.context() as patched:
        patched.setattr(order_module, "_HELD", 40)
        with pytest.raises(InputError, match=r"was begun by distmlp \S+, which draws another order of 96 examples: go"):
            train(config(npz))
        train(config(npz, workdir="computed", max_steps=7))
        assert order_module.Order(96, 20).drawn == "held"  # where nothing is shuffled, there is nothing to tell apart
    order_module._permutation.cache_clear()
    with pytest.raises(InputError, match="which draws another order of 96 examples"):
        train(config(npz, workdir="computed"))
    assert snapshot(Path("run/checkpoints")) == before


def test_a_checkpoint_without_what_is_needed_is_refused(npz: str, change: Callable[[Change], None]) -> None:
    change(lambda meta: (meta.pop("data"), meta.pop("totals")))
    before = snapshot(Path("run/checkpoints"))
    with pytest.raises(InputError, match=r"is of another form .*: at step 7 it lacks data, totals \(no package has"):
        train(config(npz))
    assert snapshot(Path("run/checkpoints")) == before


def test_an_optimizer_whose_state_has_another_form_is_no_damage(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    train(config(npz, max_steps=7))
    before, make, here = snapshot(Path("run/checkpoints")), optim.make, origin()
    monkeypatch.setattr("distmlp.run.keeping.origin", lambda: here | {"optax": "99.1"})
    monkeypatch.setattr(optim, "make", lambda *given: optax.chain(make(*given), optax.trace(0.5)))
    with pytest.raises(InputError) as caught:
        train(config(npz))
    text = str(caught.value)
    assert "\n" not in text
    assert "is of another form than the one trained here: at step 7 it lacks .opt_state[0]" in text
    assert f"(optax was {here['optax']}, is 99.1): install the versions that it was saved by" in text
    assert snapshot(Path("run/checkpoints")) == before


@pytest.mark.full_xla
def test_a_run_of_version_0_2_0_goes_on(capsys: pytest.CaptureFixture[str]) -> None:
    """The folder that it left after 30 of 36 steps on the digits, to the bits that it had without a stop."""
    shutil.copytree(Path(__file__).parent / "of_0_2_0", "run")
    meta = json.loads(Path("run/checkpoints/30/meta/metadata").read_text())
    assert meta["versions"]["distmlp"] == "0.2.0"
    assert not {"standing", "lines"} & meta.keys()
    loaded, evaluated = load("run"), json.loads(Path("run/metrics.jsonl").read_text().splitlines()[2])
    found = loaded.evaluate_set(run_data.split(loaded))
    assert (found.checkpoint_step, found.count) == (evaluated["step"], evaluated["test_count"]) == (30, 360)
    assert found.loss == pytest.approx(evaluated["test_loss"], rel=1e-5)
    assert abs(found.correct - evaluated["test_correct"]) <= 1
    capsys.readouterr()
    changes = {"hidden_sizes": (6,), "batch_size": 128, "num_epochs": 3, "learning_rate": 0.03, "shuffle": True,
               "ledger": True, "input_scaling": "unit"}  # fmt: skip
    straight, ended = train(config("digits", **changes, workdir="straight")), train(config("digits", **changes))
    assert [line["step"] for line in ended.history] == [12, 24, 30, 36, 36]
    assert len(Path("run/ledger.jsonl").read_text().splitlines()) == 37
    for ours, whole in zip(jax.tree.leaves(ended.params), jax.tree.leaves(straight.params), strict=True):
        np.testing.assert_allclose(ours, whole, atol=1e-4)
    changed = differences(meta["versions"], origin())
    assert "; ".join(changed) in capsys.readouterr().err
    if all(text.startswith("distmlp ") for text in changed):  # bits are those of a processor and of a jax
        assert params_sha256(ended.params) == params_sha256(straight.params) == OF_0_2_0
