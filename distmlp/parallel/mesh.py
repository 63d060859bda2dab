"""Devices and what lies where: the only file that names the mesh axis or places an array."""

import dataclasses
import functools
import os
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from distmlp.config import Config
from distmlp.errors import InputError
from distmlp.parallel import backend

AXIS = "data"
INVARIANT_SHARDS = 8
# On GPUs: all products by cuBLAS. It takes bias and ReLU into them, where XLA's own (Triton) are split and leave each a
# kernel; and XLA's have no configuration to fall back on where none may be tried out.
_GPU_OPTIONS = {"xla_gpu_enable_triton_gemm": False}
# Library calls that give the same bits in every run and for every process: nothing is chosen by timing it.
_GPU_DETERMINISM = {"xla_gpu_deterministic_ops": True}


@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices of a run and the shards that each computes: device d has shards [d*k, (d+1)*k)."""

    devices: tuple[jax.Device, ...]
    parallelism: str  # single, pmap or shard_map
    num_shards: int
    deterministic: bool = False  # every run must give the same bits
    memory: int = 0  # bytes of a device, where it is only described

    @property
    def accelerated(self) -> bool:
        return bool(self.devices[0].platform != "cpu")

    @property
    def compiler_options(self) -> dict[str, Any] | None:
        """What XLA is told beyond its defaults, unless XLA_FLAGS says otherwise."""
        if self.devices[0].platform != "gpu":
            return None
        options = _GPU_OPTIONS | (_GPU_DETERMINISM if self.deterministic else {})
        return {name: value for name, value in options.items() if name not in os.environ.get("XLA_FLAGS", "")}

    @functools.cached_property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    @property
    def shards_per_device(self) -> int:
        return -(-self.num_shards // len(self.devices))

    @property
    def adds_in_pairs(self) -> bool:
        """Whether the fast reduction does without XLA's all-reduce: on several CPU processes, where Gloo carries it."""
        count = len(self.devices)
        return jax.process_count() > 1 and self.devices[0].platform == "cpu" and count & (count - 1) == 0

    @functools.cached_property
    def local_positions(self) -> list[int]:
        """Which of `devices` belong to this process."""
        return [i for i, d in enumerate(self.devices) if d.process_index == jax.process_index()]

    @property
    def local_shards(self) -> list[int]:
        """The shards of this process's devices; numbers from num_shards on are empty shards."""
        k = self.shards_per_device
        return [shard for device in self.local_positions for shard in range(device * k, (device + 1) * k)]

    def placement(self, axis: int | None) -> Any:
        """The sharding of an array whose axis number `axis` is dealt to the devices; None: each holds a copy."""
        if self.parallelism == "single":
            return jax.sharding.SingleDeviceSharding(self.devices[0])
        return NamedSharding(self.mesh, partition(axis))

    def put(self, arrays: Any, axes: Any) -> Any:
        """This process's part of host arrays -> global arrays on the devices.

        Args:
          arrays: a tuple of NumPy arrays.
          axes: for each, the axis that counts shards, which is dealt to the devices; None for an array that every
            device gets whole. pmap wants that axis split into [devices, shards per device].
        """
        placed = [array.reshape(self._split(array.shape, axis)) for array, axis in zip(arrays, axes, strict=True)]
        placements = [self._placements[axis] for axis in axes]
        if jax.process_count() == 1:
            return jax.device_put(placed, placements)
        with jax.transfer_guard("allow"):  # to the guard, jax's own transfer here is an implicit one
            return [jax.make_array_from_process_local_data(p, a) for a, p in zip(placed, placements, strict=True)]

    def abstract(self, arrays: Any, axes: Any) -> list[jax.ShapeDtypeStruct]:
        """Shapes, dtypes and placements of what `put` would return for arrays of such shapes and dtypes."""
        result = []
        for array, axis in zip(arrays, axes, strict=True):
            shape = list(array.shape)
            if axis is not None:
                shape[axis] = shape[axis] // len(self.local_positions) * len(self.devices)
            place = self._placements[axis]
            result.append(jax.ShapeDtypeStruct(self._split(shape, axis), array.dtype, sharding=place))
        return result

    def _split(self, shape: Sequence[int], axis: int | None) -> tuple[int, ...]:
        """The shape of an array whose axis number `axis` is dealt to the devices, as the wrapping wants it."""
        if axis is None or self.parallelism != "pmap":
            return tuple(shape)
        count = len(self.devices)
        return (*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])

    @functools.cached_property
    def _placements(self) -> dict[int | None, Any]:
        return {axis: self.placement(axis) for axis in (None, 0, 1)}

    def replicate(self, tree: Any) -> Any:
        """The same host values on every device."""
        leaves, structure = jax.tree.flatten(tree)
        return jax.tree.unflatten(structure, self.put(leaves, [None] * len(leaves)))


