"""Training seconds, evaluations left out, until 96.7 % of MNIST's test set are right: the tutorial, for as many epochs
as it needs, against configs/fast.flags, seed by seed.

    python benchmarks/time_to_accuracy.py
"""

import harness
from harness import Worker
from ours import CONFIGS


def main() -> None:
    args = harness.arguments(__doc__, repetitions=10, target=0.967)
    target = 0.9 if args.quick else args.target
    flags = [f"--flagfile={CONFIGS}/fast.flags", f"--data_dir={args.data_dir}"]
    workers = [
        Worker("fast.flags", "ours:seeds", {"flags": flags}),
        Worker("tutorial", "tutorial:until_accurate",
               {"data_dir": args.data_dir, "batch_size": 128, "target": target}),
    ]
    results = harness.compare(workers, 1 if args.quick else args.repetitions, args.patience)
    ratios = harness.ratios(results, "tutorial", "fast.flags")
    missed = [row["seed"] for row in results["fast.flags"] if row["accuracy"] < target]
    rows = [[name, harness.spread([row["seconds"] for row in measured]),
             f"{100 * min(row['accuracy'] for row in measured):.2f} %"] for name, measured in results.items()]
    rows.append(["tutorial / fast.flags", f"{harness.spread(ratios)}, at least {min(ratios):.3g}",
                 f"seeds that missed {100 * target:g} %: {missed or 'none'}"])
    table = harness.table(["", "training seconds", "lowest accuracy"], rows)
    harness.report(args, f"Time to {100 * target:g} %", [table], results | {"missed": missed})


if __name__ == "__main__":
    main()
