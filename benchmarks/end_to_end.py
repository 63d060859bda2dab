"""Seconds per MNIST epoch of the tutorial's MLP at its batch of 128: distmlp beside what people would use instead, in
one process, and in two under torchrun.

    python benchmarks/end_to_end.py --data_dir=data
"""

import harness
from harness import Worker
from ours import CONFIGS


def main() -> None:
    args = harness.arguments(__doc__, repetitions=5, epochs=2)
    work = {"data_dir": args.data_dir, "batch_size": 128}
    flags = [f"--flagfile={CONFIGS}/tutorial.flags", f"--data_dir={args.data_dir}"]

    def ours(placement: str) -> Worker:
        ours_work = {"flags": [*flags, f"--data_placement={placement}"], "epochs": args.epochs}
        return Worker(f"distmlp, data on the {placement}", "ours:epochs", ours_work)

    workers = [
        ours("device"),
        ours("host"),
        Worker("the JAX tutorial", "tutorial:epochs", work),
        Worker("PyTorch, tensors in memory", "peers:torch_memory", work, harness.openmp(args)),
        Worker("PyTorch, Dataset and DataLoader", "peers:torch_dataloader", work, harness.openmp(args)),
        Worker("Keras on JAX, fit", "peers:keras_fit", work, {"KERAS_BACKEND": "jax"}),
        Worker("the epoch's matrix products alone, by XLA", "products:xla", work),
    ]
    repetitions = 1 if args.quick else args.repetitions
    one = harness.compare(workers, repetitions, args.patience)
    pairs = [
        Worker(f"distmlp, data on the {placement}", "ours:two_processes",
               {"flags": [*flags, f"--data_placement={placement}"], "epochs": args.epochs + 1})
        for placement in ("device", "host")
    ] + [Worker("PyTorch DistributedDataParallel", "peers:torch_ddp", work | {"epochs": args.epochs + 1})]
    two = harness.compare(pairs, repetitions, args.patience)
    tables = [_table("one process", one), _table("two processes", two)]
    harness.report(args, "One epoch", tables, {"one process": one, "two processes": two})


def _table(title: str, results: dict[str, list[harness.Numbers]]) -> str:
    rows = [
        [name, harness.spread([row["seconds"] for row in measured]),
         harness.spread(harness.ratios(results, name, "distmlp, data on the device"))]
        for name, measured in results.items()
    ]
    return harness.table([title, "seconds an epoch", "times the first row"], rows)


if __name__ == "__main__":
    main()
