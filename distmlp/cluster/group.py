"""Several processes as one: what they agree on, where they stop, and how they end. place.py finds and joins them.

What they tell one another travels through jax's coordination service, and while steps are trained by collectives of the
devices: a process that dies fails those in the others at once, whereas the service waits for its word until jax gives
the process up, after --heartbeat_seconds. How gradients travel is the matter of `parallel`.
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
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state  # jax.distributed tells neither a process's number nor has it a store
from jax.experimental import multihost_utils

from distmlp import errors
from distmlp.cluster.place import find_place, join
from distmlp.config import Config
from distmlp.errors import InputError, ProcessEnded, one_line

T = TypeVar("T")
_HOUR = 3_600_000  # milliseconds for which a process waits for the others: one may have data to download
# XLA's preemption_sync_manager.cc waits for this key; whoever sets it makes all processes agree on a step to stop at.
_STOP_NOTICE = "RECEIVED_PREEMPTION_NOTICE"


class Group:
    """The processes that train together; each holds one such object, from joining the others to its end."""

    _joined: ClassVar["Group | None"] = None

    def __init__(self, process: int = 0, processes: int = 1, client: Any = None) -> None:
        """Process number `process` of `processes`, with jax's client of their coordination service; or one alone."""
        self.several, self.first = processes > 1, process == 0  # the first process is the one that prints and writes
        self.speaks = True  # whether this process prints the error it ends with: what all share is printed once
        self._process, self._processes, self._client = process, processes, client
        self._topics = itertools.count(1)  # each is one question that every process answers
        self._stop_points = itertools.count(1)
        self._all_end = False  # whether all processes are known to end now
        self._patience = 120_000  # milliseconds for which a process that fails waits for the others to learn of it

    @classmethod
    def join(cls, config: Config) -> "Group":
        """Joins the other processes, if the flags or the launcher's environment say that there are any.

        This is done once: later runs in the same process get the same group.

        Raises:
          InputError: half a configuration, a port that is taken, a coordinator that cannot be reached.
        """
        place = find_place(config)
        if not jax.distributed.is_initialized():  # else an earlier run has joined them, or the caller of `train`
            if place is None:
                return cls()
            join(place, config)
            atexit.register(_end_at_once_after_an_error)
        if cls._joined is None:
            cls._joined = cls(global_state.process_id, global_state.num_processes, global_state.client)
        return cls._joined

    @classmethod
    def joined(cls) -> "Group | None":
        """The group that this process has joined. One for each process, as jax.distributed has one state for each."""
        return cls._joined

    def exchange(self, value: T) -> list[T]:
        """The value of each process, in their order, once all have come; a collective. Values are JSON's.

        Raises:
          InputError, ProcessEnded: a process has failed instead of coming here; see `together`.
        """
        if not self.several:
            return [value]
        topic = next(self._topics)
        self._post(topic, {"value": value})
        messages = self._read(topic, _HOUR)
        if self.first:  # whoever has come to this topic has read the last one
            self._client.key_value_delete(f"distmlp/{topic - 1}/")
        self._raise_failure(messages)
        return [message["value"] for message in messages]

    def _post(self, topic: int, message: dict[str, Any]) -> None:
        """Gives this process's answer on a topic, once; a JSON value."""
        self._client.key_value_set(f"distmlp/{topic}/{self._process}", json.dumps(message))

    def _read(self, topic: int, milliseconds: int) -> list[dict[str, Any]]:
        """The answer of each process, in their order; waits for each so long, and raises jax's error then."""
        keys = [f"distmlp/{topic}/{process}" for process in range(self._processes)]
        return [json.loads(self._client.blocking_key_value_get(key, milliseconds)) for key in keys]

    def barrier(self) -> None:
        """Waits for all processes. Gloo gives up one that comes 30 s after the others to their first collective."""
        self.exchange(None)

    def decide(self, value: T) -> T:
        """Process 0's value, in every process; a collective."""
        return self.exchange(value)[0]

    def agree(self, facts: dict[str, Any]) -> None:
        """Raises InputError in every process unless all of them hold the same facts (JSON values); a collective."""
        first, *rest = self.exchange(facts)
        for process, other in enumerate(rest, start=1):
            odd = [f"{name} is {first.get(name)} in process 0 and {other.get(name)} in process {process}"
                   for name in sorted(first.keys() | other.keys()) if first.get(name) != other.get(name)]
            if odd:
                raise InputError(f"{'; '.join(odd)}: start all with the same flags, data and packages")

    def hosts(self) -> list[str]:
        """The names of the hosts, in the order of their first processes; a collective."""
        return list(dict.fromkeys(self.exchange(socket.gethostname())))

    def gather(self, values: np.ndarray) -> np.ndarray:
        """An int32 array of each process, [processes, ...]; a collective of the devices, for much or frequent data.

        Unlike an `exchange` it fails at once when a process has ended, and hears of no failure before that.
        """
        if not self.several:
            return values[None]
        with jax.transfer_guard("allow"):
            return np.asarray(multihost_utils.process_allgather(values))

    def computed_by_first(self, compute: Callable[[], Any], shapes: Any) -> Any:
        """What `compute` returns in process 0, in every process: NumPy arrays of these shapes; a collective."""
        if not self.several:
            return compute()
        mine = compute() if self.first else jax.tree.map(lambda shape: np.zeros(shape.shape, shape.dtype), shapes)
        self.barrier()
        with jax.transfer_guard("allow"):
            return jax.tree.map(np.asarray, multihost_utils.broadcast_one_to_all(mine))

    def request_stop(self) -> None:
        """Asks all processes to stop at one common step; they learn of it in `stop_point`. With one, does nothing."""
        if self.several:
            with contextlib.suppress(Exception):  # another process has asked already, or all are about to end
                self._client.key_value_set(_STOP_NOTICE, datetime.now(UTC).isoformat())

    def stop_point(self, signum: int | None) -> int | None:
        """The signal to stop for, if any process has got one and this is where all of them stop, else None.

        With one process that is its own, `signum`. With several `request_stop` has been called for it; all call this
        method equally often.
        """
        if not self.several:
            return signum
        if not multihost_utils.reached_preemption_sync_point(next(self._stop_points)):
            return None
        received = self.gather(np.array(signum or 0, np.int32))
        self.part(speaks=self.first)
        return int(received[received > 0][0]) if received.any() else signal.SIGTERM

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails within it in one of several processes ends all of them soon, each with an error that says why.

        A failure takes part in the next `exchange`, where the others learn of it; those that are in a collective of
        the devices learn by the end of this process. Another process's end becomes ProcessEnded, whatever it is
        wrapped in.
        """
        try:
            yield
        except Exception as error:  # whatever it is, the others must hear of it
            if self.several and not self._all_end:
                if (text := self.ended_elsewhere(error)) is not None:
                    raise ProcessEnded(text) from error
                self._fail(error)
            raise

    def _fail(self, error: Exception) -> None:
        """Tells the others of this process's error, and hears whether they fail, too."""
        topic = next(self._topics)
        try:
            kind = "InputError" if isinstance(error, InputError) else type(error).__name__
            self._post(topic, {"failed": [kind, str(error), socket.gethostname()]})
            messages = self._read(topic, self._patience)
        except Exception:  # the others are busy elsewhere, or gone
            return
        if all(message.get("failed", [])[:2] == [kind, str(error)] for message in messages):
            self.part(speaks=self.first)
        elif kind == "InputError":
            self._raise_failure(messages)
        else:
            self.part(speaks=True)

    def _raise_failure(self, messages: list[dict[str, Any]]) -> None:
        """Raises, in every process the same, what the first of those that failed has said."""
        for process, message in enumerate(messages):
            if "failed" in message:
                self.part(speaks=self.first)
                kind, text, host = message["failed"]
                name = f"process {process} of {len(messages)} on {host}"
                if kind == "InputError":
                    raise InputError(f"{name}: {text}")
                raise ProcessEnded(f"{name} ended by an error ({kind}): its own output says why")

    def part(self, speaks: bool) -> None:
        """From now on all processes are known to end; `speaks` is whether this one says why."""
        self._all_end, self.speaks = True, speaks

    def go_in_step(self) -> None:
        """From here on all wait for one another within a step: a process that fails need not wait for the others."""
        self._patience = 2_000

    def ended_elsewhere(self, error: BaseException) -> str | None:
        """A line for an error whose cause is that another process ended; None for one of this process's own."""
        if not self.several or isinstance(error, InputError):  # an InputError is a verdict, whatever it was found by
            return None
        for cause in _causes(error):
            if _is_of_the_runtime(cause) and _ENDED.search(str(cause)):
                return (f"another process ended or was cut off ({one_line(cause, 200)}): its own output says why; the "
                        "launcher's restart resumes from the newest checkpoint")
        return None

    def leave(self) -> None:
        """To be called before os._exit: where all processes end, jax would abort those that are still at work."""
        if self.several and self._all_end:
            with contextlib.suppress(Exception):
                jax.distributed.shutdown()


