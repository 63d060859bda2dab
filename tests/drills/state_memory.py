"""What a process holds at most when it starts, saves and restores a large state: python -m tests.drills.state_memory

Two processes of four devices make the initial state of a network with Adam and save it; two others restore it. There is
no step, for which each of a process's devices would gather the parameters. What the same does with a tiny network is
taken off.
"""

import argparse
import os
import resource
import socket
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from . import runs

LIMIT = 0.75  # of the state, above a tiny network's
LAYERS, WIDTH = 10, 2048


def process(workdir: str, state: str, width: int, address: str, number: int) -> None:
    """One of the two; prints the bytes of the whole state, and its own peak in bytes."""
    import jax

    from distmlp import Config
    from distmlp.cluster.group import Group
    from distmlp.data.datasets import load
    from distmlp.parallel import backend
    from distmlp.parallel.layout import make_layouts
    from distmlp.run.store import Store
    from distmlp.training import Program

    config = Config(dataset=f"{workdir}/data.npz", workdir=workdir, optimizer="adam", hidden_sizes=(width,) * LAYERS,
                    batch_size=64, state=state, coordinator_address=address, num_processes=2, process_id=number,
                    reduction="invariant")  # fmt: skip
    with backend.prepared(config):
        group = Group.join(config)
        data, layout = load(config), make_layouts(config)[0]
        parts = Program(config, data, layout, layout.device_memory)
        store = Store(Path(workdir), parts.digest, 1, group, parts.held)
        parts.digest.lower(parts.state).compile()  # into the cache: Gloo waits 30 s for one that comes late
        group.barrier()
        if store.steps():
            assert store.newest_intact(parts.state, lambda meta: None) is not None
        else:
            made = parts.initial_state(())
            group.barrier()
            store.save(1, made, {})
        store.close()
        size = sum(array.size * 4 for array in jax.tree.leaves(parts.held.shapes))
        print("peak", size, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024, flush=True)
        group.barrier()


def peaks(folder: Path, state: str, width: int) -> tuple[int, list[int]]:
    """Bytes of the state, and of the larger process's peak, when it is saved and when it is restored."""
    workdir = folder / f"{state}-{width}"
    workdir.mkdir()
    x, y = np.zeros((128, 784), np.uint8), np.arange(128) % 10
    np.savez(workdir / "data.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    found = [peak(workdir, state, width) for _ in ("saves", "restores")]
    return found[0][0], [bytes for _, bytes in found]


def peak(workdir: Path, state: str, width: int) -> tuple[int, int]:
    """Bytes of the state, and of the larger process's peak."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"127.0.0.1:{free.getsockname()[1]}"
    command = [sys.executable, "-m", "tests.drills.state_memory", str(workdir), state, str(width), address]
    pair = [subprocess.Popen([*command, str(number)], env=runs.environment(4), cwd=runs.REPOSITORY, text=True,
                             stdout=subprocess.PIPE, stderr=subprocess.PIPE) for number in (0, 1)]  # fmt: skip
    found = []
    for child in pair:
        output, errors = child.communicate(timeout=900)
        lines = [line.split() for line in output.splitlines() if line.startswith("peak ")]
        if child.returncode or not lines:
            raise runs.DrillError(f"{state}, width {width}: exit code {child.returncode}:\n{errors[-3000:]}")
        found.append((int(lines[0][1]), int(lines[0][2])))
    return max(found)


def main(argv: list[str]) -> int:
    if len(argv) == 5:
        process(argv[0], argv[1], int(argv[2]), argv[3], int(argv[4]))
        return 0
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args(argv)
    above = {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for state in ("sharded", "replicated"):
                (_, tiny), (size, large) = (peaks(Path(folder), state, width) for width in (8, WIDTH))
                shares = [(most - least) / size for most, least in zip(large, tiny, strict=True)]
                above[state] = max(shares)
                print(f"{state}, a state of {size / 1e6:,.0f} MB: above a tiny network's {tiny[0] / 1e6:,.0f} and "
                      f"{tiny[1] / 1e6:,.0f} MB, a process peaks at {shares[0]:.2f} of the state when it starts and "
                      f"saves, {shares[1]:.2f} when it restores", flush=True)
        except runs.DrillError as error:
            print(f"state_memory drill FAILED: {error}")
            return 1
    good = above["sharded"] <= LIMIT
    print(f"state_memory drill: {'passed' if good else f'FAILED, more than {LIMIT}'}")
    return 0 if good else 1


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    sys.exit(main(sys.argv[1:]))
