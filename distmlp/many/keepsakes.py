"""FOLDER/members/N: a member that is kept, as an ordinary run's folder, with its last and its best checkpoint."""

import dataclasses
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np

from distmlp.config import run_flags
from distmlp.data.datasets import Data
from distmlp.machine import sync
from distmlp.many.course import Course
from distmlp.parallel.digest import array_names, host_digest
from distmlp.progress import Standing, Totals
from distmlp.run import lines
from distmlp.run.meta import meta_of, of_data, of_reached
from distmlp.run.workdir import replace_file, writing


def there(folder: Path) -> list[int]:
    """The numbers of the members that are kept."""
    return sorted(int(path.name) for path in folder.glob("*") if path.name.isdecimal())


def discard(folder: Path, name: int | str) -> None:
    shutil.rmtree(folder / str(name), ignore_errors=True)


def tidy(folder: Path) -> None:
    """Deletes what a crash has left; nothing may be written meanwhile."""
    for left in folder.glob(".*"):
        shutil.rmtree(left, ignore_errors=True)


def write(folder: Path, course: Course, fingerprint: Callable[[Data], str]) -> None:
    """Makes FOLDER/members/N of a member whose states are there; a crash leaves all of it or nothing.

    It waits for the disk most of the time: several threads may write a member each, within `store.quiet`.
    """
    from distmlp.run.store import Manager  # imports Orbax, which takes long

    assert course.last is not None
    assert course.best is not None
    target = folder / str(course.member.number)
    new = folder / f".{course.member.number}-{secrets.token_hex(8)}"
    config = dataclasses.replace(course.member.config, workdir=str(target))
    data, found, best = course.share.data(), course.finished_lines(), course.standing.best
    of_these = of_data(data, fingerprint(data))
    with writing(target):
        new.mkdir(parents=True)
        (new / "metrics.jsonl").write_text("".join(f"{lines.sealed(line)}\n" for line in found), encoding="utf-8")
    replace_file(new / "run.flags", run_flags(config))
    states = {best["step"]: (course.best, Standing(best, 0, best["step"])), course.step: (course.last, course.standing)}
    with writing(target), Manager(new / "checkpoints", enable_async_checkpointing=False) as manager:
        for step, (state, standing) in sorted(states.items()):
            sums = Totals(total_seconds=course.seconds)
            counts = {"metrics": sum(line["step"] <= step and not line.get("final") for line in found), "ledger": 0}
            reached = of_reached(sums, standing, counts)
            meta = meta_of(config.settings(), course.order, "replicated", of_these, reached)
            digests = dict(zip(array_names(state), map(host_digest, jax.tree.leaves(state)), strict=True))
            manager.write(step, jax.tree.map(np.asarray, state), meta, digests)  # sooner than jax arrays
    with writing(target):
        for path in [*new.rglob("*"), new]:
            sync(path)
        new.replace(target)
        sync(folder)
