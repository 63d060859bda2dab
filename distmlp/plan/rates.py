"""Measured rates of a device that is here and not in the table of cards: in a second or two, with plain programs."""

import math
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from distmlp.plan.cards import Card

_STARTS = 2000  # dependent kernels in a loop
_CALLS, _ENOUGH = 15, 1.0  # of a program, at most: calls, and the seconds after which no other one begins


def measure(device: jax.Device, memory: int, rows: int, layer: tuple[int, int], touched: int) -> Card:
    """The card that stands for `device`, of `memory` bytes; links are taken to be as fast as its memory.

    Args:
      device: one that is here.
      memory: bytes that it has.
      rows, layer: of the products that matter: [rows, inputs] by a layer's [inputs, outputs].
      touched: bytes that a step works on; fewer stay in a cache, and are faster there.
    """

    def product(dtype: Any) -> float:
        inputs, weights = jnp.ones((rows, layer[0]), dtype), jnp.ones(layer, dtype)
        return 2 * rows * math.prod(layer) / _seconds(lambda x, w: x @ w, inputs, weights)

    numbers = max(touched // 8, 1024)  # half of them read, half of them written
    with jax.default_device(device):
        f32, bf16 = product(jnp.float32), product(jnp.bfloat16)
        with jax.default_matmul_precision("highest"):
            highest = product(jnp.float32)
        bandwidth = 8 * numbers / _seconds(lambda x: x + 1, jnp.ones(numbers, jnp.float32))
        start = _seconds(_many_kernels, jnp.ones(8, jnp.float32)) / (2 * _STARTS)
    return Card(device.device_kind, bf16, f32, highest, memory, bandwidth, start, bandwidth, 1e-5, bandwidth, 1e-4, 0)


def _many_kernels(x: jax.Array) -> jax.Array:
    """Sums and their use, which no compiler makes one kernel of: two a turn."""
    turns: jax.Array = jax.lax.fori_loop(0, _STARTS, lambda _, x: x + jnp.sum(x) * 1e-9, x)
    return turns


def _seconds(function: Callable[..., Any], *arguments: Any) -> float:
    """Of one call, the fastest of some."""
    compiled = jax.jit(function).lower(*arguments).compile()
    jax.block_until_ready(compiled(*arguments))
    times: list[float] = []
    while len(times) < _CALLS and sum(times) < _ENOUGH:
        start = time.perf_counter()
        jax.block_until_ready(compiled(*arguments))
        times.append(time.perf_counter() - start)
    return min(times)
