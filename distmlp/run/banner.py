"""The lines a run starts with: everything that a reader of its log will want to know."""

import itertools
import platform
import textwrap
from importlib import metadata
from pathlib import Path

import jax

from distmlp.cluster.group import Group
from distmlp.config import Config
from distmlp.data.datasets import Data
from distmlp.errors import listed
from distmlp.parallel import backend
from distmlp.parallel.program import Program


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    names = ("distmlp", "jax", "jaxlib", "numpy", "torch", "orbax-checkpoint", "optax")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def text(config: Config, data: Data, parts: Program, workdir: Path, group: Group) -> str:
    """The banner of a run."""
    layout, sizes, hosts = parts.layout, parts.sizes, group.hosts()
    devices = layout.devices
    kinds = sorted({devices[0].platform, *(device.device_kind for device in devices)})
    parameters = sum((m + 1) * n for m, n in itertools.pairwise(sizes))
    validation = f", {len(data.validation):,} validation" if data.validation else ""
    rows = {
        "versions": ", ".join(f"{name}\u00a0{version}" for name, version in versions().items()),
        "hosts": f"{len(hosts)} ({', '.join(hosts)}), {_count(jax.process_count(), 'process', 'processes')}",
        "devices": f"{len(devices)} x {', '.join(kinds)}: {layout.parallelism}, {config.reduction} reduction",
        "NVIDIA GPU": (reason := backend.unused_gpu(config)) and f"not used: {reason}",
        "data": f"{data.name}: {len(data.train):,} training{validation} and {len(data.test):,} test examples, "
                "training set on the {} ({})".format(*parts.placement),
        "classes": data.classes and f"{len(data.classes)}: {listed(data.classes)}",
        "layers": f"{'-'.join(map(str, sizes))}: {parameters:,} parameters, {config.compute_dtype}, "
                  f"{config.matmul_precision} precision",
        "batch": f"{_count(config.batch_size, 'example')} in {_count(layout.num_shards, 'shard')} of at most "
                 f"{-(-config.batch_size // layout.num_shards)}, on {_count(len(devices), 'device')}",
    }
    lines = [
        textwrap.fill(f"{name:<12} {value}", 80, subsequent_indent=" " * 13, break_on_hyphens=False,
                      break_long_words=False)
        for name, value in rows.items() if value
    ]  # fmt: skip
    return "\n".join([*lines, f"{'workdir':<12} {workdir}"]).replace("\u00a0", " ")


def _count(number: int, one: str, more: str = "") -> str:
    return f"{number:,} {one if number == 1 else more or one + 's'}"
