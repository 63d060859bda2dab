"""Checkpoints: what is saved comes back, on any devices, exactly; which are kept; what is refused."""

import contextlib
import errno
import logging
import os
import shutil
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest

from distmlp import Config, InputError, model, optim
from distmlp.cluster.group import Group
from distmlp.errors import DivergedError, WriteError
from distmlp.parallel.digest import StateDigest
from distmlp.parallel.layout import Layout, make_layout
from distmlp.parallel.specs import STATE, State
from distmlp.run.store import Store, quiet


def make_state(layout: Layout, seed: int = 0, sizes: tuple[int, ...] = (12, 8, 4)) -> State:
    optimizer = optim.make(Config(momentum=0.9), 5)
    params = model.init_network_params(sizes, jax.random.key(seed))
    velocity = jax.tree.map(lambda a: a + seed, optimizer.init(params))
    scaling = (np.zeros(12, np.float32), np.full(12, 0.1, np.float32))
    state = State(params, velocity, np.int32(seed), scaling)
    return layout.put(jax.tree.map(np.asarray, state), STATE)


def open_checkpoints(layout: Layout, path: Path, keep: int = 2) -> Store:
    path.mkdir(exist_ok=True)
    return Store(path, StateDigest(layout, STATE), keep, Group())


def accept(meta: dict[str, Any]) -> None:
    """Of this run."""


@pytest.mark.parametrize(("parallelism", "devices"), [("single", 1), ("shard_map", 3), ("pmap", 5), ("shard_map", 8)])
def test_saved_on_8_devices_and_restored_on_others(parallelism: str, devices: int, tmp_path: Path) -> None:
    eight = make_layout(Config())
    saved = open_checkpoints(eight, tmp_path / "run")
    state = make_state(eight, seed=3)
    saved.save(3, state, {"totals": {"loss": 0.1}})
    saved.close()
    layout = make_layout(Config(parallelism=parallelism, num_devices=devices))
    other = open_checkpoints(layout, tmp_path / "run")
    restored = other.newest_intact(make_state(layout), accept)
    other.close()
    assert restored is not None
    found, meta, moved = restored
    assert jax.tree.structure(found) == jax.tree.structure(state)
    jax.tree.map(np.testing.assert_array_equal, found, state)
    for leaf in jax.tree.leaves(found):
        assert set(leaf.sharding.device_set) == set(layout.devices)
    assert (meta["step"], meta["totals"], moved) == (3, {"loss": 0.1}, [])


def test_arrays_that_are_whole_but_not_those_saved_are_damage(tmp_path: Path) -> None:
    """Orbax reads them without an error: only the digests tell."""
    layout = make_layout(Config(num_devices=2))
    for name, seeds in (("run", (3, 4)), ("other", (5, 6))):
        checkpoints = open_checkpoints(layout, tmp_path / name)
        for step, seed in zip((3, 4), seeds, strict=True):
            checkpoints.save(step, make_state(layout, seed), {})
        checkpoints.close()
    state = tmp_path / "run" / "checkpoints" / "4" / "state"
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "other" / "checkpoints" / "4" / "state", state)
    checkpoints = open_checkpoints(layout, tmp_path / "run")
    restored = checkpoints.newest_intact(make_state(layout), accept)
    checkpoints.close()
    assert restored is not None
    found, _, (told,) = restored
    jax.tree.map(np.testing.assert_array_equal, found, make_state(layout, 3))
    assert "checkpoint 4 is damaged (" in told
    assert "is not what was saved" in told


def test_a_save_compiles_no_program_for_each_device(tmp_path: Path, compilations: list[str]) -> None:
    eight = make_layout(Config())
    saved = open_checkpoints(eight, tmp_path / "run")
    state = make_state(eight, sizes=(12, 16, 24))  # which no other test has
    compilations.clear()
    saved.save(3, state, {})
    saved.close()
    assert 0 < len(compilations) <= 3  # the copy and the digest


