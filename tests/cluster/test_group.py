"""What one of several processes makes of errors, and what all must agree on, with a made-up coordination service."""

import json
import threading
from pathlib import Path
from typing import Any

import pytest
from conftest import small_config
from jax.errors import JaxRuntimeError

from distmlp import InputError, train
from distmlp.cluster.group import Group
from distmlp.errors import ProcessEnded, WriteError
from distmlp.verify.here import Here, NotHeld
from distmlp.verify.verify import Row, _try


class Store:
    """The key-value store of a coordination service."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}
        self.changed = threading.Condition()
        self.patience = 0  # milliseconds of the last wait

    def key_value_set(self, key: str, value: str, allow_overwrite: bool = False) -> None:
        with self.changed:
            assert allow_overwrite or key not in self.values
            self.values[key] = value
            self.changed.notify_all()

    def blocking_key_value_get(self, key: str, milliseconds: int) -> str:
        self.patience = milliseconds
        with self.changed:
            if not self.changed.wait_for(lambda: key in self.values, milliseconds / 1000):
                raise RuntimeError("DEADLINE_EXCEEDED")
            return self.values[key]

    def key_value_dir_get(self, prefix: str) -> list[tuple[str, str]]:
        return [item for item in self.values.items() if item[0].startswith(prefix)]

    def key_value_delete(self, key: str) -> None:
        """Of a key, and of all below it."""
        below = key.removesuffix("/") + "/"
        self.values = {name: value for name, value in self.values.items() if not (name + "/").startswith(below)}


@pytest.fixture
def store() -> Store:
    return Store()


@pytest.fixture
def group(store: Store) -> Group:
    """This is process 0 of 2; the other one is what the test puts into the store."""
    return Group(0, 2, store)


def other(store: Store, topic: int, **message: Any) -> None:
    store.key_value_set(f"distmlp/{topic}/1", json.dumps(message))


def test_values_are_exchanged_in_the_order_of_the_processes_and_forgotten(store: Store, group: Group) -> None:
    for topic in (1, 2, 3):
        other(store, topic, value=[topic, None])
        assert group.exchange("mine") == ["mine", [topic, None]]
    assert sorted(store.values) == ["distmlp/3/0", "distmlp/3/1"]


def test_the_first_process_leads_without_waiting_and_old_orders_are_forgotten(store: Store, group: Group) -> None:
    other = Group(1, 2, store)
    for value in range(300):
        assert group.lead(value) == value
        if value >= 9:  # as far behind as it can be
            assert other.lead("its own") == value - 9
    assert len(store.values) < 100
    assert Group().lead(5) == 5


def test_what_the_processes_do_not_share_is_named_and_refused(store: Store, group: Group) -> None:
    other(store, 1, value={"--seed": 2, "--shuffle": True, "optax": "0.0.1"})
    said = (r"^--seed is 1 in process 0 and 2 in process 1; optax is 0\.2 in process 0 and 0\.0\.1 in process 1: start "
            "all with the same flags, data and packages$")  # fmt: skip
    with pytest.raises(InputError, match=said):
        group.agree({"--seed": 1, "--shuffle": True, "optax": "0.2"})


def test_a_pulse_is_felt_from_every_process(store: Store, group: Group) -> None:
    other = Group(1, 2, store)
    assert [group.pulse(3), other.pulse(10), group.pulse(3), other.pulse(11), group.pulse(4)] == [3, 13, 13, 14, 15]
    assert Group().pulse(7) == 7


def test_the_error_of_another_process_is_raised_here_and_said_once(store: Store, group: Group) -> None:
    other(store, 1, failed=["InputError", "no such data", "node7"])
    with pytest.raises(InputError, match=r"^process 1 of 2 on node7: no such data$"), group.together():
        group.exchange(1)
    assert group.speaks  # this is process 0
    assert list(store.values) == ["distmlp/1/1", "distmlp/1/0"]  # it has not failed itself


def test_an_unexpected_error_of_another_process_is_left_to_it_to_print(store: Store, group: Group) -> None:
    other(store, 1, failed=["KeyError", "'x'", "node7"])
    said = r"process 1 of 2 on node7 ended by an error \(KeyError\)"
    with pytest.raises(ProcessEnded, match=said), group.together():
        group.barrier()


@pytest.mark.parametrize(("theirs", "said", "speaks"), [
    ({"failed": ["InputError", "too few", "node7"]}, "too few", True),  # in all: one speaks for them
    ({"value": 3}, "process 0 of 2 on .*: too few", True),
])  # fmt: skip
def test_an_error_of_this_process_reaches_the_others(
    theirs: dict[str, Any], said: str, speaks: bool, store: Store, group: Group
) -> None:
    other(store, 1, **theirs)
    with pytest.raises(InputError, match=f"^{said}$"), group.together():
        raise InputError("too few")
    assert group.speaks == speaks
    assert json.loads(store.values["distmlp/1/0"])["failed"][:2] == ["InputError", "too few"]


def test_in_process_1_an_error_that_all_have_is_not_said(store: Store) -> None:
    group = Group(1, 2, store)
    store.key_value_set("distmlp/1/0", json.dumps({"failed": ["InputError", "too few", "node0"]}))
    with pytest.raises(InputError, match=r"^too few$"), group.together():
        raise InputError("too few")
    assert not group.speaks


def test_an_error_while_the_others_are_in_a_collective_does_not_wait_for_them(store: Store, group: Group) -> None:
    def fails_in_step() -> None:
        group.go_in_step()
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), group.together():
        fails_in_step()
    assert group.speaks
    assert store.patience <= 2_000


def test_an_error_is_told_once_where_contexts_are_nested(store: Store, group: Group) -> None:
    def fails_in_step() -> None:
        group._patience = 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), group.together(), group.together():
        fails_in_step()
    assert [key for key in store.values if key.endswith("/0")] == ["distmlp/1/0"]


GLOO = "UNKNOWN: Gloo all-reduce failed: [gloo/pair.cc:538] Read error [10.0.0.1]:33003: Connection reset by peer"


RAISING = """
def act(error, cause, handling):
    try:
        raise handling
    except Exception:
        raise error from cause
