"""Damages each file of a run in several ways: python -m tests.drills.damage --positions=20

Checkpoints first. In the newest of three checkpoints of a state of the trainer's, each file in turn is flipped in one
bit, truncated, emptied and deleted. Every restore must give, to the bit, either what was saved (Orbax does not read all
its files) or the next older checkpoint, with the damaged one moved to WORKDIR/damaged and one line that says so. Then
whole runs, damaged half-way, must end with the right parameters, and one without an intact checkpoint must change
nothing.

Then each other file of a run that was stopped half-way. Whoever reads the run must read it, or name what is wrong in
one line. The run must go on to the right parameters and the right checkpoints, the best one among them; and what else
it keeps must be what an unbroken run has, or a line must have named the file.
"""

import argparse
import collections
import contextlib
import dataclasses
import hashlib
import io
import random
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from distmlp import load, model, optim, train
from distmlp.cluster.group import Group
from distmlp.config import Config
from distmlp.errors import InputError
from distmlp.parallel import backend
from distmlp.parallel.digest import StateDigest, params_sha256
from distmlp.parallel.layout import make_layout
from distmlp.parallel.specs import STATE, State
from distmlp.results.compare import compare
from distmlp.results.report import report
from distmlp.run.store import Store, quiet

from . import runs

STEPS = (4, 8, 12)
Damage = Callable[[Path], Any]


class Case(NamedTuple):
    what: str
    apply: Damage  # to the newest checkpoint's folder


def flip(position: int, bit: int) -> Damage:
    def apply(path: Path) -> None:
        content = bytearray(path.read_bytes())
        content[position] ^= 1 << bit
        path.write_bytes(content)

    return apply


def truncate(size: int) -> Damage:
    return lambda path: path.write_bytes(path.read_bytes()[:size]) and None


