"""The plan of a run: the very program that `train` would run is compiled, read and timed by the model of cost.py."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from distmlp import training
from distmlp.config import Config, refuse_of_members, resolve_paths
from distmlp.data import datasets
from distmlp.errors import InputError
from distmlp.parallel import backend
from distmlp.parallel.feed import bytes_needed
from distmlp.parallel.layout import Layout, make_layout, states
from distmlp.parallel.members import layout_of
from distmlp.plan import cards, cost, members, rates, targets
from distmlp.plan.advice import warnings
from distmlp.plan.cards import Card
from distmlp.plan.hlo import Module
from distmlp.progress import IN_FLIGHT

_MAY_BE_0 = ("kernel_seconds", "link_seconds", "host_seconds", "per_host")
_SHOWN_SHARDS, _SHOWN_EXAMPLES = 8, 4


def make(
    config: Config, target: str = "", figures: Mapping[str, float] | None = None, count: int | None = None
) -> dict[str, Any]:
    """What the run of `config` will do, as JSON values; or if a `count` is given, so many members of a sweep like it.

    Args:
      config: the run.
      target: hardware that need not be here, such as h100:8 or v5e:2x4; if empty, the devices that are here. A target
        must be named before jax has started.
      figures: of `Card`, to be used instead of the table's.

    Raises:
      InputError: a setting, a target or data that cannot be; or a package is missing.
    """
    if count is not None:
        refuse_of_members(config)
    config.validate()
    known = [field.name for field in dataclasses.fields(Card) if field.name != "kind"]
    for name, value in (figures or {}).items():
        if name not in known or not (value > 0 or (value == 0 and name in _MAY_BE_0)) or math.isinf(value):
            raise InputError(f"--figure={name}={value:g}: give {', '.join(known)} as a number above 0, of "
                             f"{', '.join(_MAY_BE_0)} also 0")
    if target:  # of this machine, only the CPU is asked for
        platforms = jax.config.values["jax_platforms"] or "cpu"
        if "cpu" not in platforms.split(","):
            raise InputError(f"--target={target} is compiled for by JAX on the CPU, which JAX_PLATFORMS={platforms} "
                             f"excludes: unset it, or set JAX_PLATFORMS={platforms},cpu")
        config = dataclasses.replace(config, platform="cpu")
        targets.prepare()
    # Everything is compiled anew: the time of it is to be seen, and a program for devices that are not here cannot be
    # read from a cache.
    with backend.settings({"jax_enable_compilation_cache": False}), backend.prepared(config):
        return _make(config, target, figures or {}, count)


def _make(config: Config, target: str, figures: Mapping[str, float], count: int | None) -> dict[str, Any]:
    card, devices = targets.find(target) if target else (None, ())
    # What is chosen by the memory, such as where the data lie, is chosen by the figure.
    room = int(figures.get("memory", card.memory if card else 0))
    config = resolve_paths(config)
    data = datasets.load(config)
    if count is not None:
        found = members.make(config, data, layout_of(config, devices, room), card, figures, count)
        return found | {"target": target or found["target"]}
    layout = make_layout(config, devices, room)
    parts, compiled, seconds, needed = _compiled(config, data, layout)
    evaluated = parts.evaluator.lower(parts.state, data.test).compile(layout.compiler_options)
    module, sizes, there = Module(compiled.as_text() or ""), parts.sizes, len(layout.devices)
    rows = -(-config.batch_size // layout.num_shards)
    examples = rows * layout.shards_per_device
    state_bytes = _bytes(parts.state)  # on a device
    card = card or cards.find(layout.devices[0].device_kind) or rates.measure(
        layout.devices[0], layout.device_memory, examples, cost.largest(sizes), state_bytes + 8 * examples * sum(sizes)
    )
    card = dataclasses.replace(card, memory=layout.device_memory)  # of one that is here, what jax takes of it
    card = dataclasses.replace(card, **figures)  # type: ignore[arg-type] # make has checked the names
    analysis: Any = compiled.memory_analysis()
    memory = _memory_of(analysis, evaluated.memory_analysis(), parts, card)
    # What a reduce-scatter gives is a device's part of the array that is sent: the part of one of these devices.
    sent = {kind: (number, size * (there if kind == "reduce-scatter" else 1))
            for kind, (number, size) in module.messages().items()}  # fmt: skip
    step = cost.Step(
        cost.flops(sizes, examples),
        cost.memory_bytes(sizes, examples, data.train.dtype.itemsize, state_bytes,
                          2 if config.compute_dtype == "bfloat16" else 4),
        module.kernels_per_step(), sent or {"all-reduce": (1, _bytes(parts.state.params) + 4)},
    )  # fmt: skip
    rate = card.products(config.compute_dtype, config.matmul_precision)
    predicted = cost.predict(step, card, rate, there)
    plan: dict[str, Any] = {
        "target": target or f"{layout.devices[0].platform}:{there}",
        "devices": there,
        "card": card.kind,
        "mesh": {"parallelism": layout.parallelism, "reduction": config.reduction, "num_shards": layout.num_shards,
                 "shards_per_device": layout.shards_per_device},
        "layers": sizes,
        "batch": {"global": config.batch_size, "per_device": examples, "per_shard": rows},
        "steps_per_epoch": parts.loader.order.steps_per_epoch,
        "total_steps": parts.cadence.total_steps,
        "epochs": parts.cadence.total_steps / parts.loader.order.steps_per_epoch,
        "state": parts.layout.state,
        "memory_by_state": needed,
        "data_placement": parts.placement[0],
        "first_examples": _first_examples(parts.loader, layout),
        "collectives": {kind: count for kind, (count, _) in sent.items()},
        "kernels_per_step": module.kernels_per_step(),
        "steps_per_dispatch": module.step_loop and module.trip_count(module.step_loop),
        "host_transfers": module.host_transfers(),
        "flops_per_step": cost.flops(sizes, config.batch_size),
        "communication_bytes_per_step": sum(size for _, size in sent.values()),
        "memory": memory,
        "checkpoint_bytes": _bytes(parts.held.shapes),
        "donated_bytes": analysis.alias_size_in_bytes,
        "state_is_donated": analysis.alias_size_in_bytes >= state_bytes,
        "compile_seconds": seconds,
        "predicted_step_seconds": predicted.step,
        "predicted": dataclasses.asdict(predicted) | {"bound": predicted.bound},
        "predicted_scaling": _scaling(step, card, rate, examples),
        "figures": dataclasses.asdict(card),
    }  # fmt: skip
    return plan | {"warnings": warnings(config, layout, plan, predicted, not target)}


def _compiled(
    config: Config, data: datasets.Data, layout: Layout
) -> tuple[training.Program, jax.stages.Compiled, float, dict[str, int]]:
    """The program that `train` would choose, compiled, and in how many seconds; and the bytes that each way for the
    state to lie needs on a device."""
    needed: dict[str, int] = {}
    chosen = None
    allowed = states(layout, config.state)
    for candidate in states(layout, "auto"):
        if candidate.by_layer and needed["sharded"] <= layout.device_memory:
            break  # all layers at once fit
        parts = training.Program(config, data, candidate, layout.device_memory)
        lowered = parts.feed.lower(parts.state)
        started = time.perf_counter()
        compiled = lowered.compile(layout.compiler_options)
        seconds = time.perf_counter() - started
        if parts.audit:
            parts.audit.compile(parts.state)
        audited = parts.audit.bytes_needed if parts.audit else 0
        needed[candidate.state] = max(bytes_needed(compiled), audited) + parts.held.bytes  # and the copy that is saved
        fits = chosen is not None and needed[chosen[0].layout.state] <= layout.device_memory
        if candidate in allowed and not fits:
            chosen = parts, compiled, seconds
    assert chosen is not None  # `states` allows one at least
    return *chosen, needed


def _memory_of(step: Any, evaluation: Any, parts: training.Program, card: Card) -> dict[str, int]:
    """Bytes on each device, at most: amid steps, or amid an evaluation, while a checkpoint is written of a copy.

    Args:
      step, evaluation: the memory analyses of the two programs.
    """
    parameters, state = _bytes(parts.state.params), _bytes(parts.state)
    resident = parts.feed.resident_bytes
    data = resident + (step.argument_size_in_bytes - state - resident) * parts.feed.held
    data += 4 * parts.feed.largest * (1 + IN_FLIGHT)  # losses, of the newest dispatch and of those still to be read
    temporary = step.temp_size_in_bytes + step.output_size_in_bytes - step.alias_size_in_bytes
    temporary += state if parts.audit else 0  # an audited step keeps the state before it
    used = _bytes((parts.state.params, parts.state.scaling))  # of the state, by an evaluation
    rows = evaluation.argument_size_in_bytes - used + evaluation.output_size_in_bytes
    evaluating = rows * parts.evaluator.held + evaluation.temp_size_in_bytes
    found = {
        "parameters": parameters,
        "optimizer": state - parameters,
        "data": data,
        "temporary": temporary,
        "evaluation": max(0, evaluating - temporary),
        "copy": state,
    }
    return found | {"total": sum(found.values()), "available": card.memory}


def _scaling(step: cost.Step, card: Card, rate: float, examples: int) -> dict[str, float]:
    """Examples per second by number of devices, each with the batch that it has in this plan.

    A program for one device sends nothing: on more it would add up the gradients in one all-reduce.
    """
    return {
        str(count): count * examples / cost.predict(step, card, rate, count).step for count in cost.DEVICE_COUNTS
    }


def _first_examples(loader: Any, layout: Layout) -> dict[str, list[int]]:
    """Of the first shards: the first examples of the first step, as indices into the training set."""
    indices, weights = loader.order.indices(0, 0, 1, layout.local_shards)
    rows = zip(layout.local_shards, indices[0], weights[0], strict=True)
    return {str(shard): index[weight > 0][:_SHOWN_EXAMPLES].tolist() for shard, index, weight in rows
            if shard < min(layout.num_shards, _SHOWN_SHARDS)}  # fmt: skip


def _bytes(tree: Any) -> int:
    """Of abstract arrays: what a device holds, or all of them if they lie nowhere."""

    def shape(leaf: Any) -> Any:
        return leaf.sharding.shard_shape(leaf.shape) if leaf.sharding else leaf.shape

    return sum(int(np.prod(shape(leaf))) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
