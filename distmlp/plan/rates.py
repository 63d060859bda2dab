"""Measured rates of a device that is here and not in the table of cards: in a second or two, with plain programs."""

import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from distmlp.plan.cards import Card

_PRODUCT = 1024  # rows and columns of the matrices
_COPIED = 16 << 20  # float32 numbers: larger than caches
_STARTS = 2000  # dependent kernels in a loop


def measure(device: jax.Device, memory: int) -> Card:
    """The card that stands for `device`, of so many bytes of memory; links are taken to be as fast as its memory."""

    def product(dtype: Any) -> float:
        matrix = jnp.ones((_PRODUCT, _PRODUCT), dtype)
        return 2 * _PRODUCT**3 / _seconds(lambda x: x @ x, matrix)

    with jax.default_device(device):
        f32, bf16 = product(jnp.float32), product(jnp.bfloat16)
        with jax.default_matmul_precision("highest"):
            highest = product(jnp.float32)
        bandwidth = 2 * 4 * _COPIED / _seconds(lambda x: x + 1, jnp.ones(_COPIED))
        start = _seconds(_many_kernels, jnp.ones(8)) / (2 * _STARTS)
    return Card(device.device_kind, bf16, f32, highest, memory, bandwidth, start, bandwidth, 1e-5, bandwidth, 1e-4, 0)


def _many_kernels(x: jax.Array) -> jax.Array:
    """Sums and their use, which no compiler makes one kernel of: two a turn."""
    turns: jax.Array = jax.lax.fori_loop(0, _STARTS, lambda _, x: x + jnp.sum(x) * 1e-9, x)
    return turns


def _seconds(function: Callable[[Any], Any], argument: Any) -> float:
    """Of one call, the fastest of some."""
    compiled = jax.jit(function).lower(argument).compile()
    jax.block_until_ready(compiled(argument))
    times = []
    for _ in range(7):
        start = time.perf_counter()
        jax.block_until_ready(compiled(argument))
        times.append(time.perf_counter() - start)
    return min(times)
