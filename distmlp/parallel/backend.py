"""What JAX is told before and while a run trains: nothing in the user's environment may change the numbers."""

import contextlib
import fcntl
import functools
import hashlib
import importlib.util
import logging
import logging.handlers
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
from jax._src import checkify, hardware_utils, xla_bridge  # noqa: F401 # checkify, as core: see below
from jax._src.pallas import core  # noqa: F401
from jax.experimental.compilation_cache import compilation_cache

from distmlp import machine
from distmlp.config import Config
from distmlp.errors import InputError, remark

# checkify and pallas add to jax's kinds of effects when they are imported, as Orbax does while another thread traces a
# program: its walk over those kinds would fail ("Set changed size during iteration"). So they are imported before.

# Threads of XLA's CPU pool under --reduction=invariant, on every machine: the bits of a matrix product depend on it.
# 16 is also enough for 8 emulated devices not to starve one another in a collective (twice the devices).
INVARIANT_CPU_THREADS = 16
# On GPUs: all products by cuBLAS. It takes bias and ReLU into them, where XLA's own (Triton) are split and leave each a
# kernel; and XLA's have no configuration to fall back on where none may be tried out.
_GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
# Library calls that give the same bits in every run and for every process: nothing is chosen by timing it.
_GPU_DETERMINISM = {"xla_gpu_deterministic_ops": True}
_POOL = "tf_XLAEigen"  # what the names of the threads begin with
_CACHE_BYTES = 1 << 30  # the programs used least recently go
_MISSING = {
    "gpu": "install the NVIDIA driver and `pip install 'distmlp[cuda]'`, or train on the CPU with --platform=cpu",
    "tpu": "on a TPU host, `pip install 'jax[tpu]'`; or train on the CPU with --platform=cpu",
}


@contextlib.contextmanager
def prepared(config: Config) -> Iterator[None]:
    """JAX as a run needs it, within this context; afterwards its settings are the caller's again.

    What XLA reads only when it starts stays in the environment: PJRT_NPROC. If the backend has started before, as it
    may have in a notebook, it is left alone.

    Raises:
      InputError: JAX_DISABLE_JIT is set, or JAX_PLATFORMS excludes --platform.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined] # of this thread, unlike jax.config.values
        raise InputError("JAX_DISABLE_JIT is set, but steps are compiled ahead of the first one: unset it; "
                         "jax.debug.print and jax.debug.breakpoint look into a compiled step")
    if not xla_bridge.backends_are_initialized():
        _set_environment(config)
    # Of all threads: without optimizations there are other bits, and a guard would refuse what sets up a run.
    usual = {"jax_disable_most_optimizations": False, "jax_transfer_guard": "allow"}
    usual = {name: value for name, value in usual.items() if jax.config.values[name] not in (None, value)}
    with settings(_platform(config) | _compilation_cache(config) | usual), pinned(config):
        yield


@contextlib.contextmanager
def settings(values: dict[str, Any]) -> Iterator[None]:
    """Within this context, JAX's settings of these names are these."""

    def update(values: dict[str, Any]) -> None:
        for name, value in values.items():
            jax.config.update(name, value)
        if values:
            compilation_cache.reset_cache()  # it looks at them once only

    before = {name: jax.config.values[name] for name in values}
    try:
        update(values)
        yield
    finally:
        update(before)


def _platform(config: Config) -> dict[str, Any]:
    """With --platform=cpu, a backend that starts leaves accelerators alone."""
    before = jax.config.values["jax_platforms"]
    names = {"gpu": ("gpu", "cuda", "rocm")}.get(config.platform, (config.platform,))
    if before and config.platform != "auto" and not set(names) & set(before.split(",")):
        raise InputError(f"JAX_PLATFORMS={before} excludes --platform={config.platform}: unset one of the two")
    return {"jax_platforms": "cpu"} if config.platform == "cpu" else {}


