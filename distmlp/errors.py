"""What goes wrong, by whose fault: each kind of error, with the exit code of a command that ends by it."""

import contextlib
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

# Those that ask a run to stop. SIGHUP: the connection to the terminal is lost. SIGUSR1, SIGUSR2: a batch system says
# that a job's time is nearly up.
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


class InputError(ValueError):
    """Something the user gave is wrong: one line that names the flag or the file, and the remedy.

    It is a ValueError because scikit-learn's tools expect one.
    """

    exit_code = 2


class JoinError(InputError):
    """This one of several processes could not join the others: they do not know why, so it says so itself."""

    own = True  # as in `own_errors`


class DivergedError(Exception):
    """Training cannot go on from this state: a value is not finite, or the devices no longer agree."""

    exit_code = 3


class ReplicaError(DivergedError):
    """The devices' copies of the state are not the same."""


class AuditError(DivergedError):
    """Two devices did not find the same gradient of the same examples."""


class WriteError(OSError):
    """A file of the run could not be written; checkpoints saved before are intact."""

    exit_code = 1

    def __init__(self, path: Path, reason: str, note: str = "") -> None:
        super().__init__(f"{path} could not be written ({reason}): make room or mend it, then start again{note}")


class ProcessEnded(Exception):
    """Another process ended, or was cut off from this one."""

    exit_code = 1


class Interrupted(KeyboardInterrupt):
    """A signal stopped the run at a step boundary, after its state was saved."""

    def __init__(self, signum: int, message: str) -> None:
        super().__init__(message)
        self.exit_code = 128 + signum


@contextlib.contextmanager
def own_errors() -> Iterator[None]:
    """What goes wrong within this context may be of this one of several processes alone: it says so itself."""
    try:
        yield
    except Exception as error:  # whatever it is: the others have not seen it
        error.own = True  # type: ignore[attr-defined] # any error, for launch/command.py
        raise


def one_line(error: object, most: int = 500) -> str:
    """The text of an error in one line of at most `most` characters; its type where it has no text."""
    return " ".join(str(error).split())[:most] or type(error).__name__


def listed(names: Sequence[object], most: int = 10) -> str:
    """Names for a message: the first of them, and how many more there are. What no terminal shows is as in \\x00."""
    shown = ("".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(name))
             for name in names[:most])  # fmt: skip
    return ", ".join(shown) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(number: int, one: str, more: str = "") -> str:
    """A number of things, with their word in the singular or the plural, which adds an s unless `more` says it."""
    return f"{number:,} {one if number == 1 else more or one + 's'}"


def printable(text: str) -> str:
    """A text as the standard output can show it: what its encoding does not have, as \\xe4 in the place of a letter."""
    encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
    return text.encode(encoding, "backslashreplace").decode(encoding)


def remark(text: str) -> None:
    """Says what the user should know, and need not act on."""
    print(f"distmlp: {text}", file=sys.stderr)
