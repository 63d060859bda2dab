"""One of several devices finds a wrong gradient, always or at one audited step: python -m tests.drills.lying_device

Each device lies in turn. A run with --audit_every=N must stop with exit code 3 within N steps, and name that device; of
two devices it names both. The last runs are of two processes, under torchrun.
"""

import argparse
import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from . import groups, runs

EVERY = 4
FLAGS = (*runs.DIGITS, f"--audit_every={EVERY}", "--checkpoint_every_steps=6", "--eval_every_epochs=0",
         "--max_steps=40")  # fmt: skip
WAYS = (("--data_placement=host",), ("--data_placement=device", "--state=sharded"), ("--parallelism=pmap",))


def lying(honest: Callable[..., Any], device: int, at: int | None = None) -> Callable[..., Any]:
    """distmlp.parallel.step.shard_gradients, but with one wrong bit in a gradient of each step that this device finds;
    or, if `at` is given, only of the step that begins after so many."""

    def shard_gradients(state: Any, batch: Any, layout: Any, *rest: Any) -> Any:
        import jax
        import jax.numpy as jnp

        (loss, ((w, b), *layers)), *others = honest(state, batch, layout, *rest)
        wrong = (jax.lax.axis_index(layout.axis) == device) & (True if at is None else state.step == at)
        words = jax.lax.bitcast_convert_type(w, jnp.uint32)
        flipped = jax.lax.bitcast_convert_type(words.at[0, 0].set(words[0, 0] ^ jnp.uint32(1 << 12)), jnp.float32)
        return [(loss, [(jnp.where(wrong, flipped, w), b), *layers]), *others]

    return shard_gradients


def verdict(said: str, device: int, devices: int, at: int | None) -> str | None:
    """What is wrong with a run's last line, if anything."""
    found = re.search(r"the audit of step (\d+): ", said)
    if not found:
        return f"no audit has failed: {said[-2000:]}"
    first = 0 if at is None else at
    if not first < int(found[1]) <= first + EVERY:
        return f"step {first + 1} was the first wrong one, and step {found[1]} was audited"
    named = {int(number) for number in re.findall(r"device (\d+) \(", said)}
    if named != ({0, 1} if devices == 2 else {device}):
        return f"device {device} of {devices} lied, and named are {named}"
    return None


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--counts", default="2,3,8", help="device counts")
    parser.add_argument("--processes", type=int, default=2, help="of the last runs, with two devices each; 0: none")
    args = parser.parse_args(argv)
    started, done = time.monotonic(), 0
    ways = itertools.cycle(WAYS)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        for devices in map(int, args.counts.split(",")):
            for device, at in itertools.product(range(devices), (None, 2 * EVERY - 1)):
                workdir, way = folder / f"{devices}-{device}-{at}", next(ways)
                command = [sys.executable, "-m", "tests.drills.lying_device", "--lie", str(device), str(at)]
                ended = subprocess.run(
                    [*command, *FLAGS, *way, f"--workdir={workdir}"], env=runs.environment(devices), text=True,
                    cwd=runs.REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False, timeout=300,
                )  # fmt: skip
                wrong = verdict(ended.stdout, device, devices, at)
                if ended.returncode != 3:
                    wrong = f"exit code {ended.returncode}: {ended.stdout[-2000:]}"
                if wrong is None and max(runs.committed(workdir), default=0) > (at or 0):
                    wrong = f"there are checkpoints {runs.committed(workdir)}"
                if wrong:
                    print(f"lying_device drill FAILED, {' '.join(way)}: {wrong}")
                    return 1
                done += 1
                when = "always" if at is None else f"at step {at + 1}"
                print(f"device {device} of {devices}, {when}: named", flush=True)
        for device, at in itertools.product(range(2 * args.processes), (None, 2 * EVERY - 1)):
            if wrong := _several(folder / f"processes-{device}-{at}", device, at, args.processes):
                print(f"lying_device drill FAILED, {args.processes} processes: {wrong}")
                return 1
            done += 1
            print(f"device {device}, {args.processes} processes: named", flush=True)
    print(f"lying_device drill: {done} runs, each with a device that lied: every one stopped within {EVERY} steps and "
          f"named it; {time.monotonic() - started:.0f} s")  # fmt: skip
    return 0


def _several(workdir: Path, device: int, at: int | None, processes: int) -> str | None:
    command = (*groups.TORCHRUN, f"--nproc_per_node={processes}", "-m", "tests.drills.lying_device", "--lie",
               str(device), str(at), *FLAGS, "--data_placement=host", f"--workdir={workdir}")  # fmt: skip
    group = groups.Process(command, runs.REPOSITORY, runs.environment(2) | {"OMP_NUM_THREADS": "1"})
    group.wait(300)
    said = "\n".join(group.errors)
    codes = re.findall(r"exitcode\s*:\s*(\d+)", group.output)
    return verdict(said, device, 2 * processes, at) or (None if "3" in codes else f"exit codes {codes}: {group.output}")


def _lie(device: str, at: str, flags: list[str]) -> None:
    """launch.train, with a device that lies."""
    from distmlp.parallel import step
    from launch import command, train

    step.shard_gradients = lying(step.shard_gradients, int(device), None if at == "None" else int(at))
    sys.argv = ["train", *flags]
    command.run(train.main)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--lie"]:
        _lie(sys.argv[2], sys.argv[3], sys.argv[4:])
    sys.exit(main(sys.argv[1:]))
