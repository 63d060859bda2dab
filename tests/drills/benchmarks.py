"""Every benchmark in its quick form, to see that it still runs: python -m tests.drills.benchmarks --data_dir=DIR

Each must end well and write finite, positive numbers for at least one contestant; what they say is no evidence.
"""

import argparse
import json
import math
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from . import runs


def scripts() -> list[Path]:
    """The benchmarks that are commands; the other files hold contestants."""
    files = (runs.REPOSITORY / "benchmarks").glob("*.py")
    return sorted(path for path in files if "= harness.arguments(" in path.read_text())


def numbers(value: Any) -> list[float]:
    """All numbers in a JSON value."""
    if isinstance(value, dict):
        return [number for part in value.values() for number in numbers(part)]
    if isinstance(value, list):
        return [number for part in value for number in numbers(part)]
    return [float(value)] if isinstance(value, (int, float)) and not isinstance(value, bool) else []


def run(script: Path, data_dir: str, timeout: float) -> int:
    """Runs one; returns how many numbers it measured."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.json"
        done = subprocess.run(
            [sys.executable, str(script), "--quick", f"--json={out}", f"--data_dir={data_dir}"],
            env={k: v for k, v in os.environ.items() if k != "XLA_FLAGS"} | {"PYTHONPATH": str(runs.REPOSITORY)},
            capture_output=True, text=True, timeout=timeout, check=False, cwd=folder,
        )  # fmt: skip
        if done.returncode or not out.exists():
            raise runs.DrillError(f"{script.name}: exit code {done.returncode}\n{done.stderr[-3000:]}")
        found = numbers(json.loads(out.read_text())[script.stem]["results"])
    if not found or not all(math.isfinite(number) and number >= 0 for number in found) or not any(found):
        raise runs.DrillError(f"{script.name}: measured {found}")
    return len(found)


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=os.environ.get("DISTMLP_DATA_DIR", "data"), help="holds MNIST/")
    parser.add_argument("--only", default="", help="the scripts with this in their name")
    parser.add_argument("--timeout", type=float, default=300, help="seconds for one script")
    args = parser.parse_args(argv)
    failed, chosen = 0, [path for path in scripts() if args.only in path.stem]
    for script in chosen:
        started = time.monotonic()
        try:
            count = run(script, str(Path(args.data_dir).absolute()), args.timeout)
            print(f"{script.name}: {count} numbers, {time.monotonic() - started:.0f} s", flush=True)
        except (runs.DrillError, subprocess.TimeoutExpired) as error:
            failed += 1
            print(f"FAILED {error}", flush=True)
    print(f"benchmarks drill: {len(chosen) - failed} of {len(chosen)} run")
    return 1 if failed or not chosen else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