"""


def raised(error: Exception, by: str, cause: Exception | None = None, handling: Exception | None = None) -> Exception:
    """This error as it is caught after code of module `by` has raised it, `from` a cause or while handling another."""
    code: dict[str, Any] = {"__name__": by}
    exec(RAISING, code)
    with pytest.raises(type(error)) as caught:
        code["act"](error, cause, handling or Exception())
    return caught.value


@pytest.mark.parametrize("error", [
    raised(JaxRuntimeError(GLOO), "jax._src.array"),
    raised(JaxRuntimeError("UNAVAILABLE: Failed to send RPC to coordination service."), "distmlp.cluster.group"),
    raised(JaxRuntimeError("NCCL operation ncclAllReduce failed: remote process exited or there was a network error"),
           "jax._src.api"),
    raised(ValueError(GLOO), "distmlp.parallel.digest"),  # calls a jitted function
    raised(RuntimeError(f"Unable to initialize backend 'cpu': {GLOO} (you may need to ...)"), "jax._src.xla_bridge"),
    raised(RuntimeError("x"), "orbax.checkpoint", cause=JaxRuntimeError(GLOO)),
    raised(KeyError("x"), "users_data", handling=JaxRuntimeError(GLOO)),
    raised(WriteError(Path("run/checkpoints"), "a checkpoint was not saved"), "distmlp.run.checkpoint",
           handling=raised(ValueError("x"), "orbax.checkpoint", handling=JaxRuntimeError(GLOO))),
], ids=["collective", "service", "nccl", "jitted", "backend", "cause", "context", "write"])  # fmt: skip
def test_the_end_of_another_process_is_taken_for_nothing_else(error: Exception, store: Store, group: Group) -> None:
    line = (r"^another process ended or was cut off \(.*\): its own output says why; the launcher's restart resumes "
            r"from the newest checkpoint$")  # fmt: skip
    with pytest.raises(ProcessEnded, match=line) as caught, group.together():
        raise error
    assert "\n" not in str(caught.value)
    assert store.values == {}


@pytest.mark.parametrize("error", [
    raised(ValueError("cannot decode img7.png"), "users_data"),
    raised(RuntimeError("heartbeat timeout: no file of the sensor"), "users_data"),
    raised(RuntimeError("Gloo connectFullMesh failed"), "torch.distributed"),  # of a group of the user's own
    raised(ConnectionResetError(104, "Connection reset by peer"), "multiprocessing.connection"),
    raised(KeyError("heartbeat"), "distmlp.data.tables"),
    raised(InputError("--dataset=mnist could not be downloaded (Connection reset by peer)"), "distmlp.data.named",
           handling=JaxRuntimeError(GLOO)),
    raised(WriteError(Path("/scratch/gloo all-reduce failed/run"), "No space left on device"), "distmlp.run.workdir"),
    raised(WriteError(Path("/scratch/gloor/run/checkpoints"), "a checkpoint was not saved"), "distmlp.run.checkpoint",
           handling=raised(ValueError('NOT_FOUND: "/scratch/gloor/run/heartbeat/d"'), "orbax.checkpoint")),
    raised(JaxRuntimeError("INTERNAL: /scratch/gloor/run/profile: Permission denied"), "jax._src.profiler"),
], ids=["user", "heartbeat", "gloo", "worker", "column", "input", "disk", "path", "profile"])  # fmt: skip
def test_an_error_of_its_own_is_not_taken_for_the_end_of_another(error: Exception, group: Group) -> None:
    """Whatever names and paths the user has chosen."""
    assert group.ended_elsewhere(error) is None


def test_a_process_joins_the_others_once(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second run in it asks its questions after those of the first, whose answers the others have kept."""
    monkeypatch.setattr(Group, "joined", None)
    monkeypatch.setattr("jax.distributed.is_initialized", lambda: True)
    for name, value in (("process_id", 0), ("num_processes", 2), ("client", store)):
        monkeypatch.setattr(f"distmlp.cluster.group.global_state.{name}", value)
    for question in (1, 2):
        other(store, question, value=question)
        assert Group.join(small_config("digits")).exchange(0) == [0, question]


