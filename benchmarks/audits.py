"""What --audit_every costs: epochs on emulated devices with an audit of every step, of every tenth, ..., beside none.

    python benchmarks/audits.py
"""

import harness
from harness import Worker


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5, batch_size=512, devices=2, every="50,10,1")
    steps = 20 if args.quick else 50
    env = {"XLA_FLAGS": f"--xla_force_host_platform_device_count={args.devices}"}
    flags = [f"--synthetic_examples={steps * args.batch_size}", f"--batch_size={args.batch_size}",
             "--dataset=synthetic", "--reduction=invariant", "--check_replicas_every=0"]  # fmt: skip
    names = {0: "none"}
    for every in map(int, args.every.split(",")):
        names[every] = f"of one step in {every}" if every > 1 else "of every step"
    workers = [Worker(name, "ours:epochs", {"flags": [*flags, f"--audit_every={every}"], "epochs": 1}, env)
               for every, name in names.items()]  # fmt: skip
    measured = harness.compare(workers, 3 if args.quick else args.repetitions, args.patience)
    rows = []
    for every, name in names.items():
        ratios = harness.ratios(measured, name, "none")
        audited = -(-steps // every) if every else 0  # of the steps; the last one always is
        often = audited * 10 >= steps  # else the figure is of a few steps, by the difference of two epochs
        more = harness.spread([(ratio - 1) * steps / audited for ratio in ratios]) if often else ""
        rows.append([name, harness.spread([1e3 * row["seconds"] / steps for row in measured[name]]),
                     harness.spread(ratios), more])  # fmt: skip
    title = f"Audits at batch {args.batch_size} on {args.devices} devices, {steps} steps an epoch, the last one audited"
    headings = ["audit", "ms per step", "times none", "steps more for one audited"]
    harness.report(args, title, [harness.table(headings, rows)], measured)


if __name__ == "__main__":
    main()
