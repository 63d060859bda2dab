"""Kernels that a step starts on GPUs, messages that it sends, and what that should take; and what a large network takes
on each of 8 GPUs, by the ways in which its state can lie: compiled here, run nowhere.

    pip install -e '.[targets]' && python benchmarks/kernels.py

The kernels, bytes and messages are exact, and the same on every machine with the same jax; the times are a model's
(distmlp/plan/cost.py).
"""

import sys
from typing import Any

import harness
import jax

from distmlp import Config, InputError, training
from distmlp.data import datasets
from distmlp.parallel import backend
from distmlp.parallel.layout import make_layouts
from distmlp.plan import plan, targets
from distmlp.plan.hlo import Module

INVARIANT = {"reduction": "invariant", "optimizer": "adam", "batch_size": 1024}
PROGRAMS = [
    ("tutorial.flags", "h100:1", {}),
    ("the same with Adam", "h100:1", {"optimizer": "adam"}),
    ("wide layers", "h100:1", {"hidden_sizes": (4096, 4096), "batch_size": 8192, "compute_dtype": "bfloat16"}),
    ("fast, Adam", "h100:8", {"optimizer": "adam", "batch_size": 1024}),
    ("invariant, Adam, 8 shards", "h100:8", INVARIANT),
    ("invariant, Adam, 8 shards", "h100:1", INVARIANT),
    ("fast, Adam", "h100:4096", {"optimizer": "adam", "batch_size": 4096 * 128, "synthetic_examples": 4096 * 128}),
]

LARGE = Config(dataset="synthetic", synthetic_examples=4096, synthetic_features=4096, synthetic_classes=1000,
               hidden_sizes=(16384,) * 3, batch_size=4096, optimizer="adam", platform="cpu")  # fmt: skip


def by_state() -> dict[str, dict[str, float]]:
    """Of LARGE on 8 H100, for each way in which its state can lie: MiB on a device, and traffic as a multiple of an
    all-reduce of the gradients."""
    data, found = datasets.load(LARGE), {}
    targets.prepare()
    with backend.settings({"jax_enable_compilation_cache": False}), backend.prepared(LARGE):
        card, devices = targets.find("h100:8")
        for layout in make_layouts(LARGE, devices, card.memory):
            parts = training.Program(LARGE, data, layout, layout.device_memory)
            compiled = parts.feed.lower(parts.state).compile(layout.compiler_options)
            analysis: Any = compiled.memory_analysis()
            sent = {kind: size for kind, (_, size) in Module(compiled.as_text() or "").messages().items()}
            gathered, scattered = sent.get("all-gather", 0), len(devices) * sent.get("reduce-scatter", 0)
            gradients = 4 * sum(array.size for array in jax.tree.leaves(parts.held.shapes.params))
            found[layout.state] = {
                "state": parts.held.bytes / 2**20, "temporary": analysis.temp_size_in_bytes / 2**20,
                "gathered": gathered / 2**20,
                "traffic": (gathered + scattered + 2 * sent.get("all-reduce", 0)) / (2 * gradients),
            }
    return found


def main() -> None:
    args = harness.arguments(__doc__, repetitions=1)
    rows, results = [], {}
    for name, target, settings in PROGRAMS[:2] if args.quick else PROGRAMS:
        try:
            found = plan.make(Config(dataset="synthetic", **settings), target)
        except InputError as error:  # the compilers are not installed
            print(f"skipped {name} on {target}: {error}", file=sys.stderr)
            continue
        results[f"{name}, {target}"] = found
        messages = ", ".join(f"{count} {kind}" for kind, count in found["collectives"].items()) or "none"
        rows.append([name, target, str(found["kernels_per_step"]), messages,
                     f"{found['communication_bytes_per_step'] / 2**20:.1f}",
                     f"{found['predicted_step_seconds'] * 1e6:,.0f}", found["predicted"]["bound"],
                     f"{found['compile_seconds']:.1f}"])
    header = ["program", "target", "kernels a step", "messages", "MiB sent", "µs predicted", "bound by", "s to compile"]
    tables = [harness.table(header, rows)]
    if results and not args.quick:
        results["by state"] = by_state()
        header = ["`--state`", "state on a device, MiB", "temporary", "gathered in a step", "traffic"]
        tables.append(harness.table(header, [
            [name, *(f"{row[key]:,.0f}" for key in ("state", "temporary", "gathered")), f"{row['traffic']:.2f}"]
            for name, row in results["by state"].items()]))  # fmt: skip
    harness.report(args, "Kernels", tables, results)


if __name__ == "__main__":
    main()
