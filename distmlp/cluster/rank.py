"""This process among the others, and what they tell one another in jax's coordination service; process 0 hosts it."""

import itertools
import json
from typing import Any

from jax._src.distributed import global_state  # the public jax.distributed has neither its store nor the own number

topics = itertools.count(1)  # each is one question that every process answers


def several() -> bool:
    """Whether there are other processes; starts no backend, as jax.process_count() would."""
    return global_state.num_processes > 1


def is_first() -> bool:
    """Whether this is the process that prints and writes."""
    return global_state.process_id == 0


def post(topic: int, message: Any) -> None:
    """Says this process's word on a topic, once; a JSON value."""
    client().key_value_set(f"distmlp/{topic}/{global_state.process_id}", json.dumps(message))


def read(topic: int, milliseconds: int) -> list[Any]:
    """The word of each process, in their order; waits for each so long, and raises jax's error then."""
    keys = [f"distmlp/{topic}/{process}" for process in range(global_state.num_processes)]
    return [json.loads(client().blocking_key_value_get(key, milliseconds)) for key in keys]


def forget(topic: int) -> None:
    """Deletes all words on a topic, which nobody asks for any more."""
    client().key_value_delete(f"distmlp/{topic}/")


def client() -> Any:
    """jax's client of the service."""
    return global_state.client
