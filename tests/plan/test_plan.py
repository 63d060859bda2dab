"""launch.plan: the plan of a run on the devices that are here, its warnings, and what it refuses."""

import dataclasses
import gc
import itertools
import json
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from conftest import small_config

from distmlp import Config, InputError, train
from distmlp.data import datasets
from distmlp.data.examples import ArrayDataset
from distmlp.parallel import backend
from distmlp.parallel.digest import StateDigest
from distmlp.parallel.feed import Feed, HostBatches
from distmlp.parallel.layout import make_layout
from distmlp.parallel.members import Shape
from distmlp.plan import advice, cards, cost, plan, rates, targets, text
from distmlp.plan.cards import CARDS
from distmlp.plan.rates import measure  # before it is replaced
from distmlp.training import Program
from launch.plan import main

KEYS = {"target", "devices", "collectives", "kernels_per_step", "flops_per_step", "communication_bytes_per_step",
        "memory", "compile_seconds", "predicted_step_seconds", "predicted_scaling", "warnings"}  # fmt: skip


@pytest.fixture(autouse=True)
def _known_rates(monkeypatch: pytest.MonkeyPatch) -> None:
    """Measuring takes seconds; the benchmark does it."""
    known = CARDS["v5e"]
    monkeypatch.setattr(rates, "measure", lambda device, memory, *sizes: dataclasses.replace(known, memory=memory))


def test_the_plan_of_eight_devices_says_what_training_will_do(npz: str) -> None:
    config = small_config(npz, batch_size=20, num_epochs=2, momentum=0.9)
    found = plan.make(config)
    assert set(found) >= KEYS
    json.dumps(found)
    assert found["devices"] == 8
    assert found["collectives"] == {"all-reduce": 1}
    parameters = 4 * (12 * 8 + 8 + 8 * 4 + 4)
    assert found["communication_bytes_per_step"] == parameters + 4  # and the loss
    assert found["memory"]["parameters"] == parameters
    assert found["memory"]["optimizer"] == parameters + 4  # momentum, and the number of the step
    assert found["checkpoint_bytes"] == 2 * parameters + 4
    assert found["state_is_donated"]
    assert found["batch"] == {"global": 20, "per_device": 3, "per_shard": 3}
    assert (found["steps_per_epoch"], found["total_steps"]) == (5, 10)
    assert found["first_examples"]["1"] == [1, 9, 17]
    assert list(found["predicted_scaling"]) == [str(2**n) for n in range(13)]
    assert max(map(len, text.text(found).splitlines())) <= 80


def test_more_devices_send_no_more_each_of_a_sharded_state(npz: str) -> None:
    """What the program for eight devices scatters is an eighth of the array, of which 4,096 would get less."""
    figures = {"link": 1e3, "link_seconds": 0.0}  # a step is as long as its messages
    found = plan.make(small_config(npz, state="sharded", hidden_sizes=(64, 64)), figures=figures)
    parameters = 4 * (12 * 64 + 64 + 64 * 64 + 64 + 64 * 4 + 4)
    assert 2 * parameters < found["communication_bytes_per_step"] < 2.3 * parameters  # gathered, scattered, filled up
    seconds = {int(count): int(count) * 3 / rate for count, rate in found["predicted_scaling"].items()}
    for count in (2, 8, 4096):
        sent = (count - 1) / count * found["communication_bytes_per_step"]
        assert seconds[count] == pytest.approx(sent / 1e3, rel=0.01)


def test_an_unknown_device_is_measured_at_the_sizes_of_the_run(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, ...]] = []

    def measure(device: Any, memory: int, *sizes: int) -> Any:
        asked.append(sizes)
        return CARDS["v5e"]

    monkeypatch.setattr(rates, "measure", measure)
    plan.make(small_config(npz, batch_size=20))
    state = 4 * (12 * 8 + 8 + 8 * 4 + 4) + 4  # and the number of the step
    assert asked == [(3, (12, 8), state + 8 * 3 * (12 + 8 + 4))]  # a device's examples, the largest layer, all bytes
    assert cost.largest([784, 16, 50_000]) == (16, 50_000)


