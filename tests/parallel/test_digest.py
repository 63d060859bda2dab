"""The state's digest shows any flipped bit, any two devices that differ, and any value that is not finite."""

import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distmlp import Config
from distmlp.errors import DivergedError, ReplicaError
from distmlp.parallel.digest import StateDigest, array_digest, params_sha256
from distmlp.parallel.layout import Layout, make_layout
from distmlp.parallel.specs import REPLICATED

ARRAY = np.random.default_rng(0).standard_normal(37).astype(np.float32)


@settings(deadline=None, max_examples=150)
@given(word=st.integers(0, 36), bit=st.integers(0, 31))
def test_every_flipped_bit_shows(word: int, bit: int) -> None:
    flipped = ARRAY.copy()
    flipped.view(np.uint32)[word] ^= np.uint32(1 << bit)
    digest = jax.jit(array_digest)
    assert digest(flipped) != digest(ARRAY)


def test_exchanged_words_show() -> None:
    swapped = ARRAY.copy()
    swapped[[3, 20]] = ARRAY[[20, 3]]
    assert array_digest(jnp.asarray(swapped)) != array_digest(jnp.asarray(ARRAY))


def state(layout: Layout) -> Any:
    return layout.put({"w": ARRAY, "step": np.int32(7)}, REPLICATED)


@pytest.mark.parametrize(("parallelism", "devices"), [("single", 1), ("shard_map", 3), ("pmap", 8)])
def test_the_digest_does_not_depend_on_the_devices(parallelism: str, devices: int) -> None:
    layout = make_layout(Config(parallelism=parallelism, num_devices=devices))
    digests = StateDigest(layout, REPLICATED).check(state(layout), 7)
    assert digests == {
        "['step']": f"{int(array_digest(jnp.int32(7))):08x}",
        "['w']": f"{int(array_digest(jnp.asarray(ARRAY))):08x}",
    }


def test_the_program_that_can_be_compiled_elsewhere_is_the_one_that_checks() -> None:
    layout = make_layout(Config(num_devices=2))
    digest = StateDigest(layout, REPLICATED)
    by_device = np.asarray(digest.lower(state(layout)).compile()(state(layout)))
    expected = [int(text, 16) for text in digest.check(state(layout), 7).values()]
    np.testing.assert_array_equal(by_device, [[*expected, 1]] * 2)  # 1: all values are finite


def test_a_device_whose_copy_differs_is_named() -> None:
    layout = make_layout(Config(num_devices=4))
    good = state(layout)
    copies = [np.array(ARRAY) for _ in range(4)]
    copies[2].view(np.uint32)[5] ^= np.uint32(1)
    arrays = [jax.device_put(copy, device) for copy, device in zip(copies, layout.devices, strict=True)]
    w = jax.make_array_from_single_device_arrays(ARRAY.shape, layout.sharding(REPLICATED), arrays)
    with pytest.raises(ReplicaError, match=r"after step 9 .*\['w'\] on device 0 and device 2 differ"):
        StateDigest(layout, REPLICATED).check(good | {"w": w}, 9)


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("devices", [1, 4])
def test_values_that_are_not_finite(value: float, devices: int) -> None:
    layout = make_layout(Config(num_devices=devices))
    broken = ARRAY.copy()
    broken[5] = value
    with pytest.raises(DivergedError, match="not finite after step 3"):
        StateDigest(layout, REPLICATED).check(layout.put({"w": broken}, REPLICATED), 3)


def test_params_sha256_is_over_the_leaves_in_tree_order() -> None:
    params = jax.tree.map(jnp.asarray, [(ARRAY, np.zeros(2, np.float32)),
                                        (np.ones((2, 3), np.float32), np.zeros(1, np.float32))])  # fmt: skip
    leaves = [ARRAY, np.zeros(2, np.float32), np.ones((2, 3), np.float32), np.zeros(1, np.float32)]
    assert params_sha256(params) == hashlib.sha256(b"".join(leaf.tobytes() for leaf in leaves)).hexdigest()
