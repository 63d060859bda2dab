"""What this machine is, asked of the operating system: its processor, its memory, its NVIDIA cards."""

import os
import platform
from pathlib import Path

_CPU_INFO, _NVIDIA_CARDS = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/gpus")


def memory() -> int:
    """Bytes of main memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def nvidia_cards() -> int:
    """How many NVIDIA cards the driver shows, whether JAX can use them or not."""
    return len(list(_NVIDIA_CARDS.iterdir())) if _NVIDIA_CARDS.is_dir() else 0


def processor() -> str:
    """The model of the processor."""
    found = [line.partition(":")[2].strip() for line in _cpu_info("model name")]
    return found[0] if found else platform.processor()


def processor_features() -> str:
    """A text that differs between processors for which a compiler writes different programs."""
    return "".join(_cpu_info("flags", "Features", "model name")[:2]) or platform.machine()


def _cpu_info(*names: str) -> list[str]:
    lines = _CPU_INFO.read_text().splitlines() if _CPU_INFO.exists() else []
    return [line for line in lines if line.startswith(names)]
