"""What all benchmarks share: contestants in processes of their own, interleaved repetitions, medians, paired ratios.

A contestant is a generator function of one dict, its work: it sets up (compiling and one warm-up included), yields
once, and from then on every `next` does one repetition and yields its measurements as a dict of numbers. Idle
contestants wait on a pipe, so that one repetition of each can follow the other within seconds: what else happens on
the machine hits all of them alike, and ratios are taken within a repetition.
"""

import argparse
import contextlib
import importlib
import json
import os
import platform
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

Work = dict[str, Any]
Numbers = dict[str, float]
Contestant = Iterator[Numbers]
_PACKAGES = ("distmlp", "jax", "jaxlib", "numpy", "torch", "torchvision", "keras", "grain", "optax", "orbax-checkpoint",
             "pyarrow", "isal", "datasets", "mosaicml-streaming")  # fmt: skip


def arguments(description: str | None, repetitions: int, **flags: Any) -> argparse.Namespace:
    """The flags that every script has, and some of its own: name=default."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="seconds instead of minutes: smaller work, no evidence")
    parser.add_argument("--repetitions", type=int, default=repetitions)
    parser.add_argument("--json", help="write everything measured to this file, beside what other scripts wrote there")
    parser.add_argument("--data_dir", default=os.environ.get("DISTMLP_DATA_DIR", "data"), help="holds MNIST/")
    parser.add_argument("--omp_wait_policy", default="",
                        help="OMP_WAIT_POLICY for NumPy and torch; 'passive' where other work shares the cores, "
                        "for their threads spin when they wait, and lose tenfold by it")
    parser.add_argument("--patience", type=float, default=0.0,
                        help="before each repetition, wait up to so many seconds for the machine to be idle")
    for name, default in flags.items():
        parser.add_argument(f"--{name}", type=type(default), default=default)
    return parser.parse_args()


def openmp(args: argparse.Namespace) -> dict[str, str]:
    """The environment of contestants that use OpenMP."""
    return {"OMP_WAIT_POLICY": args.omp_wait_policy} if args.omp_wait_policy else {}


class Worker:
    """One contestant's process."""

    def __init__(self, name: str, function: str, work: Work, env: dict[str, str] | None = None) -> None:
        """`function` is module:function in this folder; `env` is set on top of the environment."""
        self.name = name
        self._process: Any = subprocess.Popen(  # Any: to mypy its pipes may be missing
            [sys.executable, __file__, function, json.dumps(work)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ | (env or {}),
        )
        self.missing: str | None = self._read().get("missing")

    def measure(self) -> Numbers:
        """One repetition, and `others`: the share of the machine that anything but this process used meanwhile."""
        busy, mine, start = _busy_seconds(), self._cpu_seconds(), time.monotonic()
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        numbers = self._read()
        wall = (time.monotonic() - start) * (os.cpu_count() or 1)
        others = (_busy_seconds() - busy - (self._cpu_seconds() - mine)) / wall
        return numbers | {"others": max(0.0, others)}

    def close(self) -> None:
        self._process.stdin.close()
        self._process.wait()

    def _read(self) -> dict[str, Any]:
        line = self._process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.name} failed with exit code {self._process.wait()}; its error is above")
        return json.loads(line)

    def _cpu_seconds(self) -> float:
        """Of the process and of its children that have ended."""
        fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def _busy_seconds() -> float:
    fields = [int(n) for n in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:]]
    return (sum(fields[:8]) - fields[3] - fields[4]) / os.sysconf("SC_CLK_TCK")


def _wait_for_idle(patience: float) -> None:
    end = time.monotonic() + patience
    while time.monotonic() < end:
        busy = _busy_seconds()
        time.sleep(0.5)
        if (_busy_seconds() - busy) / 0.5 < 0.1 * (os.cpu_count() or 1):
            return


