"""Kernels that a step starts on GPUs, messages that it sends, and what that should take: compiled here, run nowhere.

    pip install -e '.[targets]' && python benchmarks/kernels.py

The kernels are exact, and the same on every machine with the same jax; the times are a model's (distmlp/plan/cost.py).
"""

import sys

import harness

from distmlp import Config, InputError
from distmlp.plan import plan

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
    harness.report(args, "Kernels", [harness.table(header, rows)], results)


if __name__ == "__main__":
    main()
