"""The list of promises, tried out one after the other until all are done or the time is over."""

import contextlib
import dataclasses
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax

from distmlp.cluster.group import Group
from distmlp.cluster.place import find_place
from distmlp.config import Config
from distmlp.errors import ProcessEnded, one_line
from distmlp.parallel import backend
from distmlp.parallel.layout import INVARIANT_SHARDS, make_layout
from distmlp.run.log import versions
from distmlp.run.store import quiet
from distmlp.verify import arithmetic, bits, counts, faults, speed
from distmlp.verify.here import Here, NotHeld, NotHere

Check = Callable[[Here], str]
CHECKS: dict[str, Check] = {
    "the tutorial's gradient": arithmetic.gradient,
    "the same with fewer digits": arithmetic.precision,
    "collectives": arithmetic.collectives,
    "every device computes the same": arithmetic.alike,
    "each training example counts once": counts.training_examples,
    "each test example counts once": counts.test_examples,
    "two runs: the same bits": bits.twice,
    "1, 2, ... devices: the same bits": bits.counts,
    "replicated and sharded: the same bits": bits.states,
    "pmap and shard_map: the same bits": bits.wrappings,
    "long and short dispatches: the same bits": bits.dispatches,
    "data on the device or the host: the same bits": bits.placements,
    "audit: two devices find the same": bits.audit,
    "loader and device path": speed.loader,
    "a loss that is not finite is found": faults.not_finite,
    "copies that differ are found": faults.copies,
    "a flipped bit is found": faults.flipped_bit,
    "killed and resumed": faults.killed,
    "memory, by the plan": speed.memory,
    "time of a step, by the plan": speed.step_time,
    "matrix products, by the data sheet": speed.products,
}
_MARGIN = 2.0  # seconds before the end of the time, in which the result is written
_TIDYING = 0.5  # of these, for what is left to be removed; then all processes end at once


@dataclasses.dataclass
class Row:
    """What became of a check."""

    name: str
    held: bool | None = None  # None: it does not apply here, or was not finished
    detail: str = ""
    seconds: float = 0.0
    finished: bool = False

    @property
    def good(self) -> bool:
        return self.finished and self.held is not False


@dataclasses.dataclass
class Result:
    """The rows so far, of all checks, and what they were tried on."""

    rows: list[Row]
    devices: list[dict[str, Any]]
    versions: dict[str, str]

    @property
    def exit_code(self) -> int:
        """0 if all that applies here holds, else 1: also where the time was over before all of it was tried."""
        return int(not all(row.good for row in self.rows))

    def as_json(self) -> dict[str, Any]:
        checks = [{"name": row.name, "held": row.held, "detail": row.detail, "seconds": round(row.seconds, 3)}
                  for row in self.rows]  # fmt: skip
        return {"checks": checks, "devices": self.devices, "versions": self.versions}


def verify(
    minutes: float, started: float, command: Sequence[str], tell: Callable[[Row], object],
    write: Callable[[Result], object], checks: dict[str, Check] = CHECKS,
) -> int:
    """Tries all promises on the devices of all processes; returns the exit code.

    Args:
      minutes: when they are over, what is not finished is left, and the process ended.
      started: when they began, by time.monotonic.
      command: that which trains, to which flags are added.
      tell: is called in the first process with each row that is finished.
      write: is called there at the end, with all of them; also from a thread, where a check hangs.
      checks: by their names.
    """
    os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # runs in processes of their own need memory, too
    config = Config(reduction="invariant", heartbeat_seconds=30)  # which a busy machine keeps up, too
    rows = [Row(name) for name in checks]
    result = Result(rows, [], versions())
    place = find_place(config)
    end = _End(started + 60 * minutes - _MARGIN, minutes, result, write, first=place is None or place.process == 0)
    with backend.prepared(config), end:
        group = Group.join(config)
        end.agree(group)
        with group.together(), quiet():
            shards = max(INVARIANT_SHARDS, len(backend.devices()))
            layout = make_layout(dataclasses.replace(config, num_shards=shards))
            result.devices.extend(_devices(group))
            with _shared_folder(group, end.folders) as folder:
                here = Here(group, layout, folder, command, end.jobs)
                for row, check in zip(rows, checks.values(), strict=True):
                    _try(row, check, here)
                    end.heed()
                    if group.first:
                        tell(row)
            end.write()
            return int(group.decide(result.exit_code))


