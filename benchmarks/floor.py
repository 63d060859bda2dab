"""The epoch's matrix products alone, by each library at hand, beside an epoch of distmlp: what is left to gain.

    python benchmarks/floor.py
"""

import harness
from harness import Worker
from ours import CONFIGS


def main() -> None:
    args = harness.arguments(__doc__, repetitions=7)
    work = {"batch_size": 128}
    flags = [f"--flagfile={CONFIGS}/tutorial.flags", f"--data_dir={args.data_dir}", "--data_placement=device"]
    workers = [
        Worker("distmlp, device", "ours:epochs", {"flags": flags, "epochs": 2}),
        Worker("XLA", "products:xla", work),
        Worker("NumPy", "products:numpy", work, harness.openmp(args)),
        Worker("torch", "products:torch", work, harness.openmp(args)),
    ]
    results = harness.compare(workers, 1 if args.quick else args.repetitions, args.patience)
    rows = [[name, harness.spread([row["seconds"] for row in measured]),
             harness.spread(harness.ratios(results, "distmlp, device", name))] for name, measured in results.items()]
    table = harness.table(["matrix products by", "seconds per epoch", "distmlp, device, takes times"], rows)
    harness.report(args, "Floor", [table], results)


if __name__ == "__main__":
    main()
