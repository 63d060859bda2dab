"""Whether the devices compute what the host computes in float64, and all of them the same."""

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distmlp import model
from distmlp.data.batches import Batch
from distmlp.data.loader import NumpyLoader
from distmlp.parallel import backend
from distmlp.parallel.digest import array_digest
from distmlp.parallel.layout import Layout
from distmlp.parallel.sharded import StateLayout, rows_of
from distmlp.parallel.specs import BATCH, DEALT, REPLICATED, State
from distmlp.parallel.step import Recipe, gradients
from distmlp.verify.here import CLASSES, FEATURES, Here, NotHeld, NotHere

Arrays = list[np.ndarray]  # weights and biases of the layers in turn

_SIZES = (FEATURES, 33, 17, CLASSES)
_EXAMPLES = 101  # of the batch: no number of shards divides it
# The largest errors: with fewer digits, units near 0 are on that should be off, or the reverse.
_CLOSE = {"float32 products": 2e-5, "the default precision": 0.1, "bfloat16": 0.3}


def parameters(sizes: tuple[int, ...] = _SIZES) -> list[tuple[np.ndarray, np.ndarray]]:
    """Of a network of these sizes, float32; large enough for every layer to matter."""
    rng = np.random.default_rng(1)
    return [(rng.normal(0, n**-0.5, (m, n)).astype(np.float32), rng.normal(0, 0.1, m).astype(np.float32))
            for n, m in itertools.pairwise(sizes)]  # fmt: skip


def reference(params: list[tuple[np.ndarray, np.ndarray]], inputs: np.ndarray, labels: np.ndarray) -> Arrays:
    """The gradient of the tutorial's loss, -mean(log-probabilities * targets), worked out by hand in float64."""
    layers = [(w.astype(np.float64), b.astype(np.float64)) for w, b in params]
    activations = [inputs.astype(np.float64)]
    for at, (w, b) in enumerate(layers):
        outputs = activations[-1] @ w.T + b
        activations.append(np.maximum(outputs, 0) if at < len(layers) - 1 else outputs)
    logits = activations.pop()
    odds = np.exp(logits - logits.max(axis=1, keepdims=True))
    errors = (odds / odds.sum(axis=1, keepdims=True) - np.eye(logits.shape[1])[labels]) / logits.size
    grads: Arrays = []
    for (w, _), entered in zip(reversed(layers), reversed(activations), strict=True):
        grads = [errors.T @ entered, errors.sum(axis=0), *grads]
        errors = (errors @ w) * (entered > 0)
    return grads


def gradient(here: Here) -> str:
    """The tutorial's gradient of an uneven batch, by every way to compute it here."""
    worst = {name: _error(here, layout, "float32 products") for name, layout in _ways(here)}
    return f"{', '.join(worst)}: at most {max(worst.values()):.1e} off the host's float64"


def precision(here: Here) -> str:
    """The same with fewer digits."""
    layout = dataclasses.replace(here.layout, invariant=False)
    return ", ".join(f"{name}: {_error(here, layout, name):.1e} off" for name in ("the default precision", "bfloat16"))


def _ways(here: Here) -> Iterator[tuple[str, Layout]]:
    fast = dataclasses.replace(here.layout, invariant=False)
    yield from (("fast", fast), ("invariant", here.layout))
    if here.count > 1:
        yield "sharded", dataclasses.replace(here.layout, sharded=True)
        yield "layer by layer", dataclasses.replace(fast, sharded=True, by_layer=True)
        if not here.group.several:
            yield "pmap", dataclasses.replace(fast, parallelism="pmap")


def _error(here: Here, layout: Layout, way: str) -> float:
    """The largest error of an array's gradient, as a share of its largest number; NotHeld if that is too large."""
    config = here.config(batch_size=_EXAMPLES, matmul_precision="highest" if way == "float32 products" else "default")
    dtype, params, data = "bfloat16" if way == "bfloat16" else "float32", parameters(), here.load(config)
    batch = next(iter(NumpyLoader(data.train, _EXAMPLES, layout.num_shards, layout.local_shards)))
    scaling = np.zeros(FEATURES, np.float32), np.full(FEATURES, 1 / 255, np.float32)
    rows = rows_of(params)
    state = State(params, (), np.int32(0), scaling)  # type: ignore[arg-type] # arrays of the host
    held = StateLayout(layout, jax.tree.map(lambda array: jax.ShapeDtypeStruct(array.shape, array.dtype), state))

    def body(state: State, batch: Batch) -> tuple[State, jax.Array]:
        loss, grads = gradients(state, batch, layout, Recipe(CLASSES, dtype, rows=rows))
        return state._replace(params=grads), loss

    with backend.pinned(config):
        step = layout.wrap(body, (held.specs, BATCH), donate=False, out_specs=(held.specs, REPLICATED))
        found, _ = step(jax.tree.map(_placed, state, held.abstract), layout.put(batch.on_devices(), BATCH))
        arrays = list(held.arrays(found.params))
    images, labels = data.train.take(np.arange(_EXAMPLES))
    expected = reference(params, images * scaling[1].astype(np.float64), labels)
    error = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(arrays, expected, strict=True))
    if not error <= _CLOSE[way]:
        raise NotHeld(f"{way}, {_named(layout)}: {error:.1e} off the host's float64, of at most {_CLOSE[way]:.0e}")
    return float(error)


