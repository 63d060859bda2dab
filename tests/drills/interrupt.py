"""Signals at random instants, on random device counts: python -m tests.drills.interrupt --signals=50

SIGTERM, SIGINT, SIGHUP, SIGUSR1 and SIGUSR2 must each save at the next step boundary, end with 128 + their number
within seconds and say how to go on; the run that goes on must end with the parameters and metrics of one that nobody
stopped. Some get the same signal again before they have stopped, which must end them at once.
"""

import argparse
import collections
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from . import runs

AIMS = {"imports": 2.0, "restore": 0.05, "compile": 0.8, "train": 0.004, "evaluate": 0.04, "save": 0.05, "any": 10.0}
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
_AT_ONCE = re.compile(r"^distmlp: SIG\w+: stopped at once", re.MULTILINE)
_STOPPED = re.compile(r"^distmlp: stopped after step (\d+) of .* goes on from there$", re.MULTILINE)


class Drill:
    def __init__(
        self, folder: Path, seed: int, epochs: int, seconds: float, kinds: Sequence[signal.Signals] = SIGNALS
    ) -> None:
        self.folder, self.rng, self.seconds, self.kinds = folder, random.Random(seed), seconds, kinds
        self.flags = [*runs.RESTLESS, f"--num_epochs={epochs}"]
        reference = folder / "reference"
        self.sha256, self.lines = runs.finish(reference, self.flags), runs.lines(reference)
        self.stops: collections.Counter[str] = collections.Counter()
        self.waits: dict[str, list[float]] = {"first": [], "second": []}
        self.finished = self.at_once = 0

    def one_run(self, wanted: int) -> None:
        """Stops a new run until it ends or `wanted` signals are sent, after which it is left to end."""
        workdir = self.folder / f"run{self.finished}"
        while True:
            devices, way = runs.random_devices(self.rng)
            child = runs.Child(workdir, [*self.flags, *way], devices)
            phase = self._aim(child) if self.stops.total() < wanted else None
            if phase is None:
                child.process.wait(timeout=300)
                break
            self._stop(child, workdir, phase)
        if child.process.returncode:
            raise runs.DrillError(f"exit code {child.process.returncode}:\n{child.output[-4000:]}")
        if (runs.sha256(workdir), runs.lines(workdir)) != (self.sha256, self.lines):
            raise runs.DrillError(f"{runs.lines(workdir)}\nshould be\n{self.lines}")
        self.finished += 1
        print(f"run {self.finished} right to the bit; stops so far: {dict(self.stops)}", flush=True)

    def _aim(self, child: "runs.Child") -> str | None:
        """Waits for a random instant; the phase at it, or None if the run came to its end before."""
        aim, trained = self.rng.choice(list(AIMS)), False
        delay, patience = self.rng.uniform(0, 1.5), time.monotonic() + 60
        while aim != "any" and child.process.poll() is None and time.monotonic() < patience:
            phase = child.phase
            if phase == "train" and not trained:
                trained = True
                time.sleep(delay if aim in ("train", "evaluate", "save") else 0)
            if phase == aim or (trained and phase in ("final", "end")):
                break
            time.sleep(0.001)
        time.sleep(self.rng.uniform(0, AIMS[aim]))
        phase = child.phase
        return None if child.process.poll() is not None or phase in ("final", "end") else phase

    def _stop(self, child: "runs.Child", workdir: Path, phase: str) -> None:
        signum = self.rng.choice(self.kinds)
        child.process.send_signal(signum)
        started, second = time.monotonic(), False
        if self.rng.random() < 0.2:
            time.sleep(self.rng.uniform(0.12, 0.2))  # sooner would be taken for the same one
            # Only if it is not on its way out yet: what it says then is no longer to be changed.
            if second := child.process.poll() is None and not _STOPPED.search(child.output):
                child.process.send_signal(signum)
        code = child.process.wait(timeout=120)
        seconds = time.monotonic() - started
        self.stops[phase] += 1
        self.waits["second" if second else "first"].append(seconds)
        output = child.output
        if code == 0 and child.phase == "end":
            return  # the signal came when only the final line was left to write
        at_once, stopped = _AT_ONCE.search(output), _STOPPED.search(output)
        if phase == "start":  # before the handlers are installed the signals do what Python's defaults say
            right = code in (-signum, 128 + signum) or (signum == signal.SIGINT and code == 1)
        elif at_once:  # twice, or once while there was nothing to save
            self.at_once += second
            right = code == 128 + signum and (second or phase in ("imports", "setup", "restore", "compile"))
        else:
            saved = max(runs.committed(workdir), default=0)
            right = code == 128 + signum and stopped is not None and int(stopped[1]) == saved
        if not right or seconds > self.seconds or ("Traceback" in output and phase != "start"):
            raise runs.DrillError(f"{signum.name} in phase {phase}: exit code {code} after {seconds:.1f} s, "
                                  f"checkpoints {runs.committed(workdir)}:\n{output[-4000:]}")  # fmt: skip


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=12, help="length of a run")
    parser.add_argument("--seconds", type=float, default=20, help="the longest that a stop may take")
    parser.add_argument("--only", nargs="+", choices=[kind.name for kind in SIGNALS], help="these kinds of signals")
    args = parser.parse_args(argv)
    kinds = [kind for kind in SIGNALS if not args.only or kind.name in args.only]
    runs.heed(kinds)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        drill = Drill(Path(folder), args.seed, args.epochs, args.seconds, kinds)
        try:
            while drill.stops.total() < args.signals:
                drill.one_run(args.signals)
            if len(drill.waits["second"]) >= 3 and not drill.at_once:
                raise runs.DrillError("no second signal ended a run at once")
        except runs.DrillError as error:
            print(f"interrupt drill FAILED after {drill.stops.total()} signals: {error}")
            return 1
    waits = "; ".join(f"seconds to the end after the {which}: median {statistics.median(found):.2f}, "
                      f"longest {max(found):.2f}" for which, found in drill.waits.items() if found)  # fmt: skip
    print(f"interrupt drill: {drill.stops.total()} signals of {'/'.join(kind.name for kind in kinds)} "
          f"({dict(drill.stops)}), {drill.finished} runs ended, all "
          f"with parameters {drill.sha256} and the same metrics; {waits}; {time.monotonic() - started:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
