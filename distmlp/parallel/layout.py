"""The devices of a run, which shards each computes, and how arrays and functions come to them."""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

from distmlp import machine
from distmlp.config import Config
from distmlp.errors import InputError
from distmlp.parallel import backend
from distmlp.parallel.specs import AXIS, DEALT, REPLICATED, dealt_axis

INVARIANT_SHARDS = 8


@dataclasses.dataclass(frozen=True)
class Layout:
    """The devices of a run and the shards that each computes: device d has shards [d*k, (d+1)*k)."""

    devices: tuple[jax.Device, ...]
    parallelism: str  # single, pmap or shard_map
    num_shards: int
    invariant: bool = False  # every run must give the same bits
    memory: int = 0  # bytes of a device, where it is only described
    sharded: bool = False  # the state is: each device holds its part of it
    by_layer: bool = False  # if sharded, only one layer is ever whole (by_layer.py)

    @property
    def accelerated(self) -> bool:
        return bool(self.devices[0].platform != "cpu")

    @property
    def axis(self) -> str | None:
        """The axis that collectives name; None on a single device, where there are none."""
        return None if self.parallelism == "single" else AXIS

    @property
    def compiler_options(self) -> dict[str, Any] | None:
        return backend.gpu_options(self.invariant) if self.devices[0].platform == "gpu" else None

    @functools.cached_property
    def mesh(self) -> Mesh:
        return Mesh(np.array(self.devices), (AXIS,))

    @property
    def shards_per_device(self) -> int:
        return -(-self.num_shards // len(self.devices))

    @property
    def state(self) -> str:
        """How the state lies, in a word or two."""
        return f"sharded{', layer by layer' if self.by_layer else ''}" if self.sharded else "replicated"

    @property
    def num_blocks(self) -> int:
        """Blocks of each array of a sharded state: their number decides bits, so it depends on no device."""
        return self.num_shards if self.invariant else len(self.devices)

    @property
    def blocks_per_device(self) -> int:
        return -(-self.num_blocks // len(self.devices))

    def block_rows(self, shape: Sequence[int]) -> int:
        """Rows of a block of an array of this shape; two at least where a row is one number, for XLA would take a block
        of one number for a scalar, and round it differently."""
        return max(-(-shape[0] // self.num_blocks), 2 if math.prod(shape[1:]) == 1 else 1)

    def filled(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The shape of such an array, filled up with rows for each device to hold as many blocks (sharded.py)."""
        return (self.block_rows(shape) * self.blocks_per_device * len(self.devices), *shape[1:])

    @property
    def over_gloo(self) -> bool:
        """Whether Gloo carries the collectives: CPU devices of several processes. A message costs more there."""
        return jax.process_count() > 1 and not self.accelerated

    @property
    def adds_in_pairs(self) -> bool:
        """Whether the fast reduction does without XLA's all-reduce."""
        count = len(self.devices)
        return self.over_gloo and count & (count - 1) == 0

    @functools.cached_property
    def local_positions(self) -> list[int]:
        """Which of `devices` belong to this process."""
        return [i for i, d in enumerate(self.devices) if d.process_index == jax.process_index()]

    @property
    def local_shards(self) -> list[int]:
        """The shards of this process's devices; numbers from num_shards on are empty shards."""
        k = self.shards_per_device
        return [shard for device in self.local_positions for shard in range(device * k, (device + 1) * k)]

    @property
    def device_memory(self) -> int:
        """Bytes of memory of a device; emulated ones share the host's."""
        if self.memory:
            return self.memory
        own = backend.device_memory(self.devices[self.local_positions[0]])
        return own or machine.memory() // len(self.local_positions)

    def sharding(self, spec: PartitionSpec) -> jax.sharding.Sharding:
        """Where the parts of an array with this spec lie."""
        return SingleDeviceSharding(self.devices[0]) if self.axis is None else NamedSharding(self.mesh, spec)

    def put(self, tree: Any, specs: Any) -> Any:
        """This process's part of NumPy arrays -> global arrays that lie on the devices as `specs` say (specs.py)."""
        specs = jax.tree.broadcast(specs, tree)
        shardings = jax.tree.map(self.sharding, specs)
        tree = jax.tree.map(lambda array, spec: array.reshape(self._shape(array.shape, spec)), tree, specs)
        if jax.process_count() == 1:
            return jax.device_put(tree, shardings)
        with jax.transfer_guard("allow"):  # to the guard, jax's own transfer here is an implicit one
            return jax.tree.map(jax.make_array_from_process_local_data, shardings, tree)

    def abstract(self, tree: Any, specs: Any) -> Any:
        """Shapes, dtypes and placements of what `put` would return for arrays of such shapes and dtypes."""

        def place(array: Any, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
            shape, axis = list(array.shape), dealt_axis(spec)
            if axis is not None:
                shape[axis] = shape[axis] // len(self.local_positions) * len(self.devices)
            return jax.ShapeDtypeStruct(self._shape(shape, spec), array.dtype, sharding=self.sharding(spec))

        return jax.tree.map(place, tree, jax.tree.broadcast(specs, tree))

    def wrap(
        self, body: Callable[..., Any], in_specs: tuple[Any, ...], donate: bool = True, out_specs: Any = REPLICATED
    ) -> Any:
        """`body`, compiled to run on every device, each on its own part of the arguments.

        Args:
          body: a function of as many trees of arrays as there are in_specs; it sees a device's part of each.
          in_specs: how each argument lies on the devices.
          donate: whether the first argument's memory may be used again.
          out_specs: how the results lie on the devices; with pmap, which knows no sharded state, all are replicated.
        """
        donated = (0,) if donate else ()
        if self.parallelism == "pmap":  # takes no compiler options
            axes = jax.tree.map(dealt_axis, in_specs)
            return jax.pmap(body, AXIS, in_axes=axes, out_axes=None, devices=self.devices, donate_argnums=donated)
        if self.parallelism == "shard_map":
            # jax cannot know that sums which each device makes for itself are the same on all.
            checked = not (self.adds_in_pairs or self.sharded)
            body = jax.shard_map(body, mesh=self.mesh, in_specs=in_specs, out_specs=out_specs, check_vma=checked)
        return jax.jit(body, donate_argnums=donated, compiler_options=self.compiler_options)

    def wrap_each(self, body: Callable[..., Any], in_specs: tuple[Any, ...], donate: bool = False) -> Any:
        """`body`, compiled likewise; the results [n, ...] of all devices are put together as [devices * n, ...]."""
        if self.axis is not None:  # check_vma=False: copies that should be the same may differ
            body = jax.shard_map(body, mesh=self.mesh, in_specs=in_specs, out_specs=DEALT, check_vma=False)
        return jax.jit(body, donate_argnums=(0,) if donate else ())

    def _shape(self, shape: Sequence[int], spec: PartitionSpec) -> tuple[int, ...]:
        """The shape of an array on the devices: pmap wants the dealt axis split into [devices, part of a device]."""
        axis, count = dealt_axis(spec), len(self.devices)
        if axis is None or self.parallelism != "pmap":
            return tuple(shape)
        return (*shape[:axis], count, shape[axis] // count, *shape[axis + 1 :])


def make_layout(config: Config, devices: Sequence[jax.Device] = (), memory: int = 0) -> Layout:
    """The devices that a run uses, and how; starts the backend. Raises InputError where they are not as asked for.

    Those to choose from may be given, where they are only described, with the bytes that one has.
    """
    if not devices:
        backend.check_platform(config)
    available = list(devices) or backend.devices()
    kind = available[0].platform
    wanted = config.num_devices or len(available)

    def are(count: int) -> str:
        return f"is 1 {kind} device" if count == 1 else f"are {count} {kind} devices"

    for flag, asked, found in (("num_devices", config.num_devices, min(wanted, len(available))),
                               ("expect_devices", config.expect_devices, wanted)):
        if asked not in (0, found):
            remedy = (f"emulate them with XLA_FLAGS=--xla_force_host_platform_device_count={asked} (see "
                      "configs/emulated8.flags), or use configs/tutorial.flags" if kind == "cpu" else
                      f"use configs/1gpu.flags, or a machine with {asked} of them")
            raise InputError(f"--{flag}={asked}, but there {are(found)}: {remedy}")
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
        raise InputError(f"--parallelism=single uses one device, but there {are(wanted)}: "
                         "give --num_devices=1 or --parallelism=shard_map")
    if parallelism == "pmap" and config.state == "sharded":
        raise InputError("--state=sharded is not for --parallelism=pmap, where each device holds the whole state: "
                         "give --parallelism=shard_map, or --state=replicated")
    num_shards = config.num_shards or (INVARIANT_SHARDS if config.reduction == "invariant" else wanted)
    if num_shards < wanted:
        raise InputError(f"--num_shards={num_shards} is fewer than the {wanted} devices: "
                         f"give --num_shards={wanted} or more, or --num_devices={num_shards}")
    if config.audit_every and wanted == 1:
        raise InputError(f"--audit_every={config.audit_every} needs another device to compute shards on again, but "
                         f"there {are(1)}: give more devices, or 0")
    if config.reduction == "invariant" and kind == "cpu":
        backend.check_cpu_threads()
    return Layout(tuple(available[:wanted]), parallelism, num_shards, config.reduction == "invariant", memory)


def make_layouts(config: Config, devices: Sequence[jax.Device] = (), memory: int = 0) -> list[Layout]:
    """What make_layout gives, with the state lying in each way that config.state allows; see `states`."""
    return states(make_layout(config, devices, memory), config.state)


def states(layout: Layout, allowed: str) -> list[Layout]:
    """The layout with the state lying in each way that `allowed`, a value of --state, allows, in the order in which to
    prefer them; on one device they are the same program. With --reduction=invariant all layers are always gathered at
    once."""
    if len(layout.devices) == 1 or layout.parallelism == "pmap" or allowed == "replicated":
        return [layout]
    ways = [layout, dataclasses.replace(layout, sharded=True),
            *([] if layout.invariant else [dataclasses.replace(layout, sharded=True, by_layer=True)])]
    return ways[1:] if allowed == "sharded" else ways
