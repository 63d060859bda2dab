"""Several processes as one: what they tell one another, where they stop, how they end. launcher.py joins them.

They talk through jax's coordination service, which process 0 hosts; gradients take other ways (see `parallel`). A
process that dies shows in the others as a failed collective of the devices, at once. Where they wait for its word in
the service instead, and where one is silent, jax gives it up after --heartbeat_seconds; so while steps are trained they
do not wait there.
"""

import atexit
import contextlib
import itertools
import json
import os
import re
import signal
import socket
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state  # the public jax.distributed has neither its store nor the own number
from jax.experimental import multihost_utils

from distmlp.cluster import launcher
from distmlp.config import Config, InputError

T = TypeVar("T")
_HOUR = 3_600_000  # milliseconds for which a process waits for the others: one may have data to download
# XLA's preemption_sync_manager.cc waits for this key; whoever sets it makes all processes agree on a step to stop at.
_STOP_NOTICE = "RECEIVED_PREEMPTION_NOTICE"
# What jax and its libraries say when another process is gone.
_ENDED = re.compile(r"gloo|coordination ?service|heartbeat|connection (reset|closed) by peer|nccl.*(remote|network)",
                    re.IGNORECASE | re.DOTALL)  # fmt: skip

_topics, _stop_points = itertools.count(1), itertools.count(1)
_all_end, _speaks = False, True  # whether all processes are known to end now, and this one says why
_patience = 120_000  # milliseconds for which a process that fails waits for the others to learn of it


class ProcessEnded(Exception):
    """Another process ended, or was cut off from this one."""

    exit_code = 1


def start(config: Config) -> None:
    """Joins the other processes, if the flags or the launcher's environment say that there are any.

    Raises:
      InputError: half a configuration, a port that is taken, a coordinator that cannot be reached.
    """
    place = launcher.find_place(config)
    if place is None or jax.distributed.is_initialized():
        return
    launcher.join(place, config)
    atexit.register(_at_exit)
    if not config.workdir:
        raise InputError("--workdir must be given with several processes: a folder that all of them see")


def several() -> bool:
    """Whether there are other processes; starts no backend, as jax.process_count() would."""
    return global_state.num_processes > 1


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return global_state.process_id == 0


@contextlib.contextmanager
def together() -> Iterator[None]:
    """What fails within it in one of several processes ends all of them soon, each with an error that says why.

    A failure takes part in the next `exchange`, where the others learn of it; those that are in a collective learn by
    the end of this process. Another process's end becomes ProcessEnded, whatever it is wrapped in.
    """
    try:
        yield
    except Exception as error:  # whatever it is, the others must hear of it
        if several() and not _all_end:
            if (text := ended_elsewhere(error)) is not None:
                raise ProcessEnded(text) from error
            _fail(error)
        raise


def _fail(error: Exception) -> None:
    """Tells the others, and hears whether they fail, too."""
    topic = next(_topics)
    try:
        kind = "InputError" if isinstance(error, InputError) else type(error).__name__
        _post(topic, {"failed": [kind, str(error), socket.gethostname()]})
        messages = _read(topic, _patience)
    except Exception:  # the others are busy elsewhere, or gone
        return
    if all(message.get("failed", [])[:2] == [kind, str(error)] for message in messages):
        _part(speaks=is_first())
    elif kind == "InputError":
        _raise_failure(messages)
    else:
        _part(speaks=True)


def _raise_failure(messages: list[Any]) -> None:
    """Raises, in every process the same, what the first of those that failed has said."""
    for process, message in enumerate(messages):
        if "failed" in message:
            _part(speaks=is_first())
            kind, text, host = message["failed"]
            name = f"process {process} of {len(messages)} on {host}"
            if kind == "InputError":
                raise InputError(f"{name}: {text}")
            raise ProcessEnded(f"{name} ended by an error ({kind}): its own output says why")


def _part(speaks: bool) -> None:
    global _all_end, _speaks
    _all_end, _speaks = True, speaks


