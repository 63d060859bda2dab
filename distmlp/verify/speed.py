"""Whether the devices are as fast as the plan and the data sheet say, and need as much memory; and the loader."""

import dataclasses
import time
from contextlib import closing
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from distmlp.config import Config
from distmlp.data import datasets
from distmlp.data.loader import NumpyLoader
from distmlp.parallel import backend
from distmlp.parallel.digest import array_digest, host_digest
from distmlp.parallel.specs import DEALT
from distmlp.plan import cards, plan
from distmlp.verify.here import Here, NotHeld, NotHere

_FACTOR, _CPU_FACTOR = 3.0, 10.0  # within which a prediction of a step's time counts as right
_MEMORY_FACTOR = 1.1
_SHEET_SHARE = 0.4  # of a data sheet's rate, that large products reach on a card that is well
_SECONDS = 1.0  # for which steps are timed


def step_time(here: Here) -> str:
    """The tutorial's network, and on accelerators a larger one, beside the plan's prediction."""
    cpu = not here.layout.accelerated
    told = []
    for hidden, batch in (((512, 512), 128), *([] if cpu else [((8192, 8192), 2048)])):
        config = _sized(here, hidden, batch)
        predicted = _plan(here, config)["predicted_step_seconds"]
        measured = _seconds_a_step(here, config)
        told.append(f"{'-'.join(map(str, hidden))}, {batch} examples a device: {1e6 * measured:,.0f} µs a step, "
                    f"predicted {1e6 * predicted:,.0f}")
        if cpu and here.count > 1:
            raise NotHere(f"emulated devices share the cores ({told[-1]} for one that has them alone)")
        factor = _CPU_FACTOR if cpu else _FACTOR
        if not predicted / factor <= measured <= predicted * factor:
            raise NotHeld(f"{told[-1]}: more than a factor of {factor:g} apart")
    return "; ".join(told)


def memory(here: Here) -> str:
    """The most memory that a run of a large network has used on a device, beside the plan's."""
    if not _stat(here.local[0], "peak_bytes_in_use"):
        raise NotHere(f"a device of the kind {here.local[0].device_kind} does not say what it uses")
    config = _sized(here, (8192, 8192), 4096)
    planned = _plan(here, config)["memory"]
    before = max(_stat(device, "bytes_in_use") for device in here.local)
    _seconds_a_step(here, config)
    used = max(_stat(device, "peak_bytes_in_use") for device in here.local) - before
    told = f"{used / 2**20:,.0f} MiB used, at most {planned['total'] / 2**20:,.0f} planned"
    if used > _MEMORY_FACTOR * planned["total"]:
        raise NotHeld(told)
    return told


def _stat(device: jax.Device, name: str) -> int:
    return int((device.memory_stats() or {}).get(name, 0))  # a CPU has none


def _sized(here: Here, hidden: tuple[int, ...], batch: int) -> Config:
    """A run of so many examples a device and step, the fast way."""
    return here.config(
        dataset="synthetic", synthetic_examples=4 * batch * here.count, hidden_sizes=hidden, num_shards=0, momentum=0.0,
        batch_size=batch * here.count, reduction="fast", max_steps=10**6, steps_per_dispatch=0, learning_rate=1e-4,
    )  # fmt: skip


def _plan(here: Here, config: Config) -> dict[str, Any]:
    if here.group.several and cards.find(here.layout.devices[0].device_kind) is None:
        raise NotHere(f"of {here.layout.devices[0].device_kind} in several processes nothing is predicted")
    return plan.make(config)


