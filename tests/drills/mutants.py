"""Changes the product at random and asks the tests: python -m tests.drills.mutants --sample=150 --folder=DIR

A mutant is the product with one small change: a comparison turned, a statement left out, an argument not given. A test
that fails has seen it, and the mutant is killed. Which tests execute the changed line is measured once, with the
processes that tests start; those alone are asked, fast ones before slow ones, the nearest first, to the first failure.
Of the mutants that live, mutants.toml names those that change nothing a test could see, each with the reason.

The tree is copied to DIR, and nothing is changed outside of it. What is found is kept in DIR: the same command goes on
where it was stopped. A mutant has its place in the sample by what it changes, not by its line. So one edit of the
product leaves nearly all of the sample as it was.
"""

import argparse
import ast
import contextlib
import difflib
import functools
import hashlib
import importlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import coverage
import pytest

from . import runs

# Imported once, not for each mutant. They must start no threads, and import nothing that is changed.
PRELOADED = "jax,numpy,optax,orbax.checkpoint,pyarrow,pyarrow.dataset,sklearn,torch,torch.utils.data,torchvision"
UNEXPLAINED = 0.05  # as many of a sample may live without a reason
SLOW = 2.0  # seconds from which on a test is asked after all faster ones, however near it is
COVERAGE = """[run]
core = ctrace
parallel = true
patch = _exit, fork
context = ${{PYTEST_CURRENT_TEST-}}
data_file = {data}
include = {tree}/{package}/*
"""
SWAPS: dict[type[ast.AST], tuple[str, str]] = {
    ast.Lt: ("<", "<="), ast.LtE: ("<=", "<"), ast.Gt: (">", ">="), ast.GtE: (">=", ">"), ast.Eq: ("==", "!="),
    ast.NotEq: ("!=", "=="), ast.Is: ("is", "is not"), ast.IsNot: ("is not", "is"), ast.In: ("in", "not in"),
    ast.NotIn: ("not in", "in"), ast.Add: ("+", "-"), ast.Sub: ("-", "+"), ast.Mult: ("*", "/"), ast.Div: ("/", "*"),
    ast.FloorDiv: ("//", "/"), ast.Mod: ("%", "*"), ast.Pow: ("**", "*"), ast.MatMult: ("@", "*"),
    ast.BitOr: ("|", "&"), ast.BitAnd: ("&", "|"), ast.BitXor: ("^", "|"), ast.LShift: ("<<", ">>"),
    ast.RShift: (">>", "<<"), ast.And: ("and", "or"), ast.Or: ("or", "and"),
}  # fmt: skip


class Mutant(NamedTuple):
    path: str  # of the file, from the root of the tree
    function: str  # classes and functions around the change, dotted; empty on the module's own level
    operator: str
    was: str  # the changed lines, each run of spaces as one
    now: str
    nth: int  # of such changes in this function, from 1
    lines: range  # of its statement, or that one's head; of what runs at the import, all lines of the file
    text: str  # the whole changed file

    @property
    def key(self) -> str:
        """The same wherever the function's lines have moved to in their file."""
        return " | ".join([self.path, self.function, self.was, self.now, str(self.nth)])


class _Change(NamedTuple):
    function: str
    operator: str
    start: int  # bytes from the file's start
    end: int
    new: bytes
    lines: range


