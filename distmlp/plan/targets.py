"""Devices that are only described: what XLA's compilers for GPUs and TPUs need, on a machine that has neither."""

import importlib.util
import math
import os
import re
from collections.abc import Sequence
from typing import Any

import jax

from distmlp.errors import InputError, one_line
from distmlp.plan.cards import CARDS, Card, gpu_description

_GPUS = [name for name in CARDS if CARDS[name].per_host]
_TPUS = [name for name in CARDS if not CARDS[name].per_host]
CHOICES = f"{'|'.join(_GPUS)}:COUNT, as in h100:8, or {'|'.join(_TPUS)}:SHAPE, as in v5e:2x4"
# The shapes that Google rents (https://cloud.google.com/tpu/docs): any others make libtpu end the process.
_SQUARES = [(1, 1), (2, 2), (2, 4), (4, 4), (4, 8), (8, 8), (8, 16), (16, 16)]  # v5e and v6e
_PARTS_OF_CUBES = [(2, 2, 1), (2, 2, 2), (2, 2, 4), (2, 4, 4)]
_CUBES = {"v4": 4096, "v5p": 8960}  # chips at most, in cubes of 4x4x4
_EXTRA = "pip install 'distmlp[targets]'"


def prepare() -> None:
    """To be called before libtpu is loaded: else it asks the cloud's metadata service which machine this is, and
    complains that there is none."""
    for name, value in (("TPU_SKIP_MDS_QUERY", "1"), ("TPU_ACCELERATOR_TYPE", "v5litepod-8"),
                        ("TPU_WORKER_HOSTNAMES", "localhost")):
        os.environ.setdefault(name, value)


def find(target: str) -> tuple[Card, Sequence[jax.Device]]:
    """The card and the devices of a target such as h100:8 or v5e:2x4; they can be compiled for, and nothing else.

    Raises:
      InputError: there is no such target, or the package is missing that its compiler is in.
    """
    name, _, shape = target.partition(":")
    if name not in CARDS:
        raise InputError(f"--target={target}: choose {CHOICES}")
    if not re.fullmatch(r"[1-9]\d*" if name in _GPUS else r"[1-9]\d*x[1-9]\d*(x[1-9]\d*)?", shape):
        form = "a number of GPUs, as in h100:8" if name in _GPUS else "a shape, as in v5e:2x4 or v5p:2x2x2"
        raise InputError(f"--target={target}: give {form}")
    return CARDS[name], _gpus(target, name, int(shape)) if name in _GPUS else _tpus(target, name, shape)


def _gpus(target: str, name: str, count: int) -> Sequence[jax.Device]:
    if not any(_installed(f"jax_plugins.xla_cuda{version}") for version in (12, 13)):
        raise InputError(f"--target={target} needs XLA's compiler for GPUs: {_EXTRA}")
    per_host = CARDS[name].per_host
    if count > per_host and count % per_host:
        raise InputError(f"--target={target}: more than {per_host} GPUs are hosts of {per_host}: "
                         f"give {name}:{count // per_host * per_host} or {name}:{(count // per_host + 1) * per_host}")
    hosts = f"{count // per_host}x{per_host}" if count > per_host else f"1x{count}"
    return _describe(target, "any", "cuda", topology=f"1x{hosts}", target_config=gpu_description(name))


def _tpus(target: str, name: str, shape: str) -> Sequence[jax.Device]:
    if not _installed("libtpu"):
        raise InputError(f"--target={target} needs XLA's compiler for TPUs: {_EXTRA}")
    sizes = tuple(int(size) for size in shape.split("x"))
    options: dict[str, Any] = {}
    if name in _CUBES:
        sizes += (1,) * (3 - len(sizes))
        options["chip_config_name"] = "megacore"  # a chip's two cores are one device
        whole_cubes = all(size % 4 == 0 for size in sizes) and math.prod(sizes) <= _CUBES[name]
        if sizes not in _PARTS_OF_CUBES and not whole_cubes:
            raise InputError(f"--target={target}: there is no such shape: give one of {_words(_PARTS_OF_CUBES)}, or "
                             f"multiples of 4, as in {name}:4x4x8, of at most {_CUBES[name]:,} chips")
    elif sizes not in _SQUARES:
        raise InputError(f"--target={target}: there is no such shape: give one of {_words(_SQUARES)}")
    if sizes == (1, 1):
        options["chips_per_host_bounds"] = (1, 1, 1)  # instead of hosts of 2x2
    return _describe(target, f"{name}:{'x'.join(map(str, sizes))}", "tpu", **options)


def _words(shapes: Sequence[tuple[int, ...]]) -> str:
    return ", ".join("x".join(map(str, shape)) for shape in shapes)


def _describe(target: str, name: str, platform: str, **options: Any) -> Sequence[jax.Device]:
    from jax.experimental import topologies

    try:
        return topologies.get_topology_desc(name, platform=platform, **options).devices
    except Exception as error:  # jax's own type and ValueError, ...: whatever the compiler says of the shape
        reason = one_line(error, 200)
        raise InputError(f"--target={target}: there is no such shape ({reason}): choose {CHOICES}") from None


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # not even what it is a part of
        return False