def test_the_newest_and_the_best_are_kept(tmp_path: Path) -> None:
    layout = make_layout(Config(num_devices=2))
    checkpoints = open_checkpoints(layout, tmp_path / "run", keep=2)
    for step in range(1, 7):
        checkpoints.save(step, make_state(layout, step), {}, best=2)
    checkpoints.wait()
    assert checkpoints.steps() == [6, 5, 2]
    checkpoints.close()
    assert sorted(p.name for p in (tmp_path / "run" / "checkpoints").iterdir() if p.is_dir()) == ["2", "5", "6"]


def test_only_the_copy_is_waited_for_and_then_the_state_may_be_donated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout(Config(num_devices=2))
    checkpoints, state = open_checkpoints(layout, tmp_path / "run"), make_state(layout, 4)
    expected, gate, save = jax.tree.map(np.array, state), threading.Event(), checkpoints._save

    def gated(*args: Any) -> None:
        assert gate.wait(60)
        save(*args)

    monkeypatch.setattr(checkpoints, "_save", gated)
    checkpoints.save(4, state, {})  # digests and files are behind the gate
    jax.block_until_ready(jax.jit(lambda s: jax.tree.map(lambda a: a * 0, s), donate_argnums=0)(state))
    assert checkpoints.steps() == []
    gate.set()
    restored = checkpoints.newest_intact(make_state(layout), accept)
    checkpoints.close()
    assert restored is not None
    jax.tree.map(np.testing.assert_array_equal, restored[0], expected)


