"""What JAX is told before and while a run trains: nothing in the user's environment may change the numbers."""

import contextlib
import hashlib
import os
import platform
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
from jax._src import xla_bridge
from jax.experimental.compilation_cache import compilation_cache

from distmlp.config import Config, InputError

# Threads of XLA's CPU pool under --reduction=invariant, on every machine: the bits of a matrix product depend on it.
# 16 is also enough for 8 emulated devices not to starve one another in a collective (twice the devices).
INVARIANT_CPU_THREADS = 16
_CACHE_BYTES = 1 << 30  # the programs used least recently go


@contextlib.contextmanager
def prepared(config: Config) -> Iterator[None]:
    """JAX as a run needs it, within this context; afterwards its settings are the caller's again.

    What XLA reads only when it starts stays in the environment: PJRT_NPROC. If the backend has started before, as it
    may have in a notebook, it is left alone.

    Raises:
      InputError: JAX_DISABLE_JIT is set.
    """
    if jax.config.jax_disable_jit:  # type: ignore[attr-defined]
        raise InputError("JAX_DISABLE_JIT is set, but steps are compiled ahead of the first one: unset it; "
                         "jax.debug.print and jax.debug.breakpoint look into a compiled step")
    if not xla_bridge.backends_are_initialized():
        _set_environment(config)
    with _compilation_cache(config), pinned(config):
        yield


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


@contextlib.contextmanager
def _compilation_cache(config: Config) -> Iterator[None]:
    """Keeps compiled programs in config.compilation_cache_dir, unless the caller has a folder of its own for them."""
    settings: dict[str, Any] = {}
    if config.compilation_cache_dir and not jax.config.values["jax_compilation_cache_dir"]:
        settings = {
            "jax_compilation_cache_dir": str(Path(config.compilation_cache_dir).expanduser() / _cache_key()),
            "jax_compilation_cache_max_size": _CACHE_BYTES,
            "jax_persistent_cache_min_compile_time_secs": 0.0,  # jax's default of 1 s would skip this MLP
        }
    before = {name: jax.config.values[name] for name in settings}
    try:
        _update(settings)
        yield
    finally:
        _update(before)


def _update(settings: dict[str, Any]) -> None:
    for name, value in settings.items():
        jax.config.update(name, value)
    if settings:
        compilation_cache.reset_cache()  # it looks at them once only


def _cache_key() -> str:
    """What CPU programs depend on besides what jax looks at: the processor's features and XLA's thread count."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else [platform.machine()]
    features = [line for line in lines if line.startswith(("flags", "Features", "model name"))]
    digest = hashlib.sha256("".join(features[:2]).encode()).hexdigest()[:12]
    return f"lru-{digest}-{os.environ.get('PJRT_NPROC') or os.environ.get('NPROC') or os.cpu_count()}"


def _set_environment(config: Config) -> None:
    if config.reduction == "invariant":
        os.environ.setdefault("PJRT_NPROC", str(INVARIANT_CPU_THREADS))
    elif (devices := _emulated_devices()) > 1:
        os.environ.setdefault("PJRT_NPROC", str(max(INVARIANT_CPU_THREADS, 2 * devices)))


def _emulated_devices() -> int:
    if (configured := jax.config.values["jax_num_cpu_devices"]) > 0:
        return int(configured)
    found = re.findall(r"xla_force_host_platform_device_count=(\d+)", os.environ.get("XLA_FLAGS", ""))
    return int(found[-1]) if found else 1
