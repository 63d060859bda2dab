"""Numbers are the experiment's, not the environment's: JAX's settings, --prng, --seed, --matmul_precision."""

import dataclasses
import errno
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
import tutorial
from conftest import make_arrays, process_env, small_config
from jax.experimental.compilation_cache import compilation_cache

from distmlp import Config, InputError, machine, optim, train
from distmlp.kept import forget
from distmlp.parallel import backend
from distmlp.parallel.digest import params_sha256
from distmlp.parallel.step import initial_state
from distmlp.run.store import Manager

SIZES = [12, 8, 4]
# Everything that reaches for a number: a schedule, Adam's counts, scaling, an order of its own for each epoch.
EVERYTHING = {"optimizer": "adamw", "schedule": "warmup_cosine", "warmup_steps": 2, "input_scaling": "standard",
              "shuffle": True, "clip_norm": 1.0, "max_steps": 7, "num_devices": 1}  # fmt: skip


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, str]:
    """A Config, and the SHA-256 of its parameters with JAX's own settings."""
    folder = tmp_path_factory.mktemp("usual")
    np.savez(folder / "small.npz", **make_arrays())
    config = small_config(str(folder / "small.npz"), **EVERYTHING)
    return config, params_sha256(train(dataclasses.replace(config, workdir=str(folder / "run"))).params)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("jax_enable_x64", True), ("jax_default_prng_impl", "rbg"), ("jax_threefry_partitionable", False),
        ("jax_random_seed_offset", 5), ("jax_numpy_rank_promotion", "allow"), ("jax_numpy_dtype_promotion", "standard"),
    ],
)  # fmt: skip
def test_jax_settings_of_the_user_change_no_number_and_are_left_alone(
    name: str, value: Any, usual: tuple[Any, str]
) -> None:
    config, expected = usual
    before = jax.config.values[name]
    jax.config.update(name, value)
    try:
        settings = dict(jax.config.values)
        assert params_sha256(train(config).params) == expected
        assert dict(jax.config.values) == settings
    finally:
        jax.config.update(name, before)


def test_nor_do_they_within_a_context_of_the_caller(usual: tuple[Any, str]) -> None:
    config, expected = usual
    with jax.enable_x64(True):
        assert params_sha256(train(config).params) == expected
        assert jax.numpy.arange(2.0).dtype == np.float64


@pytest.mark.parametrize(
    ("prng", "impl", "partitionable"),
    [("threefry", "threefry2x32", True), ("threefry_original", "threefry2x32", False), ("rbg", "rbg", True)],
)
def test_prng_draws_the_initial_parameters(prng: str, impl: str, partitionable: bool, npz: str) -> None:
    config = small_config(npz, prng=prng, max_steps=1, learning_rate=1e-30, num_devices=1)
    with jax.default_prng_impl(impl), jax.threefry_partitionable(partitionable):
        expected = tutorial.initial(SIZES)
    assert params_sha256(train(config).params) == params_sha256(expected)


def test_another_prng_is_another_run(npz: str) -> None:
    train(small_config(npz))
    with pytest.raises(InputError, match="--prng was threefry, is rbg"):
        train(small_config(npz, prng="rbg"))


