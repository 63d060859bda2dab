"""Seconds per MNIST epoch of the tutorial's MLP at its batch of 128: distmlp beside what people would use instead.

    python benchmarks/end_to_end.py --data_dir=data
"""

import harness
from harness import Worker
from ours import CONFIGS


def main() -> None:
    args = harness.arguments(__doc__, repetitions=7, epochs=2)
    work = {"data_dir": args.data_dir, "batch_size": 128}
    flags = [f"--flagfile={CONFIGS}/tutorial.flags", f"--data_dir={args.data_dir}"]

    def ours(placement: str) -> Worker:
        ours_work = {"flags": [*flags, f"--data_placement={placement}"], "epochs": args.epochs}
        return Worker(f"distmlp, {placement}", "ours:epochs", ours_work)

    workers = [
        ours("device"),
        ours("host"),
        Worker("tutorial", "tutorial:epochs", work),
        Worker("PyTorch, in memory", "peers:torch_memory", work, harness.openmp(args)),
        Worker("PyTorch, DataLoader", "peers:torch_dataloader", work, harness.openmp(args)),
        Worker("Keras on JAX, fit", "peers:keras_fit", work, {"KERAS_BACKEND": "jax"}),
        Worker("matrix products, XLA", "products:xla", work),
    ]
    results = harness.compare(workers, 1 if args.quick else args.repetitions, args.patience)
    rows = [
        [name, harness.spread([row["seconds"] for row in measured]),
         harness.spread(harness.ratios(results, name, "distmlp, device")),
         harness.spread(harness.ratios(results, name, "distmlp, host"))]
        for name, measured in results.items()
    ]
    header = ["", "seconds per epoch", "times distmlp, device", "times distmlp, host"]
    harness.report(args, "One epoch", [harness.table(header, rows)], results)


if __name__ == "__main__":
    main()
