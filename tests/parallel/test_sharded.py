"""Sharded state: the bits and the numbers of replicated. The long form is drills/states.py."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import tutorial
from conftest import small_config
from drills import runs
from drills.states import OPTIMIZERS
from parallel.test_parity import CLASSES, SIZES, assert_close, dataset, params  # type: ignore[import-not-found]

from distmlp import Config, InputError, optim, train, training
from distmlp.data import datasets
from distmlp.data.batches import Batch
from distmlp.data.loader import NumpyLoader
from distmlp.errors import DivergedError, ReplicaError
from distmlp.parallel import backend
from distmlp.parallel import sharded as sharding
from distmlp.parallel.digest import StateDigest, array_digest, params_sha256
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.layout import Layout, make_layout, make_layouts
from distmlp.parallel.sharded import StateLayout, rows_of
from distmlp.parallel.specs import BATCH, REPLICATED, STATE, State
from distmlp.parallel.step import Recipe, gradients, initial_state
from distmlp.results import checkpoints
from distmlp.run import ledger

# No number of devices divides 33; 4 classes leave a block of the last layer empty. 8 shards would be compiled longer.
SETTINGS: dict[str, Any] = {"hidden_sizes": (50, 33), "reduction": "invariant", "num_shards": 5, "max_steps": 7,
                            "eval_train": True}  # fmt: skip


def trained(data: str, **changes: Any) -> list[dict[str, Any]]:
    """The lines of a run, less its timings; the last has the parameters' SHA-256, and that of the best is added."""
    result = train(small_config(data, workdir=None, **(SETTINGS | changes)))
    assert params_sha256(result.params) == result.history[-1]["params_sha256"]
    lines = [{name: value for name, value in line.items() if "second" not in name} for line in result.history]
    return [*lines, {"best": params_sha256(result.best_params)}]


@pytest.mark.parametrize(("optimizer", "hidden", "counts"), [
    pytest.param("momentum", (50, 33), [5], marks=pytest.mark.full_xla),
    ("adam", (4, 3), [2, 5]),  # narrower than there are blocks
    # Of 3 devices, the last has an empty block; the bias of a layer of one unit is a number, which all devices hold.
    ("adamw", (33, 1), [3, 5]),
])  # fmt: skip
def test_the_bits_and_the_numbers_of_replicated(
    optimizer: str, hidden: tuple[int, ...], counts: list[int], npz: str
) -> None:
    settings = OPTIMIZERS[optimizer] | {"hidden_sizes": hidden}
    expected = trained(npz, num_devices=1, **settings)
    for devices in counts:
        assert trained(npz, num_devices=devices, state="sharded", **settings) == expected


def test_a_run_of_a_folder_is_that_of_replicated(npz: str) -> None:
    """In bfloat16, with weights: its lines, its ledger with digests, and its checkpoints, the best among them."""
    settings = SETTINGS | OPTIMIZERS["adam"] | {
        "compute_dtype": "bfloat16", "class_weight": "balanced", "eval_every_steps": 2, "keep_checkpoints": 1,
        "ledger": True, "ledger_digests_every": 3}  # fmt: skip

    def found(workdir: str, **changes: Any) -> list[Any]:
        train(small_config(npz, workdir=workdir, **settings, **changes))
        folder = Path(workdir)
        saved = [(step, checkpoints.read(folder, step).meta["digests"]) for step in checkpoints.steps(folder)]
        return [runs.lines(folder), ledger.read(folder)[:2], saved]

    way = {"num_devices": 3, "state": "sharded"}
    assert found("sharded", **way) == found("replicated", num_devices=2, state="replicated")
    longer = small_config(npz, workdir="sharded", **(settings | {"max_steps": 9}), **way)
    ended = train(longer, on_line=lambda line: True)
    assert [w.shape for w, _ in ended.params] == [(50, 12), (33, 50), (4, 33)]


def sharded(devices: int, by_layer: bool = False, shards: int = 0, reduction: str = "fast") -> Layout:
    config = Config(num_devices=devices, state="sharded", num_shards=shards, reduction=reduction)
    layout = make_layout(config)
    return Layout(layout.devices, "shard_map", layout.num_shards, layout.invariant, sharded=True, by_layer=by_layer)


def by_rows(state: Any, layout: Layout) -> tuple[State, StateLayout]:
    """A state of NumPy arrays, sharded."""
    held = StateLayout(layout, jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), state))

    def put(array: Any, like: Any) -> jax.Array:
        extra = [(0, new - old) for new, old in zip(like.shape, array.shape, strict=True)]
        return jax.device_put(np.pad(array, extra) if extra else array, like.sharding)

    return jax.tree.map(put, state, held.abstract), held


@pytest.mark.parametrize(("by_layer", "devices", "shards", "over_gloo"), [
    (False, 3, 0, True), (False, 8, 16, False), (True, 3, 0, False), (True, 8, 16, True),
])  # fmt: skip
def test_the_gradients_of_fast_are_the_tutorials(
    devices: int, by_layer: bool, shards: int, over_gloo: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Layout, "over_gloo", over_gloo)  # what several CPU processes compile
    layout, data = sharded(devices, by_layer, shards), dataset(128)
    (batch,) = NumpyLoader(data, 128, layout.num_shards, layout.local_shards)
    state, held = by_rows(State(params(), (), np.int32(0), ()), layout)

    def body(state: State, batch: Batch) -> tuple[State, jax.Array]:
        loss, grads = gradients(state, batch, layout, Recipe(CLASSES, rows=rows_of(params())))
        return state._replace(params=grads), loss

    step = layout.wrap(body, (held.specs, BATCH), out_specs=(held.specs, REPLICATED))
    state, loss = step(state, layout.put(batch.on_devices(), BATCH))
    assert_close(list(held.arrays(state.params)), data, slice(0, 128))
    expected = tutorial.loss(params(), data.images.astype(np.float32), tutorial.one_hot(data.labels, CLASSES))
    np.testing.assert_allclose(loss, expected, rtol=1e-6)


