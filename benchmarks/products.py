"""The matrix products of an epoch and nothing else, by each library at hand: the floor under any training loop.

A step of the MLP has eight: forward, and backward for the weights, in each layer; backward for the inputs in all
layers but the first.
"""

import itertools
import time
from collections.abc import Callable
from typing import Any

import numpy as np
from harness import Contestant, Work

SIZES = (784, 512, 512, 10)


def arrays(batch_size: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    rng = np.random.default_rng(0)
    values = [rng.standard_normal((batch_size, width), np.float32) for width in SIZES]
    weights = [rng.standard_normal((n, m), np.float32) for m, n in itertools.pairwise(SIZES)]
    return values, weights


def products(values: list[Any], weights: list[Any]) -> list[Any]:
    """One step's, of NumPy, torch or jax arrays. The values of a layer stand for their gradients, too."""
    results = []
    for layer, matrix in enumerate(weights):
        results += [values[layer] @ matrix.T, values[layer + 1].T @ values[layer]]
        if layer:
            results.append(values[layer + 1] @ matrix)
    return results


def flops(batch_size: int, sizes: tuple[int, ...] = SIZES) -> int:
    """Of one step's matrix products."""
    per_layer = [2 * batch_size * m * n for m, n in itertools.pairwise(sizes)]
    return 3 * sum(per_layer) - per_layer[0]


def _epochs(batch_size: int, step: Callable[[], Any], wait: Callable[[Any], Any] = lambda result: None) -> Contestant:
    steps, ready = -(-60000 // batch_size), False
    while True:
        start = time.perf_counter()
        for _ in range(steps):
            result = step()
        wait(result)
        yield {"seconds": time.perf_counter() - start} if ready else {}
        ready = True


def numpy(work: Work) -> Contestant:
    values, weights = arrays(work["batch_size"])
    return _epochs(work["batch_size"], lambda: products(values, weights))


def torch(work: Work) -> Contestant:
    from torch import from_numpy

    values, weights = ([from_numpy(a) for a in group] for group in arrays(work["batch_size"]))
    return _epochs(work["batch_size"], lambda: products(values, weights))


def xla(work: Work) -> Contestant:
    import jax

    values, weights = jax.device_put(arrays(work["batch_size"]))
    compiled = jax.jit(products)
    return _epochs(work["batch_size"], lambda: compiled(values, weights), jax.block_until_ready)
