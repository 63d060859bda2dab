"""kill -9 of random processes of several at random instants, under torchrun: python -m tests.drills.processes_kill

torchrun (--max_restarts) starts the processes again after most kills; after the others all of it is killed, and another
torchrun goes on with another number of processes. The run must end with the parameters and metrics of one process that
nobody killed. Printed is the time from the death to the first line of training after it (12 steps and an evaluation).
"""

import argparse
import os
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from . import groups, runs

# distmlp's own line; or jax's, where its service is gone or was first to notice.
NEWS = "another process ended or was cut off|another task died"
FLAGS = (*runs.DIGITS, "--checkpoint_every_steps=4", "--data_placement=host", "--num_epochs=1000000")


class Drill:
    def __init__(self, folder: Path, seed: int, start_up: float) -> None:
        self.workdir, self.rng, self.start_up = folder / "run", random.Random(seed), start_up
        self.kills = {"while starting": 0, "while training": 0, "all of them": 0}
        self.seconds: list[float] = []  # from a death to training again, under one torchrun
        self.named = 0
        self.sizes: list[int] = []
        self.died = 0.0

    def all_kills(self, wanted: int) -> None:
        while sum(self.kills.values()) < wanted:
            group = self._start([])
            for _ in range(self.rng.randint(2, 4)):
                if sum(self.kills.values()) < wanted - 1:
                    self._kill_one(group)
            if self.died:
                self._await_training(group)
            for pid in [group.popen.pid, *groups.workers(group.popen.pid)]:
                os.kill(pid, signal.SIGKILL)
            group.popen.wait()
            self._count("all of them")

    def finish(self) -> int:
        """Goes on for some steps to an end, and returns its number."""
        steps = max(runs.committed(self.workdir), default=0) + 100
        group = self._start([f"--max_steps={steps}"])
        if code := group.wait(900):
            raise runs.DrillError(f"torchrun's exit code {code}:\n{group.output[-6000:]}")
        return steps

    def _start(self, more: list[str]) -> groups.Process:
        self.sizes.append(self.rng.choice([n for n in (2, 3, 4) if n not in self.sizes[-1:]]))
        self.died = 0.0
        return groups.under_torchrun(
            self.workdir, [*FLAGS, *more], self.sizes[-1], devices=self.rng.choice([1, 2]), restarts=100
        )

    def _kill_one(self, group: groups.Process) -> None:
        """Kills one process while all are starting, or while they train."""
        if starting := self.rng.random() < 0.3:
            time.sleep(self.rng.uniform(0, self.start_up))
        else:
            self._await_training(group)
            time.sleep(self.rng.uniform(0, 3))
        while not (pids := groups.workers(group.popen.pid)):
            if group.popen.poll() is not None:
                raise runs.DrillError(f"torchrun has ended:\n{group.output[-6000:]}")
            time.sleep(0.1)
        victim = self.rng.choice(pids)
        os.kill(victim, signal.SIGKILL)
        self.died = time.monotonic()
        self._count("while starting" if starting else "while training")

    def _await_training(self, group: groups.Process) -> None:
        started = group.wait_for("workdir ", 300, after=self.died)
        trained = group.wait_for(r"epoch +\d", 300, after=started)
        if self.died:
            self.named += any(at > self.died and re.search(NEWS, line) for at, line in group.lines)
            self.seconds.append(trained - self.died)
            print(f"training again after {trained - self.died:.1f} s", flush=True)
        self.died = 0.0

    def _count(self, kind: str) -> None:
        self.kills[kind] += 1
        print(f"kill {sum(self.kills.values())}: {kind}", flush=True)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--start_up", type=float, default=12.0, help="about how long a start takes here, in seconds")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as name:
        drill = Drill(Path(name), args.seed, args.start_up)
        try:
            drill.all_kills(args.kills)
            steps = drill.finish()
            sha256 = runs.finish(Path(name) / "reference", [*FLAGS, f"--max_steps={steps}"])
            if runs.sha256(Path(name) / "run") != sha256:
                raise runs.DrillError(f"the parameters are {runs.sha256(Path(name) / 'run')}, should be {sha256}")
            if runs.lines(Path(name) / "run") != runs.lines(Path(name) / "reference"):
                raise runs.DrillError("the parameters are right, but metrics.jsonl is not")
        except runs.DrillError as error:
            print(f"processes_kill drill FAILED after {drill.kills}: {error}")
            return 1
    print(f"processes_kill drill: {drill.kills}, with {drill.sizes} processes, {steps} steps; parameters {sha256} "
          f"and metrics as of a run that nobody killed; seconds from a death to training again: median "
          f"{statistics.median(drill.seconds):.1f}, longest {max(drill.seconds):.1f} ({len(drill.seconds)} deaths, "
          f"{drill.named} of them told by a survivor)")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
