"""One SHA-256, sharded or replicated, on any devices, for each optimizer: python -m tests.drills.states

A table: a row for each optimizer and state, a column for each number of devices, and for 2 processes of 4 devices. One
process trains on 1 to 8 of its devices, one run after the other, and a pair of others all that is 2 x 4.
"""

import argparse
import subprocess
import sys
import tempfile
import time
from typing import Any

from . import groups, runs

OPTIMIZERS: dict[str, dict[str, Any]] = {
    "sgd": {"learning_rate": 0.1},
    "momentum": {"learning_rate": 0.1, "momentum": 0.9},
    "adam": {"optimizer": "adam", "learning_rate": 0.01},
    "adamw": {"optimizer": "adamw", "learning_rate": 0.01, "weight_decay": 0.01, "clip_norm": 0.05,
              "schedule": "warmup_cosine", "warmup_steps": 3},
}  # fmt: skip
STATES = ("replicated", "sharded")
COUNTS, PAIR = (1, 2, 3, 5, 8), 0  # devices; 0: two processes of 4
# Sizes that no number of devices divides; 1,437 examples, the last batch of an epoch with 29.
SETTINGS: dict[str, Any] = {"dataset": "digits", "input_scaling": "unit", "shuffle": True, "hidden_sizes": (50, 33),
                            "reduction": "invariant", "eval_every_epochs": 0}  # fmt: skip
_SAID = "sha256 of"


def train_all(folder: str, steps: int, counts: list[int], **place: Any) -> None:
    """Trains every optimizer in both states on so many devices each, and prints what comes out."""
    from distmlp import Config, train

    for optimizer, settings in OPTIMIZERS.items():
        for state in STATES:
            for count in counts:
                workdir = f"{folder}/{optimizer}-{state}" if place else None
                config = Config(**SETTINGS, **settings, **place, workdir=workdir, state=state, num_devices=count,
                                max_steps=steps, checkpoint_every_steps=steps if place else 0)  # fmt: skip
                result = train(config)
                print(_SAID, optimizer, state, count, result.history[-1]["params_sha256"], flush=True)


def found(command: list[str], devices: int, processes: int = 1) -> dict[tuple[str, str, int], str]:
    """What `train_all` prints in so many processes, by optimizer, state and number of devices."""
    address = f"127.0.0.1:{groups.free_port()}"
    places = [["--place", address, str(number)] if processes > 1 else [] for number in range(processes)]
    started = [subprocess.Popen([sys.executable, "-m", "tests.drills.states", *command, *place], cwd=runs.REPOSITORY,
                                env=runs.environment(devices), text=True, stdout=subprocess.PIPE,
                                stderr=subprocess.STDOUT) for place in places]  # fmt: skip
    outputs = [process.communicate(timeout=1800)[0] for process in started]
    for process, output in zip(started, outputs, strict=True):
        if process.returncode:
            raise runs.DrillError(f"exit code {process.returncode}:\n{output[-4000:]}")
    said = [line.split()[2:] for line in outputs[0].splitlines() if line.startswith(_SAID)]
    return {(optimizer, state, int(count)): value for optimizer, state, count, value in said}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--of", nargs=2, help=argparse.SUPPRESS)  # a process of the drill: its folder and its counts
    parser.add_argument("--place", nargs=2, help=argparse.SUPPRESS)  # of a pair: the address, and its number
    args = parser.parse_args(argv)
    if args.of:
        place = {"coordinator_address": args.place[0], "process_id": int(args.place[1]), "num_processes": 2} if (
            args.place) else {}  # fmt: skip
        train_all(args.of[0], args.steps, [int(count) for count in args.of[1].split(",")], **place)
        return 0
    started, wrong, table = time.monotonic(), 0, {}
    with tempfile.TemporaryDirectory() as folder:
        try:
            for counts, devices, processes in ((COUNTS, 8, 1), ((PAIR,), 4, 2)):
                command = [f"--steps={args.steps}", "--of", folder, ",".join(map(str, counts))]
                table |= found(command, devices, processes)
        except runs.DrillError as error:
            print(f"states drill FAILED: {error}")
            return 1
    columns = (*COUNTS, PAIR)
    print("optimizer  state       " + "".join(f"{f'{n} devices' if n else '2 x 4':>14}" for n in columns))
    for optimizer in OPTIMIZERS:
        for state in STATES:
            print(f"{optimizer:<11}{state:<12}" + "".join(f"{table[optimizer, state, n][:12]:>14}" for n in columns))
        wrong += len({table[optimizer, state, n] for state in STATES for n in columns}) > 1
    verdict = f"FAILED, {wrong} optimizers have more than one value" if wrong else "one value for each optimizer"
    print(f"states drill: {len(table)} runs of {args.steps} steps, {verdict}; {time.monotonic() - started:.0f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
