"""distmlp verify: all holds on an emulated device; and each check finds what it is for, when the product is broken."""

import contextlib
import dataclasses
import errno
import functools
import html
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import RunTrain
from drills.lying_device import lying

from distmlp import Config, InputError, model
from distmlp.cluster.group import Group
from distmlp.data.order import Order
from distmlp.kept import forget
from distmlp.parallel import backend, evaluate, reduce, sharded, step
from distmlp.parallel.digest import StateDigest
from distmlp.parallel.feed import DeviceBatches
from distmlp.parallel.layout import Layout, make_layout
from distmlp.plan import cards
from distmlp.progress import Measures, Progress
from distmlp.run import store
from distmlp.training import Program
from distmlp.verify import arithmetic, faults, speed
from distmlp.verify.here import Here, NotHere
from distmlp.verify.page import page
from distmlp.verify.verify import CHECKS, Result, Row, _End, _shared_folder, _try, verify
from launch import verify as command

OF_DEVICES = {"collectives", "replicated and sharded: the same bits", "1, 2, ... devices: the same bits",
              "copies that differ are found", "audit: two devices find the same"}  # more than one  # fmt: skip
OF_ACCELERATORS = {"memory, by the plan", "matrix products, by the data sheet"}


def test_all_that_applies_to_one_device_holds(run_verb: RunTrain, tmp_path: Path) -> None:
    done = run_verb("verify", "--json", "--output=page.html", "--minutes=5", timeout=320)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    held = {check["name"]: check["held"] for check in found["checks"]}
    assert held == {name: None if name in OF_DEVICES | OF_ACCELERATORS else True for name in CHECKS}
    assert all(check.keys() == {"name", "held", "detail", "seconds"} for check in found["checks"])
    assert [device["platform"] for device in found["devices"]] == ["cpu"]
    assert "distmlp" in found["versions"]
    shown = (tmp_path / "page.html").read_text()
    assert '<h1 class="held">All that applies here holds' in shown
    assert "$" not in shown
    assert all(f"<td>{html.escape(check['name'])}</td>" in shown for check in found["checks"])


class Small(Here):
    """Runs of a smaller network, which is compiled sooner."""

    def config(self, **changes: Any) -> Config:
        return super().config(**({"hidden_sizes": (17,)} | changes))


@pytest.fixture
def here(tmp_path: Path) -> Iterator[Here]:
    """Four devices."""
    config = Config(reduction="invariant", num_devices=4)
    with backend.prepared(config):
        yield Small(Group(), make_layout(config), tmp_path)


@pytest.fixture
def anew() -> Iterator[None]:
    """Programs are made anew, and are nobody else's."""
    forget()
    yield
    forget()


Break = Callable[[pytest.MonkeyPatch], None]


def wrapped(place: Any, name: str, change: Callable[[Any], Any], kind: Callable[[Any], Any] = lambda act: act) -> Break:
    """Changes what a function of the product returns."""
    honest = getattr(place, name)
    return replaced(place, name, kind(lambda *args, **more: change(honest(*args, **more))))


def replaced(place: Any, name: str, other: Any) -> Break:
    return lambda monkeypatch: monkeypatch.setattr(place, name, other)


def scaled(tree: Any) -> Any:
    return jax.tree.map(lambda x: x * x.dtype.type(1.5) if jnp.issubdtype(x.dtype, jnp.floating) else x, tree)


