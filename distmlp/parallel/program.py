"""Everything of a run that is compiled, put together for the devices of a layout, which may only be described."""

from typing import NamedTuple

import optax

from distmlp import machine, optim
from distmlp.config import Config
from distmlp.data import datasets
from distmlp.data.batches import NumpyLoader
from distmlp.data.scaling import scaling_shapes
from distmlp.errors import InputError
from distmlp.parallel.digest import StateDigest
from distmlp.parallel.dispatch import Feed
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.feed import DeviceFeed, HostFeed
from distmlp.parallel.mesh import Layout
from distmlp.parallel.step import State, abstract_state, make_train_step


class Program(NamedTuple):
    """A run's parts, of which nothing is compiled or placed yet."""

    layout: Layout
    loader: NumpyLoader
    sizes: list[int]  # of the layers, input and output included
    optimizer: optax.GradientTransformation
    total_steps: int
    state: State  # abstract: shapes, dtypes and placements
    placement: tuple[str, str]  # where the training set lies, host or device, and why
    feed: Feed
    evaluator: Evaluator
    digest: StateDigest


def build(
    config: Config, data: datasets.Data, layout: Layout, placement: tuple[str, str] | None = None
) -> Program:
    """The parts of the run of `config` on `data`.

    `placement` is what several processes have agreed on; None: by this machine's memory.

    Raises:
      InputError: a batch of more examples than there are, or settings that do not go with the data.
    """
    if config.batch_size > len(data.train):
        raise InputError(f"--batch_size={config.batch_size}: give at most {len(data.train)}, the training examples")
    loader = NumpyLoader(
        data.train, config.batch_size, layout.num_shards, layout.local_shards, config.shuffle, config.seed,
        config.num_workers,
    )
    total_steps = config.total_steps(loader.order.steps_per_epoch)
    sizes = [data.num_features, *config.hidden_sizes, data.num_classes]
    optimizer = optim.make(config, total_steps)
    state = abstract_state(layout, sizes, optimizer, scaling_shapes(config, data))
    train_step = make_train_step(config, layout, data.num_classes, optimizer)
    placement = placement or choose_placement(config, data.train, layout)
    feed: Feed
    if placement[0] == "device" and data.train.resident:
        feed = DeviceFeed(layout, loader, train_step, data.train, config.steps_per_dispatch)
    else:
        feed = HostFeed(layout, loader, train_step, total_steps, config.steps_per_dispatch)
    return Program(
        layout, loader, sizes, optimizer, total_steps, state, placement, feed, Evaluator(config, layout),
        StateDigest(layout),
    )


def choose_placement(config: Config, dataset: datasets.Examples, layout: Layout) -> tuple[str, str]:
    """Where the training set lies, host or device, and why.

    Raises:
      InputError: --data_placement=device for data that are read from files as they are needed.
    """
    if not dataset.resident:
        if config.data_placement == "device":
            raise InputError(f"--data_placement=device needs data in memory, and {dataset.name} is read from its "
                             "files: give --data_placement=host")
        return "host", "read as needed"
    if config.data_placement != "auto":
        return config.data_placement, "asked for"
    room, size = device_memory(layout) // 4, dataset.resident[0].nbytes
    if size > room:
        return "host", f"{size / 1e6:,.1f} MB are more than a quarter of a device's memory"
    return "device", f"{size / 1e6:,.1f} MB fit"


def device_memory(layout: Layout) -> int:
    """Bytes of memory of a device; emulated ones share the host's."""
    if layout.memory:
        return layout.memory
    device = layout.devices[layout.local_positions[0]]
    stats = device.memory_stats() or {}
    host = machine.memory() // len(layout.local_positions)
    return int(stats.get("bytes_limit", host))