@pytest.mark.parametrize("by_layer", [False, True])
def test_an_evaluation_is_that_of_replicated(by_layer: bool) -> None:
    layout, config, data = sharded(3, by_layer), Config(num_devices=3), dataset(200)
    state, held = by_rows(State(params(), (), np.int32(0), ()), layout)
    found = Evaluator(layout, 64, specs=held.specs, rows=rows_of(params()))(state, data)
    replicated = make_layout(config)
    plain = replicated.put(jax.tree.map(np.asarray, State(params(), (), np.int32(0), ())), STATE)
    assert found == Evaluator(replicated, 64)(plain, data)


@pytest.mark.parametrize("prng", ["threefry", "threefry_original", "rbg"])
def test_initial_values_are_those_of_replicated(prng: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "_SMALL", 1000)  # then the first two layers are made where they lie
    layout, optimizer = sharded(3), optim.make(Config(), 5)
    with backend.pinned(Config(prng=prng)):
        whole = initial_state(SIZES, 7, optimizer, ())
        held = StateLayout(layout, jax.eval_shape(lambda: whole))
        parts = initial_state(SIZES, 7, optimizer, (), held.normal)
    for part, array in zip(held.arrays(parts.params), jax.tree.leaves(whole.params), strict=True):
        np.testing.assert_array_equal(part, array)


def test_initial_values_are_made_where_they_lie(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "_SMALL", 1)
    monkeypatch.setattr(jax, "make_array_from_callback", None)  # by which an array made whole is cut
    layout, optimizer = sharded(8), optim.make(Config(optimizer="adam"), 5)
    shapes = jax.eval_shape(lambda: initial_state(SIZES, 0, optimizer, ()))
    held = StateLayout(layout, shapes)
    made = held.normal(jax.random.key(3), (33, 70), jnp.float32)
    assert made.sharding == held.abstract.params[0][0].sharding
    assert {shard.data.shape for shard in made.addressable_shards} == {(5, 70)}
    np.testing.assert_array_equal(made[:33], jax.random.normal(jax.random.key(3), (33, 70)))
    assert not np.asarray(made[33:]).any()


def test_digests_are_those_of_the_whole_arrays() -> None:
    layout = sharded(3, reduction="invariant", shards=8)
    arrays = State([(np.arange(35, dtype=np.float32).reshape(7, 5), np.float32([1, 2, 3]))], (), np.int32(4), ())  # type: ignore[list-item]
    state, held = by_rows(arrays, layout)
    digest = StateDigest(layout, held.specs, held.shapes)
    (w, b), step = arrays.params[0], arrays.step
    expected = {name: f"{int(array_digest(jnp.asarray(array))):08x}"
                for name, array in ((".params[0][0]", w), (".params[0][1]", b), (".step", step))}
    assert digest.check(state, 0) == expected
    broken = np.array(w)
    broken[6, 4] = np.inf  # the last
    with pytest.raises(DivergedError):
        digest.check(by_rows(arrays._replace(params=[(broken, b)]), layout)[0], 0)  # type: ignore[list-item]
    copies = [jax.device_put(np.int32(4 + (i == 2)), device) for i, device in enumerate(layout.devices)]
    step = jax.make_array_from_single_device_arrays((), layout.sharding(REPLICATED), copies)
    with pytest.raises(ReplicaError, match=r"\.step on device 0 and device 2"):
        digest.check(state._replace(step=step), 0)


def test_a_gradient_that_is_not_finite_is_named_by_its_step(npz: str) -> None:
    messages = set()
    for reduction, state in (("fast", "replicated"), ("fast", "sharded"), ("invariant", "sharded")):
        with pytest.raises(DivergedError, match="not finite at step") as error:
            trained(npz, learning_rate=1e30, num_devices=3, reduction=reduction, state=state)
        messages.add(str(error.value))
    assert len(messages) == 1


def test_pmap_has_no_sharded_state() -> None:
    with pytest.raises(InputError, match="--state=sharded is not for --parallelism=pmap"):
        make_layout(Config(parallelism="pmap", state="sharded"))


def test_auto_is_replicated_where_that_fits_and_sharded_where_not(npz: str) -> None:
    config = small_config(npz, num_devices=8, optimizer="adam", hidden_sizes=(256, 256), max_steps=9, workdir=None)
    with backend.prepared(config):
        data, layouts = datasets.load(config), make_layouts(config)
        plain = training.fitting(config, data, layouts, 1 << 40)
        assert (plain.layout.state, plain.state_why) == ("replicated", "it fits")
        plain.compile()
        needed = plain.feed.bytes_needed + plain.held.bytes
        found = [training.fitting(config, data, layouts, memory) for memory in (needed, needed - 1, 1)]
        assert [parts.layout.state for parts in found] == ["replicated", "sharded", "sharded, layer by layer"]
        assert found[1].state_why.startswith("replicated, a device would need")
        asked = dataclasses.replace(config, state="replicated")
        assert training.fitting(asked, data, make_layouts(asked), 1).layout.state == "replicated"


def test_a_training_set_on_the_devices_takes_of_their_room(npz: str) -> None:
    config = small_config(npz, num_devices=2, data_placement="device")
    parts = training.Program(config, datasets.load(config), make_layout(config), 1 << 20)
    assert parts.surely_fits(1 << 20)
    assert parts.feed.resident_bytes > 0
    parts.feed.resident_bytes = 1 << 20
    assert not parts.surely_fits(1 << 20)
