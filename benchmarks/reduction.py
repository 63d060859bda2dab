"""What --reduction=invariant costs: its step beside the fast one's, as paired ratios, on one device and on several.

    python benchmarks/reduction.py

The invariant reduction fixes the size of XLA's CPU thread pool. One ratio has the same pool on both sides, which is
the reduction's own cost; the other has XLA's default on the fast side, which is what a user pays.
"""

import harness
from harness import Worker


def main() -> None:
    args = harness.arguments(__doc__, repetitions=9, devices="1,8")
    rows, results = [], {}
    for devices in map(int, args.devices.split(",")):
        xla = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        for batch_size in (128, 1024) if args.quick else (128, 1024, 8192):
            flags = ["--dataset=synthetic", "--synthetic_examples=8192", f"--batch_size={batch_size}", "--num_shards=8"]
            pool = xla | {"PJRT_NPROC": "16"}
            workers = [
                Worker("invariant", "steps:steps", {"flags": [*flags, "--reduction=invariant"]}, pool),
                Worker("fast, same pool and shards", "steps:steps", {"flags": flags}, pool),
                Worker("fast", "steps:steps", {"flags": [*flags, "--num_shards=0"]}, xla),
            ]
            measured = harness.compare(workers, 2 if args.quick else args.repetitions, args.patience)
            results[f"{devices} devices, batch {batch_size}"] = measured
            rows.append([str(devices), str(batch_size),
                         harness.spread([1e3 * row["seconds"] for row in measured["invariant"]]),
                         harness.spread(harness.ratios(measured, "invariant", "fast, same pool and shards")),
                         harness.spread(harness.ratios(measured, "invariant", "fast"))])
    header = ["devices", "batch", "invariant, ms per step", "times fast, same pool and 8 shards", "times fast, default"]
    harness.report(args, "Invariant reduction", [harness.table(header, rows)], results)


if __name__ == "__main__":
    main()