def ways(path: Path, positions: int, rng: random.Random) -> Iterator[tuple[str, Damage]]:
    """How a file is damaged, each way with its name."""
    yield "deleted", Path.unlink
    if size := path.stat().st_size:
        chosen = {0, size - 1, *(rng.randrange(size) for _ in range(positions))}
        yield from ((f"bit flipped in byte {at} of {size}", flip(at, rng.randrange(8))) for at in sorted(chosen))
        yield from ((f"truncated to {at} of {size}", truncate(at)) for at in sorted({0, size // 2, size - 1}))


def cases(checkpoint: Path, positions: int, rng: random.Random) -> Iterator[Case]:
    """Every file of a checkpoint, damaged in every way; its folders deleted; an empty one that looks newer."""

    def on_file(name: Path, damage: Damage) -> Damage:
        return lambda folder: damage(folder / name)

    for path in sorted(checkpoint.rglob("*")):
        name = path.relative_to(checkpoint)
        if path.is_dir():
            yield Case(f"{name}/: deleted", on_file(name, shutil.rmtree))
        else:
            yield from (Case(f"{name}: {way}", on_file(name, damage)) for way, damage in ways(path, positions, rng))
    yield Case("an empty folder 9999", lambda folder: (folder.parent / "9999").mkdir())
    yield Case("a copy called 9999", lambda folder: shutil.copytree(folder, folder.parent / "9999") and None)


class Restores:
    """Checkpoints of a state with the trainer's layers and momentum, restored in this process."""

    def __init__(self, folder: Path) -> None:
        config = Config(hidden_sizes=(32, 16), momentum=0.9, reduction="invariant")  # as the runs: JAX starts once
        self.prepared = ExitStack()
        self.prepared.enter_context(backend.prepared(config))
        layout = make_layout(config)
        self.digest, self.workdir, self.original = StateDigest(layout, STATE), folder / "workdir", folder / "original"
        self.original.mkdir()
        optimizer, rng = optim.make(config, 100), np.random.default_rng(0)
        params = model.init_network_params([64, *config.hidden_sizes, 10], jax.random.key(0))
        shapes = State(params, optimizer.init(params), jnp.int32(0), (jnp.zeros(64), jnp.ones(64)))
        self.saved: dict[int, tuple[str, dict[str, Any]]] = {}
        checkpoints = self._open(self.original)
        for step in STEPS:
            state = jax.tree.map(lambda x: rng.standard_normal(x.shape).astype(np.float32), shapes)
            self.target = layout.put(state._replace(step=np.int32(step)), STATE)
            meta = {"settings": config.settings(), "totals": {"loss": rng.random(), "weight": 64.0 * step}}
            checkpoints.save(step, self.target, meta)
            self.saved[step] = params_sha256(self.target), meta
        checkpoints.close()

    def _open(self, workdir: Path) -> Store:
        return Store(workdir, self.digest, len(STEPS), Group())

    @quiet()
    def restore(self, case: Case) -> str:
        """Damages a fresh copy of the workdir and restores from it; says what became of it."""
        shutil.rmtree(self.workdir, ignore_errors=True)
        shutil.copytree(self.original, self.workdir)
        newest = self.workdir / "checkpoints" / str(STEPS[-1])
        case.apply(newest)
        checkpoints = self._open(self.workdir)
        found = checkpoints.newest_intact(self.target, lambda meta: None)
        left = runs.committed(self.workdir)
        assert found is not None
        state, meta, told = found
        step = meta["step"]
        found_meta = {name: meta[name] for name in ("settings", "totals")}
        if (params_sha256(state), found_meta) != self.saved[step] or int(state.step) != step:
            raise runs.DrillError(f"{case.what}: restored other values than were saved at step {step}")
        if step not in STEPS[-2:] or left != list(STEPS[: STEPS.index(step) + 1]):
            raise runs.DrillError(f"{case.what}: restored step {step}; left in checkpoints/: {left}")
        moved = sorted(path.name for path in self.workdir.glob("damaged/*"))
        if len(told) != len(moved) or any("\n" in line or "is damaged (" not in line for line in told):
            raise runs.DrillError(f"{case.what}: moved {moved} but said {told}")
        checkpoints.save(100, state, {})  # the run can go on
        checkpoints.close()
        return "fell back" if step != STEPS[-1] else "restored past it" if moved else "not noticed, state right"


def end_to_end(folder: Path) -> Iterator[str]:
    """Whole runs: stopped half-way, damaged, and ended on another device count."""
    flags = [*runs.DIGITS, "--checkpoint_every_steps=6", "--keep_checkpoints=3"]
    sha256 = runs.finish(folder / "reference", [*flags, "--num_epochs=3"])
    half = folder / "half"
    runs.finish(half, [*flags, "--max_steps=21"], 8)

    def files(pattern: str) -> Callable[[Path], Path]:
        return lambda path: max((f for f in path.rglob(pattern) if f.is_file()), key=lambda f: f.stat().st_size)

    data, meta = files("ocdbt.process_0/d/*"), files("meta/metadata")
    damages: dict[str, Damage] = {
        "a bit of the largest data file": lambda path: flip(data(path).stat().st_size // 2, 3)(data(path)),
        "the largest data file cut in half": lambda path: truncate(data(path).stat().st_size // 2)(data(path)),
        "its metadata deleted": lambda path: meta(path).unlink(),
        "its step in the metadata": lambda path: meta(path).write_text(
            meta(path).read_text().replace('"step": 21', '"step": 18')) and None,
        "an empty folder 9999": lambda path: (path.parent / "9999").mkdir(),
    }  # fmt: skip
    for number, (what, damage) in enumerate(damages.items()):
        workdir = folder / f"case{number}"
        shutil.copytree(half, workdir)
        damage(workdir / "checkpoints" / "21")
        done = runs.run(workdir, [*flags, "--num_epochs=3"], 1 + number)
        told = [line for line in done.stderr.splitlines() if "is damaged (" in line]
        if done.returncode or runs.sha256(workdir) != sha256 or done.stderr.splitlines() != told or len(told) != 1:
            raise runs.DrillError(f"{what}: exit code {done.returncode}, {done.stdout}\n{done.stderr}")
        yield f"{what}: ends with the right bits; {told[0]}"
    workdir = folder / "none"
    shutil.copytree(half, workdir)
    for path in (workdir / "checkpoints").iterdir():
        meta(path).write_text("{}")
    before = tree(workdir)
    done = runs.run(workdir, [*flags, "--num_epochs=3"])
    if done.returncode != 2 or "holds no intact checkpoint" not in done.stderr or tree(workdir) != before:
        raise runs.DrillError(f"none intact: exit code {done.returncode}, {done.stdout}\n{done.stderr}")
    yield f"none intact: exit code 2, nothing changed; {done.stderr.strip()}"


class Files:
    """A run that was stopped half-way, beside the same run unbroken; the files in its folder but the checkpoints."""

    config = Config(
        dataset="digits", hidden_sizes=(16,), batch_size=128, max_steps=24, learning_rate=0.05, shuffle=True,
        validation_fraction=0.2, num_devices=1, reduction="invariant", ledger=True, ledger_digests_every=3,
        eval_every_steps=3, eval_every_epochs=0, keep_checkpoints=1,
    )  # fmt: skip

    def __init__(self, folder: Path) -> None:
        self.whole, self.half, self.damaged = folder / "whole", folder / "half", folder / "damaged"
        with contextlib.redirect_stdout(io.StringIO()):
            self.sha256 = params_sha256(train(self._in(self.whole)).params)
            train(dataclasses.replace(self._in(self.half), max_steps=21))
        best, newest = runs.committed(self.half)[0], runs.committed(self.half)[-1]
        if best == newest or best != runs.committed(self.whole)[0]:
            raise runs.DrillError(f"the best checkpoint is to be an older one: {best}, {newest}")

    def _in(self, workdir: Path) -> Config:
        return dataclasses.replace(self.config, workdir=str(workdir))

    def cases(self, positions: int, rng: random.Random) -> Iterator[Case]:
        for path in sorted(self.half.rglob("*")):
            name = path.relative_to(self.half)
            if path.is_file() and name.parts[0] != "checkpoints":
                for way, damage in ways(path, positions, rng):
                    yield Case(f"{name}: {way}", lambda folder, name=name, damage=damage: damage(folder / name))  # type: ignore[misc]

    def go_on(self, case: Case) -> str:
        """Damages a fresh copy of the run, reads it and goes on with it; says what became of it."""
        shutil.rmtree(self.damaged, ignore_errors=True)
        shutil.copytree(self.half, self.damaged)
        case.apply(self.damaged)
        name = case.what.partition(":")[0]
        said = self._read(case)
        output = io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(output):
            found = params_sha256(train(self._in(self.damaged)).params)
        told = output.getvalue().splitlines()
        if found != self.sha256 or runs.committed(self.damaged) != runs.committed(self.whole):
            raise runs.DrillError(f"{case.what}: ends with other parameters or checkpoints: {told}")
        if len(told) > 1 or not all(str(self.damaged / name) in line for line in told):
            raise runs.DrillError(f"{case.what}: said {told}")
        differs = [kind for kind in ("metrics.jsonl", "ledger.jsonl") if not self._same(kind)]
        if differs and not (told and differs == [name]):
            raise runs.DrillError(f"{case.what}: {differs} are not as they were, and it said {told}")
        if said and not told and name in ("metrics.jsonl", "ledger.jsonl"):
            raise runs.DrillError(f"{case.what}: readers said {said}, the run did not")
        return "said" if told else "right"

    def _same(self, kind: str) -> bool:
        found, whole = (runs.lines(folder, kind) for folder in (self.damaged, self.whole))
        if not all(line in whole for line in found):
            raise runs.DrillError(f"{kind} has lines that the unbroken run does not have")
        return found == whole

    def _read(self, case: Case) -> list[str]:
        """What those who read the run say of it."""
        said: list[str] = []
        run = self.damaged
        readers: list[Callable[[], Any]] = [lambda: load(run), lambda: compare(self.whole, run), lambda: report([run])]
        for read in readers:
            output = io.StringIO()
            with contextlib.redirect_stderr(output):
                try:
                    found = read()
                except InputError as error:
                    said.append(str(error))
                else:
                    said += [line for line in getattr(found, "lines", []) if line.startswith("damage")]
            said += output.getvalue().splitlines()
        if any("\n" in line for line in said):
            raise runs.DrillError(f"{case.what}: readers said {said}")
        return said


def tree(folder: Path) -> dict[str, str]:
    """Every file's digest, but that of the lock, which each start writes anew."""
    paths = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--positions", type=int, default=20, help="flipped bits in each file")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    started, outcomes = time.monotonic(), collections.Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        try:
            restores = Restores(Path(folder))
            newest = restores.original / "checkpoints" / str(STEPS[-1])
            for case in cases(newest, args.positions, random.Random(args.seed)):
                outcome = restores.restore(case)
                outcomes[outcome] += 1
                print(f"{case.what}: {outcome}", flush=True)
            ended: list[Any] = []
            for line in end_to_end(Path(folder)):
                ended.append(line)
                print(line, flush=True)
            files, others = Files(Path(folder) / "files"), collections.Counter[str]()
            for case in files.cases(args.positions, random.Random(args.seed)):
                outcome = files.go_on(case)
                others[outcome] += 1
                print(f"{case.what}: {outcome}", flush=True)
        except (runs.DrillError, InputError) as error:
            print(f"damage drill FAILED: {error}")
            return 1
    print(f"damage drill: {outcomes.total()} restores ({', '.join(f'{n} {o}' for o, n in outcomes.items())}), no wrong "
          f"value; {len(ended)} whole runs right; of {others.total()} with another file damaged, all were right, and "
          f"{others['said']} said what was lost; {time.monotonic() - started:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