@pytest.mark.parametrize("shuffle", [False, True])
def test_seed_decides_the_initial_parameters_and_the_order(shuffle: bool, npz: str) -> None:
    config = small_config(npz, seed=3, shuffle=shuffle, learning_rate=0.01, num_devices=1, data_placement="host")
    expected, arrays = tutorial.initial(SIZES, seed=3), make_arrays()
    for epoch in range(2):
        generator = torch.Generator().manual_seed(3 + epoch)
        order = torch.randperm(96, generator=generator).numpy() if shuffle else np.arange(96)
        images, labels = arrays["x_train"][order], arrays["y_train"][order]
        expected = tutorial.train_epoch(expected, images, labels, config.batch_size, 4)
    for array, reference in zip(jax.tree.leaves(train(config).params), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(array, reference, rtol=0, atol=1e-6)
    other = initial_state(SIZES, 4, optim.make(config, 1), ())
    assert abs(np.asarray(other.params[0][0]) - np.asarray(expected[0][0])).max() > 1e-3


@pytest.mark.parametrize("precision", ["default", "high", "highest"])
def test_matmul_precision_reaches_the_compiled_step(precision: str, npz: str, tmp_path: Path) -> None:
    forget()  # a test before may have trained the same
    jax.config.update("jax_dump_ir_to", str(tmp_path / "ir"))
    try:
        train(small_config(npz, matmul_precision=precision, max_steps=1, num_devices=1))
    finally:
        jax.config.update("jax_dump_ir_to", "")
    texts = [path.read_text() for path in (tmp_path / "ir").iterdir()]
    products = [line for text in texts for line in text.splitlines() if "stablehlo.dot_general" in line]
    assert len(products) >= 5  # two layers forwards, and backwards; evaluation
    assert all(f"precision = [{precision.upper()}, {precision.upper()}]" in line for line in products)


@pytest.fixture
def own_cache() -> Iterator[None]:
    """Leaves it to the run where compiled programs are kept."""
    before = jax.config.values["jax_compilation_cache_dir"]
    jax.config.update("jax_compilation_cache_dir", None)
    compilation_cache.reset_cache()
    yield
    jax.config.update("jax_compilation_cache_dir", before)
    compilation_cache.reset_cache()


@pytest.mark.usefixtures("own_cache")
def test_the_compilation_cache_is_for_the_run_only(npz: str, tmp_path: Path) -> None:
    folder, settings = tmp_path / "cache", dict(jax.config.values)
    train(small_config(npz, compilation_cache_dir=str(folder), max_steps=1))
    assert dict(jax.config.values) == settings
    kept = {path.name for path in folder.rglob("*")}
    assert any(name.endswith("-cache") for name in kept)
    jax.jit(lambda x: x * 3 + len(kept))(np.arange(5.0))  # the caller's own
    assert {path.name for path in folder.rglob("*")} == kept


@pytest.mark.usefixtures("own_cache")
def test_a_user_without_a_home_trains_without_the_cache(
    npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a container's whose number /etc/passwd does not know."""

    def unknown(number: int) -> None:
        raise KeyError(number)

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", unknown)
    monkeypatch.setattr("os.getuid", lambda: 4711)
    train(Config(dataset=npz, batch_size=20, max_steps=1, hidden_sizes=(8,), workdir="run"))
    (line,) = [line for line in capsys.readouterr().err.splitlines() if "home" in line]
    assert line == ("distmlp: compiled programs are not kept: this user has no home folder; set HOME, or give "
                    "--compilation_cache_dir=FOLDER")
    assert "--compilation_cache_dir=~/.cache/distmlp\n" in (tmp_path / "run" / "run.flags").read_text()
    assert not (tmp_path / "~").exists()
    with pytest.raises(InputError, match=r"^--workdir=~/run: this user has no home folder: set HOME, or give"):
        train(small_config(npz, workdir="~/run"))
    train(small_config(npz, workdir="~run", max_steps=1))  # a name like another
    assert (tmp_path / "~run").is_dir()


@pytest.mark.usefixtures("own_cache")
def test_a_home_that_cannot_be_written_to_costs_the_cache_only(
    npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("HOME", str(tmp_path / "file"))
    train(Config(dataset=npz, batch_size=20, max_steps=1, hidden_sizes=(8,), workdir="run"))
    assert (f"compiled programs are not kept: {tmp_path}/file/.cache/distmlp cannot be made (Not a directory); set HOME"
            in capsys.readouterr().err)


@pytest.mark.usefixtures("own_cache")
def test_a_home_without_locks_costs_the_cache_only(
    npz: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def flock(descriptor: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setattr("fcntl.flock", flock)
    train(Config(dataset=npz, batch_size=20, max_steps=1, hidden_sizes=(8,), workdir=None))
    assert (f"compiled programs are not kept: {tmp_path}/home/.cache/distmlp cannot be locked (No locks available)"
            in capsys.readouterr().err)


@pytest.mark.usefixtures("own_cache")
def test_the_compilation_cache_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "_CACHE_BYTES", 20_000)
    with backend.prepared(Config(compilation_cache_dir=str(tmp_path))):
        for size in range(2, 12):
            jax.jit(lambda x: x * 3 + 1)(np.zeros(size, np.float32))
    kept = list(tmp_path.rglob("*-cache"))
    assert kept
    assert sum(path.stat().st_size for path in kept) <= 20_000


@pytest.mark.usefixtures("own_cache")
def test_a_cache_of_the_callers_is_used_as_it_is(npz: str, tmp_path: Path) -> None:
    jax.config.update("jax_compilation_cache_dir", str(tmp_path / "own"))
    train(small_config(npz, compilation_cache_dir=str(tmp_path / "cache"), max_steps=1))
    assert jax.config.values["jax_compilation_cache_dir"] == str(tmp_path / "own")
    assert not (tmp_path / "cache").exists()


def test_the_invariant_reduction_takes_as_many_devices_as_there_are_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax, "local_device_count", lambda: backend.INVARIANT_CPU_THREADS)
    backend.check_cpu_threads()
    monkeypatch.setattr(jax, "local_device_count", lambda: backend.INVARIANT_CPU_THREADS + 1)
    with pytest.raises(InputError, match="takes at most 16 emulated devices a process, not 17"):
        backend.check_cpu_threads()


def test_without_jit_one_line_says_that_it_cannot(npz: str) -> None:
    with jax.disable_jit(), pytest.raises(InputError, match="JAX_DISABLE_JIT is set"):
        train(small_config(npz))


def test_settings_that_would_change_the_bits_or_refuse_a_run_are_put_aside(npz: str) -> None:
    plain = train(small_config(npz, reduction="invariant", max_steps=4, workdir=None))
    with backend.settings({"jax_disable_most_optimizations": True, "jax_transfer_guard": "disallow"}):
        again = train(small_config(npz, reduction="invariant", max_steps=4, workdir=None))
        assert jax.config.values["jax_disable_most_optimizations"]
        assert jax.config.values["jax_transfer_guard"] == "disallow"
    assert params_sha256(again.params) == params_sha256(plain.params)


def test_the_environment_is_left_alone_once_the_backend_has_started(npz: str) -> None:
    before = dict(os.environ)
    train(small_config(npz, reduction="invariant", max_steps=1))
    assert dict(os.environ) == before


def after_start(code: str, *command: str, **env: str) -> list[str]:
    """Lines that a Python prints for this code, started with these variables, and by this command if it is given."""
    environment = {name: value for name, value in process_env().items() if name not in ("PJRT_NPROC", "NPROC")}
    imports = "import os, jax\nfrom distmlp import Config\nfrom distmlp.parallel import backend\n"
    done = subprocess.run([*command, sys.executable, "-c", imports + code], env=environment | env, capture_output=True,
                          text=True, timeout=120, check=True)  # fmt: skip
    return done.stdout.splitlines()


def test_a_number_of_threads_that_came_too_late_is_refused(npz: str) -> None:
    """As in a notebook that has used JAX before: nothing may count but what the backend has started with."""
    config = f"Config(dataset={npz!r}, hidden_sizes=(8,), batch_size=20, max_steps=1, workdir=None"
    code = (f"from distmlp import InputError, train\njax.devices()\nos.environ['PJRT_NPROC'] = '16'\n"
            f"try:\n    train({config}, reduction='invariant'))\n"
            "except InputError as error:\n    print(error)\n")  # fmt: skip
    (said,) = after_start(code, PJRT_NPROC="3")
    assert "needs PJRT_NPROC=16 in the environment when JAX starts, and JAX has started with 3: start again" in said


def test_what_counts_are_the_threads_that_are_there(npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PJRT_NPROC", "3")
    train(small_config(npz, reduction="invariant", max_steps=1))
    assert Manager(Path("run/checkpoints"), read_only=True).read_meta(1)["versions"]["PJRT_NPROC"] == "16"


def test_where_threads_cannot_be_counted_only_a_backend_of_our_own_is_known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "threads", lambda name: None)
    backend._start.cache_clear()
    try:
        with pytest.raises(InputError, match="nobody can tell how many JAX has started with"):
            backend.check_cpu_threads()
    finally:
        backend._start.cache_clear()
    code = ("backend.machine.threads = lambda name: None\nwith backend.prepared(Config(reduction='invariant')):\n"
            "    backend.devices()\nos.environ['PJRT_NPROC'] = '3'\nprint(backend.cpu_threads())\n")
    assert after_start(code) == ["16"]


@pytest.mark.parametrize(
    ("command", "env", "threads"),
    [((), {"PJRT_NPROC": "5"}, "5"), ((), {"PJRT_NPROC": "x", "NPROC": "3"}, "3"), ((), {"NPROC": "1"}, "1"),
     (("taskset", "-c", "0"), {}, "1"),
     ((), {"PJRT_NPROC": "2", "XLA_FLAGS": "--xla_force_host_platform_device_count=4"}, "4")],
)
def test_programs_for_other_numbers_of_threads_are_kept_apart(
    command: tuple[str, ...], env: dict[str, str], threads: str
) -> None:
    """The folder is chosen before the backend starts, or after: both times by what its pool has."""
    code = ("def folder():\n    return backend._compilation_cache(Config())['jax_compilation_cache_dir']\n"
            "before = folder()\njax.devices()\nos.environ['PJRT_NPROC'] = '7'\nprint(before)\nprint(folder())\n"
            "print(backend.cpu_threads())\n")
    before, after, found = after_start(code, *command, **env)
    assert (before, found) == (after, threads)
    assert before.endswith(f"-{threads}")