def test_a_device_is_measured_by_products_of_the_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not by [W, W] of its widest layer, which may have no room."""
    multiplied: list[tuple[int, ...]] = []

    def seconds(function: Any, *arguments: jax.Array) -> float:
        multiplied.extend(array.shape for array in arguments if array.ndim == 2)
        return 0.5

    monkeypatch.setattr(rates, "_seconds", seconds)
    card = measure(jax.devices()[0], 1 << 30, 3, (2, 50_000), 1 << 13)
    assert multiplied == [(3, 2), (2, 50_000)] * 3
    assert card.f32 == 2 * 3 * 2 * 50_000 / 0.5


def test_what_is_measured_ends_after_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    for each, calls in ((0.6, 2), (0.01, 15)):
        clock = itertools.count()
        times = SimpleNamespace(perf_counter=lambda each=each, clock=clock: next(clock) * each)
        monkeypatch.setattr("distmlp.plan.rates.time", times)
        assert rates._seconds(lambda x: x + 1, jnp.ones(1)) == pytest.approx(each)
        assert next(clock) == 2 * calls


@pytest.mark.parametrize(("count", "words"), [
    (0, "0 bytes"), (1023, "1,023 bytes"), (1024, "1 KiB"), (1536, "1.5 KiB"), (300 << 10, "300 KiB"),
    (5 << 20, "5 MiB"), (80 << 30, "80 GiB"), (2000 << 30, "2,000 GiB"),
])  # fmt: skip
def test_bytes_in_words(count: int, words: str) -> None:
    assert text._bytes(count) == words


def test_what_a_user_may_copy_is_not_broken_at_its_hyphens() -> None:
    """A line may end anywhere in a sentence, but not within all-reduce or 8-bit."""
    for words in range(40):
        assert "all-reduce" in text._row("WARNING", "a " * words + "all-reduce")


def test_planning_trains_nothing_and_training_does_what_was_planned(npz: str, tmp_path: Path) -> None:
    config = small_config(npz, num_devices=1, reduction="invariant", parallelism="single")
    found = plan.make(config)
    assert not (tmp_path / "run").exists()
    assert train(config).history[-1]["step"] == found["total_steps"]


@pytest.mark.parametrize("placement", ["device", "host"])
def test_no_more_lies_on_a_device_than_was_planned(
    placement: str, npz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Amid steps, and saves of a copy of the state; all but what programs need inside."""

    def place(array: jax.Array) -> int | None:
        try:
            return array.unsafe_buffer_pointer() if len(array.devices()) == 1 else None
        except RuntimeError:  # a save looks while the next step takes the state over
            return None

    config = small_config(npz, num_devices=1, momentum=0.9, hidden_sizes=(64,), data_placement=placement,
                          steps_per_dispatch=2, checkpoint_every_steps=2)  # fmt: skip
    memory = plan.make(config)["memory"]
    gc.collect()
    others, held, amid_steps, fed = jax.live_arrays(), [], [], []
    known = {place(array) for array in others} | {None}
    of_states = {(64, 12), (64,), (4, 64), (4,), ()}  # shapes; the data of dispatches and their losses have others

    def look() -> None:
        there = {place(array): array for array in jax.live_arrays()}
        arrays = [array for at, array in there.items() if at not in known]
        held.append(sum(array.nbytes for array in arrays))
        if threading.current_thread() is threading.main_thread():  # a save may look amid an evaluation, too
            amid_steps.append(held[-1])
            fed.append(sum(array.nbytes for array in arrays if array.shape not in of_states))

    def watched(real: Any) -> Any:
        def call(*args: Any) -> Any:
            look()
            result = real(*args)
            look()
            return result

        return call

    monkeypatch.setattr(Feed, "advance", watched(Feed.advance))
    monkeypatch.setattr(HostBatches, "_send", watched(HostBatches._send))
    monkeypatch.setattr(StateDigest, "check", watched(StateDigest.check))  # of the copy, too, before it is written
    train(config)
    state = memory["parameters"] + memory["optimizer"]
    assert memory["copy"] == state
    assert 0 < max(fed) <= memory["data"]
    assert 0 < max(amid_steps) <= memory["total"] - memory["temporary"]
    assert 2 * state < max(held) <= memory["total"]


def test_what_fits_only_without_the_copy_is_warned_of(npz: str) -> None:
    config = small_config(npz, hidden_sizes=(64,))
    memory = plan.make(config)["memory"]
    assert memory["copy"] == memory["parameters"] + memory["optimizer"]
    for room, fits in ((memory["total"], True), (memory["total"] - 1, False)):
        warnings = plan.make(config, figures={"memory": room})["warnings"]
        assert any("does not fit" in text for text in warnings) != fits


