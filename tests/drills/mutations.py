"""Breaks the product on purpose, one place at a time, and sees whether a test notices: python -m tests.drills.mutations

Each mutant of mutants.toml replaces one passage of one file in a copy of the project; the tests named beside it must
then fail. A mutant that lives is a gap in the tests, unless `lives` says why nobody could notice. Without --sample all
are tried, which takes about half an hour on two cores.
"""

import argparse
import os
import random
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from . import runs

TIMEOUT = 600.0  # seconds, after which the tests count as failed: the mutant hangs


class Mutant(NamedTuple):
    """One passage of one file, replaced."""

    file: str
    breaks: str  # what the product then does wrong
    before: str  # occurs exactly once in the file
    after: str
    tests: str  # arguments of pytest
    lives: str = ""  # why no test can notice, if that is so

    def applied_to(self, text: str) -> str:
        """The file's text with the mutation.

        Raises:
          ValueError: the passage is not there exactly once: the code has moved on, and the mutant must follow.
        """
        if text.count(self.before) != 1:
            raise ValueError(f"{self.file}: {self.before!r} occurs {text.count(self.before)} times, not once")
        return text.replace(self.before, self.after)


def mutants() -> list[Mutant]:
    """All that mutants.toml lists."""
    listed = tomllib.loads(Path(__file__).with_name("mutants.toml").read_text())
    return [Mutant(**mutant) for mutant in listed["mutant"]]


def copy_of_the_project(folder: Path) -> Path:
    """What git tracks or would track, as it lies in the working tree."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"], cwd=runs.REPOSITORY, check=True,
        capture_output=True, text=True,
    ).stdout  # fmt: skip
    for name in listed.splitlines():
        source = runs.REPOSITORY / name
        if source.is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, folder / name)
    return folder


def tests_pass(project: Path, mutant: Mutant) -> bool:
    """Whether the mutant's tests pass in this copy."""
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *shlex.split(mutant.tests)]
    env = os.environ | {"PYTHONDONTWRITEBYTECODE": "1"}
    try:
        done = subprocess.run(
            command, cwd=project, env=env, capture_output=True, text=True, timeout=TIMEOUT, check=False
        )
    except subprocess.TimeoutExpired:
        return False
    if done.returncode not in (0, 1):  # usage, nothing collected, an error while collecting
        collecting = "error" in done.stdout.lower() and done.returncode == 2
        if not collecting:
            raise runs.DrillError(f"{mutant.file}: pytest ended with {done.returncode}:\n{done.stdout[-2000:]}")
    return done.returncode == 0


def attempt(mutant: Mutant) -> tuple[Mutant, bool, float]:
    """The mutant, whether it lives, and the seconds that took."""
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as name:
        project = copy_of_the_project(Path(name))
        target = project / mutant.file
        target.write_text(mutant.applied_to(target.read_text()))
        return mutant, tests_pass(project, mutant), time.monotonic() - started


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sample", type=int, default=0, help="try so many, drawn at random; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--only", default="", help="try those whose file has this in its name")
    parser.add_argument("--jobs", type=int, default=2, help="tried at the same time")
    args = parser.parse_args(argv)
    chosen = [mutant for mutant in mutants() if args.only in mutant.file]
    if args.sample:
        chosen = random.Random(args.seed).sample(chosen, min(args.sample, len(chosen)))
    gaps, explained = [], 0
    with ThreadPoolExecutor(args.jobs) as pool:
        for mutant, lives, seconds in pool.map(attempt, chosen):
            verdict = "caught" if not lives else f"lives: {mutant.lives}" if mutant.lives else "LIVES"
            print(f"{verdict:<7} {seconds:4.0f} s  {mutant.file}: {mutant.breaks}", flush=True)
            gaps += [mutant] if lives and not mutant.lives else []
            explained += bool(lives and mutant.lives)
    caught = len(chosen) - len(gaps) - explained
    print(f"mutation drill: {len(chosen)} mutants, {caught} caught, {explained} live for a reason, {len(gaps)} "
          f"{'gap' if len(gaps) == 1 else 'gaps'} in the tests")  # fmt: skip
    return 1 if gaps or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
