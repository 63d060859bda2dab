"""What a power cut may take, from a trace of the file system: python -m tests.drills.durability

A training under strace. Whenever a checkpoint goes, each file of all others that are listed, and the folders that name
them, must have been synced to disk after they were last written; so must run.flags before it gets its name, and each
line of metrics.jsonl before the next one. What syncing costs is in benchmarks/checkpoints.py.
"""

import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

from . import runs

TRACED = (
    "fsync,fdatasync,rename,renameat,renameat2,unlink,unlinkat,rmdir,mkdir,mkdirat,openat,write,writev,pwrite64,pwritev"
)
FLAGS = ("--dataset=digits", "--hidden_sizes=16", "--num_epochs=5", "--keep_checkpoints=1", "--input_scaling=unit",
         "--learning_rate=0.1", "--compilation_cache_dir=")  # fmt: skip
_CALL = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. \w+ resumed>(.*)")
_UNFINISHED = " <unfinished ...>"
_FAILED = re.compile(r"\) += -1 E")
_NAMES = re.compile(r'(?:(?:\d+|AT_FDCWD)<([^>]*)>, )?"([^"]*)"')  # each perhaps in a folder that is open
_OPEN = re.compile(r"\d+<([^>]*)>")


class Call(NamedTuple):
    """A call at its beginning or at its end, or both; times are line numbers of the trace."""

    name: str
    paths: list[Path]
    arguments: str
    begun: int
    now: int
    ended: bool


def calls(trace: Iterable[str], root: Path) -> Iterator[Call]:
    """The calls within a folder that did not fail; one that others interrupt comes twice."""
    under_way: dict[str, tuple[int, str, str]] = {}
    for now, line in enumerate(trace):
        if match := _CALL.match(line):
            under_way[match[1]] = now, match[2], match[3]
        elif match := _RESUMED.match(line):
            begun, name, arguments = under_way[match[1]]
            under_way[match[1]] = begun, name, arguments.replace(_UNFINISHED, "") + match[2]
        else:
            continue
        begun, name, arguments = under_way[match[1]]
        if "write" in name or "sync" in name:
            paths = [Path(found[1])] if (found := _OPEN.match(arguments)) else []
        else:
            paths = [Path(folder or "/", text) for folder, text in _NAMES.findall(arguments)]
        paths = [path for path in paths if root == path or root in path.parents]
        if paths and not _FAILED.search(arguments):
            yield Call(name, paths, arguments, begun, now, _UNFINISHED not in arguments)


class Disk:
    """What of a folder a power cut could take."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.there: set[Path] = set()
        self.unwritten: dict[Path, int] = {}  # files whose content, and since when, was not synced
        self.unnamed: dict[Path, int] = {}  # files and folders whose name in their folder was not

    def ended(self, call: Call) -> None:
        """What a call has done."""
        path = call.paths[0]
        if call.name.startswith("mkdir") or "O_CREAT" in call.arguments:
            if path not in self.there:
                self.there.add(path)
                self.unnamed[path] = call.now
            if "O_TRUNC" in call.arguments:
                self.unwritten[path] = call.now
        elif "write" in call.name:
            self.unwritten[path] = call.now
        elif "sync" in call.name:  # has on disk what was there when it began
            self.unwritten = {p: since for p, since in self.unwritten.items() if p != path or since > call.begun}
            self.unnamed = {p: since for p, since in self.unnamed.items() if p.parent != path or since > call.begun}
        elif call.name.startswith("rename"):
            self._rename(path, call.paths[-1], call.now)
        elif call.name.startswith(("unlink", "rmdir")):
            self._remove(path)

    def _remove(self, path: Path) -> None:
        self.there.discard(path)
        self.unwritten.pop(path, None)
        self.unnamed.pop(path, None)

    def _rename(self, old: Path, new: Path, now: int) -> None:
        for path in [path for path in self.there if path == old or old in path.parents]:
            moved = new / path.relative_to(old)
            unwritten, unnamed = self.unwritten.get(path), now if path == old else self.unnamed.get(path)
            self._remove(path)
            self._remove(moved)
            self.there.add(moved)
            if unwritten is not None:
                self.unwritten[moved] = unwritten
            if unnamed is not None:
                self.unnamed[moved] = unnamed

    def need(self, path: Path, before: str) -> None:
        """Raises DrillError if of a file or folder, what is in it, or the folders that it is in, anything could go."""
        own = [p for p in self.there if p == path or path in p.parents or (p in path.parents and p != self.root)]
        if lost := sorted(p for p in own if p in self.unwritten or p in self.unnamed):
            raise runs.DrillError(f"not synced before {before}: {', '.join(map(str, lost))}")


def verdict(trace: Iterable[str], workdir: Path) -> Counter[str]:
    """Counts what was seen; raises DrillError for what a power cut could have taken."""
    disk, seen, listed = Disk(workdir.parent), Counter[str](), set[Path]()
    metrics, settings = workdir / "metrics.jsonl", workdir / "run.flags"
    for call in calls(trace, workdir.parent):
        path, target = call.paths[0], call.paths[-1]
        if path in listed and call.name.startswith(("rename", "unlink", "rmdir")):
            listed.remove(path)
            for other in sorted(listed):
                disk.need(other, f"{path} went")
                seen["checkpoints kept while another went"] += 1
        if target in (metrics, settings) and call.name.startswith("rename") and call.ended:
            if path in disk.unwritten:
                raise runs.DrillError(f"not synced before it became {target}: {path}")
            seen[f"{target.name} given its name"] += 1
        if path == metrics and "O_APPEND" in call.arguments and call.ended:
            disk.need(metrics, "its next line")
            seen["lines of metrics.jsonl"] += 1
        if call.ended:
            disk.ended(call)
            if call.name.startswith("rename") and target.parent.name == "checkpoints" and target.name.isdigit():
                listed.add(target)
                seen["checkpoints listed"] += 1
    for path in (metrics, settings, *listed):
        disk.need(path, "the end")
    return seen


def traced_run(folder: Path) -> list[str]:
    """The lines of a trace of a run in folder/run."""
    trace = folder / "trace"
    command = ["strace", "-f", "-y", "-qq", "--seccomp-bpf", "-s", "16", "-e", f"trace={TRACED}", "-o", str(trace),
               sys.executable, "-m", "launch.train", *FLAGS, f"--workdir={folder / 'run'}"]  # fmt: skip
    done = subprocess.run(command, env=runs.environment(1), cwd=folder, capture_output=True, text=True, check=False,
                          timeout=300)  # fmt: skip
    if done.returncode:
        raise runs.DrillError(f"exit code {done.returncode}:\n{done.stderr[-4000:]}")
    return trace.read_text(errors="replace").splitlines()


def main() -> int:
    if not shutil.which("strace"):
        print("durability drill SKIPPED: this machine has no strace")
        return runs.SKIPPED
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        try:
            seen = verdict(traced_run(folder), folder / "run")
            if seen["checkpoints kept while another went"] < 3 or seen["lines of metrics.jsonl"] < 6:
                raise runs.DrillError(f"too little was seen to show anything: {dict(seen)}")
        except runs.DrillError as error:
            print(f"durability drill FAILED: {error}")
            return 1
    print(f"durability drill: all was on disk in time: {', '.join(f'{n} {what}' for what, n in seen.items())}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
