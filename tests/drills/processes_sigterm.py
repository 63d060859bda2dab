"""A signal to one random process of four at random instants: python -m tests.drills.processes_sigterm --signals=20

All four must save at one common step and exit with 128 + the signal's number; one run goes through all the
stops, and must end with the parameters and metrics of one process that nobody stopped.
"""

import argparse
import random
import re
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path

from . import groups, runs

PROCESSES = 4
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
FLAGS = (*runs.RESTLESS, "--data_placement=host", "--num_epochs=1000000")


def one_stop(workdir: Path, rng: random.Random, start_up: float) -> tuple[int, float]:
    """Starts four processes, stops them; the step they stopped after, and the seconds it took."""
    group = groups.by_flags(workdir, [FLAGS] * PROCESSES)
    if early := rng.random() < 0.2:  # before the first step, though after they have joined
        group[0].wait_for("workdir ", 300)
    else:
        group[0].wait_for(r"epoch +\d", 300)
        time.sleep(rng.uniform(0, start_up))
    victim = rng.randrange(PROCESSES)
    signum = rng.choice(SIGNALS)
    group[victim].popen.send_signal(signum)
    started = time.monotonic()
    try:
        codes = [process.wait(120) for process in group]
    finally:
        for process in group:
            process.popen.kill()
    seconds = time.monotonic() - started
    output = "\n".join(process.output for process in group)
    said = re.findall(r"^distmlp: stopped after step (\d+) of .* goes on from there$", output, re.MULTILINE)
    saved = max(runs.committed(workdir), default=0)
    if codes != [128 + signum] * PROCESSES or len(said) != 1 or int(said[0]) != saved:
        raise runs.DrillError(f"exit codes {codes}, said {said}, checkpoints {runs.committed(workdir)}:\n"
                              f"{output[-6000:]}")  # fmt: skip
    print(f"{signum.name} to process {victim}{' before the first step' if early else ''}: all stopped after step "
          f"{saved} within {seconds:.1f} s", flush=True)  # fmt: skip
    return saved, seconds


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--signals", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    rng = random.Random(args.seed)
    runs.heed(SIGNALS)
    with tempfile.TemporaryDirectory() as name:
        workdir, reference = Path(name) / "run", Path(name) / "reference"
        try:
            stops = [one_stop(workdir, rng, 3.0) for _ in range(args.signals)]
            length = f"--max_steps={stops[-1][0] + 20}"
            sha256 = runs.finish(workdir, [*FLAGS, length])
            if runs.finish(reference, [*FLAGS, length]) != sha256 or runs.lines(workdir) != runs.lines(reference):
                raise runs.DrillError("the parameters or metrics are not those of a run that nobody stopped")
        except runs.DrillError as error:
            print(f"processes_sigterm drill FAILED: {error}")
            return 1
    seconds = [took for _, took in stops]
    print(f"processes_sigterm drill: {args.signals} stops of {PROCESSES} processes, each at one common step; "
          f"parameters {sha256} and metrics as of a run that nobody stopped; seconds to the end: median "
          f"{statistics.median(seconds):.1f}, longest {max(seconds):.1f}")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
