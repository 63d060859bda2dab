"""Files that the verbs write."""

import contextlib
import os
from pathlib import Path

from distmlp.errors import InputError


def write(output: Path, content: bytes) -> None:
    """Writes what --output names, whole or not at all; raises InputError if that cannot be done."""
    temporary = output.with_name(f".{output.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(content)
        temporary.replace(output)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise InputError(f"--output={output} cannot be written ({error.strerror}): give another file") from None
