"""--platform, JAX_PLATFORMS, and a graphics card that JAX does not use: said in one line, before anything slow."""

import logging
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import pytest
from conftest import REPOSITORY, RunTrain, small_config
from jax._src import compiler, xla_bridge

from distmlp import Config, InputError, machine, train
from distmlp.parallel import backend
from launch import flags


@pytest.fixture
def no_environment(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """As if JAX had been told nothing, and had not complained either."""
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        monkeypatch.delenv(name, raising=False)
    jax.config.update("jax_platforms", None)
    backend._start.cache_clear()
    yield
    jax.config.update("jax_platforms", "cpu")
    backend._start.cache_clear()


@pytest.fixture
def complaint(monkeypatch: pytest.MonkeyPatch, no_environment: None) -> Any:
    """complaint(error): JAX starts as where its CUDA plugin raises this error, which it logs with the traceback."""

    def set_up(error: Exception) -> None:
        real = jax.devices

        def devices() -> Any:
            try:
                raise error
            except Exception:
                logging.getLogger(xla_bridge.__name__).exception("Jax plugin configuration error")
            return real()

        monkeypatch.setattr(jax, "devices", devices)

    return set_up


@pytest.fixture
def card(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system that shows an NVIDIA card."""
    (tmp_path / "gpus" / "0000:01:00.0").mkdir(parents=True)
    monkeypatch.setattr(machine, "_NVIDIA_CARDS", tmp_path / "gpus")


@pytest.mark.parametrize(
    ("name", "platform"),
    [("1gpu", "gpu"), ("8gpu", "gpu"), ("emulated8", "cpu"), ("digits", "auto"), ("tutorial", "auto")],
)
def test_configs_say_what_they_are_for(name: str, platform: str) -> None:
    assert flags.parse(["train", str(REPOSITORY / "configs" / f"{name}.flags")]).platform == platform


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("platform", ["gpu", "tpu"])
def test_a_platform_that_is_not_there_is_refused_before_anything_is_read(platform: str, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=rf"^--platform={platform}, but JAX found none .*pip install.*--platform=cpu$"):
        train(small_config(str(tmp_path / "absent.npz"), platform=platform))
    assert not list(tmp_path.iterdir())


def test_what_jax_said_of_a_broken_cuda_is_in_the_line(complaint: Any, capfd: pytest.CaptureFixture[str]) -> None:
    complaint(RuntimeError("Unable to load cuSPARSE. Is it installed?\nand much more"))
    with pytest.raises(InputError, match=r"none \(Unable to load cuSPARSE. Is it installed\? and much more\): install"):
        backend.check_platform(Config(platform="gpu"))
    assert capfd.readouterr().err == ""  # no traceback of JAX's


def test_platform_cpu_starts_on_the_cpu_only(monkeypatch: pytest.MonkeyPatch, no_environment: None) -> None:
    with backend.prepared(Config(platform="cpu", compilation_cache_dir="")):
        assert jax.config.values["jax_platforms"] == "cpu"
        backend.check_platform(Config(platform="cpu"))
    assert jax.config.values["jax_platforms"] is None


def test_platform_cpu_where_jax_already_runs_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend, "devices", lambda: [SimpleNamespace(platform="gpu")])
    backend.check_platform(Config(platform="gpu"))
    with pytest.raises(InputError, match="--platform=cpu, but JAX already runs on gpu in this process: start again"):
        backend.check_platform(Config(platform="cpu"))


def test_platform_and_jax_platforms_must_not_contradict_each_other(npz: str) -> None:
    assert jax.config.values["jax_platforms"] == "cpu"
    with pytest.raises(InputError, match="JAX_PLATFORMS=cpu excludes --platform=gpu: unset one of the two"):
        train(small_config(npz, platform="gpu"))


@pytest.mark.usefixtures("no_environment")
@pytest.mark.parametrize("platforms", ["cuda", "rocm,cpu", "gpu"])
def test_jax_platforms_may_name_the_gpu_in_jaxs_own_words(platforms: str) -> None:
    jax.config.update("jax_platforms", platforms)
    assert backend._platform(Config(platform="gpu")) == {}
    with pytest.raises(InputError, match=f"JAX_PLATFORMS={platforms} excludes --platform=tpu"):
        backend._platform(Config(platform="tpu"))


def test_a_card_that_is_not_used_is_in_the_banner_with_the_reason(
    card: None, complaint: Any, npz: str, capfd: pytest.CaptureFixture[str]
) -> None:
    complaint(RuntimeError("Unable to load cuBLAS"))
    train(small_config(npz, max_steps=1))
    assert "\nNVIDIA GPU   not used: Unable to load cuBLAS\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [("JAX_PLATFORMS", "cpu", "JAX_PLATFORMS=cpu"), ("CUDA_VISIBLE_DEVICES", "", "CUDA_VISIBLE_DEVICES="),
     ("NOTHING", "", "JAX was installed without CUDA: pip install 'distmlp[cuda]'")],
)  # fmt: skip
def test_why_a_card_is_not_used(
    name: str, value: str, expected: str, card: None, no_environment: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    assert backend.unused_gpu(Config()) == expected
    assert backend.unused_gpu(Config(platform="cpu")) == ""


@pytest.mark.parametrize(("packages", "nvidia", "tpus", "amd", "vain"), [
    (True, False, 0, False, True), (False, False, 0, False, False), (True, True, 0, False, False),
    (True, False, 4, False, False), (True, False, 0, True, False),
])  # fmt: skip
def test_packages_for_devices_that_are_not_there(
    packages: bool, nvidia: bool, tpus: int, amd: bool, vain: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """JAX would look for the devices, for seconds, and complain: it is told to take the CPU."""
    tells = "distmlp.parallel.backend.hardware_utils"
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if packages else None)
    monkeypatch.setattr(f"{tells}.has_visible_nvidia_gpu", lambda: nvidia)
    monkeypatch.setattr(f"{tells}.num_available_tpu_chips_and_device_id", lambda: (tpus, None))
    monkeypatch.setattr(Path, "exists", lambda path: amd and str(path) == "/dev/kfd")
    found = backend._looks_in_vain()
    monkeypatch.undo()
    assert found == vain


def test_without_a_card_the_banner_says_nothing(no_environment: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_NVIDIA_CARDS", Path("absent"))
    assert backend.unused_gpu(Config()) == ""


@pytest.mark.parametrize(
    ("verb", "platforms", "words"),
    [("train", "cuda", "sees no device of the kind): unset it; or install the NVIDIA driver"),
     ("evaluate", "tpu", "libtpu"), ("evaluate", "cdua", "]): unset it; or choose from cpu, cuda, rocm and tpu")],
)  # fmt: skip
def test_jax_platforms_of_what_is_not_there(
    verb: str, platforms: str, words: str, run_verb: RunTrain, finished_run: tuple[Any, Path]
) -> None:
    config, workdir = finished_run
    what = [f"--dataset={config.dataset}", "--workdir=new"] if verb == "train" else [str(workdir)]
    done = run_verb(verb, *what, env={"JAX_PLATFORMS": platforms})
    assert done.returncode == 2
    assert done.stderr.startswith(f"distmlp: error: JAX_PLATFORMS={platforms}, but JAX cannot use it (")
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.full_xla)])
def test_what_a_test_compiles_is_a_users_only_where_it_is_marked(full: bool) -> None:
    options = compiler.get_compile_options(1, 1, backend=jax.devices()[0].client)
    assert ("xla_backend_optimization_level" not in dict(options.env_option_overrides)) == full
