"""Training seconds, evaluations left out, until 96.7 % of MNIST's test set are right: configs/fast.flags, its recipe
told to PyTorch on tensors in memory, and the tutorial, for as many epochs as it needs; seed by seed.

    python benchmarks/time_to_accuracy.py
"""

import harness
from harness import Worker
from ours import CONFIGS, config_of


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5, target=0.967)
    target = 0.9 if args.quick else args.target
    flags = [f"--flagfile={CONFIGS}/fast.flags", f"--data_dir={args.data_dir}"]
    recipe = config_of({"flags": flags})
    workers = [
        Worker("fast.flags", "ours:seeds", {"flags": flags}),
        Worker("its recipe, PyTorch", "peers:torch_recipe", {
            "data_dir": args.data_dir, "batch_size": recipe.batch_size, "steps": recipe.max_steps,
            "warmup": recipe.warmup_steps, "learning_rate": recipe.learning_rate,
        }, harness.openmp(args)),
        Worker("tutorial", "tutorial:until_accurate",
               {"data_dir": args.data_dir, "batch_size": 128, "target": target}),
    ]
    results = harness.compare(workers, 1 if args.quick else args.repetitions, args.patience)
    missed = {name: [row["seed"] for row in measured if row["accuracy"] < target] for name, measured in results.items()}
    rows = [[name, harness.spread([row["seconds"] for row in measured]),
             harness.spread(harness.ratios(results, name, "fast.flags")),
             f"{100 * min(row['accuracy'] for row in measured):.2f} %",
             f"{len(measured) - len(missed[name])} of {len(measured)}"] for name, measured in results.items()]
    table = harness.table(["", "training seconds", "times fast.flags", "lowest accuracy", "seeds that reach it"], rows)
    harness.report(args, f"Time to {100 * target:g} %", [table], results | {"missed": missed})


if __name__ == "__main__":
    main()