class _File:
    """One file of the product, and the changes to it."""

    def __init__(self, path: str, source: bytes) -> None:
        self.path, self.source = path, source
        self._starts = [0, *(match.end() for match in re.finditer(rb"\n", source))]

    def mutants(self) -> Iterator[Mutant]:
        seen: Counter[tuple[str, str, str]] = Counter()
        texts = set()
        for change in self._changes(ast.parse(self.source), "", range(1, len(self._starts))):
            before, after = self.source[: change.start], self.source[change.end :]
            changed = before + change.new + after
            if changed in texts:
                continue
            texts.add(changed)
            left, right = before[before.rfind(b"\n") + 1 :], after.partition(b"\n")[0]
            lines = (left + self.source[change.start : change.end] + right, left + change.new + right)
            was, now = (" ".join(text.decode().split()) for text in lines)
            seen[change.function, was, now] += 1
            nth = seen[change.function, was, now]
            yield Mutant(self.path, change.function, change.operator, was, now, nth, change.lines, changed.decode())

    def _changes(self, node: ast.AST, scope: str, lines: range, called: bool = False) -> Iterator[_Change]:
        if isinstance(node, ast.JoinedStr | ast.Import | ast.ImportFrom) or _text(node) or _for_types_only(node):
            return  # Python 3.11 does not say where in the file the parts of an f-string are
        if isinstance(node, ast.stmt) and called:
            body = getattr(node, "body", None)
            last = max(node.lineno, body[0].lineno - 1) if body else node.end_lineno or node.lineno
            lines = range(node.lineno, last + 1)
        for operator, start, end, new in self._at(node):
            yield _Change(scope, operator, start, end, new, lines)
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            scope = f"{scope}.{node.name}" if scope else node.name
        for name, field in ast.iter_fields(node):
            within = called or (isinstance(node, ast.FunctionDef) and name == "body")
            for child in field if isinstance(field, list) else [field]:
                if isinstance(child, ast.AST) and name not in ("annotation", "returns"):
                    yield from self._changes(child, scope, lines, within)

    def _at(self, node: ast.AST) -> Iterator[tuple[str, int, int, bytes]]:  # noqa: PLR0912 # one for each kind of node
        """What can be changed in this node itself: what it is called, from where to where, the new text."""
        match node:
            case ast.Compare():
                for left, sign, right in zip([node.left, *node.comparators], node.ops, node.comparators, strict=False):
                    yield from self._between(left, right, sign)
            case ast.BinOp():
                yield from self._between(node.left, node.right, node.op)
            case ast.AugAssign():
                yield from self._between(node.target, node.value, node.op)
                yield "statement left out", *self._span(node), b"pass"
            case ast.BoolOp():
                for left, right in pairwise(node.values):
                    yield from self._between(left, right, node.op)
                    yield "operand left out", self._span(left)[0], self._span(right)[0], b""
                    yield "operand left out", self._span(left)[1], self._span(right)[1], b""
            case ast.UnaryOp(op=ast.Not() | ast.USub()):
                yield "sign left out", *self._span(node), self._code(node.operand)
            case ast.Constant(value=bool()):
                yield "constant", *self._span(node), repr(not node.value).encode()
            case ast.Constant(value=int() | float()):
                yield "constant", *self._span(node), repr(node.value + 1).encode()  # type: ignore[operator]
            case ast.Constant(value=str() as text):
                yield "text", *self._span(node), repr(f"XX{text}XX").encode()
            case ast.Expr(value=ast.Call()) | ast.Raise() | ast.Delete():
                yield "statement left out", *self._span(node), b"pass"
            case ast.Assign() | ast.AnnAssign() | ast.Return() if node.value:
                yield "value", *self._span(node.value), b"None"
            case ast.For():
                yield "no turn", *self._span(node.iter), b"()"
            case ast.Break():
                yield "break", *self._span(node), b"continue"
            case ast.Continue():
                yield "break", *self._span(node), b"break"
            case ast.Call():
                given = sorted([self._span(each) for each in [node.func, *node.args, *node.keywords]])
                for (_, before), (start, end) in pairwise(given):
                    if any(self._span(keyword) == (start, end) and keyword.arg for keyword in node.keywords):
                        yield "argument left out", start if before == given[0][1] else before, end, b""
        for test in (node.test,) if isinstance(node, ast.If | ast.While | ast.IfExp) else getattr(node, "ifs", ()):
            if not isinstance(test, ast.Compare | ast.UnaryOp):
                yield "condition", *self._span(test), b"not (" + self._code(test) + b")"

    def _between(self, left: ast.expr, right: ast.expr, sign: ast.AST) -> Iterator[tuple[str, int, int, bytes]]:
        (_, start), (end, _) = self._span(left), self._span(right)
        old, new = SWAPS[type(sign)]
        gap = self.source[start:end]
        if (at := gap.find(old.encode())) >= 0:  # else it is of several words, on several lines
            yield "sign", start + at, start + at + len(old), new.encode()

    def _span(self, node: Any) -> tuple[int, int]:
        start, end = self._starts[node.lineno - 1], self._starts[node.end_lineno - 1]
        return start + node.col_offset, end + node.end_col_offset

    def _code(self, node: ast.AST) -> bytes:
        start, end = self._span(node)
        return self.source[start:end]


