"""Everything of a run that is compiled, put together for the devices of a layout, which may only be described."""

from typing import NamedTuple

import optax

from distmlp import optim
from distmlp.config import Config, InputError
from distmlp.data import datasets
from distmlp.data.loader import NumpyLoader
from distmlp.data.scaling import scaling_shapes
from distmlp.parallel.digest import StateDigest
from distmlp.parallel.evaluate import Evaluator
from distmlp.parallel.feed import DeviceFeed, Feed, HostFeed
from distmlp.parallel.mesh import Layout
from distmlp.parallel.placement import choose_placement
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
        raise InputError(f"--batch_size={config.batch_size} is more than the {len(data.train)} training examples: "
                         f"give at most {len(data.train)}")
    loader = NumpyLoader(
        data.train, config.batch_size, layout.num_shards, layout.local_shards, config.shuffle, config.seed,
        config.num_workers,
    )
    total_steps = config.total_steps(loader.steps_per_epoch)
    sizes = [data.num_features, *config.hidden_sizes, data.num_classes]
    optimizer = optim.make(config, total_steps)
    state = abstract_state(layout, sizes, optimizer, scaling_shapes(config, data))
    train_step = make_train_step(config, layout, data.num_classes, optimizer)
    placement = placement or choose_placement(config, data.train, layout)
    feed: Feed
    if placement[0] == "device" and isinstance(data.train, datasets.ArrayDataset):
        feed = DeviceFeed(layout, loader, train_step, data.train, config.steps_per_dispatch)
    else:
        feed = HostFeed(layout, loader, train_step, total_steps, config.steps_per_dispatch)
    return Program(
        layout, loader, sizes, optimizer, total_steps, state, placement, feed, Evaluator(config, layout),
        StateDigest(layout),
    )
