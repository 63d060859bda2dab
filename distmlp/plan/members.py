"""The plan of a sweep's members on a device: the very program that a sweep would run is compiled, read and timed."""

import dataclasses
import math
import time
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from distmlp.config import Config
from distmlp.data.datasets import Data
from distmlp.data.order import Order, check_batch_size
from distmlp.errors import InputError
from distmlp.parallel.layout import Layout
from distmlp.parallel.members import FREE, Members, Pool, Shape, largest_dispatch, pool_bytes, pool_room
from distmlp.plan import cards, cost, rates
from distmlp.plan.cards import Card
from distmlp.plan.hlo import Module
from distmlp.progress import Cadence


def make(
    config: Config, data: Data, layout: Layout, card: Card | None, figures: Mapping[str, float], count: int
) -> dict[str, Any]:
    """What `count` members like this run will do, as JSON values; arguments are as plan.make has found them."""
    if count < 1:
        raise InputError(f"--members={count}: give 1 or more")
    train, held = data.train, data.validation or data.train
    check_batch_size(config.batch_size, len(train), " of a member")
    size, room = pool_bytes([train] if data.validation is None else [train, data.validation]), pool_room(config, layout)
    if size is None or size > room:
        why = ("are read one by one" if size is None else "stay on the host (--data_placement=host)" if not room else
               "are more than a quarter of a device's memory")
        raise InputError(f"--members={count}: a sweep trains its members one at a time where the data {why}: plan the "
                         "run without --members")
    order = Order(len(train), config.batch_size, layout.num_shards, config.shuffle, config.seed)
    total = config.total_steps(order.steps_per_epoch)
    each = -(-count // len(layout.devices))
    rows = config.eval_batch_size if layout.invariant else min(config.eval_batch_size, len(held))
    sizes = config.layer_sizes(data.num_features, data.num_classes)
    examples = len(train) + (0 if data.validation is None else len(data.validation))
    pool = Pool(jax.ShapeDtypeStruct((examples, data.num_features), train.dtype),
                jax.ShapeDtypeStruct((examples,), np.int32))  # fmt: skip
    steps = Cadence(config, order.steps_per_epoch).longest_dispatch(largest_dispatch(config, layout))
    shape = Shape(sizes, config.input_scaling != "none", each, steps, layout.num_shards, order.rows,
                  -(-len(held) // rows), rows, weightless=data.weights is not None and not data.weights.all(),
                  pauses=config.patience > 0, log_probs=config.choose_by == "roc_auc")  # fmt: skip
    programs = Members(config, layout, shape, pool, total)
    started = time.perf_counter()
    compiled = programs.compile()
    seconds = time.perf_counter() - started
    module = Module((compiled.get("whole") or compiled["any"]).as_text() or "")
    parameters = sum(leaf.size * 4 for leaf in jax.tree.leaves(programs.state.params))
    card = card or cards.find(layout.devices[0].device_kind) or rates.measure(
        layout.devices[0], layout.device_memory, config.batch_size, cost.largest(sizes), programs.bytes)  # fmt: skip
    card = dataclasses.replace(card, memory=layout.device_memory)  # of one that is here, what jax takes of it
    card = dataclasses.replace(card, **figures)  # type: ignore[arg-type] # plan.make has checked the names
    turns = each if programs.one_by_one else 1
    step = cost.Step(
        each * cost.flops(sizes, config.batch_size),
        each * cost.memory_bytes(sizes, config.batch_size, train.dtype.itemsize, programs.bytes,
                                 2 if config.compute_dtype == "bfloat16" else 4),
        turns * module.kernels_per_step(), {},
    )  # fmt: skip
    predicted = cost.predict(step, card, card.products(config.compute_dtype, config.matmul_precision), 1)
    resident = pool.images.size * pool.images.dtype.itemsize + pool.labels.size * 4
    own = (programs.bytes_needed - resident) / each
    most = max(0, math.floor((FREE * card.memory - resident) / own)) * len(layout.devices)
    return {
        "target": f"{layout.devices[0].platform}:{len(layout.devices)}", "devices": len(layout.devices),
        "card": card.kind, "members": count, "members_per_device": each, "together": not programs.one_by_one,
        "layers": list(sizes), "batch": config.batch_size, "total_steps": total,
        "kernels_per_step": module.kernels_per_step(), "most_members": most,
        "memory": {"parameters": parameters * each, "state": programs.bytes * each, "data": resident,
                   "total": programs.bytes_needed, "available": card.memory},
        "compile_seconds": seconds, "predicted_step_seconds": predicted.step,
        "predicted": dataclasses.asdict(predicted) | {"bound": predicted.bound},
        "predicted_training_seconds": predicted.step * total, "figures": dataclasses.asdict(card),
    }  # fmt: skip
