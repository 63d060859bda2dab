"""The two reductions as sums: of what, and in which order."""

import jax
import numpy as np
import pytest
from conftest import DEVICES

from distmlp.parallel import reduce
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import DEALT

pytestmark = pytest.mark.full_xla  # what is compared is what a user's programs compute


def tree_order_sum(values: np.ndarray) -> np.ndarray:
    """The order that reduce.py documents, said recursively: neighbours in pairs, an odd one moves up unchanged."""
    if len(values) == 1:
        return values[0]
    pairs = [values[i] + values[i + 1] if i + 1 < len(values) else values[i] for i in range(0, len(values), 2)]
    return tree_order_sum(np.array(pairs))


def values(shards: int) -> np.ndarray:
    """Shard values of very different sizes, so that the order of addition shows in the bits."""
    rng = np.random.default_rng(shards)
    return (rng.standard_normal((shards, 13)) * 10.0 ** rng.integers(-6, 7, (shards, 13))).astype(np.float32)


def reduced(kind: str, shard_values: np.ndarray, devices: int) -> np.ndarray:
    shards = len(shard_values)
    per_device = -(-shards // devices)
    filled = np.zeros((per_device * devices, 13), np.float32)
    filled[:shards] = shard_values

    def body(part: jax.Array) -> dict[str, jax.Array]:
        def function(x: jax.Array) -> dict[str, jax.Array]:
            return {"a": x[:5], "b": x[5:].reshape(2, 4)}

        return reduce.fast(function, part, layout) if kind == "fast" else reduce.invariant(function, part, (), layout)

    layout = Layout(tuple(jax.devices()[:devices]), "shard_map", shards)
    result = layout.wrap(body, (DEALT,), donate=False)(layout.put(filled, DEALT))
    for array in result.values():  # the copies of all devices
        for shard in array.addressable_shards:
            np.testing.assert_array_equal(shard.data, array)
    return np.concatenate([result["a"], result["b"].ravel()])


@pytest.mark.parametrize("shards", [1, 2, 3, 5, 8, 11, 16])
def test_invariant_adds_along_one_tree_whatever_the_devices(shards: int) -> None:
    expected = tree_order_sum(values(shards))
    for devices in {1, min(shards, 3), min(shards, DEVICES)}:
        np.testing.assert_array_equal(reduced("invariant", values(shards), devices), expected)


@pytest.mark.parametrize(
    ("kind", "shards", "devices"),
    [("fast", 1, 1), ("fast", 5, 5), ("fast", 5, 4), ("fast", 16, 8),
     ("pairs", 1, 1), ("pairs", 3, 2), ("pairs", 16, 8)],
)
def test_fast_is_a_sum(kind: str, shards: int, devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reduce, "_LARGE", 6)  # one array is small, the other large
    monkeypatch.setattr(Layout, "adds_in_pairs", kind == "pairs")
    exact = values(shards).astype(np.float64).sum(axis=0)
    scale = np.abs(values(shards)).astype(np.float64).sum(axis=0)
    assert (np.abs(reduced("fast", values(shards), devices) - exact) <= 1e-6 * scale).all()
