"""The cost model: what it counts, and what bounds a step."""

import jax
import jax.numpy as jnp
import pytest

from distmlp import model
from distmlp.plan import cost
from distmlp.plan.cards import CARDS, find, gpu_description

H100 = CARDS["h100"]


def test_flops_are_those_that_xla_counts_of_the_gradient() -> None:
    sizes, examples = [96, 64, 48, 10], 256
    params = model.init_network_params(sizes, jax.random.key(0))
    images, targets = (jnp.ones((examples, width), jnp.float32) for width in (sizes[0], 10))
    compiled = jax.jit(jax.grad(model.loss)).lower(params, images, targets).compile()
    counted = compiled.cost_analysis()["flops"]  # type: ignore[index]
    assert cost.flops(sizes, examples) == pytest.approx(counted, rel=0.05)  # element-wise work is counted there, too
    assert cost.flops(sizes, examples) < counted


def test_a_step_takes_as_long_as_the_longest_of_its_parts_and_then_its_messages() -> None:
    step = cost.Step(flops=1e9, memory_bytes=1e6, kernels=20, messages={"all-reduce": (1, 4_000_000)})
    seconds = cost.predict(step, H100, 500e12, devices=8)
    assert seconds.arithmetic == pytest.approx(2e-6)
    assert seconds.launches == pytest.approx(70e-6)
    assert seconds.bound == "kernel launches"
    assert seconds.step == pytest.approx(70e-6 + seconds.communication)
    assert cost.predict(step, H100, 500e12, devices=1).communication == 0
    assert cost.predict(cost.Step(1e12, 1e6, 20, {}), H100, 500e12, 1).bound == "arithmetic"
    assert cost.predict(cost.Step(1e9, 1e12, 20, {}), H100, 500e12, 1).bound == "memory"


def test_messages_take_the_ring_where_they_are_large_and_the_tree_where_they_are_small() -> None:
    large = cost.message("all-reduce", 1 << 30, 8, H100)
    assert large == pytest.approx(2 * 7 / 8 * 2**30 / 450e9 + 14e-6)
    small = cost.message("all-reduce", 8, 8, H100)
    assert small == pytest.approx(6e-6, rel=1e-3)
    assert cost.message("all-gather", 1 << 30, 8, H100) == pytest.approx(large / 2)
    assert cost.message("reduce-scatter", 1 << 30, 8, H100) == pytest.approx(large / 2)
    between_hosts = cost.message("all-reduce", 1 << 30, 16, H100)  # each of a host's eight sends an eighth to the other
    assert between_hosts == pytest.approx(large + 2**30 / 8 / 50e9 + 10e-6)


def test_cards_are_found_by_what_jax_calls_them() -> None:
    assert find("NVIDIA H100 80GB HBM3") is H100
    assert find("TPU v5 lite") is CARDS["v5e"]
    assert find("TPU v5") is CARDS["v5p"]
    assert find("cpu") is None
    smaller = find("NVIDIA A100-SXM4-40GB")
    assert smaller is not None
    assert (smaller.kind, smaller.bandwidth, smaller.link) == ("A100", 1.555e12, CARDS["a100"].link)
    assert "core_count: 132" in gpu_description("h100")
    assert 'device_description_str: "B200"' in gpu_description("b200")


@pytest.mark.parametrize("kind", ["NVIDIA A100 80GB PCIe", "NVIDIA H100 PCIe", "NVIDIA H100 NVL", "NVIDIA GH200 480GB",
                                  "NVIDIA H200 NVL", "NVIDIA GB200", "NVIDIA H100 80GB HBM3 MIG 1g.10gb",
                                  "TPU v4 lite"])  # fmt: skip
def test_a_card_with_a_similar_name_is_another_one(kind: str) -> None:
    assert find(kind) is None


def test_the_rate_of_products_is_that_of_their_type_and_precision() -> None:
    assert H100.products("bfloat16", "highest") == 989e12
    assert H100.products("float32", "default") == H100.products("float32", "high") == 494.5e12
    assert H100.products("float32", "highest") == 67e12
    assert CARDS["v5e"].products("float32", "highest") == pytest.approx(197e12 / 6)
