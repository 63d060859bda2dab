"""What is in the programs that H100s and v5es would run; compiled here, executed nowhere."""

import json
import re
import subprocess
import sys
from typing import Any

import jax
import pytest
from compiled import NEEDS_TARGETS, arithmetic, compiled, kernels, state_bytes
from conftest import REPOSITORY, RunTrain, process_env

from distmlp import Config
from distmlp.plan import plan

pytestmark = NEEDS_TARGETS

TARGETS = {"h100:1": "single", "h100:8": "shard_map", "v5e:1x1": "single", "v5e:2x4": "shard_map"}
# Kernels of a step, exactly as they were last lowered: they may become fewer, not more.
MOST_KERNELS: list[tuple[str, int, dict[str, Any]]] = [
    ("h100:1", 22, {}),
    ("h100:1", 27, {"optimizer": "adam"}),
    ("h100:8", 35, {"batch_size": 1024}),
    ("h100:8", 41, {"batch_size": 1024, "optimizer": "adam", "reduction": "invariant"}),
    ("h100:1", 164, {"batch_size": 1024, "optimizer": "adam", "reduction": "invariant"}),
]


@pytest.mark.parametrize("reduction", ["fast", "invariant"])
@pytest.mark.parametrize("target", TARGETS)
def test_a_dispatch_is_one_loop_of_known_length_that_updates_the_state_in_place(target: str, reduction: str) -> None:
    module, memory, parts = compiled(target, batch_size=1024, reduction=reduction)
    assert module.step_loop is not None
    assert module.trip_count(module.step_loop) == 64
    assert memory.alias_size_in_bytes >= state_bytes(parts)  # arrays are padded on TPUs
    assert memory.alias_size_in_bytes == state_bytes(parts) or target.startswith("v5e")
    assert module.host_transfers() == []
    messages = {kind: count for kind, (count, _) in module.messages().items()}
    if TARGETS[target] == "single":
        assert messages == {}
    elif reduction == "fast":
        assert messages == {"all-reduce": 1}
    else:  # the TPU compiler gathers by adding to zeros
        assert messages == {"all-to-all": 1, "all-gather" if target.startswith("h100") else "all-reduce": 1}


@pytest.mark.parametrize("target", ["h100:8", "v5e:2x4"])
@pytest.mark.parametrize(
    ("part", "settings"),
    [("feed", {"data_placement": "host"}), ("feed", {"data_placement": "device"}), ("feed", {"parallelism": "pmap"}),
     ("evaluator", {}), ("digest", {}), ("evaluator", {"state": "sharded"}), ("digest", {"state": "sharded"})],
)
def test_everything_that_a_run_compiles_compiles(target: str, part: str, settings: dict[str, Any]) -> None:
    module, _, _ = compiled(target, part, batch_size=1024, **settings)
    assert module.kernels_per_step() > 5
    assert module.host_transfers() == []


@pytest.mark.parametrize(("precision", "asked"), [("default", "DEFAULT"), ("highest", "HIGHEST")])
def test_the_matmul_precision_asked_for_is_the_one_compiled(precision: str, asked: str) -> None:
    module, _, _ = compiled("h100:1", matmul_precision=precision)
    products = [i for i, _ in module.step if "__cublas" in i.text]
    assert len(products) == 8
    for product in products:
        assert f'"operand_precision":["{asked}","{asked}"]' in product.text, product.text
    # On a TPU, default products are of bfloat16, and nothing is written about them.
    module, _, _ = compiled("v5e:1x1", matmul_precision=precision)
    said = re.findall(r"operand_precision=\{(\w+),\w+\}", module.text)
    assert set(said) == (set() if precision == "default" else {"highest"})


def test_no_instruction_of_the_invariant_mode_may_vary_from_run_to_run() -> None:
    for target in ("h100:1", "h100:8"):
        module, _, _ = compiled(target, batch_size=1024, optimizer="adam", reduction="invariant")
        everything = [i for body in module.computations.values() for i in body]
        assert not {i.opcode for i in everything} & {"scatter", "select-and-scatter", "rng", "sort", "all-reduce"}
        calls = {re.search(r'custom_call_target="([^"]*)"', i.text)[1] for i in everything  # type: ignore[index]
                 if i.opcode == "custom-call"}  # fmt: skip
        assert calls <= {"__cublas$gemm", "__cublas$lt$matmul"}  # no Triton product, which may add atomically


def test_a_shards_gradient_and_the_update_are_the_same_programs_on_any_number_of_devices() -> None:
    """What bit-identical results on GPUs rest on; the same texts give the same bits on the same cards."""
    settings = {"batch_size": 1024, "optimizer": "adam", "reduction": "invariant"}
    programs = {count: compiled(f"h100:{count}", **settings)[0] for count in (1, 2, 4, 8)}
    one = {scope: kernels(programs[8], scope) for scope in ("shard_gradient", "update")}
    assert one["shard_gradient"].total() > 10
    assert one["update"].total() == 8  # six arrays, and Adam's two factors
    for count, module in programs.items():
        shards = 8 // count
        assert kernels(module, "update") == one["update"]
        assert kernels(module, "shard_gradient") == {k: n * shards for k, n in one["shard_gradient"].items()}


SHARDED: dict[str, Any] = {"batch_size": 1024, "optimizer": "adam", "state": "sharded"}


