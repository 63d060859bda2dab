"""Targets that need not be here: what is asked of XLA's compilers for them, and what is refused."""

import re
from typing import Any

import pytest

from distmlp import InputError
from distmlp.plan import targets
from distmlp.plan.cards import CARDS, gpu_description

MEGACORE = {"chip_config_name": "megacore"}


@pytest.fixture
def described(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What is asked of the compilers, as if they were installed: the name, the platform, the options."""
    calls: list[Any] = []
    monkeypatch.setattr(targets, "_installed", lambda module: True)
    monkeypatch.setattr(targets, "_describe", lambda target, *asked, **options: calls.append((*asked, options)))
    return calls


@pytest.mark.parametrize(("count", "topology"), [("1", "1x1x1"), ("3", "1x1x3"), ("8", "1x1x8"), ("16", "1x2x8")])
def test_gpus_are_one_host_or_whole_hosts(count: str, topology: str, described: list[Any]) -> None:
    card, _ = targets.find(f"h100:{count}")
    assert card is CARDS["h100"]
    assert described == [("any", "cuda", {"topology": topology, "target_config": gpu_description("h100")})]


@pytest.mark.parametrize(("target", "name", "options"), [
    ("v5e:1x1", "v5e:1x1", {"chips_per_host_bounds": (1, 1, 1)}), ("v5e:2x2", "v5e:2x2", {}),
    ("v6e:16x16", "v6e:16x16", {}), ("v5p:2x2", "v5p:2x2x1", MEGACORE), ("v5p:2x2x2", "v5p:2x2x2", MEGACORE),
    ("v4:2x2x4", "v4:2x2x4", MEGACORE), ("v4:2x4x4", "v4:2x4x4", MEGACORE), ("v4:16x16x16", "v4:16x16x16", MEGACORE),
    ("v5p:4x8x12", "v5p:4x8x12", MEGACORE),
])  # fmt: skip
def test_tpus_have_the_shapes_that_are_rented(target: str, name: str, options: Any, described: list[Any]) -> None:
    targets.find(target)
    assert described == [(name, "tpu", options)]


@pytest.mark.parametrize(("target", "words"), [
    ("k80:1", "choose a100|h100|h200|b200:COUNT, as in h100:8, or v4|v5e|v5p|v6e:SHAPE, as in v5e:2x4"),
    ("h100", "give a number of GPUs, as in h100:8"), ("h100:0", "give a number of GPUs, as in h100:8"),
    ("h100:2x4", "give a number of GPUs, as in h100:8"), ("v5e:8", "give a shape, as in v5e:2x4 or v5p:2x2x2"),
    ("h100:12", "more than 8 GPUs are hosts of 8: give h100:8 or h100:16"),
    ("v5e:3x3", "there is no such shape: give one of 1x1, 2x2, 2x4, 4x4, 4x8, 8x8, 8x16, 16x16"),
    ("v5p:2x2x3", "there is no such shape: give one of 2x2x1, 2x2x2, 2x2x4, 2x4x4, or multiples of 4, as in v5p:4x4x8, "
                  "of at most 8,960 chips"),
    ("v4:16x16x20", "there is no such shape"),
])  # fmt: skip
def test_a_target_that_is_not_there_is_refused_with_what_there_is(
    target: str, words: str, described: list[Any]
) -> None:
    with pytest.raises(InputError, match=f"^--target={target}: {re.escape(words)}"):
        targets.find(target)
    assert not described


@pytest.mark.parametrize(("target", "kind"), [("h100:1", "GPUs"), ("v5e:1x1", "TPUs")])
def test_a_compiler_that_is_missing_is_named(target: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "_installed", lambda module: False)
    with pytest.raises(InputError, match=f"needs XLA's compiler for {kind}: pip install 'distmlp\\[targets\\]'"):
        targets.find(target)


def test_a_gpus_description_has_the_fields_that_the_compiler_knows() -> None:
    """Of XLA's GpuDeviceInfoProto; with another field, it refuses all."""
    known = {
        "threads_per_block_limit", "threads_per_warp", "shared_memory_per_block", "block_dim_limit_x",
        "block_dim_limit_y", "block_dim_limit_z", "threads_per_core_limit", "registers_per_core_limit",
        "registers_per_block_limit", "core_count", "fpus_per_core", "clock_rate_ghz", "l2_cache_size",
        "shared_memory_per_core", "shared_memory_per_block_optin", "memory_bandwidth", "device_memory_size",
    }  # fmt: skip
    for name in ("a100", "h100", "h200", "b200"):
        device = gpu_description(name).partition("cuda_compute_capability")[0]
        assert set(re.findall(r"(\w+): ", device)) == known