def _text(node: ast.AST) -> bool:
    """A string alone is a statement: a docstring."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant)


def _for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"


def drawn(tree: Path, paths: Sequence[str], seed: int) -> Iterator[Mutant]:
    """All mutants of these files and folders, in an order by the seed; without those that are no other program."""
    files = {file for path in paths for file in tree.glob(path if path.endswith(".py") else f"{path}/**/*.py")}
    found = [mutant for file in files for mutant in _File(str(file.relative_to(tree)), file.read_bytes()).mutants()]
    for mutant in sorted(found, key=lambda mutant: hashlib.sha256(f"{seed} {mutant.key}".encode()).digest()):
        with contextlib.suppress(SyntaxError):
            if ast.dump(ast.parse(mutant.text)) != ast.dump(ast.parse((tree / mutant.path).read_bytes())):
                yield mutant


class _Watch:
    """The plugin in the process that runs the tests: it picks them, and writes down what becomes of each at once."""

    def __init__(self, notes: Path, wanted: list[str] | None) -> None:
        self._notes, self._wanted, self._passed, self._seconds = notes, wanted, True, 0.0

    def _note(self, **what: Any) -> None:
        with self._notes.open("a") as file:
            file.write(json.dumps(what) + "\n")

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        if self._wanted is not None:
            place = {name: i for i, name in enumerate(self._wanted)}
            items[:] = sorted((item for item in items if item.nodeid in place), key=lambda item: place[item.nodeid])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._note(test=report.nodeid, passed=False)

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self._passed, self._seconds = True, 0.0
        self._note(starts=nodeid)
        if measuring := coverage.Coverage.current():
            measuring.switch_context(nodeid)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self._passed &= not report.failed
        self._seconds += report.duration

    def pytest_runtest_logfinish(self, nodeid: str) -> None:
        self._note(test=nodeid, passed=self._passed, seconds=round(self._seconds, 3))


class Session:
    """Tests in a process of their own, forked from this one, which has imported what is slow to import."""

    def __init__(self, tree: Path, scratch: Path, files: Sequence[str], wanted: list[str] | None, rc: str = "") -> None:
        shutil.rmtree(scratch, ignore_errors=True)
        (scratch / "tmp").mkdir(parents=True)
        self.scratch, self._notes, self._started = scratch, scratch / "notes", time.monotonic()
        self._notes.touch()
        self.pid = os.fork()
        if not self.pid:
            try:
                self._run(tree, files, wanted, rc)
            finally:
                os._exit(3)

    def _run(self, tree: Path, files: Sequence[str], wanted: list[str] | None, rc: str) -> None:
        os.setsid()
        with (self.scratch / "output").open("w") as output, Path(os.devnull).open() as nothing:
            for number, file in ((0, nothing), (1, output), (2, output)):
                os.dup2(file.fileno(), number)
        os.environ.pop("PYTEST_CURRENT_TEST", None)
        os.environ |= {"PYTHONPATH": str(tree), "TMPDIR": str(self.scratch / "tmp")}
        tempfile.tempdir = None
        os.chdir(tree)
        sys.path[:] = [str(tree), *(path for path in sys.path if path and Path(path) != runs.REPOSITORY)]
        if rc:
            os.environ["COVERAGE_PROCESS_START"] = rc
            measuring = coverage.process_startup(force=True)
        flags = ["-q", "-p", "no:cacheprovider", f"--rootdir={tree}", *(["-x"] if wanted else [])]
        code = pytest.main([*flags, *files], [_Watch(self._notes, wanted)])
        if rc and measuring:
            measuring.stop()
            measuring.save()
        os._exit(code)

    @property
    def notes(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self._notes.read_text().splitlines()]

    @property
    def quiet(self) -> float:
        """Seconds since the last note."""
        return time.time() - self._notes.stat().st_mtime

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    def code(self) -> int | None:
        """Its exit code, if it has ended."""
        pid, status = os.waitpid(self.pid, os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if pid else None

    def end(self, running: bool) -> None:
        """Ends what it may have left: its group, and what has its TMPDIR."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pid, signal.SIGKILL)
        if running:
            os.waitpid(self.pid, 0)
        mark = f"TMPDIR={self.scratch / 'tmp'}\0".encode()
        for environ in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if mark in environ.read_bytes():
                    os.kill(int(environ.parent.name), signal.SIGKILL)


