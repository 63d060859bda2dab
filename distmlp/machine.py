"""What this machine is: its processor, memory, disks and NVIDIA cards, and the packages that are installed."""

import contextlib
import errno
import functools
import os
import platform
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path, PurePosixPath

_CPU_INFO, _NVIDIA_CARDS = Path("/proc/cpuinfo"), Path("/proc/driver/nvidia/gpus")
_SELF = Path("/proc/self")
_NO_SYNC = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # of folders; of files it always works
_OWN_GROUPS, _CONTROL_GROUPS = Path("/proc/self/cgroup"), Path("/sys/fs/cgroup")


def memory() -> int:
    """Bytes of main memory that this process may use: the machine's, or fewer where its container has a limit."""
    return min([os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"), *_limits()])


def _limits() -> Iterator[int]:
    """The limits of this process's control groups of both versions, and of those around them, in bytes."""
    groups = os.fsdecode(_OWN_GROUPS.read_bytes()).splitlines() if _OWN_GROUPS.exists() else []
    for number, controllers, path in (line.split(":", 2) for line in groups):
        if number == "0":
            mounts, name = [_CONTROL_GROUPS, _CONTROL_GROUPS / "unified"], "memory.max"
        elif "memory" in controllers.split(","):
            mounts, name = [_CONTROL_GROUPS / "memory"], "memory.limit_in_bytes"
        else:
            continue
        inner = PurePosixPath(path.lstrip("/"))  # in a container it may be a path of the host, of which only / is here
        for group in (mount / outer for mount in mounts for outer in (inner, *inner.parents)):
            with contextlib.suppress(OSError, ValueError):  # there is no such file, or it holds "max"
                yield int((group / name).read_bytes())


def mebibytes_moved() -> int:
    """How many MiB this process has read from files and written to them so far; 0 where the system does not say."""
    with contextlib.suppress(OSError):
        moved = dict(line.split(": ") for line in (_SELF / "io").read_text(encoding="ascii").splitlines())
        return (int(moved["rchar"]) + int(moved["wchar"])) >> 20
    return 0


def age() -> float:
    """For how many seconds this process has been there; 0 where the system does not say."""
    with contextlib.suppress(OSError, ValueError, IndexError, AttributeError):
        fields = (_SELF / "stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        ticks = int(fields[19])  # since the machine was started, as the clock that also runs while it sleeps
        return max(0.0, time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK"))
    return 0.0


def threads(name: str) -> int | None:
    """How many threads of this process have names that begin so; None where the system does not say."""
    found = []
    for path in _SELF.glob("task/*/comm"):
        with contextlib.suppress(OSError):  # it has ended meanwhile
            found.append(path.read_text(encoding="utf-8", errors="replace").startswith(name))
    return sum(found) if found else None


def cores() -> int:
    """How many of its cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sync(path: Path) -> bool:
    """Returns when the disk holds what was written to a file, or which names are in a folder.

    False: of a folder, its file system cannot know that.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno in _NO_SYNC and path.is_dir():
            return False
        raise
    finally:
        os.close(descriptor)
    return True


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
    lines = _CPU_INFO.read_text(encoding="utf-8", errors="replace").splitlines() if _CPU_INFO.exists() else []
    return [line for line in lines if line.startswith(names)]


@functools.cache  # to find one takes a millisecond or two, and every checkpoint tells them all
def version(package: str) -> str:
    """The version of a package; unknown where it is not installed, as distmlp run from a folder of its source."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "unknown"
