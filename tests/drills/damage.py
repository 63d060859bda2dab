"""Damages checkpoints in every file and several ways: python -m tests.drills.damage --positions=20

In the newest of three checkpoints of a state of the trainer's, each file in turn is flipped in one bit, truncated,
emptied and deleted. Every restore must give, to the bit, either what was saved (Orbax does not read all its files) or
the next older checkpoint, with the damaged one moved to WORKDIR/damaged and one line that says so. Then whole runs,
damaged half-way, must end with the right parameters, and one without an intact checkpoint must change nothing.
"""

import argparse
import collections
import hashlib
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

from distmlp import model, optim
from distmlp.cluster.group import Group
from distmlp.config import Config
from distmlp.errors import InputError
from distmlp.parallel import backend
from distmlp.parallel.digest import StateDigest, params_sha256
from distmlp.parallel.layout import make_layout
from distmlp.parallel.specs import STATE, State
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


def cases(checkpoint: Path, positions: int, rng: random.Random) -> Iterator[Case]:
    """Every file of a checkpoint, damaged in every way; its folders deleted; an empty one that looks newer."""

    def on_file(name: Path, damage: Damage) -> Damage:
        return lambda folder: damage(folder / name)

    for path in sorted(checkpoint.rglob("*")):
        name, size = path.relative_to(checkpoint), path.stat().st_size
        if path.is_dir():
            yield Case(f"{name}/: deleted", on_file(name, shutil.rmtree))
            continue
        ways: list[tuple[str, Damage]] = [("deleted", Path.unlink)]
        if size:
            chosen = {0, size - 1, *(rng.randrange(size) for _ in range(positions))}
            ways += [(f"bit flipped in byte {at} of {size}", flip(at, rng.randrange(8))) for at in sorted(chosen)]
            ways += [(f"truncated to {at} of {size}", truncate(at)) for at in sorted({0, size // 2, size - 1})]
        yield from (Case(f"{name}: {way}", on_file(name, damage)) for way, damage in ways)
    yield Case("an empty folder 9999", lambda folder: (folder.parent / "9999").mkdir())
    yield Case("a copy called 9999", lambda folder: shutil.copytree(folder, folder.parent / "9999") and None)


class Restores:
    """Checkpoints of a state with the trainer's layers and momentum, restored in this process."""

    def __init__(self, folder: Path) -> None:
        config = Config(hidden_sizes=(32, 16), momentum=0.9)
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
        except (runs.DrillError, InputError) as error:
            print(f"damage drill FAILED: {error}")
            return 1
    print(f"damage drill: {outcomes.total()} restores ({', '.join(f'{n} {o}' for o, n in outcomes.items())}), no wrong "
          f"value; {len(ended)} whole runs right; {time.monotonic() - started:.0f} s")  # fmt: skip
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
