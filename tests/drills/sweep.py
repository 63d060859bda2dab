"""kill -9 of sweeps at random instants, on 1 to 8 devices, in one process and under torchrun:
python -m tests.drills.sweep --kills=20

Each sweep is started, killed, and started again, each time on other devices and in one or two processes, until a start
comes to its end. Of two processes one may be killed, at random, and torchrun starts both again. In the end each
member has one line, the very one that it had when it was done, so that none was trained twice; and all lines and kept
members are those of a sweep that nobody killed, to the bit.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import groups, runs

SWEEP = ("--dataset=digits", "--input_scaling=standard", "--shuffle", "--hidden_sizes=32", "--batch_size=64",
         "--num_epochs=12", "--optimizer=adam", "--reduction=invariant", "--vary", "learning_rate", "0.001", "0.01",
         "--vary", "hidden_sizes", "16", "32", "--vary", "seed", "0", "1", "2", "--folds=4", "--keep=5")  # fmt: skip


def start(workdir: Path, devices: int, processes: int, more: list[str]) -> groups.Process:
    options = (f"--nproc_per_node={processes}", "--max_restarts=1") if processes > 1 else ()
    launcher = (*groups.TORCHRUN, *options) if processes > 1 else (sys.executable,)
    command = (*launcher, "-m", "launch.sweep", *SWEEP, *more, f"--workdir={workdir}")
    return groups.Process(command, workdir.parent, runs.environment(devices) | {"OMP_NUM_THREADS": "1"})


def end(process: groups.Process) -> None:
    if process.wait(900):
        raise runs.DrillError(f"exit code {process.popen.returncode}:\n{process.output[-4000:]}")


def begun(process: groups.Process) -> float:
    """When it has said what it will do, and begins to compile and to train."""
    return process.wait_for(r"\d+ settings|.* holds this sweep finished", 600)


def kill(process: groups.Process, length: float, rng: random.Random) -> str:
    """What is killed at an instant of the `length` that a sweep takes once it has begun, or now and then before: all,
    or one of several workers; "" if it has ended before."""
    after = rng.uniform(0, length)
    if rng.random() < 0.8:
        begun(process)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.popen.wait(after)
        return ""
    workers = groups.workers(process.popen.pid)
    one = rng.randrange(2) if len(workers) > 1 and rng.random() < 0.5 else None
    for pid in [*workers, process.popen.pid] if one is None else [workers[one]]:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    if one is None:
        process.popen.wait()
    return "all" if one is None else f"worker {one}"


def done(workdir: Path) -> set[str]:
    """The lines of members that are done, as they are in the files of all processes, their seconds included."""
    paths = [workdir / "sweep.jsonl", *workdir.glob("processes/*/sweep.jsonl")]
    whole = [line for path in paths if path.exists() for line in path.read_bytes().decode().splitlines(keepends=True)]
    return {line for line in whole if line.endswith("\n") and line.startswith('{"member"')}


def found(workdir: Path) -> dict[str, Any]:
    """All that must be the same; the order of the members' lines may differ."""
    lines = runs.lines(workdir, "sweep.jsonl")
    if not lines[-1].get("final") or not lines[-2].get("refit"):
        raise runs.DrillError(f"{workdir}: sweep.jsonl ends with {lines[-2:]}")
    numbers = [line["member"] for line in lines[:-2]]
    if sorted(numbers) != list(range(len(numbers))):
        raise runs.DrillError(f"{workdir}: sweep.jsonl has the members {numbers}")
    kept = {path.name: runs.sha256(path) for path in sorted((workdir / "members").iterdir())}
    left = sorted(path.name for path in workdir.iterdir())
    return {"lines": sorted(map(json.dumps, lines)), "kept": kept, "files": left}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--halving", action="store_true", help="of sweeps with --halving=2")
    args = parser.parse_args(argv)
    rng, began, kills, sweeps = random.Random(args.seed), time.monotonic(), 0, 0
    more = ["--halving=2"] if args.halving else []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        try:
            process = start(folder / "reference", 1, 1, more)
            measured = begun(process)
            end(process)
            length, reference = time.monotonic() - measured, found(folder / "reference")
            while kills < args.kills:
                workdir, ways, known = folder / f"sweep{sweeps}", list[Any](), set[str]()
                while True:
                    way = (rng.choice([1, 8, rng.randint(2, 7)]), rng.choice([1, 2]))
                    process = start(workdir, *way, more)
                    killed = kill(process, length, rng) if kills < args.kills else ""
                    ways.append((*way, killed or "ended", len(known := known | done(workdir))))
                    kills += bool(killed)
                    if killed != "all":
                        end(process)
                        break
                ours = found(workdir)
                if again := known - done(workdir):
                    raise runs.DrillError(f"{workdir}: trained again after {ways}: {sorted(again)[0][:60]}")
                if odd := [name for name in reference if ours[name] != reference[name]]:
                    raise runs.DrillError(f"{workdir} differs in {odd[0]} after {ways}: {ours[odd[0]]}, not "
                                          f"{reference[odd[0]]}")
                sweeps += 1
                print(f"sweep {sweeps}: right to the bit after {len(ways)} starts: {ways}", flush=True)
        except runs.DrillError as error:
            print(f"sweep drill FAILED after {kills} kills: {error}")
            return 1
    print(f"sweep drill: {kills} kills, {sweeps} sweeps ended, all with the same lines and members; "
          f"{time.monotonic() - began:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