def _try(row: Row, check: Check, here: Here) -> None:
    """Fills in the row, of what all processes say. What goes wrong in one of them amid the check ends it in all."""
    begun, group = time.monotonic(), here.group
    said: list[tuple[bool | None, str]]
    try:
        with group.together():
            try:
                said = group.exchange((True, check(here)))
            except Exception as error:
                if group.several and _finding(error) is False and not group.ended_elsewhere(error):
                    text = f"distmlp: process {jax.process_index()}: {row.name}: {_said(error)}"
                    print(text, file=sys.stderr, flush=True)  # now, for the others may hang, and never hear of it
                raise
    except Exception as error:  # a check that cannot be made has found something, whatever it is
        if group.ended_elsewhere(error):
            raise
        with group.together():
            said = group.exchange((_finding(error), _said(error)))
    worst = min(said, key=lambda each: (each[0] is not False, each[0] is not None))
    row.held, row.detail = worst
    row.seconds, row.finished = time.monotonic() - begun, True


def _finding(error: Exception) -> bool | None:
    """What a check's end by this error says of the promise; of what another process has found, that one says it."""
    return None if isinstance(error, (NotHere, ProcessEnded)) else False


def _said(error: Exception) -> str:
    plain = isinstance(error, (NotHere, NotHeld))
    return str(error) if plain else f"{type(error).__name__}: {one_line(error, 300)}"


def _devices(group: Group) -> list[dict[str, Any]]:
    hosts = group.exchange(socket.gethostname())
    return [{"id": device.id, "kind": device.device_kind, "platform": device.platform,
             "process": device.process_index, "host": hosts[device.process_index]}
            for device in jax.devices()]  # fmt: skip


@contextlib.contextmanager
def _shared_folder(group: Group, made: list[Path]) -> Iterator[Path | None]:
    """An empty folder that all processes see, or None; it is removed afterwards. It is added to those that are `made`,
    in the first process."""
    token = ""
    with contextlib.suppress(OSError):  # there is no place for temporary files, or no room
        if group.first:
            made.append(Path(tempfile.mkdtemp(prefix="distmlp-verify-")))
            token = str(made[-1] / secrets.token_hex(8))
            Path(token).touch()
    try:
        token = group.decide(token)
        seen = group.exchange(os.path.exists(token))
        yield Path(token).parent if all(seen) else None
    finally:
        for path in made:
            shutil.rmtree(path, ignore_errors=True)


class _End:
    """Within this context, writes what there is and ends the process when the time is over.

    Attributes:
      folders: that are to be removed then.
      jobs: processes that are to be killed before.
    """

    def __init__(
        self, at: float, minutes: float, result: Result, write: Callable[[Result], object], first: bool
    ) -> None:
        """`at`: by time.monotonic. `first`: whether this process is the one that writes."""
        self._at, self._minutes, self._result, self._write, self._first = at, minutes, result, write, first
        self._lock, self._written, self._over = threading.Lock(), False, threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self.folders: list[Path] = []
        self.jobs: list[subprocess.Popen[bytes]] = []

    def __enter__(self) -> "_End":
        self._thread.start()
        return self

    def __exit__(self, kind: Any, error: BaseException | None, traceback: Any) -> None:
        if error is not None:
            self.heed()
        self._over.set()

    def agree(self, group: Group) -> None:
        """Of several processes, all end when the first one does; a collective."""
        group.barrier()  # from here on as much is left to all; their clocks begin anywhere
        self._at = time.monotonic() + group.decide(self._at - time.monotonic())

    def heed(self) -> None:
        """Where the time is over, waits for the end of this process: what went wrong since then, that has done."""
        if time.monotonic() >= self._at:
            self._thread.join()

    def write(self) -> None:
        """Writes the result, once."""
        with self._lock:
            if not self._written and self._first:
                self._write(self._result)
            self._written = True

    def _watch(self) -> None:
        while (left := self._at - time.monotonic()) > 0:  # the others may make it earlier
            if self._over.wait(min(left, 1.0)):
                return
        unfinished = [row for row in self._result.rows if not row.finished]
        for row in unfinished:
            how = "finished" if row is unfinished[0] else "reached"
            row.detail = f"not {how} within --minutes={self._minutes:g}"
        code = self._result.exit_code
        try:
            self.write()
        except Exception as error:  # whatever it is, nobody else says it now
            code = getattr(error, "exit_code", os.EX_SOFTWARE)
            print(f"distmlp: error: {one_line(error)}", file=sys.stderr, flush=True)
        finally:
            for job in self.jobs:
                job.kill()
            for folder in self.folders:
                shutil.rmtree(folder, ignore_errors=True)
            time.sleep(max(0.0, self._at + _TIDYING - time.monotonic()))
            os._exit(code)