def compare(workers: list[Worker], repetitions: int, patience: float = 0.0) -> dict[str, list[Numbers]]:
    """So many repetitions of each, interleaved, each round beginning with another; a missing peer is named."""
    for worker in workers:
        if worker.missing:
            print(f"skipped {worker.name}: {worker.missing} (pip install 'distmlp[bench]')", file=sys.stderr)
    present = [worker for worker in workers if not worker.missing]
    if not present:
        raise SystemExit("nothing to measure: no contestant's packages are installed")
    results: dict[str, list[Numbers]] = {worker.name: [] for worker in present}
    for repetition in range(repetitions):
        first = repetition % len(present)
        for worker in present[first:] + present[:first]:
            _wait_for_idle(patience)
            results[worker.name].append(worker.measure())
        newest = [f"{name} {next(iter(rows[-1].values())):.4g}" for name, rows in results.items()]
        print(f"round {repetition + 1}: {', '.join(newest)}", file=sys.stderr)
    for worker in present:
        worker.close()
    return results


def spread(values: list[float], digits: int = 3) -> str:
    """Median [first quartile, third quartile]."""
    def text(value: float) -> str:
        rounded = float(f"{value:.{digits}g}")
        return f"{rounded:,.0f}" if rounded >= 10**digits else f"{rounded:g}"

    if len(values) < 2:
        return text(values[0])
    low, middle, high = map(text, statistics.quantiles(values, n=4, method="inclusive"))
    return f"{middle} [{low}, {high}]"


def ratios(results: dict[str, list[Numbers]], name: str, base: str, key: str = "seconds") -> list[float]:
    """name / base within each round."""
    return [a[key] / b[key] for a, b in zip(results[name], results[base], strict=True)]


def environment() -> dict[str, Any]:
    """What figures depend on."""
    info = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.exists() else None
    versions = {}
    for name in _PACKAGES:
        with contextlib.suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    commit = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True, check=False,
                            cwd=Path(__file__).parent).stdout.strip()  # fmt: skip
    return {
        "commit": commit, "cpu": found[1] if found else platform.processor(), "cores": len(os.sched_getaffinity(0)),
        "system": platform.platform(), "python": platform.python_version(), "versions": versions,
        "environment": {k: v for k, v in os.environ.items() if k in ("XLA_FLAGS", "PJRT_NPROC", "OMP_NUM_THREADS")},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def torchrun(*command: str) -> str:
    """What two processes under torchrun print, or SystemExit with its errors."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", "--master-port=0",
                "--rdzv-backend=c10d", "--rdzv-endpoint=localhost:0"]
    done = subprocess.run([*launcher, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed under torchrun:\n{done.stderr}")
    return done.stdout


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def report(args: argparse.Namespace, title: str, tables: list[str], results: Any, name: str = "") -> None:
    """Prints the tables with the environment below, and puts all of it into the JSON file, under this name or the
    script's."""
    env = environment()
    versions = ", ".join(f"{name} {version}" for name, version in env["versions"].items())
    print(f"### {title}\n\n" + "\n\n".join(tables))
    print(f"\n{env['cores']} cores of {env['cpu']}, Python {env['python']}, {versions}; medians [quartiles]"
          + (" of a --quick run, no evidence" if args.quick else "") + "\n")
    if args.json:
        file = Path(args.json)
        known = json.loads(file.read_text()) if file.exists() else {}
        script, *flags = sys.argv
        command = shlex.join(["python", f"benchmarks/{Path(script).name}", *(
            flag for flag in flags if not flag.startswith(("--json", "--data_dir", "--patience")))])
        known[name or Path(script).stem] = {"title": title, "command": command, "environment": env, "tables": tables,
                                    "results": results}
        file.write_text(json.dumps(dict(sorted(known.items())), indent=1) + "\n")


def _serve(function: str, work: Work) -> None:
    """The contestant's side; whatever it prints goes to stderr."""
    replies = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    module, _, name = function.partition(":")
    try:
        contestant: Contestant = getattr(importlib.import_module(module), name)(work)
        next(contestant)
    except ModuleNotFoundError as error:
        replies.write(json.dumps({"missing": str(error)}) + "\n")
        return
    replies.write("{}\n")
    for _ in sys.stdin:
        replies.write(json.dumps(next(contestant)) + "\n")


if __name__ == "__main__":
    _serve(sys.argv[1], json.loads(sys.argv[2]))
