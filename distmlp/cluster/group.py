"""Several processes: how they agree, stop and end together. launcher.py joins them, peers.py watches them."""

import atexit
import itertools
import json
import os
import socket
import sys
from collections.abc import Callable
from typing import Any, NoReturn

import jax
import numpy as np
from jax._src import distributed
from jax.experimental import multihost_utils

from distmlp.cluster import launcher
from distmlp.cluster.peers import Peers
from distmlp.config import Config, InputError

_peers: Peers | None = None
_stop_points, _meetings = itertools.count(1), itertools.count(1)


def start(config: Config) -> None:
    """Joins the other processes, if the flags or the launcher's environment say that there are any.

    Raises:
      InputError: half a configuration, a port that is taken, a coordinator that cannot be reached.
    """
    global _peers  # noqa: PLW0603 - like jax.distributed's own state, there is one for a process
    place = launcher.find_place(config)
    if place is None or jax.distributed.is_initialized():
        return
    launcher.join(place, config)
    client, name = distributed.global_state.client, "distmlp/peers"
    assert client is not None
    _peers = Peers(
        place,
        launcher.split_address(place.coordinator)[0],
        config.heartbeat_seconds,
        lambda text: client.key_value_set(name, text),
        lambda: client.blocking_key_value_get(name, int(1000 * config.startup_seconds)),
    )
    atexit.register(_at_exit)
    if not config.workdir:
        raise InputError("--workdir must be given with several processes: a folder that all of them see")


def several() -> bool:
    """Whether this process has joined others."""
    return _peers is not None


def fail(code: int, text: str, details: str = "") -> None:
    """With several processes, ends them all: see Peers.fail. With one, does nothing."""
    if _peers is not None:
        _peers.fail(code, text, details)


def leave(code: int) -> NoReturn:
    """Ends the process, with several in agreement with the others, but without jax's waiting for them if code is not 0.

    jax would wait for minutes for one that is busy elsewhere.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    if not code:
        sys.exit(0)
    if _peers is not None:
        _peers.leave()
    os._exit(code)  # what libraries would still do or print at the end is of no use then


def _at_exit() -> None:
    """The end of a script that calls `train`: the others learn whether it was by an exception."""
    if _peers is not None and hasattr(sys, "last_value"):
        _peers.fail(1, f"{type(sys.last_value).__name__}: {' '.join(str(sys.last_value).split())[:300]}")
    elif _peers is not None:
        _peers.leave()


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return jax.process_index() == 0


def agree(facts: dict[str, Any]) -> None:
    """Raises InputError in every process unless all of them hold the same facts (JSON values); a collective."""
    if jax.process_count() == 1:
        return
    mine = json.dumps(facts, sort_keys=True).encode()
    padded = np.frombuffer(mine.ljust(int(gather(len(mine)).max())), np.uint8)
    first, *rest = [json.loads(bytes(row)) for row in np.asarray(multihost_utils.process_allgather(padded), np.uint8)]
    for process, other in enumerate(rest, start=1):
        odd = [f"{name} is {first.get(name)} in process 0 and {other.get(name)} in process {process}"
               for name in sorted(first.keys() | other.keys()) if first.get(name) != other.get(name)]
        if odd:
            raise InputError(f"{'; '.join(odd)}: start all with the same flags, data and packages")


def hosts() -> list[str]:
    """The names of the hosts, in the order of their first processes; a collective."""
    name = socket.gethostname()
    if jax.process_count() == 1:
        return [name]
    padded = np.frombuffer(name.encode()[:64].ljust(64), np.uint8)
    names = np.asarray(multihost_utils.process_allgather(padded), np.uint8)
    return list(dict.fromkeys(bytes(row).decode(errors="replace").strip() for row in names))


def gather(value: bool | int | np.ndarray) -> np.ndarray:
    """The value, or int32 array, in each process, [processes, ...]; a collective."""
    if jax.process_count() == 1:
        return np.array([value])
    with jax.transfer_guard("allow"):
        return np.asarray(multihost_utils.process_allgather(np.asarray(value, np.int32)))


def meet() -> None:
    """Waits for all processes: Gloo gives up one that comes 30 s after the others to their first collective."""
    client = distributed.global_state.client
    if _peers is not None and client is not None:
        client.wait_at_barrier(f"distmlp/meeting/{next(_meetings)}", timeout_in_ms=3_600_000)


def computed_by_first(compute: Callable[[], Any], shapes: Any) -> Any:
    """What `compute` returns in process 0, in every process: NumPy arrays of these shapes; a collective."""
    if jax.process_count() == 1:
        return compute()
    mine = compute() if is_first() else jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
    meet()
    with jax.transfer_guard("allow"):
        return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(mine))


def decide(value: bool) -> bool:
    """Process 0's value, in every process; a collective."""
    if jax.process_count() == 1:
        return value
    with jax.transfer_guard("allow"):
        return bool(multihost_utils.broadcast_one_to_all(np.int32(value)))


def stop_point() -> bool:
    """Whether SIGTERM came to any process and this is where all of them stop; all must call it as often."""
    return multihost_utils.reached_preemption_sync_point(next(_stop_points))