class Measured:
    """Which tests execute which lines, by file of tests; a file is measured again when it has changed."""

    def __init__(self, folder: Path, tree: Path, package: str) -> None:
        self._folder, self._tree, self._package = folder / "measured", tree, package
        self._sources = self._folder / "sources"
        self._sources.mkdir(parents=True, exist_ok=True)
        self._maps: list[dict[str, Any]] = []

    def measure(self, processes: int, limit: float) -> None:
        waiting = sorted(str(path.relative_to(self._tree)) for path in self._tree.glob("tests/**/test_*.py"))
        running: dict[str, Session] = {}
        for name in list(waiting):
            if (kept := self._kept(name)).exists():
                self._maps.append(json.loads(kept.read_text()))
                waiting.remove(name)
        try:
            while waiting or running:
                while waiting and len(running) < processes:
                    name = waiting.pop(0)
                    running[name] = self._begin(name)
                time.sleep(0.1)
                for name, session in list(running.items()):
                    code = session.code()
                    if code is not None or session.seconds > limit:
                        del running[name]
                        session.end(code is None)
                        self._keep(name, session)
                        print(f"measured {name}: {session.seconds:.0f} s, exit code {code}", flush=True)
        finally:
            for session in running.values():
                session.end(running=True)

    def _begin(self, name: str) -> Session:
        scratch = self._folder / "scratch" / name.replace("/", "-")
        rc = scratch.with_suffix(".rc")
        rc.parent.mkdir(exist_ok=True)
        rc.write_text(COVERAGE.format(data=scratch / "data", tree=self._tree, package=self._package))
        return Session(self._tree, scratch, [name], None, str(rc))

    def _kept(self, name: str) -> Path:
        digest = hashlib.sha256((self._tree / name).read_bytes()).hexdigest()
        return self._folder / f"{name.replace('/', '-')}-{digest[:16]}.json"

    def _keep(self, name: str, session: Session) -> None:
        tests = {note["test"]: note["seconds"] for note in session.notes if note.get("passed") and "seconds" in note}
        lines: dict[str, dict[int, list[str]]] = {}
        for file in session.scratch.glob("data.*"):
            data = coverage.CoverageData(str(file))
            with contextlib.suppress(coverage.CoverageException):  # of a process that was killed while it wrote
                data.read()
                for path in data.measured_files():
                    at = lines.setdefault(str(Path(path).relative_to(self._tree)), defaultdict(list))
                    for line, contexts in data.contexts_by_lineno(path).items():
                        at[line] += {re.sub(r" \((setup|call|teardown)\)$", "", context) for context in contexts}
        sources = {}
        for path in lines:
            text = (self._tree / path).read_bytes()
            sources[path] = hashlib.sha256(text).hexdigest()
            (self._sources / sources[path]).write_bytes(text)
        found = {"file": name, "tests": tests, "lines": lines, "sources": sources}
        self._maps.append(json.loads(json.dumps(found)))
        self._kept(name).write_text(json.dumps(found))
        shutil.rmtree(session.scratch, ignore_errors=True)

    def seconds(self, test: str) -> float:
        return next((found["tests"][test] for found in self._maps if test in found["tests"]), 0.0)

    def tests(self, mutant: Mutant) -> list[str]:
        """The tests that execute its lines, the fast and near ones first."""
        tests: dict[str, float] = {}
        for found in self._maps:
            executed = found["lines"].get(mutant.path, {})
            then = self._lines_then(mutant.path, found["sources"].get(mutant.path, ""))
            names = {name for line in mutant.lines for name in executed.get(str(then.get(line, 0)), ())}
            tests |= {name: found["tests"][name] for name in names if name in found["tests"]}
        return sorted(tests, key=lambda name: (tests[name] >= SLOW, _distance(name, mutant.path), tests[name]))

    @functools.cache  # noqa: B019 # there is one
    def _lines_then(self, path: str, source: str) -> dict[int, int]:
        """The number that each of the file's lines had when it was measured; for a new line, that of the one before."""
        if not source:
            return {}
        now = (self._tree / path).read_text().splitlines()
        then = (self._sources / source).read_text().splitlines()
        lines = {
            block.b + i + 1: block.a + i + 1
            for block in difflib.SequenceMatcher(None, then, now, autojunk=False).get_matching_blocks()
            for i in range(block.size)
        }
        for line in range(1, len(now) + 1):
            lines.setdefault(line, lines.get(line - 1, 0))
        return lines