def ended_elsewhere(error: BaseException) -> str | None:
    """A line for an error whose cause is that another process ended; None for one of this process's own."""
    seen: list[BaseException] = []
    # An InputError is a verdict of this package's own, whatever it was found by.
    pending: list[BaseException | None] = [] if isinstance(error, InputError) or not several() else [error]
    while pending:
        current = pending.pop()
        if current is None or current in seen:
            continue
        if _ENDED.search(str(current)):
            said = " ".join(str(current).split())[:200]
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
    if several() and _all_end:
        with contextlib.suppress(Exception):
            jax.distributed.shutdown()


def _at_exit() -> None:
    """A script that ends by an exception does not wait in jax's shutdown for processes that are busy elsewhere."""
    if hasattr(sys, "last_value") and not _all_end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


def exchange(value: T) -> list[T]:
    """The value of each process, in their order, once all have come; a collective. Values are JSON's.

    Raises:
      InputError, ProcessEnded: a process has failed instead of coming here; see `together`.
    """
    if not several():
        return [value]
    topic = next(_topics)
    _post(topic, {"value": value})
    messages = _read(topic, _HOUR)
    if is_first():  # who has come to this topic has read the last one
        _client().key_value_delete(f"distmlp/{topic - 1}/")
    _raise_failure(messages)
    return [message["value"] for message in messages]


def _post(topic: int, message: Any) -> None:
    _client().key_value_set(f"distmlp/{topic}/{global_state.process_id}", json.dumps(message))


def _read(topic: int, milliseconds: int) -> list[Any]:
    keys = [f"distmlp/{topic}/{process}" for process in range(global_state.num_processes)]
    return [json.loads(_client().blocking_key_value_get(key, milliseconds)) for key in keys]


def _client() -> Any:
    return global_state.client


def barrier() -> None:
    """Waits for all processes. Gloo gives up one that comes 30 s after the others to their first collective."""
    exchange(None)


def go_in_step() -> None:
    """From here on all wait for one another within a step: a process that fails need not wait for the others."""
    global _patience  # noqa: PLW0603 - a process has one life
    _patience = 2_000


def decide(value: T) -> T:
    """Process 0's value, in every process; a collective."""
    return exchange(value)[0]


def agree(facts: dict[str, Any]) -> None:
    """Raises InputError in every process unless all of them hold the same facts (JSON values); a collective."""
    first, *rest = exchange(facts)
    for process, other in enumerate(rest, start=1):
        odd = [f"{name} is {first.get(name)} in process 0 and {other.get(name)} in process {process}"
               for name in sorted(first.keys() | other.keys()) if first.get(name) != other.get(name)]
        if odd:
            raise InputError(f"{'; '.join(odd)}: start all with the same flags, data and packages")


def hosts() -> list[str]:
    """The names of the hosts, in the order of their first processes; a collective."""
    return list(dict.fromkeys(exchange(socket.gethostname())))


def gather(values: np.ndarray) -> np.ndarray:
    """An int32 array of each process, [processes, ...]; a collective of the devices: for what is large or often asked.

    Unlike an `exchange` it fails at once when a process has ended, and hears of no failure before that.
    """
    if not several():
        return values[None]
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(values))


def computed_by_first(compute: Callable[[], Any], shapes: Any) -> Any:
    """What `compute` returns in process 0, in every process: NumPy arrays of these shapes; a collective."""
    if not several():
        return compute()
    mine = compute() if is_first() else jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
    barrier()
    with jax.transfer_guard("allow"):
        return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(mine))


def request_stop() -> None:
    """Asks all processes to stop at one common step; they learn of it in `stop_point`. With one, does nothing."""
    if not several():
        return
    with contextlib.suppress(Exception):  # another one has asked already, or the end of all is near
        _client().key_value_set(_STOP_NOTICE, datetime.now(UTC).isoformat())


def stop_point(signum: int | None) -> int | None:
    """The signal to stop for, if any process has got one and this is where all of them stop, else None.

    With one process that is its own, `signum`. With several `request_stop` has been called for it; all call as often.
    """
    if not several():
        return signum
    if not multihost_utils.reached_preemption_sync_point(next(_stop_points)):
        return None
    received = gather(np.array(signum or 0, np.int32))
    _part(speaks=is_first())
    return int(received[received > 0][0]) if received.any() else signal.SIGTERM
