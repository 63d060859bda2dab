"""What a checkpoint costs as the model grows: seconds from a save until the state has been changed in place, as a step
would, beside a copy of it and its digests; until it is on disk; and to restore it.

    python benchmarks/checkpoints.py
"""

import os
import shutil
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
from harness import Contestant, Work, Worker


def saving(work: Work) -> Contestant:
    """Contestant: saves and restores of a state with momentum. work: width of the two hidden layers; sync, or not."""
    if not work["sync"]:
        os.fsync = lambda descriptor: None  # TensorStore's own, of the arrays' files, remain

    import jax
    import jax.numpy as jnp
    import numpy as np

    from distmlp import Config, optim
    from distmlp.cluster.group import Group
    from distmlp.parallel import backend, step
    from distmlp.parallel.digest import StateDigest
    from distmlp.parallel.layout import make_layout
    from distmlp.parallel.specs import STATE
    from distmlp.run.store import Store

    config = Config(optimizer="sgd", momentum=0.9, workdir="unused")
    prepared = ExitStack()
    prepared.enter_context(backend.prepared(config))
    layout = make_layout(config)
    sizes = [784, work["width"], work["width"], 10]
    state = layout.put(jax.tree.map(np.asarray, step.initial_state(sizes, 0, optim.make(config, 10), ())), STATE)
    digest = StateDigest(layout, STATE)
    folder = Path(tempfile.mkdtemp())
    checkpoints = Store(folder, digest, 1, Group())
    megabytes = sum(leaf.nbytes for leaf in jax.tree.leaves(state)) / 1e6
    meta: Any = {"settings": {}, "num_shards": 1, "data": "", "totals": {}, "versions": {}}
    copy = jax.jit(lambda tree: jax.tree.map(jnp.copy, tree))
    change = jax.jit(lambda tree: jax.tree.map(lambda leaf: leaf.at[(0,) * leaf.ndim].set(0), tree), donate_argnums=0)
    number, ready = 0, False
    try:
        while True:
            number += 1
            start = time.perf_counter()
            copies = jax.block_until_ready(copy(state))
            copied = time.perf_counter()
            digest.check(state, number)
            checked = time.perf_counter()
            checkpoints.save(number, state, meta)
            state = jax.block_until_ready(change(state))
            stopped = time.perf_counter()
            checkpoints.wait()
            saved = time.perf_counter()
            checkpoints.newest_intact(state, lambda meta: None)
            restored = time.perf_counter()
            del copies
            yield {
                "seconds": stopped - checked, "copy": copied - start, "digest": checked - copied,
                "saved": saved - checked, "restored": restored - saved, "megabytes": megabytes,
            } if ready else {}
            ready = True
    finally:
        checkpoints.close()
        shutil.rmtree(folder)


def main() -> None:
    args = harness.arguments(__doc__, repetitions=7, largest_width=8192)
    widths = [width for width in (512, 2048, 8192) if width <= args.largest_width]
    workers = [Worker(f"2 x {width}{'' if sync else ', without fsync'}", "checkpoints:saving",
                      {"width": width, "sync": sync}) for width in widths for sync in (True, False)]  # fmt: skip
    results = harness.compare(workers, 2 if args.quick else args.repetitions, args.patience)
    columns = ("seconds", "copy", "digest", "saved", "restored")
    rows = [
        [name, f"{measured[0]['megabytes']:.0f}",
         *(harness.spread([1e3 * row[column] for row in measured]) for column in columns)]
        for name, measured in results.items()
    ]
    header = ["hidden layers", "MB", "training stops for, ms", "a copy, ms", "the digests, ms",
              "until on disk, ms", "restored in, ms"]
    harness.report(args, "Checkpoints", [harness.table(header, rows)], results)


if __name__ == "__main__":
    main()