def _distance(test: str, path: str) -> int:
    """0 for the tests of the file itself, 1 for those in their folder."""
    module, file = Path(path), Path(test.partition("::")[0])
    folder = Path("tests", *module.parts[1:-1])
    return 0 if file == folder / f"test_{module.name}" else 1 if file.parent == folder else 2


class Drill:
    """Asks the tests about one mutant after the other."""

    def __init__(self, folder: Path, tree: Path, measured: Measured, limit: float, patience: float) -> None:
        self._folder, self._tree, self._measured, self._limit, self._patience = folder, tree, measured, limit, patience
        self._sound: dict[str, bool] = {}  # tests that have killed: whether they pass on the unchanged product

    def ask(self, mutant: Mutant) -> dict[str, Any]:
        """What the tests say: the outcome is killed, timed out or survived."""
        while True:
            tests = [test for test in self._measured.tests(mutant) if self._sound.get(test, True)]
            if not tests:
                return {"outcome": "survived", "why": "no test executes it"}
            original = (self._tree / mutant.path).read_text()
            self._write(mutant.path, mutant.text)
            try:
                found = self._answer(tests)
            finally:
                self._write(mutant.path, original)
            if found["outcome"] != "killed" or self._passes(found["by"], tests):
                return found

    def _passes(self, test: str, tests: list[str]) -> bool:
        """A test that fails on the unchanged product has not killed anything."""
        if test not in self._sound:
            asked = [test] if test in tests else tests[:1]  # no test by name: the changed product cannot be imported
            self._sound[test] = self._answer(asked)["outcome"] == "survived"
            if not self._sound[test] and test not in tests:
                raise runs.DrillError(f"{asked[0]} cannot be run: see {self._folder / 'scratch' / 'output'}")
        return self._sound[test]

    def _write(self, path: str, text: str) -> None:
        (self._tree / path).write_text(text)
        for compiled in (self._tree / path).parent.glob(f"__pycache__/{Path(path).stem}.*.pyc"):
            compiled.unlink()  # Python tells old ones by their time, in seconds, and their size

    def _answer(self, tests: list[str]) -> dict[str, Any]:
        files = list(dict.fromkeys(test.partition("::")[0] for test in self._affordable(tests)))
        session, code = Session(self._tree, self._folder / "scratch", files, tests), None
        try:
            while (code := session.code()) is None:
                time.sleep(0.05)
                if session.seconds > self._limit or session.quiet > self._patience + 5 * self._expected(session.notes):
                    break
        finally:
            session.end(running=code is None)
        notes = session.notes
        asked = sum("test" in note for note in notes)
        found = {"asked": asked, "tests": len(tests), "seconds": round(session.seconds, 1)}
        running = next((note["starts"] for note in reversed(notes) if "starts" in note), "import")
        if failed := [note["test"] for note in notes if note.get("passed") is False]:
            return found | {"outcome": "killed", "by": failed[0]}
        if code is None and session.seconds <= self._limit:
            return found | {"outcome": "timed out", "by": running}
        if code in (None, pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):  # the last: they are named otherwise
            return found | {"outcome": "survived", "why": "" if asked == len(tests) else "not all tests asked"}
        return found | {"outcome": "killed", "by": running}

    def _affordable(self, tests: list[str]) -> Iterator[str]:
        """Those that can be asked in the time, were this machine as fast as when it was measured; one at least."""
        seconds = 0.0
        for test in tests:
            yield test
            seconds += self._measured.seconds(test)
            if seconds > self._limit:
                return

    def _expected(self, notes: list[dict[str, Any]]) -> float:
        """Seconds that what is running now took when it was measured."""
        return self._measured.seconds(notes[-1]["starts"]) if notes and "starts" in notes[-1] else 0.0