def _compilation_cache(config: Config) -> dict[str, Any]:
    """Keeps compiled programs in config.compilation_cache_dir, unless the caller has a folder of its own for them."""
    if not config.compilation_cache_dir or jax.config.values["jax_compilation_cache_dir"]:
        return {}
    folder = os.path.expanduser(config.compilation_cache_dir)
    reason = "this user has no home folder" if folder.startswith("~/") else ""  # a number that /etc/passwd lacks
    if not reason:
        what = "made"
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            what = "written to"
            with (Path(folder) / "trial").open("wb") as file:
                what = "locked"
                fcntl.flock(file, fcntl.LOCK_SH)  # as jax will, which would warn of each program
        except OSError as error:
            reason = f"{folder} cannot be {what} ({error.strerror})"
    if reason:
        remark(f"compiled programs are not kept: {reason}; set HOME, or give --compilation_cache_dir=FOLDER")
        return {}
    # CPU programs depend on more than jax looks at: the processor's features, and the number of XLA's threads.
    digest = hashlib.sha256(machine.processor_features().encode()).hexdigest()[:12]
    key = f"lru-{digest}-{cpu_threads() or _threads_to_come()}"
    return {
        "jax_compilation_cache_dir": str(Path(folder) / key),
        "jax_compilation_cache_max_size": _CACHE_BYTES,
        "jax_persistent_cache_min_compile_time_secs": 0.0,  # jax's default of 1 s would skip this MLP
    }


def devices() -> list[jax.Device]:
    """JAX's devices, of all processes; starts the backend.

    Raises:
      InputError: JAX_PLATFORMS names a platform that is not there.
    """
    try:
        _start()
    except (AssertionError, RuntimeError) as error:
        given = jax.config.values["jax_platforms"] or ""
        if "backend 'cpu'" in str(error) or given in ("", "cpu"):
            raise  # no platform is missing: another process, perhaps, is gone
        said = _brief(str(error)) or "it sees no device of the kind"
        remedy = _MISSING.get({"cuda": "gpu", "rocm": "gpu"}.get(given, given), "choose from cpu, cuda, rocm and tpu")
        raise InputError(f"JAX_PLATFORMS={given}, but JAX cannot use it ({said}): unset it; or {remedy}") from None
    return jax.devices()


def device_memory(device: jax.Device) -> int | None:
    """Bytes that a device has for arrays; None where it says none, as a CPU's, whose memory is the host's."""
    return (device.memory_stats() or {}).get("bytes_limit")


def check_platform(config: Config) -> None:
    """Starts the backend; raises InputError unless it is that of config.platform."""
    kind = devices()[0].platform
    if config.platform in ("auto", kind):
        return
    if config.platform == "cpu":
        raise InputError(f"--platform=cpu, but JAX already runs on {kind} in this process: start again, in a notebook "
                         "with Restart Kernel, or set JAX_PLATFORMS=cpu before")
    said = _start().said or "it says no reason"
    raise InputError(f"--platform={config.platform}, but JAX found none ({said}): {_MISSING[config.platform]}")


def unused_gpu(config: Config) -> str:
    """Why JAX is on the CPU though the system shows an NVIDIA card; empty if it is not, or as --platform says."""
    if config.platform != "auto" or not machine.nvidia_cards() or devices()[0].platform != "cpu":
        return ""
    for name in ("JAX_PLATFORMS", "CUDA_VISIBLE_DEVICES"):
        if name in os.environ:
            return f"{name}={os.environ[name]}"
    return _start().said or "JAX was installed without CUDA: pip install 'distmlp[cuda]'"


class _Start(NamedTuple):
    said: str  # what JAX complained of meanwhile, in short, instead of logging it; so it tells of a CUDA that it lacks
    threads: int | None  # of XLA's CPU pool; None if somebody else has started the backend before


@functools.cache
def _start() -> _Start:
    """Starts the backend unless it has been before."""
    threads = None if xla_bridge.backends_are_initialized() else _threads_to_come()
    logger, heard = logging.getLogger(xla_bridge.__name__), logging.handlers.BufferingHandler(1000)
    before, logger.propagate = logger.propagate, False
    heard.setLevel(logging.WARNING)
    logger.addHandler(heard)
    try:
        jax.devices()
    finally:
        logger.removeHandler(heard)
        logger.propagate = before
    said = [str(record.exc_info[1]) if record.exc_info else record.getMessage() for record in heard.buffer]
    return _Start(_brief(said[-1]) if said else "", threads)


