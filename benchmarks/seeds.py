"""What the seed changes: the test accuracy of configs/digits.flags and configs/fast.flags at their last step, with 20
seeds each.

    python benchmarks/seeds.py
"""

import statistics

import harness
from harness import Worker
from ours import CONFIGS


def main() -> None:
    args = harness.arguments(__doc__, repetitions=20)
    names = ("digits.flags", "fast.flags")
    workers = [Worker(name, "ours:seeds", {"flags": [f"--flagfile={CONFIGS}/{name}", f"--data_dir={args.data_dir}"]})
               for name in names]  # fmt: skip
    results = harness.compare(workers, 2 if args.quick else args.repetitions, args.patience)
    rows = []
    for name, measured in results.items():
        found = [100 * row["accuracy"] for row in measured]
        rows.append([name, str(len(found)), f"{statistics.mean(found):.2f} %", f"{statistics.stdev(found):.2f}",
                     f"{min(found):.2f} to {max(found):.2f} %"])  # fmt: skip
    table = harness.table(["", "seeds", "mean test accuracy", "deviation", "lowest to highest"], rows)
    harness.report(args, "Accuracy by seed", [table], results)


if __name__ == "__main__":
    main()