def _end_at_once_after_an_error() -> None:
    """A script that ends by an exception does not wait in jax's shutdown for processes that are busy elsewhere."""
    group = Group.joined()
    if hasattr(sys, "last_value") and group is not None and not group._all_end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)


# What jax and its libraries say when another process is gone.
_ENDED = re.compile(r"gloo|coordination ?service|heartbeat|connection (reset|closed) by peer|nccl.*(remote|network)",
                    re.IGNORECASE | re.DOTALL)  # fmt: skip
_RUNTIME = ("jax", "jaxlib", "orbax", "tensorstore", "distmlp")


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, and all that it was raised from or while handling."""
    seen: list[BaseException] = []
    pending: list[BaseException | None] = [error]
    while pending:
        current = pending.pop()
        if current is not None and current not in seen:
            seen.append(current)
            pending += [current.__cause__, current.__context__]
            yield current


def _is_of_the_runtime(error: BaseException) -> bool:
    """Whether jax, or what it works with, raised this error: only then its text may speak of other processes."""
    if isinstance(error, jax.errors.JaxRuntimeError):
        return True
    if isinstance(error, OSError) or type(error).__module__ == errors.__name__ or error.__traceback__ is None:
        return False
    traceback = error.__traceback__
    while traceback.tb_next is not None:
        traceback = traceback.tb_next
    return traceback.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _RUNTIME
