"""The same work by other libraries, each in the way that its own documentation teaches.

All are contestants of harness.py; work: data_dir, batch_size; with `evaluates`, the test set's accuracy after each
epoch, too, outside its seconds. What they yield first, compilation included, does not count.
"""

import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from harness import Contestant, Numbers, Work, torchrun


def _mnist(work: Work, *, train: bool = True, **options: Any) -> Any:
    from torchvision.datasets import MNIST

    return MNIST(work["data_dir"], train=train, download=True, **options)


def _in_memory(work: Work, *, train: bool = True) -> tuple[Any, Any]:
    mnist = _mnist(work, train=train)
    return mnist.data.reshape(len(mnist), -1).float(), mnist.targets


def make_torch_model() -> Any:
    """The tutorial's network, parameters drawn as there."""
    from torch import nn

    layers: list[Any] = []
    for wide, narrow in ((784, 512), (512, 512), (512, 10)):
        layer = nn.Linear(wide, narrow)
        nn.init.normal_(layer.weight, std=0.01)
        nn.init.normal_(layer.bias, std=0.01)
        layers += [layer, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def _torch_accuracy(model: Any, images: Any, labels: Any) -> float:
    import torch

    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def torch_memory(work: Work) -> Contestant:
    """PyTorch on tensors in memory: a slice of them is a batch."""
    import torch

    images, labels = _in_memory(work)
    test = _in_memory(work, train=False) if work.get("evaluates") else None
    model = make_torch_model()
    loss_function, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.001)
    while True:
        start = time.perf_counter()
        for x, y in zip(images.split(work["batch_size"]), labels.split(work["batch_size"]), strict=True):
            optimizer.zero_grad()
            loss_function(model(x), y).backward()
            optimizer.step()
        seconds = time.perf_counter() - start
        yield {"seconds": seconds} | ({"accuracy": _torch_accuracy(model, *test)} if test else {})


def torch_recipe(work: Work) -> Iterator[Numbers]:
    """configs/fast.flags told to PyTorch on tensors in memory: one run a repetition, of seed 0, 1, ...

    work: data_dir, batch_size, steps, warmup, learning_rate.
    """
    import torch

    images, labels = _in_memory(work)
    images /= 255
    test_images, test_labels = _in_memory(work, train=False)
    test_images /= 255
    rate, warmup, steps = (work[name] for name in ("learning_rate", "warmup", "steps"))
    for repetition in range(sys.maxsize):
        seed = max(0, repetition - 1)
        torch.manual_seed(seed)
        model = make_torch_model()
        loss_function, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.Adam(model.parameters(), lr=rate)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: (
            step / warmup if step < warmup
            else 0.5 * (1 + math.cos(math.pi * (step - warmup) / (steps - warmup)))))  # optax's warmup_cosine
        start = time.perf_counter()
        for rows in torch.randperm(len(labels)).split(work["batch_size"])[:steps]:
            optimizer.zero_grad()
            loss_function(model(images[rows]), labels[rows]).backward()
            optimizer.step()
            schedule.step()
        seconds = time.perf_counter() - start
        yield {"seconds": seconds, "accuracy": _torch_accuracy(model, test_images, test_labels), "seed": seed}


def _torch_loader(work: Work, num_workers: int = 0, **options: Any) -> Any:
    from torch.utils.data import DataLoader
    from torchvision import transforms

    dataset = _mnist(work, transform=transforms.ToTensor())
    return DataLoader(dataset, batch_size=work["batch_size"], num_workers=num_workers, **options)


def torch_dataloader(work: Work) -> Contestant:
    """PyTorch's quickstart: torchvision's Dataset with ToTensor, and a DataLoader."""
    import torch

    loader = _torch_loader(work)
    model = torch.nn.Sequential(torch.nn.Flatten(), make_torch_model())
    loss_function, optimizer = torch.nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), lr=0.001)
    while True:
        start = time.perf_counter()
        for x, y in loader:
            loss_function(model(x), y).backward()
            optimizer.step()
            optimizer.zero_grad()
        yield {"seconds": time.perf_counter() - start}


def torch_ddp(work: Work) -> Contestant:
    """PyTorch's DistributedDataParallel on two Gloo processes: see ddp.py. work["epochs"] too, the first left out."""
    script = str(Path(__file__).with_name("ddp.py"))
    yield {}
    while True:
        printed = torchrun(script, f"--data_dir={work['data_dir']}", f"--batch_size={work['batch_size']}",
                           f"--epochs={work['epochs']}")
        seconds = next(json.loads(line)["seconds"] for line in printed.splitlines() if line.startswith("{"))
        yield {"seconds": float(np.mean(seconds[1:]))}


def keras_fit(work: Work) -> Contestant:
    """Keras 3 on the JAX backend: compile and fit on arrays in memory, one epoch a repetition."""
    import keras

    if keras.backend.backend() != "jax":
        raise SystemExit("set KERAS_BACKEND=jax")
    images, labels = (tensor.numpy() for tensor in _in_memory(work))
    test_images, test_labels = (tensor.numpy() for tensor in _in_memory(work, train=False))
    normal = keras.initializers.RandomNormal(stddev=0.01)
    dense = {"kernel_initializer": normal, "bias_initializer": normal}
    model = keras.Sequential([
        keras.Input((784,)), keras.layers.Dense(512, "relu", **dense), keras.layers.Dense(512, "relu", **dense),
        keras.layers.Dense(10, **dense),
    ])
    model.compile(keras.optimizers.SGD(0.001), keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    while True:
        start = time.perf_counter()
        model.fit(images, labels, batch_size=work["batch_size"], epochs=1, shuffle=False, verbose=0)
        numbers = {"seconds": time.perf_counter() - start}
        if work.get("evaluates"):
            classes = model.predict(test_images, batch_size=1000, verbose=0).argmax(1)
            numbers["accuracy"] = float((classes == test_labels).mean())
        yield numbers


def torch_loading(work: Work) -> Contestant:
    """PyTorch's DataLoader alone, with work["num_workers"] workers. Starting them is part of an epoch."""
    loader = _torch_loader(work, work["num_workers"])
    yield {}
    while True:
        start = time.perf_counter()
        count = sum(len(y) for _, y in loader)
        seconds = time.perf_counter() - start
        yield {"seconds": seconds, "images_per_second": count / seconds}


def grain_loading(work: Work) -> Contestant:
    """Grain's Dataset API on arrays in memory, batched, read by its threads."""
    import grain

    mnist = _mnist(work)
    images, labels = mnist.data.numpy().reshape(len(mnist), -1), mnist.targets.numpy()

    class Source(grain.sources.RandomAccessDataSource):
        def __len__(self) -> int:
            return len(labels)

        def __getitem__(self, index: int) -> tuple[np.ndarray, Any]:
            return images[index], labels[index]

    dataset = grain.MapDataset.source(Source()).batch(work["batch_size"]).to_iter_dataset()
    yield {}
    while True:
        start = time.perf_counter()
        count = sum(len(y) for _, y in dataset)
        seconds = time.perf_counter() - start
        yield {"seconds": seconds, "images_per_second": count / seconds}
