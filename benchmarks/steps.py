"""Contestants: training steps of any configuration, one dispatch each, on one batch that lies on the devices."""

import dataclasses
import multiprocessing
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from multiprocessing.connection import Connection
from typing import Any

import jax
from harness import Contestant, Numbers, Work
from ours import config_of

from distmlp import Config, optim, training
from distmlp.cluster.group import Group
from distmlp.data import datasets
from distmlp.parallel import backend, step
from distmlp.parallel.layout import Layout, make_layout, make_layouts
from distmlp.parallel.sharded import rows_of
from distmlp.parallel.specs import BATCH, REPLICATED


def collectives(compiled: Any) -> dict[str, float]:
    """How many of each collective operation a compiled program has."""
    names = ("all-reduce", "all-gather", "all-to-all", "reduce-scatter", "collective-permute")
    text = compiled.as_text()
    return {name: text.count(f" {name}(") + text.count(f" {name}-start(") for name in names}


class Stepper:
    """The step of a configuration, compiled, whose state lies as `layout` says; a call makes steps."""

    def __init__(self, config: Config, layout: Layout, data: datasets.Data) -> None:
        parts = training.Program(config, data, layout, layout.device_memory)
        rows, specs = rows_of(parts.held.shapes.params), parts.held.specs
        train_step = step.make_train_step(
            step.Recipe(data.num_classes, config.compute_dtype, config.clip_norm > 0, rows=rows), layout,
            optim.make(config, 10**6))  # fmt: skip
        wrapped = layout.wrap(train_step, (specs, BATCH), out_specs=(specs, REPLICATED))
        self._waits = len(layout.devices) > 1  # emulated devices can starve one another
        batch = parts.loader.read(0, 0, layout.local_shards)
        self._state, self._batch = parts.initial_state(()), layout.put(batch.on_devices(), BATCH)
        self._step = wrapped.lower(self._state, self._batch).compile()
        self.collectives = collectives(self._step)

    def __call__(self, count: int) -> float:
        """The seconds of so many steps."""
        start = time.perf_counter()
        for _ in range(count):
            self._state, loss = self._step(self._state, self._batch)
            if self._waits:
                loss.block_until_ready()
        jax.block_until_ready(self._state)
        return time.perf_counter() - start


def steps(work: Work) -> Contestant:
    """Seconds per step. work: flags; flops per step if a rate is wanted; at_least: seconds of a repetition."""
    config = config_of(work)
    prepared = ExitStack()
    prepared.enter_context(backend.prepared(config))
    stepper, count, ready = Stepper(config, make_layout(config), datasets.load(config)), 1, False
    while True:
        while (seconds := stepper(count)) < work.get("at_least", 0.5) and not ready:
            count *= 2
        yield {"seconds": seconds / count, **stepper.collectives} if ready else {}
        ready = True


def states(work: Work) -> Contestant:
    """Seconds per step for each way in which the state may lie, in turn, in one process or two. work: flags, processes,
    steps of a repetition."""
    if work["processes"] == 1:
        yield from _in_turn(config_of(work), work["steps"], lambda: None)
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    here, there = multiprocessing.get_context("spawn").Pipe()
    multiprocessing.get_context("spawn").Process(target=_second, args=(there, address, work), daemon=True).start()
    yield from _in_turn(_of_two(work, address, 0), work["steps"], lambda: _meet(here))


def _second(connection: Connection, address: str, work: Work) -> None:
    with suppress(EOFError, ConnectionResetError):  # when the first has ended
        for _ in _in_turn(_of_two(work, address, 1), work["steps"], lambda: _meet(connection)):
            pass


def _of_two(work: Work, address: str, number: int) -> Config:
    return dataclasses.replace(config_of(work), coordinator_address=address, num_processes=2, process_id=number)


def _meet(connection: Connection) -> None:
    connection.send(None)
    connection.recv()


def _in_turn(config: Config, count: int, meet: Callable[[], None]) -> Iterator[Numbers]:
    with backend.prepared(config):
        Group.join(config)
        data = datasets.load(config)
        steppers = {layout.state: Stepper(config, layout, data) for layout in make_layouts(config)}
        ready = False
        while True:
            meet()  # Gloo gives up a process that comes late
            found = {state: stepper(count) / count for state, stepper in steppers.items()}
            yield found if ready else {}
            ready = True