def _repeated(found: tuple[np.ndarray, np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    if len(found[0]):
        found[0][0, 0, 0] = found[0][0, 0, 1]
    return found


def _lying_device(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = arithmetic.shard_digests

    def shard_digests(*args: Any) -> Any:
        return honest(*args) + (jax.lax.axis_index("data") == 2).astype(jnp.uint32)

    monkeypatch.setattr(arithmetic, "shard_digests", shard_digests)


def _restless(monkeypatch: pytest.MonkeyPatch) -> None:
    honest, turns = Program.initial_state, iter(range(1, 99))

    def initial_state(self: Program, scaling: Any) -> Any:
        state = honest(self, scaling)
        return state._replace(params=jax.tree.map(lambda x: x + np.float32(next(turns)), state.params))

    monkeypatch.setattr(Program, "initial_state", initial_state)


def _broken_pmap(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = jax.pmap

    def pmap(body: Any, *args: Any, **more: Any) -> Any:
        return honest(lambda state, *rest: body(state._replace(params=scaled(state.params)), *rest), *args, **more)

    monkeypatch.setattr(jax, "pmap", pmap)


def _damaged_on_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    honest = Layout.put

    def put(self: Layout, tree: Any, specs: Any) -> Any:
        tree = tree.copy()
        tree[-1, -1] ^= 1
        return honest(self, tree, specs)

    monkeypatch.setattr(Layout, "put", put)


def _careless(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the losses of steps nor those of evaluations are looked at."""
    monkeypatch.setattr(Progress, "_read_losses", lambda self, most: self._pending.clear())
    monkeypatch.setattr(Measures, "evaluated", lambda self, state, poll: {})


def _large(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_stat", lambda device, name: 1000 if name == "peak_bytes_in_use" else 100)
    monkeypatch.setattr(speed, "_plan", lambda here, config: {"memory": {"total": 800}})
    monkeypatch.setattr(speed, "_seconds_a_step", lambda here, config: 0.0)


def _shifted(steps: Any) -> Any:
    return iter([(np.minimum(indices + 1, 102), weights) for indices, weights in steps])


def _unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing compares digests; and the bit is one that nobody else notices: Orbax packs the numbers, so it notices
    some, and some make a number infinite."""
    monkeypatch.setattr(store, "check_digests", lambda meta, digests: None)
    flip = faults.flip

    def unnoticed(checkpoint: Path) -> None:
        for part in np.linspace(0.3, 0.7, 21):
            flip(checkpoint, part)
            with (store.quiet(), store.Manager(checkpoint.parent, read_only=True) as manager,
                  contextlib.suppress(Exception)):  # any of a dozen types, as of store.twice
                state = manager.read_state(int(checkpoint.name), None)
                if all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state)):
                    return
            flip(checkpoint, part)  # back
        raise AssertionError("all of them are noticed")

    monkeypatch.setattr(faults, "flip", unnoticed)


Breaks = dict[str, tuple[Break, str]]  # and what is said then
OF_THE_HOST: Breaks = {  # or of programs that nothing else uses
    "the tutorial's gradient": (wrapped(model, "mean_loss", lambda loss: loss * 1.001), "1.0e-03 off"),
    "the same with fewer digits": (wrapped(model, "mean_loss", lambda loss: loss * 1.5), "off the host's"),
    "every device computes the same": (_lying_device, "device 2 (cpu, process 0) found other bits"),
    "each training example counts once": (wrapped(Order, "indices", _repeated), "did not count once"),
    "each test example counts once": (wrapped(evaluate._Steps, "__iter__", _shifted), "of 103 examples got another"),
    "two runs: the same bits": (_restless, "the parameters differ: the first run "),
    "loader and device path": (_damaged_on_the_way, "what device 3 (cpu, process 0) holds is not what was sent to it"),
    "a loss that is not finite is found": (_careless, "were made without a word"),
    "copies that differ are found": (replaced(StateDigest, "check", lambda self, state, step: {}), "nobody noticed"),
    "a flipped bit is found": (_unverified, "taken for good"),
    "memory, by the plan": (_large, "0 MiB used, at most 0 planned"),
    "matrix products, by the data sheet": (replaced(cards, "find", lambda kind: cards.CARDS["h100"]), "less than 40%"),
}  # fmt: skip
OF_A_RUNS_PROGRAMS: Breaks = {
    "1, 2, ... devices: the same bits": (
        replaced(reduce, "_tree_sum", lambda parts: functools.reduce(reduce._add, parts)),
        "the parameters differ: all "),
    "replicated and sharded: the same bits": (wrapped(sharded, "gather", scaled), "the parameters differ: replicated "),
    "pmap and shard_map: the same bits": (_broken_pmap, "the parameters differ: shard_map "),
    "long and short dispatches: the same bits": (
        replaced(DeviceBatches, "batch", staticmethod(lambda arrays, i, take=DeviceBatches.batch: take(arrays, i % 4))),
        "the parameters differ: 1 steps "),
    "data on the device or the host: the same bits": (
        wrapped(DeviceBatches, "batch", lambda batch: batch._replace(images=batch.images[..., ::-1]), staticmethod),
        "the parameters differ: device "),
    "audit: two devices find the same": (
        replaced(step, "shard_gradients", lying(step.shard_gradients, 3)), "AuditError: the audit of step 1: "),
}  # fmt: skip


def tried(name: str, here: Here) -> Row:
    row = Row(name)
    _try(row, CHECKS[name], here)
    assert row.finished
    return row


def finds(name: str, breaks: Breaks, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    act, said = breaks[name]
    act(monkeypatch)
    row = tried(name, here)
    assert row.held is False
    assert said in row.detail


@pytest.mark.parametrize("name", OF_THE_HOST)
def test_a_check_finds_what_it_is_for(name: str, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    finds(name, OF_THE_HOST, here, monkeypatch)


@pytest.mark.usefixtures("anew")
@pytest.mark.parametrize("name", OF_A_RUNS_PROGRAMS)
def test_a_check_of_bits_finds_what_it_is_for(name: str, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    finds(name, OF_A_RUNS_PROGRAMS, here, monkeypatch)


@pytest.mark.parametrize("name", arithmetic._COLLECTIVES)
def test_each_collective_is_compared(name: str, here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    honest = arithmetic._COLLECTIVES[name]
    monkeypatch.setitem(arithmetic._COLLECTIVES, name, lambda x, *rest: honest(x, *rest).at[..., -1].add(0.01))
    row = tried("collectives", here)
    assert row.held is False
    assert row.detail.startswith(f"{name} of 112 bytes: device 0 ")


def test_a_slow_step_is_found(here: Here, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_seconds_a_step", lambda here, config: 100.0)
    monkeypatch.setattr(speed, "_plan", lambda here, config: {"predicted_step_seconds": 0.01})
    one = dataclasses.replace(here, layout=make_layout(Config(reduction="invariant", num_devices=1)))
    row = tried("time of a step, by the plan", one)
    assert row.held is False
    assert row.detail.endswith(" 100,000,000 µs a step, predicted 10,000: more than a factor of 10 apart")


STUB = """
import sys, time
from pathlib import Path
from distmlp.run.lines import sealed

folder = Path(sys.argv[-1].removeprefix("--workdir="))
if folder.exists():
    last = {"step": 22, "epoch": 0, "final": True, "params_sha256": "0" * 64}
    (folder / "metrics.jsonl").write_text(sealed(last) + "\\n")
else:
    (folder / "checkpoints" / "5").mkdir(parents=True)
    (folder / "checkpoints" / "10").mkdir()
    time.sleep(60)
"""


@pytest.mark.parametrize(("script", "said"), [
    (STUB, "the parameters differ: killed and resumed 00000000, not killed "),
    ("raise SystemExit('no space')", "a run ended by itself, with exit code 1: no space"),
])  # fmt: skip
def test_a_run_that_does_not_go_on_as_it_should(script: str, said: str, here: Here) -> None:
    row = tried("killed and resumed", dataclasses.replace(here, command=[sys.executable, "-c", script]))
    assert row.held is False
    assert row.detail.startswith(said)


def test_a_run_of_its_own_gets_no_tpu(here: Here) -> None:
    layout: Any = SimpleNamespace(devices=[SimpleNamespace(platform="tpu")])
    row = tried("killed and resumed", dataclasses.replace(here, layout=layout, command=["false"]))
    assert (row.held, row.detail) == (None, "a TPU is one process's at a time, and this one holds it")


def test_a_check_that_hangs_ends_with_the_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is finished is written; the rest has the reason; and the process ends, with what it has started and made."""
    over, codes, written = threading.Event(), [], []
    jobs: list[subprocess.Popen[bytes]] = []
    folders: list[Path] = []

    def ends(code: int) -> None:
        codes.append((code, jobs[0].wait(10), folders[0].exists()))
        over.set()

    def hangs(here: Here) -> str:
        assert here.folder
        folders.append(here.folder)
        here.jobs.append(subprocess.Popen(["sleep", "60"]))
        jobs.extend(here.jobs)
        return str(over.wait(30))

    monkeypatch.setattr(os, "_exit", ends)
    checks = {"good": lambda here: "well", "hangs": hangs, "late": lambda here: "never"}
    verify(3 / 60, time.monotonic(), [], lambda row: None, lambda found: written.append(found.as_json()), checks)
    assert codes == [(1, -signal.SIGKILL, False)]
    assert [(check["name"], check["held"], check["detail"]) for check in written[0]["checks"]] == [
        ("good", True, "well"), ("hangs", None, "not finished within --minutes=0.05"),
        ("late", None, "not reached within --minutes=0.05"),
    ]  # fmt: skip
    assert len(written) == 1


def test_what_cannot_be_written_when_the_time_is_over_keeps_nothing_alive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def write(found: Result) -> None:
        raise InputError("--output=page.html cannot be written")

    codes: list[int] = []
    monkeypatch.setattr(os, "_exit", codes.append)
    end = _End(time.monotonic() - 1, 3, Result([Row("one")], [], {}), write, first=True)
    (tmp_path / "made").mkdir()
    end.folders.append(tmp_path / "made")
    end.jobs.append(subprocess.Popen(["sleep", "60"]))
    end._watch()
    assert (codes, end.jobs[0].wait(10), end.folders[0].exists()) == ([2], -signal.SIGKILL, False)
    assert capsys.readouterr().err == "distmlp: error: --output=page.html cannot be written\n"


def test_the_time_is_that_of_no_clock_that_is_set_or_that_another_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    end, group = _End(time.monotonic() + 900, 15, Result([], [], {}), lambda found: None, first=False), Group()
    monkeypatch.setattr("time.time", lambda: 1e12)
    monkeypatch.setattr(group, "decide", lambda own: min(own, 5.0))  # so many seconds are left to the first process
    end.agree(group)
    assert 4 < end._at - time.monotonic() <= 5
    end.heed()  # returns


def test_without_a_place_for_temporary_files_a_check_that_needs_one_does_not_apply(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def none(prefix: str) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found")

    def touched(path: Path) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    made: list[Path] = []
    monkeypatch.setattr(Path, "touch", touched)
    with _shared_folder(Group(), made) as folder:
        assert folder is None
    assert made
    assert not made[0].exists()
    monkeypatch.setattr("tempfile.mkdtemp", none)
    with _shared_folder(Group(), []) as folder, pytest.raises(NotHere, match="set TMPDIR to one"):
        faults._folder(Here(Group(), make_layout(Config()), folder))


def test_the_page_shows_what_does_not_hold() -> None:
    rows = [Row("one", True, "<fine>", 1.0, True), Row("two", False, "bad", 2.0, True), Row("three", None, "late", 0.0)]
    device = {"id": 0, "kind": "H100", "platform": "gpu", "process": 0, "host": "a&b"}
    shown = page(Result(rows, [device] * 8, {"jax": "1"}))
    assert "1 of 3 not held, 1 not finished" in shown
    assert "8 x H100 on a&amp;b" in shown
    assert "&lt;fine&gt;" in shown


def test_a_page_that_is_there_stays_until_there_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    began: list[str] = []
    monkeypatch.setattr("distmlp.verify.verify.verify", lambda *_: began.append((tmp_path / "page.html").read_text()))
    (tmp_path / "page.html").write_text("of before")
    command.main([f"--output={tmp_path}/page.html"])
    command.main(["--output=/dev/null"])
    assert (began, [*tmp_path.iterdir()]) == (["of before"] * 2, [tmp_path / "page.html"])
    for path, said in ((tmp_path, "Is a directory"), (tmp_path / "none" / "page.html", "No such file")):
        with pytest.raises(InputError, match=f"^--output={path} cannot be written .{said}"):
            command.main([f"--output={path}"])
    assert len(began) == 2


def test_only_the_process_that_writes_the_page_needs_its_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distmlp.verify.verify.verify", lambda *_: 7)
    for name, value in {"WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "1", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert command.main([f"--output={tmp_path}/none/page.html"]) == 7
    monkeypatch.setenv("RANK", "0")
    with pytest.raises(InputError, match=r"none/page\.html cannot be written"):
        command.main([f"--output={tmp_path}/none/page.html"])


@pytest.mark.parametrize("minutes", ["0", "-1", "nan", "inf", "three"])
def test_minutes_that_are_none(minutes: str) -> None:
    with pytest.raises(InputError, match=f"^--minutes={minutes}: give a number above 0$"):
        command.main([f"--minutes={minutes}"])