def cpu_threads() -> int | None:
    """Threads of XLA's CPU pool, once the backend has started: counted, as the environment may have changed since.

    None if it has not started, or if the system does not show them and somebody else has started it.
    """
    if not xla_bridge.backends_are_initialized():
        return None
    return machine.threads(_POOL) or _start().threads


def _threads_to_come() -> int:
    """What XLA's CPU pool will have if the backend starts now."""
    given = [int(text) for name in ("PJRT_NPROC", "NPROC") if (text := os.environ.get(name, "")).isdecimal()]
    return max([*given, machine.cores()][0], _emulated_devices())


def _emulated_devices() -> int:
    flag = re.findall(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return max(jax.config.values["jax_num_cpu_devices"], 0) or int((flag or [1])[-1])


def _brief(text: str) -> str:
    """What JAX says of a platform, in a line of at most 200 characters."""
    text = re.sub(r"^Unable to initialize backend '\w+': |\(set JAX_PLATFORMS=.*|\(you may need to .*", "", text)
    return " ".join(text.split())[:200].rstrip(". ")


@contextlib.contextmanager
def pinned(config: Config) -> Iterator[None]:
    """Within this context, and in this thread only, what changes JAX's numbers is as `config` says."""
    with (
        jax.enable_x64(False),
        jax.default_prng_impl("rbg" if config.prng == "rbg" else "threefry2x32"),
        jax.threefry_partitionable(config.prng != "threefry_original"),
        jax.default_matmul_precision(config.matmul_precision),
    ):
        yield


def _set_environment(config: Config) -> None:
    if not jax.config.values["jax_platforms"] and _looks_in_vain():
        jax.config.update("jax_platforms", "cpu")
    if config.reduction == "invariant":
        os.environ.setdefault("PJRT_NPROC", str(INVARIANT_CPU_THREADS))
    elif (emulated := _emulated_devices()) > 1:
        os.environ.setdefault("PJRT_NPROC", str(max(INVARIANT_CPU_THREADS, 2 * emulated)))


def _looks_in_vain() -> bool:
    """Whether packages for GPUs or TPUs are here without such a device: jax would lose seconds, and complain."""
    if not (importlib.util.find_spec("libtpu") or importlib.util.find_spec("jax_plugins")):
        return False
    found = hardware_utils.has_visible_nvidia_gpu() or hardware_utils.num_available_tpu_chips_and_device_id()[0]
    return not found and not Path("/dev/kfd").exists()  # AMD's


def gpu_options(invariant: bool) -> dict[str, Any]:
    """What XLA is told on GPUs beyond its defaults, unless XLA_FLAGS says otherwise."""
    options = _GPU_OPTIONS | (_GPU_DETERMINISM if invariant else {})
    return {name: value for name, value in options.items() if name not in os.environ.get("XLA_FLAGS", "")}


def check_cpu_threads() -> None:
    """Raises InputError unless XLA's CPU pool has the threads that the invariant reduction's bits depend on."""
    if jax.local_device_count() > INVARIANT_CPU_THREADS:
        raise InputError(f"--reduction=invariant on CPU takes at most {INVARIANT_CPU_THREADS} emulated devices "
                         f"a process, not {jax.local_device_count()}: lower xla_force_host_platform_device_count")
    threads = cpu_threads()
    if threads != INVARIANT_CPU_THREADS:
        state = f"JAX has started with {threads}" if threads else "nobody can tell how many JAX has started with"
        raise InputError(f"--reduction=invariant needs PJRT_NPROC={INVARIANT_CPU_THREADS} in the environment when JAX "
                         f"starts, and {state}: start again with it (in a notebook, restart the kernel and run this "
                         "first)")