def _seconds_a_step(here: Here, config: Config) -> float:
    """The median of some dispatches, once they have found their length."""
    times: list[float] = []
    with backend.pinned(config), closing(here.program(config, datasets.load(config))) as parts:
        parts.compile()
        state, step, started = parts.initial_state(parts.scaling()), 0, time.monotonic()
        while here.group.lead(time.monotonic() - started < _SECONDS or len(times) < 5):
            begun = time.perf_counter()
            state, steps = parts.feed.advance(state, step, config.max_steps)
            jax.block_until_ready(steps.losses)
            step += len(steps.sizes)
            times.append((time.perf_counter() - begun) / len(steps.sizes))
    return float(np.median(times[len(times) // 2 :]))


def products(here: Here) -> str:
    """Large matrix products on each of this process's devices, beside the card's data sheet."""
    card, size = cards.find(here.local[0].device_kind), 8192 if here.layout.accelerated else 512
    devices = here.local if card else here.local[:1]
    told = []
    for name, dtype, precision, sheet in (
        ("float32", jnp.float32, "default", card and card.f32),
        ("bfloat16", jnp.bfloat16, "default", card and card.bf16),
        ("float32 at the highest precision", jnp.float32, "highest", card and card.f32_highest),
    ):  # fmt: skip
        rates = [_product_rate(device, size, dtype, precision) for device in devices]
        rate, at = min(rates), here.layout.local_positions[int(np.argmin(rates))]
        told.append(f"{name} {rate / 1e12:,.3g} TFLOP/s" + (f" of {sheet / 1e12:,.0f}" if sheet else ""))
        if sheet and rate < _SHEET_SHARE * sheet:
            raise NotHeld(f"{here.name(at)}: {told[-1]}, less than {_SHEET_SHARE:.0%}")
    if card is None:
        raise NotHere(f"no data sheet of {here.local[0].device_kind} is known ({', '.join(told)})")
    return f"the slowest of {len(here.local)}: {', '.join(told)}"


def _product_rate(device: jax.Device, size: int, dtype: Any, precision: str) -> float:
    """FLOP/s of products [size, size] by [size, size] in a row, the fastest of some."""
    turns = 8

    def chain(x: jax.Array, w: jax.Array) -> jax.Array:
        return jax.lax.fori_loop(0, turns, lambda _, x: x @ w, x)

    with jax.default_device(device), jax.default_matmul_precision(precision):
        x, w = jnp.ones((size, size), dtype), jnp.full((size, size), 1 / size, dtype)
        compiled = jax.jit(chain).lower(x, w).compile()
        jax.block_until_ready(compiled(x, w))
        seconds = []
        for _ in range(5):
            begun = time.perf_counter()
            jax.block_until_ready(compiled(x, w))
            seconds.append(time.perf_counter() - begun)
    return 2 * turns * size**3 / min(seconds)


def loader(here: Here) -> str:
    """What the loader reads is on the devices, bit for bit; and how fast it reads, and sends."""
    rows, features, layout = 2048, 784, here.layout
    local = len(layout.local_positions)
    rng = np.random.default_rng(4)
    images = rng.integers(0, 256, (local * rows, features), dtype=np.uint8)
    begun = time.perf_counter()
    sent = jax.block_until_ready(layout.put(images, DEALT))
    seconds = time.perf_counter() - begun
    digest = jax.jit(lambda x: array_digest(x.astype(jnp.float32)))
    for at, shard in enumerate(sorted(sent.addressable_shards, key=lambda shard: shard.index[0].start or 0)):
        part = images[at * rows : (at + 1) * rows]
        found = f"{int(digest(shard.data)):08x}"  # by the device, of what it holds
        if found != host_digest(part.astype(np.float32)) or not np.array_equal(np.asarray(shard.data), part):
            raise NotHeld(f"what {here.name(layout.local_positions[at])} holds is not what was sent to it")
    config = here.config(dataset="synthetic", synthetic_examples=20_000, num_shards=layout.num_shards, batch_size=1000)
    data = datasets.load(dataclasses.replace(config, reduction="fast"))
    begun = time.perf_counter()
    batches = NumpyLoader(data.train, 1000, layout.num_shards, layout.local_shards, shuffle=True)
    count = sum(int(batch.real.sum()) for batch in batches)
    rate = count / (time.perf_counter() - begun)
    return f"{images.nbytes / seconds / 1e9:,.2f} GB/s to the devices; the loader reads {rate:,.0f} examples/s"