def equivalents(file: Path) -> dict[str, str]:
    """Keys of mutants that change nothing a test could see, with the reasons."""
    if not file.exists():
        return {}
    listed = tomllib.loads(file.read_text())["equivalent"]
    return {
        " | ".join([one["file"], one["function"], one["was"], one["now"], str(one.get("nth", 1))]): one["why"]
        for one in listed
    }


def copy_tree(source: Path, target: Path) -> None:
    """What git knows or would add, as it is now; without git, all."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "-co", "--exclude-standard"], cwd=source, capture_output=True, text=True, check=False
    )
    names = listed.stdout.split("\0")[:-1] or [str(path.relative_to(source)) for path in source.rglob("*")]
    for name in names:
        if (source / name).is_symlink() or (source / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(source / name, target / name, follow_symlinks=False)


def report(results: list[dict[str, Any]], reasons: dict[str, str]) -> bool:
    """Prints what lives, and the figures; whether few enough live without a reason."""
    outcomes: Counter[str] = Counter()
    for found in results:
        outcome, key = found["outcome"], found["key"]
        if outcome == "survived" and key in reasons:
            outcome = "equivalent"
        outcomes[outcome] += 1
        if outcome == "survived":
            print(f"\nsurvived: {found['path']}, {found['function']}: {found['operator']}; "
                  f"{found['why'] or 'all asked'}, {found.get('asked', 0)} of {found.get('tests', 0)} tests\n"
                  f"  - {found['was']}\n  + {found['now']}")
    share = outcomes["survived"] / max(1, len(results))
    print(f"\nmutants drill: {len(results)} mutants: {outcomes['killed'] + outcomes['timed out']} killed "
          f"({outcomes['timed out']} of them by the clock), {outcomes['equivalent']} equivalent, "
          f"{outcomes['survived']} survived ({share:.1%}; at most {UNEXPLAINED:.0%} may)")
    return share <= UNEXPLAINED


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, required=True, help="what is measured and found is kept here")
    parser.add_argument("--sample", type=int, default=150)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--paths", default="distmlp", help="files and folders to change, with commas between")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="no mutant is begun after")
    parser.add_argument("--limit", type=float, default=240, help="seconds of tests for a mutant")
    parser.add_argument("--patience", type=float, default=60, help="seconds of a test, beyond 5 times its own")
    parser.add_argument("--processes", type=int, default=2, help="while it measures")
    parser.add_argument("--again", action="store_true", help="asks about those that survived once more")
    parser.add_argument("--tree", type=Path, default=runs.REPOSITORY, help="the product and its tests/")
    parser.add_argument("--preload", default=PRELOADED)
    args = parser.parse_args(argv)
    started = time.monotonic()
    os.environ["JAX_PLATFORMS"] = "cpu"  # as tests/conftest.py, which comes after the import
    for name in filter(None, args.preload.split(",")):
        importlib.import_module(name)
    folder, paths = args.folder.resolve(), args.paths.split(",")
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    copy_tree(args.tree, tree)
    measured = Measured(folder, tree, Path(paths[0]).parts[0])
    measured.measure(args.processes, 5 * args.limit)
    drill, file = Drill(folder, tree, measured, args.limit, args.patience), folder / f"results-{args.seed}.jsonl"
    before = [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
    kept = {found["key"]: found for found in before}
    results = []
    with file.open("a") as kept_file:
        for mutant in drawn(tree, paths, args.seed):
            if len(results) == args.sample or (time.monotonic() - started) / 60 > args.minutes:
                break
            found = kept.get(mutant.key)
            if found is None or (args.again and found["outcome"] == "survived"):
                names = ("key", "path", "function", "operator", "was", "now", "nth")
                found = {name: getattr(mutant, name) for name in names} | drill.ask(mutant)
                kept_file.write(json.dumps(found) + "\n")
                kept_file.flush()
                seconds = found.get("seconds", 0)
                print(f"{len(results) + 1:4} {found['outcome']:9} {seconds:6.1f} s  {mutant.key}", flush=True)
            results.append(found)
    return 0 if report(results, equivalents(args.tree / "tests/drills/mutants.toml")) else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
