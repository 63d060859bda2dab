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
import traceback
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, ClassVar, TypeVar

import jax
import numpy as np
from jax._src.distributed import global_state  # jax.distributed tells neither a process's number nor has it a store
from jax.experimental import multihost_utils

from distmlp.cluster.place import find_place, join
from distmlp.config import Config
from distmlp.errors import InputError, ProcessEnded, one_line

T = TypeVar("T")
Answer = dict[str, Any]  # of one process to a question: {"value": ...}, or {"failed": [kind, text, host]}
_HOUR = 3_600_000  # milliseconds for which a process waits for the others: one may have data to download
_KEPT_ORDERS = 64  # of process 0's: it is a few dispatches before the others, each with two orders
# XLA's preemption_sync_manager.cc waits for this key; whoever sets it makes all processes agree on a step to stop at.
_STOP_NOTICE = "RECEIVED_PREEMPTION_NOTICE"
# What jax and its libraries say when another process is gone. Phrases, not words: they quote the user's paths, too.
_ENDED = re.compile(r"(?is)gloo [\w -]+ failed|nccl operation.*(remote|network)|connection (reset|closed) by peer"
                    r"|coordination ?service|heartbeat timeout|sending heartbeats")  # fmt: skip


class Group:
    """The processes that train together; each holds one such object, from joining the others to its end."""

    joined: ClassVar["Group | None"] = None  # by this process: one, as jax.distributed has one state for a process

    def __init__(self, process: int = 0, processes: int = 1, client: Any = None) -> None:
        """Process number `process` of `processes`, with jax's client of their coordination service; or one alone."""
        self.several, self.first = processes > 1, process == 0  # the first process is the one that prints and writes
        self._process, self._processes, self._client = process, processes, client
        self._questions, self._stop_points, self._orders = itertools.count(1), itertools.count(1), itertools.count(1)
        self._begin()

    def _begin(self) -> None:
        """As nothing has failed yet: a script may have caught the end of an earlier run."""
        self.speaks = True  # whether this process prints the error it ends with: what all share is printed once
        self._all_end = False  # whether all processes are known to end now
        self._patience = 120_000  # milliseconds for which a process that fails waits for the others to learn of it

    @classmethod
    def join(cls, config: Config) -> "Group":
        """Joins the other processes, if the flags or the launcher speak of any; raises InputError where that fails.

        This is done once: later runs in the same process get the same group.
        """
        place = find_place(config)
        if not jax.distributed.is_initialized():  # else an earlier run has joined them, or the caller of `train`
            if place is None:
                return cls()
            join(place, config)
            atexit.register(_end_a_failed_script)
        if cls.joined is None:
            cls.joined = cls(global_state.process_id, global_state.num_processes, global_state.client)
        return cls.joined

    def exchange(self, value: T) -> list[T]:
        """Each process's JSON value, in their order; a collective. Raises if one has failed instead; see `together`."""
        if not self.several:
            return [value]
        answers = self._ask({"value": value}, _HOUR)
        self._raise_failure(answers)
        return [answer["value"] for answer in answers]

    def _ask(self, answer: Answer, milliseconds: int) -> list[Answer]:
        """Every process's answer to the next question; waits so long for each of them, and raises jax's error then."""
        question = next(self._questions)
        self._client.key_value_set(f"distmlp/{question}/{self._process}", json.dumps(answer))
        keys = [f"distmlp/{question}/{process}" for process in range(self._processes)]
        answers = [json.loads(self._client.blocking_key_value_get(key, milliseconds)) for key in keys]
        if self.first:  # whoever has answered this question has read the answers to the last one
            self._client.key_value_delete(f"distmlp/{question - 1}/")
        return answers

    def barrier(self) -> None:
        """Waits for all processes. Gloo gives up one that comes 30 s after the others to their first collective."""
        self.exchange(None)

    def decide(self, value: T) -> T:
        """Process 0's value, in every process; a collective."""
        return self.exchange(value)[0]

    def lead(self, value: T) -> T:
        """Process 0's value, in every process; process 0 does not wait for the others, nor do they for one another.

        For what its clock decides amid training. All call this equally often, and none more than some steps later.
        """
        if not self.several:
            return value
        order = next(self._orders)
        if not self.first:
            return json.loads(self._client.blocking_key_value_get(f"distmlp/order/{order}", _HOUR))
        self._client.key_value_set(f"distmlp/order/{order}", json.dumps(value))
        if order > _KEPT_ORDERS:
            self._client.key_value_delete(f"distmlp/order/{order - _KEPT_ORDERS}")
        return value

    def pulse(self, own: int) -> int:
        """The sum of the numbers that the processes have given last, each its own; from any thread, without waiting."""
        if not self.several:
            return own
        self._client.key_value_set(f"distmlp/pulse/{self._process}", str(own), allow_overwrite=True)
        return sum(int(number) for _, number in self._client.key_value_dir_get("distmlp/pulse/"))

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
        """An int32 array of each process, [processes, ...]; a collective of the devices, for much or frequent data."""
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

        Several processes call this equally often, after `request_stop` for a signal.
        """
        if not self.several:
            return signum
        if not multihost_utils.reached_preemption_sync_point(next(self._stop_points)):
            return None
        received = self.gather(np.array(signum or 0, np.int32))
        self._all_end, self.speaks = True, self.first
        return int(received[received > 0][0]) if received.any() else signal.SIGTERM

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """What fails within it in one of several processes ends all of them soon, each with an error that says why.

        A failure takes part in the next `exchange`, where the others learn of it; those in a collective of the devices
        learn by the end of this process. Another process's end becomes ProcessEnded, whatever it is wrapped in.
        """
        self._begin()
        try:
            yield
        except Exception as error:  # whatever it is, the others must hear of it
            if self.several and not self._all_end and not getattr(error, "told", False):
                if (text := self.ended_elsewhere(error)) is not None:
                    raise ProcessEnded(text) from error
                self._fail(error)
            raise

    def _fail(self, error: Exception) -> None:
        """Tells the others of this process's error, and hears whether they fail, too."""
        kind = "InputError" if isinstance(error, InputError) else type(error).__name__
        error.told = True  # type: ignore[attr-defined] # any error: once, also where contexts are nested
        try:
            answers = self._ask({"failed": [kind, str(error), socket.gethostname()]}, self._patience)
        except Exception:  # the others are busy elsewhere, or gone
            return
        shared = all(answer.get("failed", [])[:2] == [kind, str(error)] for answer in answers)
        if kind == "InputError" and not shared:
            self._raise_failure(answers)
        self._all_end, self.speaks = True, self.first or not shared

    def _raise_failure(self, answers: list[Answer]) -> None:
        """Raises, in every process the same, what the first of those that failed has said."""
        for process, answer in enumerate(answers):
            if "failed" in answer:
                self._all_end, self.speaks = True, self.first
                kind, text, host = answer["failed"]
                name = f"process {process} of {len(answers)} on {host}"
                if kind == "InputError":
                    raise InputError(f"{name}: {text}")
                raise ProcessEnded(f"{name} ended by an error ({kind}): its own output says why")

    def go_in_step(self) -> None:
        """From here on all wait for one another within a step: a process that fails need not wait for the others."""
        self._patience = 2_000

    def ended_elsewhere(self, error: BaseException) -> str | None:
        """A line for an error whose cause is that another process ended; None for one of this process's own."""
        if not self.several or isinstance(error, InputError):  # an InputError is a verdict, whatever it was found by
            return None
        chain = [error]
        for link in chain:  # which grows by what each link was raised from, or while handling
            if _raised_by_jax(link) and _ENDED.search(str(link)):
                return (f"another process ended or was cut off ({one_line(link, 200)}): its own output says why; the "
                        "launcher's restart resumes from the newest checkpoint")
            causes = (link.__cause__, link.__context__)
            chain += [cause for cause in causes if cause is not None and cause not in chain]
        return None

    def leave(self) -> None:
        """To be called before os._exit: where all processes end, jax would abort those that are still at work."""
        if self.several and self._all_end:
            with contextlib.suppress(Exception):
                jax.distributed.shutdown()


def _raised_by_jax(error: BaseException) -> bool:
    """Whether jax's runtime raised this error; else it comes from the user's code, the data, the disk or this package.

    The runtime raises JaxRuntimeError. Only what a call of a jitted function meets becomes a ValueError, in the caller,
    and what keeps the backend from starting a RuntimeError, in jax.
    """
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    package = frames[-1].f_globals.get("__name__", "").partition(".")[0] if frames else ""
    in_jax_or_its_caller = type(error) in (ValueError, RuntimeError) and package in ("jax", "orbax", "distmlp")
    return isinstance(error, jax.errors.JaxRuntimeError) or in_jax_or_its_caller


def _end_a_failed_script() -> None:
    """A script that ends by an exception does not wait in jax's shutdown for processes that are busy elsewhere."""
    if hasattr(sys, "last_value") and Group.joined and not Group.joined._all_end:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(1)
