"""Warnings of a plan: where a run makes no sense as it is asked for, and what to give instead."""

import math
import os
from collections.abc import Mapping
from typing import Any

from distmlp.config import Config
from distmlp.parallel.layout import Layout
from distmlp.plan.cost import Seconds

_FEW_EXAMPLES = 32  # on an accelerator: with fewer, it starts kernels and does nothing else
_USUAL_BATCH = 128
_USUAL_RATES = {"sgd": 0.01, "adam": 0.001, "adamw": 0.001}  # at that batch: the tutorial's, and Adam's default
_TOO_LOW, _TOO_HIGH = 1 / 4, 16
_FRACTION, _OLD_FRACTION = "XLA_CLIENT_MEM_FRACTION", "XLA_PYTHON_CLIENT_MEM_FRACTION"  # JAX refuses both together


def warnings(config: Config, layout: Layout, plan: Mapping[str, Any], predicted: Seconds, here: bool) -> list[str]:
    """One or two sentences each; none if nothing is odd. `here`: the devices are here, and no target."""
    found = [_memory(layout, plan, here), _few_examples(layout, plan), _empty_shards(config, layout),
             _communication(plan, predicted), _learning_rate(config)]
    if not plan["state_is_donated"]:
        found.append("the program does not reuse the memory of the state: each device holds it twice")
    if plan["host_transfers"]:
        found.append(f"each step waits for the host ({', '.join(plan['host_transfers'])})")
    return [text for text in found if text]


def _memory(layout: Layout, plan: Mapping[str, Any], here: bool) -> str:
    total, available = plan["memory"]["total"], plan["memory"]["available"]
    gpu = layout.devices[0].platform == "gpu"
    if total > available:
        sharded = [size for state, size in plan["memory_by_state"].items() if state != "replicated"]
        remedy = "--state=sharded" if plan["state"] == "replicated" and min(sharded, default=total) <= available else (
            "--data_placement=host" if plan["data_placement"] == "device" else "a smaller --batch_size or network")
        more = gpu and here and total <= 0.95 / 0.75 * available
        if more and not {_FRACTION, _OLD_FRACTION} & os.environ.keys():
            remedy = f"{_FRACTION}=0.95, for JAX by default takes three quarters of a GPU; or {remedy}"
        return (f"it does not fit: a device needs {total / 2**30:,.1f} GiB and has {available / 2**30:,.1f}: "
                f"give {remedy}, or more devices")
    if gpu and not here and total > 0.75 * available:  # of a GPU that is here, what JAX takes is all there is
        return (f"it needs {total / 2**30:,.1f} of {available / 2**30:,.1f} GiB, and JAX by default takes three "
                f"quarters: set {_FRACTION}=0.95")
    return ""


def _few_examples(layout: Layout, plan: Mapping[str, Any]) -> str:
    examples = plan["batch"]["per_device"]
    if not layout.accelerated or examples >= _FEW_EXAMPLES:
        return ""
    return (f"{examples} examples a step are too few for a {plan['card']}: give --batch_size="
            f"{_USUAL_BATCH * len(layout.devices)} or so, or fewer devices")


def _empty_shards(config: Config, layout: Layout) -> str:
    places = layout.shards_per_device * len(layout.devices)
    if config.batch_size < layout.num_shards:
        return (f"--batch_size={config.batch_size} leaves {layout.num_shards - config.batch_size} of "
                f"{layout.num_shards} shards empty in every step")
    if places > layout.num_shards:
        return (f"{layout.num_shards} shards on {len(layout.devices)} devices leave {places - layout.num_shards} of "
                f"{places} places empty: give --num_shards={places}")
    return ""


def _communication(plan: Mapping[str, Any], predicted: Seconds) -> str:
    if predicted.communication <= predicted.compute:
        return ""
    return (f"a step sends for {predicted.communication * 1e6:,.0f} microseconds and computes for "
            f"{predicted.compute * 1e6:,.0f}: give a larger --batch_size, or fewer than {plan['devices']} devices")


def _learning_rate(config: Config) -> str:
    """The usual rate grows with the batch, with its root for Adam, whose steps do not grow with the gradient."""
    growth = config.batch_size / _USUAL_BATCH
    if config.optimizer not in _USUAL_RATES:
        return ""
    usual = _USUAL_RATES[config.optimizer] * (growth if config.optimizer == "sgd" else math.sqrt(growth))
    ratio = config.learning_rate / usual
    if _TOO_LOW <= ratio <= _TOO_HIGH:
        return ""
    return (f"--learning_rate={config.learning_rate:g} is {'low' if ratio < 1 else 'high'} for {config.optimizer} at "
            f"batches of {config.batch_size:,}: a usual one is near {usual:.2g}")
