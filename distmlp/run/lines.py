"""Files of a run that grow by lines: each line is written whole, and only what was written is read back.

metrics.jsonl, ledger.jsonl and sessions.jsonl have a JSON object in each line, whose last value is the line's own
checksum; log.txt has text. A crash tears the last line at most. Any other line that is not what was written is damage.
"""

import contextlib
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, NamedTuple

from distmlp.errors import InputError, listed
from distmlp.machine import sync
from distmlp.run.workdir import new_path, replace_file, writing

Value = dict[str, Any]  # of a line, without its checksum
Kind = dict[str, Callable[[Any], Any]]  # what a line of this kind has, by name; a ValueError or TypeError refuses it
_SUM = "crc32"  # the name of the checksum, which is of the JSON of all else


class Found(NamedTuple):
    """What a file holds."""

    path: Path
    values: list[Value]  # of the lines that are what was written, in their order
    torn: bool = False  # whether it ends amid a line: that is being written, or a crash has cut it off
    damaged: tuple[int, ...] = ()  # numbers, from 1, of the other lines that are not what was written
    summed: bool = True  # whether lines have checksums: those of version 0.2.0 have none

    @property
    def damage(self) -> str:
        """Which lines are damaged, as a remark; empty where none is."""
        if not self.damaged:
            return ""
        which = f"line {self.damaged[0]} is" if len(self.damaged) == 1 else f"lines {listed(self.damaged)} are"
        return f"{self.path}: {which} not what was written, and left out"


def read(path: Path, *kinds: Kind) -> Found:
    """The lines of a file that are what was written, each of one of these kinds; none where there is no file.

    Raises:
      InputError: it cannot be read at all.
    """
    try:
        texts = path.read_bytes().split(b"\n") if path.exists() else [b""]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}): mend it, or move it away") from None
    ended = texts[-1] == b""
    parsed = [_parsed(text, kinds) for text in (texts[:-1] if ended else texts)]
    summed = any(_SUM in value for value in parsed) or not any(parsed)
    values = [value if not summed or value.pop(_SUM, "") == _sum(value) else {} for value in parsed]
    bad = [number for number, value in enumerate(values, start=1) if not value]
    torn = not ended and len(values) in bad
    return Found(path, [value for value in values if value], torn, tuple(bad[:-1] if torn else bad), summed)


def _parsed(text: bytes, kinds: Iterable[Kind]) -> Value:
    """The object in a line, with its checksum; empty if that is no object of one of these kinds."""
    with contextlib.suppress(ValueError):
        value = json.loads(text.decode())
        if isinstance(value, dict) and any(_fits(value, kind) for kind in kinds):
            return value
    return {}


def _fits(value: Value, kind: Kind) -> bool:
    try:
        for name, check in kind.items():
            check(value[name])
    except (KeyError, TypeError, ValueError):
        return False
    return True


def _sum(value: Value) -> str:
    return f"{zlib.crc32(json.dumps(value).encode()):08x}"


def sealed(value: Value) -> str:
    """The line of an object: its JSON, with the checksum."""
    return json.dumps({**value, _SUM: _sum(value)})


def append(path: Path, lines: Iterable[str], durable: bool = False) -> None:
    """Adds lines to a file; if `durable`, they are on disk when this returns.

    An OSError leaves the file as it was, as far as the disk lets it. A line that a crash has torn is ended first, so
    that what is added stays apart from it.
    """
    data = "".join(f"{line}\n" for line in lines).encode(errors="backslashreplace")  # names of files may be no text
    with path.open("a+b", buffering=0) as file:
        end = file.seek(0, os.SEEK_END)
        if end:
            file.seek(end - 1)
            data = data if file.read(1) == b"\n" else b"\n" + data
        try:
            while data:
                data = data[file.write(data) :]
            if durable:
                os.fsync(file.fileno())
        except OSError:
            with contextlib.suppress(OSError):
                file.truncate(end)
            raise


def renew(found: Found, values: Iterable[Value], lost: int = 0) -> str:
    """Makes these values, of those that were found, the lines of the file; a damaged file is also kept as it was.

    A crash leaves the old file or the new one. A file that has these lines and no others is only synced.

    Args:
      lost: how many lines there were once and are no more, so far as is known.

    Returns:
      What was lost, as a remark; empty if nothing was.

    Raises:
      WriteError: it cannot be written.
    """
    remark = f"{found.path}: its last line was torn, and is left out" if found.torn else ""
    if lost > 0:
        remark = f"{found.path} lacks {lost:,} of the lines that it had"
    if found.damaged:
        kept = new_path(found.path.parent / "damaged" / found.path.name)
        with writing(kept):
            kept.parent.mkdir(exist_ok=True)
            shutil.copyfile(found.path, kept)
        remark = f"{found.damage}; the file as it was is {kept}"
    values = list(values)
    if found.summed and not found.torn and not found.damaged and values and values == found.values:
        with writing(found.path):
            sync(found.path)
        return remark
    replace_file(found.path, "".join(f"{sealed(value)}\n" for value in values))
    return remark
