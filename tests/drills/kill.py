"""kill -9 at random instants, again and again, on random device counts: python -m tests.drills.kill --kills=100

Each run is started, killed, and started again until a start comes to its end. Then the parameters and every line of
metrics.jsonl must be those of a run that nobody killed; and after each kill the newest committed checkpoint must be
there still and be the one from which the next start goes on. At the end the parts of goodput must add up to the time
that the drill has measured.
"""

import argparse
import collections
import contextlib
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from distmlp.run import goodput
from distmlp.run.log import read_lines
from distmlp.run.sessions import read_sessions

from . import runs

ENDING = 0.5  # seconds in which a process ends after its last word, on a busy machine; of a long run 1 % is more
CLOCK = 0.1  # seconds within which a start's begin is known
UNKNOWN = 1.5  # seconds of a start that was killed: one may not be known, and the machine is busy
# Where to aim, and for how long at most to wait after getting there; "any" waits from the start on.
AIMS = {"start": 0.1, "imports": 2.0, "compile": 0.8, "train": 0.004, "evaluate": 0.04, "save": 0.08, "final": 0.1,
        "any": 10.0}  # fmt: skip


class Drill:
    """One run at a time, killed until it ends."""

    def __init__(self, folder: Path, seed: int, epochs: int) -> None:
        self.folder, self.rng = folder, random.Random(seed)
        self.flags = [*runs.RESTLESS, f"--num_epochs={epochs}"]
        self.reference = folder / "reference"
        self.sha256 = runs.finish(self.reference, self.flags)
        self.lines = runs.lines(self.reference)
        self.kills: collections.Counter[str] = collections.Counter()
        self.cut_saves = self.finished = 0
        self.goodput: collections.Counter[str] = collections.Counter()  # the seconds of all runs
        self.seconds = 0.0  # of the same, by the drill's clock

    def one_run(self, wanted: int) -> None:
        """Kills a new run until it ends or `wanted` kills are done, after which it is left to end."""
        workdir, newest = self.folder / f"run{self.finished}", 0
        starts: list[tuple[float, float]] = []  # when each began and ended
        while True:
            devices, way = runs.random_devices(self.rng)
            began, child = time.time(), runs.Child(workdir, [*self.flags, *way], devices)
            killed = self.kills.total() < wanted and self._kill(child)
            child.process.wait(timeout=300)
            starts.append((began, time.time()))
            self._check_start(child, newest)
            if not killed:
                break
            self.kills[child.phase] += 1
            if child.phase in ("train", "evaluate", "save", "final"):  # earlier ones may be of the kill before
                self.cut_saves += bool(list(workdir.glob("checkpoints/*.orbax-checkpoint-tmp*")))
            steps = runs.committed(workdir)
            if newest and newest not in steps and max(steps, default=0) <= newest:
                raise runs.DrillError(f"checkpoint {newest} is gone after a kill; left: {steps}")
            newest = max(steps, default=0)
        if child.process.returncode:
            raise runs.DrillError(f"exit code {child.process.returncode}:\n{child.output[-4000:]}")
        if (found := runs.sha256(workdir)) != self.sha256:
            raise runs.DrillError(f"the parameters are {found}, should be {self.sha256}")
        if (found_lines := runs.lines(workdir)) != self.lines:
            raise runs.DrillError(f"metrics.jsonl is\n{found_lines}\nshould be\n{self.lines}")
        if list(workdir.glob("damaged")) or list(workdir.glob("checkpoints/*tmp*")):
            raise runs.DrillError(f"{workdir} has damaged or temporary checkpoints")
        self._check_goodput(workdir, starts)
        self.finished += 1
        print(f"run {self.finished}: {len(starts)} starts, right to the bit; kills so far: {dict(self.kills)}",
              flush=True)

    def _kill(self, child: "runs.Child") -> bool:
        """Waits for a random instant and kills; False if the run has ended by itself."""
        aim = self.rng.choice(list(AIMS))
        patience = time.monotonic() + 60
        trained = False
        delay = self.rng.uniform(0, 1.5)  # of training, before it is aimed at a phase of it
        while aim != "any" and child.process.poll() is None and time.monotonic() < patience:
            phase = child.phase
            if phase == "train" and not trained:
                trained = True
                if aim in ("train", "evaluate", "save"):
                    with contextlib.suppress(subprocess.TimeoutExpired):
                        child.process.wait(delay)
            if phase == aim or (trained and phase in ("final", "end")):
                break
            time.sleep(0.001)
        try:  # it may end meanwhile, which is to be seen at once
            child.process.wait(self.rng.uniform(0, AIMS[aim]))
        except subprocess.TimeoutExpired:
            child.process.kill()
            return True
        return False

    def _check_goodput(self, workdir: Path, starts: list[tuple[float, float]]) -> None:
        """Against the drill's clock, which also sees a process begin and end, and against metrics.jsonl."""
        sessions = read_sessions(workdir).values
        # Of each start its own seconds; none where it was killed before it had the folder, or found the run finished.
        # The system's clock of processes may be a little behind, and one may be killed as soon as it is there.
        told = {max(number for number, (began, _) in enumerate(starts) if began <= line["began"] + CLOCK):
                sum(line["seconds"].values()) for line in sessions if "began" in line}  # fmt: skip
        wall = starts[max(told)][1] - starts[min(told)][0]
        found = goodput.parts(sessions)
        killed = max(told) < len(starts) - 1  # and later starts found the run finished
        if abs(sum(found.values()) - wall) > max(0.01 * wall, UNKNOWN if killed else ENDING):
            each = [(round(ended - began, 2), told.get(number)) for number, (began, ended) in enumerate(starts)]
            raise runs.DrillError(f"goodput of {workdir}: {found} should add up to {wall} s; starts took {each}")
        kept = sum(line.get("seconds", 0.0) for line in read_lines(workdir).values)
        if abs(found["train"] - kept) > 0.01 * kept:
            raise runs.DrillError(f"goodput of {workdir}: {found['train']} s were kept, by metrics.jsonl {kept}")
        for number, spent in told.items():
            seconds = starts[number][1] - starts[number][0]
            if spent < 0.95 * seconds - UNKNOWN:
                raise runs.DrillError(f"goodput of {workdir}: of a start's {seconds} s {spent} are known")
        self.goodput.update(found)
        self.seconds += wall

    def _check_start(self, child: "runs.Child", newest: int) -> None:
        if "is damaged" in child.output:
            raise runs.DrillError(f"a kill damaged a checkpoint:\n{child.output}")
        resumed = child.resumed_at()
        if resumed is not None and resumed != newest:
            raise runs.DrillError(f"went on from step {resumed}, not {newest}:\n{child.output}")


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12, help="length of a run")
    args = parser.parse_args(argv)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        drill = Drill(Path(folder), args.seed, args.epochs)
        try:
            while drill.kills.total() < args.kills:
                drill.one_run(args.kills)
        except runs.DrillError as error:
            print(f"kill drill FAILED after {drill.kills.total()} kills: {error}")
            return 1
    print(f"kill drill: {drill.kills.total()} kills ({', '.join(f'{n} in {p}' for p, n in drill.kills.most_common())}; "
          f"{drill.cut_saves} left a save half written), {drill.finished} runs ended, all with parameters "
          f"{drill.sha256} and the same metrics; {time.monotonic() - started:.0f} s")
    print(f"{goodput.described(drill.goodput)}\n"
          f"             ({100 * sum(drill.goodput.values()) / drill.seconds:.2f} % of the time by the drill's clock)")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