def test_after_an_error_that_was_caught_the_others_hear_of_the_next(store: Store) -> None:
    group = Group(1, 2, store)
    for question in (1, 2):
        store.key_value_set(f"distmlp/{question}/0", json.dumps({"failed": ["InputError", "too few", "node0"]}))
        with pytest.raises(InputError, match=r"^too few$"), group.together():
            raise InputError("too few")
        assert f"distmlp/{question}/1" in store.values
        assert not group.speaks
    group.go_in_step()
    with group.together():
        assert group.speaks
        assert group._patience == Group()._patience


def test_in_one_process_nothing_is_taken_for_the_end_of_another() -> None:
    group = Group()
    assert group.ended_elsewhere(ValueError(GLOO)) is None
    with pytest.raises(ValueError, match="Gloo"), group.together():
        raise ValueError(GLOO)


def test_one_process_without_room_makes_all_send_batches(
    npz: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of this process's machine and another one, which has 1,000 bytes of memory."""
    monkeypatch.setattr(Group, "exchange", lambda self, value: [value, 1000] if type(value) is int else [value])
    train(small_config(npz, num_epochs=1))
    assert "training set on the host (0.0 MB are more than a quarter" in " ".join(capsys.readouterr().out.split())


def test_what_one_process_finds_amid_a_check_ends_it_in_both(
    store: Store, group: Group, capsys: pytest.CaptureFixture[str]
) -> None:
    """Whichever of the two it is, while the other one waits for numbers; it says so itself, and it is the row."""
    layout: Any = None
    row, here = Row("one"), Here(group, layout)

    def check(here: Here) -> str:
        raise NotHeld("odd")

    other(store, 1, value=5)
    other(store, 2, value=[None, "ProcessEnded: process 0 of 2 ended by an error"])
    _try(row, check, here)
    assert (row.held, row.detail, row.finished) == (False, "odd", True)
    assert capsys.readouterr().err == "distmlp: process 0: one: odd\n"
    other(store, 3, failed=["NotHeld", "odd there", "node1"])
    other(store, 4, value=[False, "odd there"])
    _try(row, lambda here: str(min(here.group.exchange(5))), here)
    assert (row.held, row.detail) == (False, "odd there")
    other(store, 5, value=7)
    other(store, 6, value=[True, "7"])
    _try(row, lambda here: str(max(here.group.exchange(5))), here)
    assert (row.held, row.detail) == (True, "7")
    other(store, 7, failed=["NotHeld", "late", "node1"])
    other(store, 8, value=[False, "late"])
    _try(row, lambda here: "fine", here)
    assert (row.held, row.detail) == (False, "late")
    assert capsys.readouterr().err == ""