@pytest.mark.parametrize("target", ["h100:8", "v5e:2x4"])
def test_a_sharded_state_is_gathered_once_scattered_once_and_updated_in_place(target: str) -> None:
    module, memory, parts = compiled(target, **SHARDED)
    assert parts.held.bytes < 1.1 / 8 * sum(4 * array.size for array in jax.tree.leaves(parts.held.shapes))
    assert memory.alias_size_in_bytes >= parts.held.bytes
    messages = {kind: count for kind, (count, _) in module.messages().items()}
    assert messages.keys() == {"all-gather", "reduce-scatter", "all-reduce"}
    # Of losses; for a TPU, also of the smallest arrays, whose reduce-scatter its compiler replaces.
    assert module.messages()["all-reduce"][1] < (100 if target == "h100:8" else 50_000)
    if target.startswith("h100"):
        assert messages == {"all-gather": 1, "reduce-scatter": 1, "all-reduce": 1}
        assert module.kernels_per_step() <= compiled(target, batch_size=1024, optimizer="adam")[0].kernels_per_step()


def test_invariant_gathers_and_exchanges_a_sharded_state_once() -> None:
    module, memory, parts = compiled("h100:8", **(SHARDED | {"reduction": "invariant"}))
    assert {kind: count for kind, (count, _) in module.messages().items()} == {"all-gather": 1, "all-to-all": 1}
    assert memory.alias_size_in_bytes >= parts.held.bytes
    assert module.kernels_per_step() <= 42


@pytest.mark.parametrize(("layers", "most"), [(3, 1.4), (8, 2.1)])
def test_layer_by_layer_memory_hardly_grows_with_the_layers(layers: int, most: float) -> None:
    """Each layer's weights are 1 GiB when they are whole."""
    module, memory, parts = compiled("h100:8", by_layer=True, **(SHARDED | {"hidden_sizes": (16384,) * layers}))
    assert memory.temp_size_in_bytes <= most * 2**30
    assert memory.alias_size_in_bytes >= parts.held.bytes
    sent = module.messages()
    whole = 4 * sum(array.size for array in jax.tree.leaves(parts.held.shapes.params))
    assert sent["all-gather"][1] + 8 * sent["reduce-scatter"][1] <= 1.6 * 2 * whole  # an all-reduce sends 2 * whole


@pytest.mark.parametrize("settings", [{"optimizer": "adam"}, {"optimizer": "adam", "reduction": "invariant"}], ids=str)
@pytest.mark.parametrize("target", ["h100:1", "h100:8"])
def test_a_step_computes_the_same_in_a_whole_dispatch_and_in_any_other(target: str, settings: dict[str, Any]) -> None:
    """Which of the two programs makes a step, a clock decides, and where a run was interrupted."""
    whole, rest = (compiled(target, part, batch_size=1024, **settings)[0] for part in ("feed", "rest"))
    assert whole.step_loop is not None
    assert rest.step_loop is not None
    assert (whole.trip_count(whole.step_loop), rest.trip_count(rest.step_loop)) == (64, None)
    assert len(arithmetic(whole)) == 21  # 6 parameters, their moments, losses, weights: all float32
    assert arithmetic(whole) == arithmetic(rest)
    other, _, _ = compiled(target, batch_size=1024, learning_rate=0.02, **settings)
    assert sum(a != b for a, b in zip(arithmetic(whole), arithmetic(other), strict=True)) == 6  # the rates


@pytest.mark.parametrize(("target", "most", "settings"), MOST_KERNELS)
def test_kernels_per_step_do_not_grow(target: str, most: int, settings: dict[str, Any]) -> None:
    assert compiled(target, **settings)[0].kernels_per_step() <= most


@pytest.mark.parametrize(("target", "count", "most", "optimizer"), [("h100:1", 256, 26, "sgd"),
                                                                    ("h100:8", 2048, 27, "adam")])  # fmt: skip
def test_256_members_on_a_device_need_hardly_more_kernels_than_one(
    target: str, count: int, most: int, optimizer: str
) -> None:
    found = plan.make(Config(dataset="synthetic", optimizer=optimizer), target, count=count)
    assert found["members_per_device"] == 256
    assert found["together"]
    assert found["kernels_per_step"] <= most
    assert 9 * count < found["most_members"] < 60 * count  # of the tutorial's network
    states = 256 * {"sgd": 1, "adam": 3}[optimizer] * 2.55 * 2**20
    assert found["memory"]["state"] == pytest.approx(states, rel=0.01)
    assert 2 * states < found["memory"]["total"] < 2 * states + 2 * 2**30
    assert 0 < found["predicted_step_seconds"] < 0.01


def test_training_on_a_cpu_beside_these_packages_is_quiet(run_train: RunTrain, npz: str) -> None:
    result = run_train(f"--dataset={npz}", "--batch_size=20", "--num_epochs=1", env={"JAX_PLATFORMS": ""})
    assert (result.returncode, result.stderr) == (0, "")


def test_a_config_for_gpus_is_planned_on_a_machine_without_any() -> None:
    """It asks for --platform=gpu, which JAX_PLATFORMS=cpu would exclude."""
    command = [sys.executable, "-m", "launch.plan", f"{REPOSITORY}/configs/8gpu.flags", "--dataset=synthetic",
               "--target=h100:8", "--json"]  # fmt: skip
    done = subprocess.run(command, env=process_env(), capture_output=True, text=True,
                          timeout=300, check=False)  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    assert (found["devices"], found["collectives"]) == (8, {"all-reduce": 1})
