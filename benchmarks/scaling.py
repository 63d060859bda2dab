"""How the cost of a step grows with the batch, the width and the devices, and what a sharded state costs. (With the
data set: loader.py.)

    python benchmarks/scaling.py                # both; --only=cost or --only=state
"""

import argparse
from typing import Any

import harness
from harness import Worker

FLAGS = ["--dataset=synthetic"]


def emulated(devices: int) -> dict[str, str]:
    return {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"} if devices > 1 else {}


def cost(args: argparse.Namespace, results: dict[str, Any]) -> str:
    """By the batch, the width and the devices."""
    rows = []

    def measure(what: str, batch_size: int, width: int, devices: int) -> None:
        flags = [*FLAGS, f"--synthetic_examples={max(1024, batch_size)}", f"--batch_size={batch_size}",
                 f"--hidden_sizes={width},{width}"]
        worker = Worker(what, "steps:steps", {"flags": flags, "at_least": 0.2}, emulated(devices))
        measured: list[dict[str, Any]] = harness.compare([worker], args.repetitions, args.patience)[what]
        results[what] = measured
        rows.append([what, harness.spread([1e3 * row["seconds"] for row in measured]),
                     harness.spread([1e6 * row["seconds"] / batch_size for row in measured])])

    batches = [2**n for n in range(5, 16) if 2**n <= args.largest_batch]
    widths = [2**n for n in range(6, 14) if 2**n <= args.largest_width]
    for batch_size in batches[:2] if args.quick else batches:
        measure(f"batch {batch_size}, width 512", batch_size, 512, 1)
    for width in widths[:2] if args.quick else widths:
        measure(f"batch 128, width {width}", 128, width, 1)
    for devices in (1, 2) if args.quick else (1, 2, 4, 8):
        measure(f"batch 1024, width 512, {devices} devices", 1024, 512, devices)
    return harness.table(["", "ms per step", "µs per example"], rows)


def state(args: argparse.Namespace, results: dict[str, Any]) -> str:
    """By how the state lies on the devices."""
    rows = []
    for devices, processes in ((8, 1), (1, 2)):
        work = {"flags": [*FLAGS, "--synthetic_examples=1024", "--batch_size=1024", "--hidden_sizes=512,512"],
                "processes": processes, "steps": 5 if args.quick else 20}
        what = f"{processes} processes" if processes > 1 else f"{devices} devices"
        found = harness.compare([Worker(what, "steps:states", work, emulated(devices))], args.repetitions,
                                args.patience)[what]
        results[what] = found
        rows += [[f"{what}, {state}", harness.spread([1e3 * row[state] for row in found]),
                  harness.spread([row[state] / row["replicated"] for row in found])]
                 for state in found[0] if state != "others"]  # fmt: skip
    return harness.table(["how the state lies", "ms per step", "times replicated"], rows)


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5, largest_batch=32768, largest_width=8192, only="")
    results: dict[str, Any] = {}
    tables = [part(args, results) for part in (cost, state) if args.only in ("", part.__name__)]
    harness.report(args, "How cost grows", tables, results)


if __name__ == "__main__":
    main()
