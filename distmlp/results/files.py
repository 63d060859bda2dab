"""Files that the verbs write."""

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TextIO

from distmlp.errors import InputError

_STANDARD_OUTPUT = ("/dev/stdout", "/dev/fd/1", "/proc/self/fd/1")


def remarks(output: Path) -> TextIO:
    """Where to say what was written: the standard output, unless --output names that."""
    return sys.stderr if str(output) in _STANDARD_OUTPUT else sys.stdout


@contextlib.contextmanager
def whole(output: Path) -> Iterator[Path]:
    """The file to write within this context; it becomes what --output names at the end, unless an exception comes.

    A link stays a link, and permissions are kept, as by `write`.

    Raises:
      InputError: it cannot be written.
    """
    target = Path(os.path.realpath(output))
    new = target.with_name(f".distmlp-{os.getpid()}-{target.name}.tmp")
    try:
        mode = _mode(output)
        if mode and not stat.S_ISREG(mode):
            raise InputError(f"--output={output} is no file: give another name")
        yield new
        if mode:
            new.chmod(stat.S_IMODE(mode))
        new.replace(target)
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error  # pyarrow's text is long
        raise InputError(f"--output={output} cannot be written ({reason}): give another file, or make room") from None
    finally:
        with contextlib.suppress(OSError):
            new.unlink()


def write(output: Path, content: bytes, beside: dict[str, bytes] | None = None) -> None:
    """Writes what --output names, whole or not at all.

    A link stays a link: the file that it leads to is replaced, and keeps its permissions. A device or a pipe stays one:
    it is written to.

    Args:
      beside: contents of files beside it, by what is added to its name; a device or a pipe has none.

    Raises:
      InputError: it cannot be written.
    """
    if str(output) in _STANDARD_OUTPUT:
        sys.stdout.buffer.write(content)  # the descriptor itself leads nowhere: see launch/command.py
        return
    files = {output: content} | {
        output.with_name(output.name + ending): more for ending, more in (beside or {}).items() if output.name
    }
    temporary: dict[Path, Path] = {}  # and the files that they become
    try:
        for path, data in files.items():
            mode = _mode(path)
            if mode and not stat.S_ISREG(mode):
                path.write_bytes(data)  # a device or a pipe; a folder raises
                return
            target = Path(os.path.realpath(path))
            new = target.with_name(f".distmlp-{os.getpid()}-{len(temporary)}.tmp")
            temporary[new] = target
            new.write_bytes(data)
            if mode:
                new.chmod(stat.S_IMODE(mode))
        for new, target in temporary.items():
            new.replace(target)
    except OSError as error:
        for new in temporary:
            with contextlib.suppress(OSError):
                new.unlink()
        raise InputError(f"--output={path} cannot be written ({error.strerror}): give another file") from None


def _mode(path: Path) -> int:
    """Type and permissions of what a path leads to, as os.stat has them; 0 if that is not there yet."""
    try:
        return path.stat().st_mode
    except FileNotFoundError:
        return 0
