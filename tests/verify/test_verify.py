"""distmlp verify: all holds on emulated devices; and each check finds what it is there for, when the product is broken."""

import contextlib
import dataclasses
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import RunTrain

from distmlp import Config, InputError, model, training
from distmlp.cluster.group import Group
from distmlp.errors import AuditError
from distmlp.kept import kept
from distmlp.parallel import backend, evaluate, feed, reduce, sharded
from distmlp.parallel.digest import StateDigest
from distmlp.parallel.layout import Layout, make_layout
from distmlp.plan import cards, plan
from distmlp.progress import Progress
from distmlp.run.store import Store
from distmlp.verify import arithmetic, bits, counts, faults, speed
from distmlp.verify.here import Here, NotHeld, NotHere
from distmlp.verify.page import page
from distmlp.verify.verify import CHECKS, Result, Row, verify
from launch import verify as command

OF_DEVICES = {"collectives", "replicated and sharded: the same bits", "1, 2, ... devices: the same bits",
              "copies that differ are found", "audit: two devices find the same"}  # more than one  # fmt: skip
OF_ACCELERATORS = {"memory, by the plan", "matrix products, by the data sheet"}


def here(devices: int, folder: Path | None = None) -> Here:
    return Here(Group(), make_layout(Config(reduction="invariant", num_devices=devices)), folder)


@pytest.fixture(autouse=True)
def _prepared() -> Iterator[None]:
    kept.cache_clear()  # of programs that another test has broken
    with backend.prepared(Config(reduction="invariant")):
        yield
    kept.cache_clear()


def test_all_that_applies_to_one_device_holds(run_verb: RunTrain, tmp_path: Path) -> None:
    done = run_verb("verify", "--json", "--output=page.html", "--minutes=5")
    found = json.loads(done.stdout)
    assert done.returncode == 0, done.stderr
    held = {check["name"]: check["held"] for check in found["checks"]}
    assert held == {name: None if name in OF_DEVICES | OF_ACCELERATORS else True for name in CHECKS}
    assert all(check.keys() == {"name", "held", "detail", "seconds"} for check in found["checks"])
    assert [device["platform"] for device in found["devices"]] == ["cpu"]
    assert "distmlp" in found["versions"]
    shown = (tmp_path / "page.html").read_text()
    assert "All that applies here holds" in shown
    assert all(check["detail"].split(":")[0] in shown for check in found["checks"] if "<" not in check["detail"])


def lying(device: int, name: str = "shard_digests") -> Callable[..., Any]:
    """A device that finds another gradient than it should."""
    honest = getattr(arithmetic, name)

    def lie(params: Any, images: jax.Array, labels: jax.Array) -> jax.Array:
        return honest(params, images, labels) + (jax.lax.axis_index("data") == device).astype(jnp.uint32)

    return lie