def _named(layout: Layout) -> str:
    return f"{layout.parallelism}, {layout.state}, {'invariant' if layout.invariant else 'fast'}"


def _placed(array: np.ndarray, like: Any) -> jax.Array:
    """An array, filled up with rows as one on the devices is."""
    extra = [(0, new - old) for new, old in zip(like.shape, np.shape(array), strict=True)]
    whole = np.pad(array, extra) if extra else np.asarray(array)
    return jax.make_array_from_callback(like.shape, like.sharding, lambda index: whole[index])


def alike(here: Here) -> str:
    """Every device, given the same shard, finds the same bits."""
    rows, width, turns = (4096, 2048, 20) if here.layout.accelerated else (256, 128, 2)
    rng = np.random.default_rng(2)
    images, labels = rng.random((rows, width), np.float32), rng.integers(0, CLASSES, rows).astype(np.int32)
    find = here.layout.wrap_each(shard_digests, (REPLICATED, REPLICATED, REPLICATED))
    arguments = here.layout.put((parameters((width, width, CLASSES)), images, labels), REPLICATED)
    found = [here.gathered(find(*arguments)) for _ in range(turns)]  # [devices, arrays] each
    rows_seen, counts = np.unique(np.concatenate(found), axis=0, return_counts=True)
    usual = rows_seen[counts.argmax()]
    odd = sorted({int(device) for digests in found for device in np.argwhere((digests != usual).any(axis=1)).ravel()})
    if odd:
        raise NotHeld(f"{', '.join(map(here.name, odd))} found other bits than the rest, in {turns} turns")
    return f"{here.counted}, {turns} turns: the same bits"


def shard_digests(params: model.Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    """The digests, uint32 [1, arrays], of the gradient that this device finds."""
    grads = jax.grad(model.loss)(params, images, model.one_hot(labels, CLASSES))
    return jnp.stack([array_digest(leaf) for leaf in jax.tree.leaves(grads)])[None]


def collectives(here: Here) -> str:
    """What devices send one another arrives, and what they add up is the host's float64 sum."""
    if here.count == 1:
        raise NotHere("one device sends nothing")
    sizes = [7, (1 << 22 if here.layout.accelerated else 1 << 18) // here.count]
    for size in sizes:
        _collectives(here, size)
    return f"{', '.join(_COLLECTIVES)} of up to {4 * sizes[-1] * here.count / 1e6:,.1f} MB on {here.counted}"


Collective = Callable[[jax.Array, str, int], jax.Array]
_COLLECTIVES: dict[str, Collective] = {  # of a device's x [devices, n]; and below what it makes on device d of all xs
    "all-reduce": lambda x, axis, count: jax.lax.psum(x, axis),
    "reduce-scatter": lambda x, axis, count: jax.lax.psum_scatter(x, axis),
    "all-gather": lambda x, axis, count: jax.lax.all_gather(x[0], axis),
    "all-to-all": lambda x, axis, count: jax.lax.all_to_all(x, axis, 0, 0),
    "permute": lambda x, axis, count: jax.lax.ppermute(x[0], axis, [(i, (i + 1) % count) for i in range(count)]),
}
_EXPECTED: dict[str, Callable[[np.ndarray, int], np.ndarray]] = {
    "all-reduce": lambda xs, d: xs.sum(axis=0),
    "reduce-scatter": lambda xs, d: xs[:, d].sum(axis=0),
    "all-gather": lambda xs, d: xs[:, 0],
    "all-to-all": lambda xs, d: xs[:, d],
    "permute": lambda xs, d: xs[d - 1, 0],
}


def _collectives(here: Here, size: int) -> None:
    count, layout = here.count, here.layout
    sent = np.random.default_rng(3).standard_normal((count, count, size), np.float32)
    xs, most = sent.astype(np.float64), np.abs(sent).astype(np.float64)

    def body(x: jax.Array) -> dict[str, jax.Array]:
        return {name: act(x[0], str(layout.axis), count)[None] for name, act in _COLLECTIVES.items()}

    for name, array in layout.wrap_each(body, (DEALT,))(layout.put(sent[layout.local_positions], DEALT)).items():
        for shard in array.addressable_shards:
            device = shard.index[0].start or 0
            # Of count - 1 additions, each rounds to 24 binary digits; nothing else rounds.
            bound = 2**-23 * count * _EXPECTED[name](most, device) if name in ("all-reduce", "reduce-scatter") else 0
            if not (np.abs(np.asarray(shard.data)[0] - _EXPECTED[name](xs, device)) <= bound).all():
                raise NotHeld(f"{name} of {4 * size * count:,} bytes: {here.name(device)} differs from NumPy")
