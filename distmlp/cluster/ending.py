"""How several processes end: all of them, soon, and with one line that says why.

A process that dies shows in the others as a failed collective of the devices, at once. Where they wait for its word in
jax's coordination service instead, and where one is silent, jax gives it up after --heartbeat_seconds; so while steps
are trained they do not wait there.
"""

import contextlib
import os
import re
import socket
import sys
from collections.abc import Iterator
from typing import Any

import jax

from distmlp.cluster import rank
from distmlp.errors import InputError, ProcessEnded, one_line

# What jax and its libraries say when another process is gone.
_ENDED = re.compile(r"gloo|coordination ?service|heartbeat|connection (reset|closed) by peer|nccl.*(remote|network)",
                    re.IGNORECASE | re.DOTALL)  # fmt: skip

_all_end, _speaks = False, True  # whether all processes are known to end now, and this one says why
_patience = 120_000  # milliseconds for which a process that fails waits for the others to learn of it


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails within it in one of several processes ends all of them soon, each with an error that says why.

    A failure takes part in the next `group.exchange`, where the others learn of it; those that are in a collective
    learn by the end of this process. Another process's end becomes ProcessEnded, whatever it is wrapped in.
    """
    try:
        yield
    except Exception as error:  # whatever it is, the others must hear of it
        if rank.several() and not _all_end:
            if (text := ended_elsewhere(error)) is not None:
                raise ProcessEnded(text) from error
            _fail(error)
        raise


def _fail(error: Exception) -> None:
    """Tells the others, and hears whether they fail, too."""
    topic = next(rank.topics)
    try:
        kind = "InputError" if isinstance(error, InputError) else type(error).__name__
        rank.post(topic, {"failed": [kind, str(error), socket.gethostname()]})
        messages = rank.read(topic, _patience)
    except Exception:  # the others are busy elsewhere, or gone
        return
    if all(message.get("failed", [])[:2] == [kind, str(error)] for message in messages):
        part(speaks=rank.is_first())
    elif kind == "InputError":
        raise_failure(messages)
    else:
        part(speaks=True)


def raise_failure(messages: list[Any]) -> None:
    """Raises, in every process the same, what the first of those that failed has said."""
    for process, message in enumerate(messages):
        if "failed" in message:
            part(speaks=rank.is_first())
            kind, text, host = message["failed"]
            name = f"process {process} of {len(messages)} on {host}"
            if kind == "InputError":
                raise InputError(f"{name}: {text}")
            raise ProcessEnded(f"{name} ended by an error ({kind}): its own output says why")


def part(speaks: bool) -> None:
    """From now on all processes are known to end; `speaks` is whether this one says why."""
    global _all_end, _speaks
    _all_end, _speaks = True, speaks


def go_in_step() -> None:
    """From here on all wait for one another within a step: a process that fails need not wait for the others."""
    global _patience  # noqa: PLW0603 - a process has one life
    _patience = 2_000


def ended_elsewhere(error: BaseException) -> str | None:
    """A line for an error whose cause is that another process ended; None for one of this process's own."""
    seen: list[BaseException] = []
    # An InputError is a verdict of this package's own, whatever it was found by.
    pending: list[BaseException | None] = [] if isinstance(error, InputError) or not rank.several() else [error]
    while pending:
        current = pending.pop()
        if current is None or current in seen:
            continue
        if _ENDED.search(str(current)):
            said = one_line(current, 200)
            return (f"another process ended or was cut off ({said}): its own output says why; the launcher's restart "
                    "resumes from the newest checkpoint")
        seen.append(current)
        pending += [current.__cause__, current.__context__]
    return None


def speaks() -> bool:
    """Whether this process is to print the error it ends with: one that all have in common is printed once."""
    return _speaks


def leave() -> None:
    """Before os._exit: if all processes end now, takes leave of them, lest jax abort those that are slower."""
    if rank.several() and _all_end:
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()


def at_exit() -> None:
    """A script that ends by an exception does not wait in jax's shutdown for processes that are busy elsewhere."""
    if hasattr(sys, "last_value") and not _all_end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
