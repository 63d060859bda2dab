"""The JAX documentation's "Training a simple neural network, with PyTorch data loading", told again: one device, a
torch DataLoader that decodes one image after the other, plain SGD. What the benchmarks call "the tutorial".
"""

import time
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Contestant, Numbers, Work
from torch.utils.data import DataLoader, default_collate
from torchvision.datasets import MNIST

Params = list[tuple[jax.Array, jax.Array]]
SIZES = (784, 512, 512, 10)


def initial_params(key: jax.Array) -> Params:
    params = []
    for wide, narrow, layer_key in zip(SIZES[:-1], SIZES[1:], jax.random.split(key, len(SIZES)), strict=False):
        for_weights, for_biases = jax.random.split(layer_key)
        params.append((1e-2 * jax.random.normal(for_weights, (narrow, wide)),
                       1e-2 * jax.random.normal(for_biases, (narrow,))))
    return params


def log_probabilities(params: Params, image: jax.Array) -> jax.Array:
    for weights, biases in params[:-1]:
        image = jnp.maximum(0, jnp.dot(weights, image) + biases)
    weights, biases = params[-1]
    logits = jnp.dot(weights, image) + biases
    return logits - jax.scipy.special.logsumexp(logits)


def loss(params: Params, images: jax.Array, targets: jax.Array) -> jax.Array:
    return -jnp.mean(jax.vmap(log_probabilities, in_axes=(None, 0))(params, images) * targets)


@jax.jit
def update(params: Params, images: jax.Array, targets: jax.Array) -> Params:
    grads = jax.grad(loss)(params, images, targets)
    return [(w - 0.01 * dw, b - 0.01 * db) for (w, b), (dw, db) in zip(params, grads, strict=True)]


@jax.jit
def correct(params: Params, images: jax.Array, labels: jax.Array) -> jax.Array:
    predictions = jax.vmap(log_probabilities, in_axes=(None, 0))(params, images)
    return jnp.sum(jnp.argmax(predictions, axis=1) == labels)


def one_hot(labels: np.ndarray) -> jax.Array:
    return jnp.array(labels[:, None] == jnp.arange(10), jnp.float32)


def flat_float(picture: Any) -> np.ndarray:
    return np.ravel(np.array(picture, dtype=np.float32))


def to_numpy(items: list[Any]) -> Any:
    return jax.tree.map(np.asarray, default_collate(items))


def make_loader(data_dir: str, batch_size: int) -> Any:
    images = MNIST(data_dir, train=True, download=True, transform=flat_float)
    return DataLoader(images, batch_size=batch_size, num_workers=0, collate_fn=to_numpy)


def train_epoch(params: Params, loader: Any) -> tuple[Params, float]:
    """The parameters after one more epoch, and its seconds."""
    start = time.perf_counter()
    for images, labels in loader:
        params = update(params, images, one_hot(labels))
    jax.block_until_ready(params)
    return params, time.perf_counter() - start


def in_memory(data_dir: str, train: bool) -> tuple[jax.Array, jax.Array]:
    mnist = MNIST(data_dir, train=train, download=True)
    return jnp.array(mnist.data.numpy().reshape(len(mnist), -1), jnp.float32), jnp.array(mnist.targets.numpy())


def epochs(work: Work) -> Contestant:
    """Contestant: one epoch per repetition. work: data_dir, batch_size; with `evaluates`, "test" or "train test", the
    accuracy on these sets after each epoch, too, outside its seconds.
    """
    loader, params = make_loader(work["data_dir"], work["batch_size"]), initial_params(jax.random.key(0))
    sets = {name: in_memory(work["data_dir"], name == "train") for name in work.get("evaluates", "").split()}
    while True:
        params, seconds = train_epoch(params, loader)
        yield {"seconds": seconds} | {f"{name}_accuracy": float(correct(params, *data)) / len(data[1])
                                      for name, data in sets.items()}


def loading(work: Work) -> Contestant:
    """Contestant: one pass over the loader alone. work: data_dir, batch_size."""
    loader = make_loader(work["data_dir"], work["batch_size"])
    yield {}
    while True:
        start = time.perf_counter()
        count = sum(len(labels) for _, labels in loader)
        seconds = time.perf_counter() - start
        yield {"seconds": seconds, "images_per_second": count / seconds}


def until_accurate(work: Work) -> Iterator[Numbers]:
    """Contestant: per repetition one run, of seed 0, 1, ..., until `target` test accuracy.

    Evaluations are not counted. work: data_dir, batch_size, target.
    """
    loader = make_loader(work["data_dir"], work["batch_size"])
    images, labels = in_memory(work["data_dir"], train=False)
    train_epoch(initial_params(jax.random.key(0)), loader)
    yield {}
    seed = 0
    while True:
        params, seconds, accuracy, count = initial_params(jax.random.key(seed)), 0.0, 0.0, 0
        while accuracy < work["target"]:
            params, epoch_seconds = train_epoch(params, loader)
            seconds, count = seconds + epoch_seconds, count + 1
            accuracy = float(correct(params, images, labels)) / len(labels)
        yield {"seconds": seconds, "epochs": count, "accuracy": accuracy, "seed": seed}
        seed += 1