def test_stores_that_save_at_once_do_not_wait_for_one_another(tmp_path: Path) -> None:
    """Orbax numbers the saves of a process; one that took another's number would wait 300 s for its folders."""
    layout = make_layout(Config(num_devices=1))
    states = [make_state(layout, seed) for seed in range(4)]
    stores = [open_checkpoints(layout, tmp_path / str(seed)) for seed in range(4)]
    failed: list[BaseException] = []
    for store, state in zip(stores, states, strict=True):  # which compiles
        store.save(1, state, {})
        store.wait()

    def save(seed: int) -> None:
        store = stores[seed]
        try:
            for step in range(2, 7):
                store.save(step, states[seed], {})
            store.wait()
            assert store.steps()[0] == 6
            store.close()
        except BaseException as error:
            failed.append(error)

    threads = [threading.Thread(target=save, args=(seed,), daemon=True) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(100)
    assert not any(thread.is_alive() for thread in threads)
    assert not failed


def test_nothing_to_restore(tmp_path: Path) -> None:
    layout = make_layout(Config(num_devices=1))
    checkpoints = open_checkpoints(layout, tmp_path / "run")
    assert checkpoints.newest_intact(make_state(layout), accept) is None
    checkpoints.close()


def test_a_save_that_orbax_declines_is_an_error(tmp_path: Path) -> None:
    layout = make_layout(Config(num_devices=1))
    checkpoints = open_checkpoints(layout, tmp_path / "run")
    checkpoints.save(5, make_state(layout), {})
    checkpoints.wait()
    checkpoints.save(4, make_state(layout), {})
    with pytest.raises(WriteError, match="Orbax declined to save step 4"):
        checkpoints.wait()
    checkpoints.close()


def test_a_state_that_is_not_finite_is_not_saved(tmp_path: Path) -> None:
    layout = make_layout(Config(num_devices=1))
    checkpoints, state = open_checkpoints(layout, tmp_path / "run"), make_state(layout)
    checkpoints.save(1, state._replace(params=jax.tree.map(lambda a: a * np.nan, state.params)), {})
    with pytest.raises(DivergedError):
        checkpoints.wait()
    assert checkpoints.steps() == []
    checkpoints.close()


@pytest.mark.parametrize(("saved", "damaged"), [('"loss":0.5', '"loss":0.6'), ('"seed":3', '"seed":4')])
def test_changed_metadata_are_damage(saved: str, damaged: str, tmp_path: Path) -> None:
    layout = make_layout(Config(num_devices=1))
    checkpoints = open_checkpoints(layout, tmp_path / "run")
    for step in (1, 2):
        checkpoints.save(step, make_state(layout, step), {"totals": {"loss": 0.5}, "settings": {"seed": 3}})
    checkpoints.wait()
    path = tmp_path / "run" / "checkpoints" / "2" / "meta" / "metadata"
    text = path.read_text().replace(": ", ":")
    assert saved in text
    path.write_text(text.replace(saved, damaged))
    restored = checkpoints.newest_intact(make_state(layout), accept)
    checkpoints.close()
    assert restored is not None
    assert (restored[1]["step"], restored[1]["totals"]) == (1, {"loss": 0.5})
    assert restored[2] == [f"checkpoint 2 is damaged (its metadata is not what was saved): moved to "
                           f"{tmp_path / 'run' / 'damaged' / '2'}"]  # fmt: skip


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (MemoryError(), r"\(MemoryError\): free memory, then"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory"), r"memory of the device, or give --platform=cpu"),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), r"\(Too many open files\): raise .*\(ulimit -n\), then"),
        (ValueError("NOT_FOUND: Error opening [OS error 116: Stale file handle]"), r"\(Stale file handle\): see to"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: No space left on device"), ""),
    ],
    ids=["memory", "device", "files", "stale", "damage"],
)
def test_what_cannot_be_read_for_want_of_something_is_not_damaged(
    error: Exception, told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_state(step: int, target: Any, read: Any) -> Any:
        if step == 2:
            raise error
        return read(step, target)

    layout = make_layout(Config(num_devices=1))
    checkpoints = open_checkpoints(layout, tmp_path / "run")
    for step in (1, 2):
        checkpoints.save(step, make_state(layout, step), {})
    checkpoints.wait()
    monkeypatch.setattr("distmlp.run.store._PAUSE_SECONDS", 0)
    monkeypatch.setattr(checkpoints._reader, "read_state", partial(read_state, read=checkpoints._reader.read_state))
    if told:
        with pytest.raises(InputError, match=rf"checkpoints/2: .* cannot be read now .*{told}.* start again$"):
            checkpoints.newest_intact(make_state(layout), accept)
    else:
        assert checkpoints.newest_intact(make_state(layout), accept) is not None
    checkpoints.close()
    assert (tmp_path / "run" / "damaged").exists() != bool(told)


def test_digests_for_which_there_is_no_memory_say_nothing_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = make_layout(Config(num_devices=1))
    checkpoints = open_checkpoints(layout, tmp_path / "run")
    checkpoints.save(1, make_state(layout, 1), {})
    checkpoints.wait()
    for error, raised, told in ((jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: no memory"), InputError, "read now"),
                                (jax.errors.JaxRuntimeError("INTERNAL: a fault"), RuntimeError, "a fault")):

        def check(state: Any, step: int, error: Exception = error) -> Any:
            raise error

        monkeypatch.setattr(checkpoints._digest, "check", check)
        with pytest.raises(raised, match=told):
            checkpoints.newest_intact(make_state(layout), accept)
    monkeypatch.undo()
    assert checkpoints.newest_intact(make_state(layout), accept) is not None
    checkpoints.close()


def test_a_damaged_checkpoint_is_moved_to_another_file_system(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or one line says why it cannot be moved."""
    layout = make_layout(Config(num_devices=1))
    checkpoints = open_checkpoints(layout, tmp_path / "run")
    for step in (1, 2):
        checkpoints.save(step, make_state(layout, step), {})
        checkpoints.wait()
    (tmp_path / "run" / "checkpoints" / "2" / "meta" / "metadata").write_text("{}")
    aside = tmp_path / "run" / "damaged"
    aside.touch()
    said = rf"^{aside / '2'} could not be written \(File exists\): make room or mend it, then start again$"
    with pytest.raises(WriteError, match=said):
        checkpoints.newest_intact(make_state(layout), accept)
    with pytest.raises(WriteError, match=said):
        checkpoints.set_aside(1)
    assert checkpoints.steps() == [2, 1]
    aside.unlink()

    def other_disk(*_: object) -> None:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "rename", other_disk)
    restored = checkpoints.newest_intact(make_state(layout), accept)
    checkpoints.close()
    assert restored is not None
    assert restored[1]["step"] == 1
    assert [path.name for path in aside.iterdir()] == ["2"]
    assert not (tmp_path / "run" / "checkpoints" / "2").exists()


def test_a_checkpoint_is_synced_before_an_older_one_is_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout = make_layout(Config(num_devices=1))
    checkpoints = open_checkpoints(layout, tmp_path / "run", keep=1)
    events: list[tuple[str, object]] = []
    delete = checkpoints._manager.delete
    monkeypatch.setattr("distmlp.run.store.sync", lambda path: events.append(("sync", path)))
    monkeypatch.setattr(checkpoints._manager, "delete", lambda step: (events.append(("delete", step)), delete(step)))
    folder = tmp_path / "run" / "checkpoints"
    for step in (1, 2):  # the first one, too, though nothing goes: the power may fail at the end of a run
        events.clear()
        checkpoints.save(step, make_state(layout), {})
        checkpoints.wait()
        synced = {path for what, path in events if what == "sync"}
        assert synced == {folder, folder / str(step), *(folder / str(step)).rglob("*")}
    assert events[-1] == ("delete", 1)
    checkpoints.close()


def test_what_check_meta_refuses_stays_where_it_is(tmp_path: Path) -> None:
    layout = make_layout(Config(num_devices=1))
    checkpoints = open_checkpoints(layout, tmp_path / "run")
    checkpoints.save(1, make_state(layout), {"mine": False})

    def refuse(meta: dict[str, Any]) -> None:
        raise InputError(f"not this run: {meta['mine']}")

    with pytest.raises(InputError, match="not this run: False"):
        checkpoints.newest_intact(make_state(layout), refuse)
    assert checkpoints.steps() == [1]
    checkpoints.close()


@pytest.mark.parametrize("afterwards", [False, True])
def test_what_threads_say_of_a_failed_save_is_hidden(
    afterwards: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """TensorStore's threads print errors by sys.excepthook, some of them when the program has already given up."""
    before = sys.excepthook
    monkeypatch.setattr(sys, "excepthook", before)  # put back after the test

    def say() -> None:
        for text in ("Event loop is closed", "something else"):
            sys.excepthook(RuntimeError, RuntimeError(text), None)

    with contextlib.suppress(WriteError), quiet():
        if afterwards:
            raise WriteError("run", "no room")
        say()
    if afterwards:
        say()
    assert capsys.readouterr().err == "RuntimeError: something else\n"
    assert (sys.excepthook is before) != afterwards


def test_tasks_of_a_failed_save_that_nobody_awaits_are_hidden(caplog: pytest.LogCaptureFixture) -> None:
    """When the next save collects them."""
    with quiet():
        for code in ("orbax/serialization.py", "somebody.py"):
            logging.getLogger("asyncio").error("Task exception was never retrieved\nfuture: <Task %s>", code)
    assert [record.getMessage().split()[-1] for record in caplog.records] == ["somebody.py>"]


def test_a_checkpoint_of_other_shapes_is_never_taken_for_good(tmp_path: Path) -> None:
    layout = make_layout(Config(num_devices=1))
    checkpoints = open_checkpoints(layout, tmp_path / "run")
    checkpoints.save(1, make_state(layout), {})
    with quiet():
        with pytest.raises(InputError, match="holds no intact checkpoint"):
            checkpoints.newest_intact(make_state(layout, sizes=(12, 9, 4)), accept)
        assert checkpoints.steps() == [1]
        checkpoints.close()