def test_the_memory_of_a_card_that_is_here_is_what_jax_has_of_it(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not the data sheet's: by one figure the state is chosen, recommended and warned of."""
    monkeypatch.setattr(cards, "find", lambda kind: CARDS["h100"])
    config = small_config(npz, num_devices=2, hidden_sizes=(64,), momentum=0.9)
    room = plan.make(config)["memory_by_state"]["replicated"] - 1
    monkeypatch.setattr(backend, "device_memory", lambda device: room)
    found = plan.make(config)
    assert (found["card"], found["state"]) == ("H100", "sharded")
    assert found["memory"]["available"] == found["figures"]["memory"] == room
    assert "recommended: --state=sharded" in text._state(found)
    assert plan.make(config, count=3)["memory"]["available"] == room


def test_the_figure_of_the_memory_decides_where_data_and_state_lie(npz: str) -> None:
    config = small_config(npz, num_devices=2, hidden_sizes=(64,), momentum=0.9)
    needed = plan.make(config)["memory_by_state"]
    found = [plan.make(config, figures={"memory": room}) for room in (1e9, needed["replicated"] - 1, 1000)]
    assert [each["state"] for each in found] == ["replicated", "sharded", "sharded, layer by layer"]
    assert [each["data_placement"] for each in found] == ["device", "device", "host"]


def test_what_audited_steps_need_counts_when_the_state_is_chosen(npz: str) -> None:
    """As training counts it."""
    config = small_config(npz, num_devices=2, hidden_sizes=(64,), reduction="invariant", audit_every=1)
    layout = make_layout(config)
    parts = Program(config, datasets.load(config), layout, layout.device_memory)
    parts.compile()
    needed = parts.bytes_needed + parts.held.bytes
    assert plan.make(config)["memory_by_state"]["replicated"] == needed
    assert parts.bytes_needed > parts.feed.bytes_needed


def test_an_evaluation_that_needs_more_than_a_step_counts(npz: str) -> None:
    small, large = (plan.make(small_config(npz, eval_batch_size=size))["memory"] for size in (1, 100_000))
    assert large["evaluation"] > small["evaluation"] + 5 * 100_000 * 12
    assert large["total"] - small["total"] == large["evaluation"] - small["evaluation"]


def test_a_plan_is_compiled_anew_whatever_cache_the_caller_has(npz: str) -> None:
    """What is compiled for devices that are not here can be put into a cache, but not be read from it."""
    cache, before = Path(jax.config.values["jax_compilation_cache_dir"]), dict(jax.config.values)
    known = set(cache.iterdir())
    plan.make(small_config(npz, hidden_sizes=(13,), num_devices=1))
    assert set(cache.iterdir()) == known
    assert dict(jax.config.values) == before


def warned(total: int = 1, here: bool = False, **changes: Any) -> list[str]:
    config = Config(**{"batch_size": 1024, "learning_rate": 0.08} | changes)

    class Layout:
        devices = (type("Device", (), {"platform": "gpu"})(),) * 8
        accelerated, num_shards = True, config.num_shards or 8
        shards_per_device = -(-num_shards // 8)

    found = {
        "memory": {"total": total, "available": 100}, "memory_by_state": {"replicated": total}, "state": "replicated",
        "data_placement": "device", "devices": 8, "batch": {"per_device": config.batch_size // 8}, "card": "H100",
        "state_is_donated": True, "host_transfers": [],
    }  # fmt: skip
    return advice.warnings(config, Layout(), found, cost.Seconds(1, 0, 0, 0.5), here)


def test_a_sensible_run_is_not_warned_of() -> None:
    assert warned() == []


@pytest.mark.parametrize("name", ["XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"])
def test_what_jax_takes_of_a_gpu_is_named_where_it_matters(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a target the plan knows all of the memory; of a GPU that is here, the three quarters that JAX has taken."""
    for each in ("XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"):
        monkeypatch.delenv(each, raising=False)
    assert ["set XLA_CLIENT_MEM_FRACTION=0.95" in text for text in warned(total=80)] == [True]
    assert warned(total=80, here=True) == []
    assert ["give XLA_CLIENT_MEM_FRACTION=0.95" in text for text in warned(total=101, here=True)] == [True]
    assert ["does not fit" in text and "FRACTION" not in text for text in warned(total=150, here=True)] == [True]
    monkeypatch.setenv(name, "0.95")  # as the user was told
    assert ["does not fit" in text and "FRACTION" not in text for text in warned(total=101, here=True)] == [True]


@pytest.mark.parametrize(
    ("changes", "word"),
    [({"batch_size": 128, "learning_rate": 0.01}, "16 examples a step are too few"), ({"num_shards": 9}, "empty"),
     ({"batch_size": 264, "num_shards": 300}, "leaves 36 of 300"), ({"learning_rate": 0.01}, "low for sgd"),
     ({"optimizer": "adam", "learning_rate": 1.0}, "high for adam")],
)
def test_what_makes_no_sense_is_warned_of(changes: dict[str, Any], word: str) -> None:
    assert any(word in warning for warning in warned(**changes))


def test_an_optimizer_without_a_usual_rate_is_planned(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(advice, "_USUAL_RATES", {})
    assert warned(learning_rate=1e6) == []


def test_a_run_that_does_not_fit_or_only_communicates_is_warned_of(npz: str) -> None:
    found = plan.make(small_config(npz), figures={"memory": 1000, "link": 1, "link_seconds": 1})
    assert [w.split(":")[0].split(" for ")[0] for w in found["warnings"]][:2] == ["it does not fit", "a step sends"]
    assert "WARNING" in text.text(found)


def test_the_command_prints_one_json_object(npz: str, capsys: pytest.CaptureFixture[str]) -> None:
    flags = [f"--dataset={npz}", "--hidden_sizes=8", "--batch_size=20", "--json"]
    assert main(flags) == 0
    assert set(json.loads(capsys.readouterr().out)) >= KEYS


def test_flags_may_have_one_dash(npz: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([f"-dataset={npz}", "-hidden_sizes=7", "-header", "none", "-batch_size=20", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["layers"] == [12, 7, 4]


@pytest.mark.parametrize(
    ("flags", "message"),
    [(["--target=rtx:8"], "--target=rtx:8: choose a100|h100"), (["--target=h100:x"], "give a number of GPUs"),
     (["--target=v5e:8"], "give a shape"), (["--figure=lnk=3"], "give bf16"), (["--figure=link=x"], "NAME=NUMBER"),
     (["--figure=link=0"], "--figure=link=0: give bf16, f32"), (["--figure=bf16=inf"], "above 0"),
     (["--figure=memory=nan"], "above 0"), (["--figure=kernel_seconds=-1"], "of kernel_seconds, "),
     (["--batch_size=0"], "--batch_size=0 must be at least 1"),
     (["--nonsense"], "no flag: plan --help lists its own, --helpfull training's")],
)
def test_bad_input_names_the_flag_and_the_remedy(flags: list[str], message: str) -> None:
    with pytest.raises(InputError) as error:
        main(["--dataset=digits", *flags])
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_target_without_its_compiler_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    absent: Callable[[str], bool] = lambda module: False  # noqa: E731
    monkeypatch.setattr(targets, "_installed", absent)
    for target in ("h100:8", "v5e:2x4"):
        with pytest.raises(InputError, match=r"pip install 'distmlp\[targets\]'"):
            main(["--dataset=digits", f"--target={target}"])


def test_a_target_needs_the_cpu_of_jax() -> None:
    with (backend.settings({"jax_platforms": "cuda"}),
          pytest.raises(InputError, match=r"^--target=h100:8 .* set JAX_PLATFORMS=cuda,cpu$")):
        plan.make(Config(), "h100:8")


@pytest.mark.parametrize(
    ("changes", "message"),
    [({"batch_size": 97}, "--batch_size=97: give at most 96, the training examples of a member"),
     ({"data_placement": "host"}, "trains its members one at a time where the data stay on the host (--data_placement"),
     ({"state": "sharded"}, "--state=sharded is for one large model"), ({"ledger": True}, "--ledger keeps"),
     ({"profile_steps": "1:2"}, "--profile_steps looks"), ({"audit_every": 5}, "--audit_every checks")],
)
def test_members_that_a_sweep_refuses_or_trains_one_at_a_time_are_not_planned(
    npz: str, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError) as error:
        plan.make(small_config(npz, **changes), count=3)
    assert message in str(error.value)


def test_members_whose_data_do_not_fit_or_are_read_one_by_one_are_not_planned(
    npz: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(InputError, match=r"^--members=3: .* more than a quarter of a device's memory: plan the run wi"):
        plan.make(small_config(npz), figures={"memory": 4000}, count=3)
    monkeypatch.setattr(ArrayDataset, "one_by_one", True)
    with pytest.raises(InputError, match=r"^--members=3: .* the data are read one by one: plan the run without --memb"):
        plan.make(small_config(npz), count=3)


def test_members_of_a_sweep_are_planned(
    npz: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shapes: list[Shape] = []

    def noted(*given: Any, **more: Any) -> Shape:
        shapes.append(Shape(*given, **more))
        return shapes[-1]

    monkeypatch.setattr("distmlp.plan.members.Shape", noted)
    config = small_config(npz, validation_fraction=0.25, num_epochs=3, eval_every_epochs=2, choose_by="roc_auc")
    found = plan.make(config, count=30)
    assert shapes[0].log_probs  # of its evaluations
    assert shapes[0].steps == 8  # two epochs', up to an evaluation, as many as a dispatch has at most
    assert (found["members"], found["members_per_device"], found["devices"]) == (30, 4, 8)
    assert not found["together"]  # on a CPU
    parameters = 4 * (12 * 8 + 8 + 8 * 4 + 4)
    assert found["memory"]["parameters"] == 4 * parameters
    assert found["memory"]["data"] == 96 * (12 + 4)
    assert found["most_members"] > 10**6
    assert main([f"--dataset={npz}", "--batch_size=20", "--validation_fraction=0.25", "--members=3"]) == 0
    out = capsys.readouterr().out
    assert "3, 1 on a device, one after the other; room for" in out.replace("\n" + " " * 13, " ")
    assert max(map(len, out.splitlines())) <= 80
    with pytest.raises(InputError, match="--members=0: give 1 or more"):
        plan.make(small_config(npz), count=0)
