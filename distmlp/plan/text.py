"""A plan in words, for a terminal of 80 columns."""

import textwrap
from collections.abc import Mapping
from typing import Any

_WIDTH = 80
_NAME = 13  # columns


def text(plan: Mapping[str, Any]) -> str:
    """The lines that `launch.plan` prints."""
    batch, memory, mesh, predicted = plan["batch"], plan["memory"], plan["mesh"], plan["predicted"]
    collectives = [f"{count} {kind}" for kind, count in plan["collectives"].items()]
    scaling = [f"{int(count):,}: {_scaled(rate, 1000, ('', 'k', 'M', 'G'))}"
               for count, rate in plan["predicted_scaling"].items()]
    rows = {
        "target": f"{plan['target']}: {plan['devices']:,} x {plan['card']}, {mesh['parallelism']}, "
                  f"{mesh['reduction']} reduction",
        "batch": f"{batch['global']:,} examples in shards of {batch['per_shard']:,}: {mesh['num_shards']:,} in all, "
                 f"{mesh['shards_per_device']:,} on a device, which has {batch['per_device']:,} examples",
        "steps": f"{plan['steps_per_epoch']:,} an epoch, {plan['total_steps']:,} in {plan['epochs']:g} epochs",
        "first": "; ".join(f"shard {shard}: {', '.join(map(str, examples))}"
                           for shard, examples in list(plan["first_examples"].items())[:3]),
        "memory": f"{_bytes(memory['total'])} of {_bytes(memory['available'])} a device: "
                  f"parameters {_bytes(memory['parameters'])}, optimizer {_bytes(memory['optimizer'])}, "
                  f"data {_bytes(memory['data'])}, temporary {_bytes(memory['temporary'])}, "
                  f"{_bytes(memory['evaluation'])} more in an evaluation, copy for a checkpoint "
                  f"{_bytes(memory['copy'])}; the state is "
                  f"{'updated in place' if plan['state_is_donated'] else 'COPIED in each dispatch'}",
        **({"state": _state(plan)} if plan["devices"] > 1 else {}),
        "checkpoint": _bytes(plan["checkpoint_bytes"]),
        "a step": f"{plan['flops_per_step'] / 1e9:,.2f} GFLOP on all devices; {plan['kernels_per_step']} kernels a "
                  f"device; {', '.join(collectives) or 'no'} message{'s' if len(collectives) != 1 else ''}"
                  f"{', ' + _bytes(plan['communication_bytes_per_step']) if collectives else ''}",
        "compiled": f"in {plan['compile_seconds']:.1f} s; "
                    f"{plan['steps_per_dispatch'] or 'any number of'} steps a dispatch",
        "predicted": f"{_time(plan['predicted_step_seconds'])} a step, bound by {predicted['bound']} (arithmetic "
                     f"{_time(predicted['arithmetic'])}, memory {_time(predicted['memory'])}, kernel launches "
                     f"{_time(predicted['launches'])}), then messages {_time(predicted['communication'])}",
        "scaling": f"examples a second with this batch a device: {', '.join(scaling)}",
    }  # fmt: skip
    lines = [_row(name, value) for name, value in rows.items()]
    return "\n".join([*lines, *(_row("WARNING", warning) for warning in plan["warnings"])])


def members_text(plan: Mapping[str, Any]) -> str:
    """The same of a sweep's members."""
    memory, predicted, each = plan["memory"], plan["predicted"], plan["members_per_device"]
    way = "together" if plan["together"] else "one after the other"
    rows = {
        "target": f"{plan['target']}: {plan['devices']:,} x {plan['card']}",
        "members": f"{plan['members']:,}, {each:,} on a device, {way}; room for {plan['most_members']:,} at a time",
        "memory": f"{_bytes(memory['total'])} of {_bytes(memory['available'])} a device: states "
                  f"{_bytes(memory['state'])} and the best ones once more, data {_bytes(memory['data'])}",
        "a step": f"{plan['kernels_per_step']} kernels a device, of {'all members' if plan['together'] else 'each'}",
        "compiled": f"in {plan['compile_seconds']:.1f} s",
        "predicted": f"{_time(plan['predicted_step_seconds'])} a step of all members, bound by {predicted['bound']}; "
                     f"{plan['total_steps']:,} steps take {_long(plan['predicted_training_seconds'])}",
    }  # fmt: skip
    return "\n".join(_row(name, value) for name, value in rows.items())


def _long(seconds: float) -> str:
    return f"{seconds:,.1f} s" if seconds < 600 else f"{seconds / 3600:,.1f} h"


def _state(plan: Mapping[str, Any]) -> str:
    needed, available = plan["memory_by_state"], plan["memory"]["available"]
    ways = [f"{state} needs {_bytes(size)} a device" for state, size in needed.items()]
    best = next((state for state, size in needed.items() if size <= available), "")
    advice = f"recommended: --state={best.partition(',')[0]}" if best else "none fits: take more devices"
    return f"{plan['state']}; {', '.join(ways)}; {advice}"


def _row(name: str, value: str) -> str:
    return textwrap.fill(f"{name:<{_NAME}}{value}", _WIDTH, subsequent_indent=" " * _NAME, break_on_hyphens=False)


def _bytes(count: float) -> str:
    return _scaled(count, 1024, (" bytes", " KiB", " MiB", " GiB"))


def _time(seconds: float) -> str:
    return f"{seconds * 1e6:,.0f} µs" if seconds < 0.01 else f"{seconds * 1e3:,.0f} ms"


def _scaled(count: float, base: int, units: tuple[str, ...]) -> str:
    power = 0
    while count >= base and power < len(units) - 1:
        count, power = count / base, power + 1
    return f"{count:,.0f}{units[power]}" if count >= 100 or not power else f"{count:.3g}{units[power]}"
