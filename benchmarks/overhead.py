"""The same global batch on 1 to 8 emulated devices, by each wrapping and reduction, beside one device without any; and
the collectives of the compiled programs.

    python benchmarks/overhead.py
"""

import harness
from harness import Worker


def main() -> None:
    args = harness.arguments(__doc__, repetitions=7, batch_size=1024, devices="1,2,4,8")
    rows, results = [], {}
    for devices in [1, 2] if args.quick else map(int, args.devices.split(",")):
        env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}"}
        flags = ["--dataset=synthetic", "--synthetic_examples=8192", f"--batch_size={args.batch_size}"]
        base = Worker("single", "steps:steps", {"flags": [*flags, "--parallelism=single", "--num_devices=1"]},
                      env | ({"PJRT_NPROC": "16"} if devices > 1 else {}))
        workers = [base] + [
            Worker(f"{wrapping}, {reduction}", "steps:steps",
                   {"flags": [*flags, f"--parallelism={wrapping}", f"--reduction={reduction}"]}, env)
            for reduction in ("fast", "invariant") for wrapping in ("shard_map", "pmap")
        ]
        measured = harness.compare(workers, 2 if args.quick else args.repetitions, args.patience)
        results[f"{devices} devices"] = measured
        for name, numbers in measured.items():
            found = [f"{numbers[0][kind]} {kind}" for kind in numbers[0]
                     if kind not in ("seconds", "others") and numbers[0][kind]]
            rows.append([str(devices), name, harness.spread([1e3 * row["seconds"] for row in numbers]),
                         harness.spread(harness.ratios(measured, name, "single")), ", ".join(found) or "none"])
    header = ["devices", "wrapping, reduction", "ms per step", "times single", "collectives"]
    harness.report(args, f"Overhead at batch {args.batch_size}", [harness.table(header, rows)], results)


if __name__ == "__main__":
    main()
