"""The lines a run starts with: everything that a reader of its log will want to know."""

import itertools
import platform
from importlib import metadata
from pathlib import Path
from typing import Any

import jax

from distmlp.cluster import group
from distmlp.config import Config
from distmlp.data.datasets import Data
from distmlp.data.labels import listed
from distmlp.parallel.mesh import Layout


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that results depend on."""
    names = ("distmlp", "jax", "jaxlib", "numpy", "torch", "orbax-checkpoint", "optax")
    return {"python": platform.python_version(), **{name: metadata.version(name) for name in names}}


def text(config: Config, data: Data, layout: Layout, sizes: list[int], placement: str, workdir: Path) -> str:
    """The banner of a run; `placement` says where the training set lies, and why."""
    kinds = {device.device_kind for device in layout.devices}
    parameters = sum((m + 1) * n for m, n in itertools.pairwise(sizes))
    shards = f"{layout.num_shards} shards of {-(-config.batch_size // layout.num_shards)}"
    hosts = group.hosts()
    rows: dict[str, Any] = {
        "versions": ", ".join(f"{name} {version}" for name, version in versions().items()),
        "hosts": f"{len(hosts)} ({', '.join(hosts)}), {jax.process_count()} process"
                 f"{'es' if jax.process_count() > 1 else ''}",
        "devices": f"{len(layout.devices)} x {layout.devices[0].platform} ({', '.join(sorted(kinds))})",
        "parallelism": f"{layout.parallelism}, {config.reduction} reduction",
        "data": f"{data.name}: {len(data.train):,} training and {len(data.test):,} test examples, "
                f"training set on the {placement}",
        "classes": data.classes and f"{len(data.classes)}: {listed(data.classes)}",
        "layers": f"{'-'.join(map(str, sizes))}, {parameters:,} parameters, {config.compute_dtype}, "
                  f"{config.matmul_precision} matmul precision",
        "batch": f"{config.batch_size} = {shards}, {layout.shards_per_device} a device",
        "workdir": workdir,
    }
    return "\n".join(f"{name:<12} {value}" for name, value in rows.items() if value)
