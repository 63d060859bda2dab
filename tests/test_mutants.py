"""The drill of mutants on a small product: one mutant of each outcome, and one in a process that a test starts."""

import json
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY, process_env

PRODUCT = """
def clipped(x: int, top: int) -> int:
    if x > top:
        x = top
    return x


def wait(done: bool) -> None:
    while not done:
        pass


def never() -> int:
    return 3
"""
TESTS = """
import subprocess
import sys

from small import steps


def test_clipped() -> None:
    assert [steps.clipped(x, 2) for x in (1, 2, 3)] == [1, 2, 2]


def test_wait() -> None:
    steps.wait(True)


def test_failing() -> None:
    assert subprocess.run([sys.executable, "-m", "small.failing"]).returncode
"""
FAILING = """
import os

os._exit(7)
"""
EQUIVALENT = """
[[equivalent]]
file = "small/steps.py"
function = "clipped"
was = "if x > top:"
now = "if x >= top:"
why = "equal values may be replaced by one another"
"""
EXPECTED = {
    ("clipped", "if x > top:", "if x >= top:"): "survived",
    ("clipped", "return x", "return None"): "killed",
    ("wait", "while not done:", "while done:"): "timed out",
    ("never", "return 3", "return 4"): "survived",
    ("", "os._exit(7)", "pass"): "killed",
    ("", "os._exit(7)", "os._exit(8)"): "survived",
}


def test_each_outcome_and_a_drill_that_goes_on(tmp_path: Path) -> None:
    tree = tmp_path / "product"
    for name, text in {
        "small/steps.py": PRODUCT, "small/failing.py": FAILING, "tests/test_steps.py": TESTS,
        "tests/drills/mutants.toml": EQUIVALENT,
    }.items():  # fmt: skip
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(text)
    command = [sys.executable, "-m", "tests.drills.mutants", f"--tree={tree}", "--paths=small", "--preload=",
               f"--folder={tmp_path / 'kept'}", "--limit=100", "--patience=3", "--seed=7"]  # fmt: skip

    def drill(*flags: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run([*command, *flags], cwd=REPOSITORY, env=process_env(), capture_output=True, text=True,
                              timeout=300, check=False)  # fmt: skip

    first = drill("--sample=3")
    assert "\nmutants drill: 3 mutants: " in first.stdout, first.stderr
    done = drill()
    found = [json.loads(line) for line in (tmp_path / "kept" / "results-7.jsonl").read_text().splitlines()]
    assert len(found) == len({one["key"] for one in found})  # those of the first were not asked about again
    outcomes = {(one["function"], one["was"], one["now"]): one["outcome"] for one in found}
    assert {key: outcomes[key] for key in EXPECTED} == EXPECTED
    assert {one["why"] for one in found if one["function"] == "never"} == {"no test executes it"}
    assert {one["by"] for one in found if one["now"] == "pass"} == {"tests/test_steps.py::test_failing"}
    assert done.returncode == 1  # more than the few that may
    assert "+ if x >= top" not in done.stdout
    assert "1 equivalent" in done.stdout
    assert "+ return 4" in done.stdout
    assert (tree / "small" / "steps.py").read_text() == PRODUCT
