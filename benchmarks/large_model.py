"""Wide layers: model FLOP/s and their share (MFU) of what a square matrix product of the same type reaches.

    python benchmarks/large_model.py --width=8192 --batch_size=8192 --compute_dtype=bfloat16     # a GPU
    python benchmarks/large_model.py --width=1024 --batch_size=1024                              # a CPU
"""

import time

import harness
import products
from harness import Contestant, Work, Worker

FEATURES, CLASSES = 784, 10


def ceiling(work: Work) -> Contestant:
    """Contestant: FLOP/s of a product of two width x width matrices. work: width, compute_dtype."""
    import jax
    import jax.numpy as jnp

    width, count, ready = work["width"], 1, False
    matrix = jax.random.normal(jax.random.key(0), (width, width), jnp.float32).astype(work["compute_dtype"])
    product = jax.jit(lambda a, b: a @ b)
    product(matrix, matrix).block_until_ready()
    while True:
        while True:
            start = time.perf_counter()
            for _ in range(count):
                result = product(matrix, matrix)
            result.block_until_ready()
            seconds = time.perf_counter() - start
            if ready or seconds > 0.5:
                break
            count *= 2
        yield {"flops": 2 * width**3 * count / seconds} if ready else {}
        ready = True


def main() -> None:
    args = harness.arguments(__doc__, repetitions=7, width=1024, layers=3, batch_size=1024, compute_dtype="float32")
    if args.quick:
        args.width = args.batch_size = 256
    flags = ["--dataset=synthetic", "--synthetic_examples=16384", f"--batch_size={args.batch_size}",
             f"--hidden_sizes={','.join([str(args.width)] * args.layers)}", f"--compute_dtype={args.compute_dtype}"]
    workers = [
        Worker("step", "steps:steps", {"flags": flags}),
        Worker("matrix product", "large_model:ceiling", {"width": args.width, "compute_dtype": args.compute_dtype}),
    ]
    results = harness.compare(workers, 2 if args.quick else args.repetitions, args.patience)
    step_flops = products.flops(args.batch_size, (FEATURES, *[args.width] * args.layers, CLASSES))
    rates = [step_flops / row["seconds"] for row in results["step"]]
    mfu = [100 * rate / row["flops"] for rate, row in zip(rates, results["matrix product"], strict=True)]
    row = [f"{args.layers} x {args.width}, batch {args.batch_size}, {args.compute_dtype}",
           harness.spread([1e3 * row["seconds"] for row in results["step"]]),
           harness.spread([rate / 1e12 for rate in rates]),
           harness.spread([row["flops"] / 1e12 for row in results["matrix product"]]), harness.spread(mfu)]
    header = ["model", "ms per step", "TFLOP/s", "matrix product TFLOP/s", "MFU, %"]
    harness.report(args, "Large model", [harness.table(header, [row])], results)


if __name__ == "__main__":
    main()