def partition(axis: int | None) -> P:
    """The PartitionSpec of an array whose axis number `axis` is dealt to the devices; None: each holds a copy."""
    return P() if axis is None else P(*[None] * axis, AXIS)


def make_layout(config: Config, devices: Sequence[jax.Device] = (), memory: int = 0) -> Layout:
    """The devices that a run uses, and how; starts the backend.

    Those to choose from may be given, where they are only described, with the bytes that one has.

    Raises:
      InputError: not so many devices, or a mode that they cannot run.
    """
    available = list(devices) or backend.devices()
    kind = available[0].platform
    wanted = config.num_devices or len(available)
    if wanted > len(available):
        raise InputError(f"--num_devices={wanted}, but there {_are(len(available), kind)}{_remedy(kind, wanted)}")
    if config.expect_devices not in (0, wanted):
        raise InputError(f"--expect_devices={config.expect_devices}, but there {_are(wanted, kind)}"
                         f"{_remedy(kind, config.expect_devices)}")
    parallelism, processes = config.parallelism, jax.process_count()
    if processes > 1 and wanted != len(available):
        raise InputError(f"--num_devices={wanted} goes with one process: {processes} processes use all of their "
                         f"{len(available)} devices")
    if processes > 1 and parallelism in ("single", "pmap"):
        raise InputError(f"--parallelism={parallelism} is for one process: give --parallelism=shard_map")
    counts = [sum(device.process_index == process for device in available) for process in range(processes)]
    if len(set(counts)) > 1:
        raise InputError(f"the processes have {', '.join(map(str, counts))} devices: give each as many, by "
                         "CUDA_VISIBLE_DEVICES, or the launcher's number of processes on each host")
    if parallelism == "auto":
        parallelism = "single" if wanted == 1 else "shard_map"
    if parallelism == "single" and wanted > 1:
        raise InputError(f"--parallelism=single uses one device, but there {_are(wanted, kind)}: "
                         "give --num_devices=1 or --parallelism=shard_map")
    num_shards = config.num_shards or (INVARIANT_SHARDS if config.reduction == "invariant" else wanted)
    if num_shards < wanted:
        raise InputError(f"--num_shards={num_shards} is fewer than the {wanted} devices: "
                         f"give --num_shards={wanted} or more, or --num_devices={num_shards}")
    if config.reduction == "invariant" and kind == "cpu":
        _check_cpu_threads()
    return Layout(tuple(available[:wanted]), parallelism, num_shards, config.reduction == "invariant", memory)


def _check_cpu_threads() -> None:
    threads = os.environ.get("PJRT_NPROC")
    if threads != str(backend.INVARIANT_CPU_THREADS):
        state = f"is {threads}" if threads else "was not set when JAX's backend started"
        raise InputError(f"--reduction=invariant needs PJRT_NPROC={backend.INVARIANT_CPU_THREADS} in the environment, "
                         f"which {state}: start again with it (in a notebook, restart the kernel and run this first)")
    if jax.local_device_count() > backend.INVARIANT_CPU_THREADS:
        raise InputError(f"--reduction=invariant on CPU takes at most {backend.INVARIANT_CPU_THREADS} emulated devices "
                         f"a process, not {jax.local_device_count()}: lower xla_force_host_platform_device_count")


def _are(count: int, kind: str) -> str:
    return f"is 1 {kind} device" if count == 1 else f"are {count} {kind} devices"


def _remedy(kind: str, wanted: int) -> str:
    if kind == "cpu":
        return (f": emulate them with XLA_FLAGS=--xla_force_host_platform_device_count={wanted} "
                "(see configs/emulated8.flags), or use configs/tutorial.flags")
    return f": use configs/1gpu.flags, or a machine with {wanted} of them"
