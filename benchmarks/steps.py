"""Contestant: training steps of any configuration, one dispatch each, on one batch that lies on the devices."""

import time
from contextlib import ExitStack
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import Contestant, Work
from ours import config_of

from distmlp import model, optim
from distmlp.data import datasets
from distmlp.data.batches import NumpyLoader
from distmlp.parallel import backend, step
from distmlp.parallel.layout import make_layout
from distmlp.parallel.specs import BATCH, STATE, State


def collectives(compiled: Any) -> dict[str, float]:
    """How many of each collective operation a compiled program has."""
    names = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
    text = compiled.as_text()
    return {name: text.count(f" {name}(") + text.count(f" {name}-start(") for name in names}


def steps(work: Work) -> Contestant:
    """Seconds per step. work: flags; flops per step if a rate is wanted; at_least: seconds of a repetition."""
    config = config_of(work)
    prepared = ExitStack()
    prepared.enter_context(backend.prepared(config))
    data = datasets.load(config)
    layout = make_layout(config)
    optimizer = optim.make(config, 10**6)
    train_step = step.make_train_step(config, layout, data.num_classes, optimizer)
    params = model.init_network_params([data.num_features, *config.hidden_sizes, data.num_classes], jax.random.key(0))
    state = State(params, optimizer.init(params), jnp.int32(0), ())
    state = layout.put(jax.tree.map(np.asarray, state), STATE)
    loader = NumpyLoader(data.train, config.batch_size, layout.num_shards, layout.local_shards)
    batch = layout.put(next(iter(loader)).on_devices(), BATCH)
    wrapped = layout.wrap(train_step, (STATE, BATCH))
    found = collectives(wrapped.lower(state, batch).compile())
    count, seconds, ready = 1, 0.0, False
    while True:
        while True:
            start = time.perf_counter()
            for _ in range(count):
                state, loss = wrapped(state, batch)
                if len(layout.devices) > 1:
                    loss.block_until_ready()  # emulated devices can starve one another
            jax.block_until_ready(state)
            seconds = time.perf_counter() - start
            if ready or seconds > work.get("at_least", 0.5):
                break
            count *= 2
        yield {"seconds": seconds / count, **found} if ready else {}
        ready = True
