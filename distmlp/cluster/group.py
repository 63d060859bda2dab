"""Several processes as one: what they agree on, and where they stop. join.py joins them, ending.py ends them.

They talk through jax's coordination service, and while steps are trained by collectives of the devices (ending.py says
why); gradients take other ways (see `parallel`).
"""

import atexit
import contextlib
import itertools
import signal
import socket
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from distmlp.cluster import ending, launcher, rank
from distmlp.cluster.join import join
from distmlp.config import Config
from distmlp.errors import InputError

T = TypeVar("T")
_HOUR = 3_600_000  # milliseconds for which a process waits for the others: one may have data to download
# XLA's preemption_sync_manager.cc waits for this key; whoever sets it makes all processes agree on a step to stop at.
_STOP_NOTICE = "RECEIVED_PREEMPTION_NOTICE"

_stop_points = itertools.count(1)


def start(config: Config) -> None:
    """Joins the other processes, if the flags or the launcher's environment say that there are any.

    Raises:
      InputError: half a configuration, a port that is taken, a coordinator that cannot be reached.
    """
    place = launcher.find_place(config)
    if place is None or jax.distributed.is_initialized():
        return
    join(place, config)
    atexit.register(ending.at_exit)
    if not config.workdir:
        raise InputError("--workdir must be given with several processes: a folder that all of them see")


def exchange(value: T) -> list[T]:
    """The value of each process, in their order, once all have come; a collective. Values are JSON's.

    Raises:
      InputError, ProcessEnded: a process has failed instead of coming here; see `ending.together`.
    """
    if not rank.several():
        return [value]
    topic = next(rank.topics)
    rank.post(topic, {"value": value})
    messages = rank.read(topic, _HOUR)
    if rank.is_first():  # who has come to this topic has read the last one
        rank.forget(topic - 1)
    ending.raise_failure(messages)
    return [message["value"] for message in messages]


def barrier() -> None:
    """Waits for all processes. Gloo gives up one that comes 30 s after the others to their first collective."""
    exchange(None)


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
    if not rank.several():
        return values[None]
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(values))


def computed_by_first(compute: Callable[[], Any], shapes: Any) -> Any:
    """What `compute` returns in process 0, in every process: NumPy arrays of these shapes; a collective."""
    if not rank.several():
        return compute()
    mine = compute() if rank.is_first() else jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
    barrier()
    with jax.transfer_guard("allow"):
        return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(mine))


def request_stop() -> None:
    """Asks all processes to stop at one common step; they learn of it in `stop_point`. With one, does nothing."""
    if not rank.several():
        return
    with contextlib.suppress(Exception):  # another one has asked already, or the end of all is near
        rank.client().key_value_set(_STOP_NOTICE, datetime.now(UTC).isoformat())


def stop_point(signum: int | None) -> int | None:
    """The signal to stop for, if any process has got one and this is where all of them stop, else None.

    With one process that is its own, `signum`. With several `request_stop` has been called for it; all call as often.
    """
    if not rank.several():
        return signum
    if not multihost_utils.reached_preemption_sync_point(next(_stop_points)):
        return None
    received = gather(np.array(signum or 0, np.int32))
    ending.part(speaks=rank.is_first())
    return int(received[received > 0][0]) if received.any() else signal.SIGTERM
