"""An audited step: its shards are computed once more, each on another device, and the state is changed only where both
found the same bits. A third device then tells which of the two was wrong, even one that is wrong each time.

Place p of all devices' shards has shard p in a step. For deal number r of an audit, the shards move by r devices: what
device d computes in a step, device d - r computes then.

An audited step costs 1.2 to 1.4 steps more, by the processor time of two emulated devices (512 examples, the tutorial's
layers): the second computation and its digests 1.04, the digests of the first 0.05, and 0.1 as it has a dispatch of its
own. Wall time on busy cores said 1.1.
"""

import socket
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from distmlp.errors import AuditError, InputError, listed
from distmlp.kept import kept
from distmlp.parallel.feed import DeviceBatches, HostBatches, Steps, bytes_needed
from distmlp.parallel.layout import Layout
from distmlp.parallel.specs import REPLICATED, State, hashable
from distmlp.parallel.step import AuditedStep, ShardDigests

_GIVEN = 3  # of a shard's digests: those of what the device was given, before those of what it found
_HOST_BYTES = 64  # of a host's name


class Audit:
    """Makes audited steps, of a run on more than one device with --reduction=invariant.

    Attributes:
      agreed: the last completed step, or 0, after which all devices have agreed.
    """

    def __init__(
        self, layout: Layout, step: AuditedStep, digests: ShardDigests, batches: HostBatches | DeviceBatches,
        specs: State, dataset: str = "",
    ) -> None:
        """`dataset`: the name of the training set, where it is a Dataset that may give others each time it is read."""
        self._layout, self._batches, self._dataset, self.agreed = layout, batches, dataset, 0
        kind: Any = type(batches)
        self._step, self._digests = _programs(layout, step, digests, kind, *hashable(specs))

    def compile(self, state: State) -> None:
        """Compiles ahead, for states like this one, which may be abstract; the second time it does nothing."""
        if isinstance(self._step, jax.stages.Compiled):
            return
        batches, layout = self._batches, self._layout
        arrays, again = (layout.abstract(like, batches.specs) for like in (batches.like(), batches.like_again()))
        at = layout.abstract(jax.ShapeDtypeStruct((), np.int32), REPLICATED)
        self._step = self._step.lower(state, arrays, at).compile(layout.compiler_options)
        self._digests = self._digests.lower(state, again).compile(layout.compiler_options)

    @property
    def bytes_needed(self) -> int:
        """What the compiled programs need of a device's memory."""
        return max(bytes_needed(self._step), bytes_needed(self._digests))

    def advance(self, state: State, step: int) -> tuple[State, Steps]:
        """Makes step number `step`, counted from 0 over the run.

        Raises:
          AuditError: two devices did not find the same gradient of a shard; it names the device that is wrong.
          InputError: a Dataset gave other examples when it was read again.
        """
        taken = self._batches.take(step, step + 1)
        at = self._layout.put(np.array(taken.start, np.int32), REPLICATED)
        after, losses, found = self._step(state, taken.arrays, at)
        self._compare(state, step, found)
        return after, Steps(losses, *taken[2:])

    def repeat(self, state: State, step: int) -> None:
        """The same with the examples of the last of `step` completed steps, and this state, which stays as it is.

        For a save that was not foreseen: whether the devices still agree. Raises as `advance`.
        """
        self._compare(state, step - 1, self._deal(state, step - 1, 0))

    def _deal(self, state: State, step: int, number: int) -> jax.Array:
        """The digests of the step's shards as deal `number` places them, uint32 [places, arrays]."""
        return self._digests(state, self._batches.again(step, self._dealt(self._layout.local_shards, number)))

    def _dealt(self, places: Any, number: int) -> list[int]:
        """The shards that a deal has at these places."""
        per_device = self._layout.shards_per_device
        count = per_device * len(self._layout.devices)
        return [(place + number * per_device) % count for place in places]

    def _compare(self, state: State, step: int, found: jax.Array) -> None:
        second = self._deal(state, step, 1)
        digests = [self._by_shard(found, 0), self._by_shard(second, 1)]
        odd = np.flatnonzero((digests[0] != digests[1]).any(axis=1))
        if len(odd):
            if len(self._layout.devices) > 2:
                digests.append(self._by_shard(self._deal(state, step, 2), 2))
            raise self._verdict(step + 1, digests, odd.tolist())
        self.agreed = step + 1

    def _by_shard(self, digests: jax.Array, number: int) -> np.ndarray:
        """The digests of a deal in the order of the shards; empty ones are left out."""
        in_places = jax.device_get(digests)
        order = np.argsort(self._dealt(range(len(in_places)), number))
        return in_places[order][: self._layout.num_shards]

    def _verdict(self, step: int, digests: list[np.ndarray], odd: list[int]) -> Exception:
        """Who is wrong, and about what."""
        hosts = self._hosts()
        per_device, devices = self._layout.shards_per_device, self._layout.devices
        wrong: dict[tuple[int, ...], list[int]] = {}  # devices of which one is, or which are: their shards
        for shard in odd:
            by = [(shard // per_device - number) % len(devices) for number in range(len(digests))]
            told = [digest[shard].tobytes() for digest in digests]
            alone = [device for device, text in zip(by, told, strict=True) if told.count(text) == 1]
            wrong.setdefault(tuple(sorted(alone)), []).append(shard)
        given = any((digests[0][odd, :_GIVEN] != digests[1][odd, :_GIVEN]).any(axis=1))

        def name(device: int) -> str:
            found = devices[device]
            return f"device {device} ({found.device_kind}, number {found.id}, on {hosts[found.process_index]})"

        texts = []
        for suspects, shards in wrong.items():
            of = f"shard{'s' if len(shards) > 1 else ''} {listed(shards)}"
            if len(suspects) == 1:
                texts.append(f"{name(suspects[0])} is wrong about {of}, of which two others find the same")
            else:
                texts.append(f"{' and '.join(map(name, suspects))} disagree about {of}")
        if given and self._dataset:
            return InputError(f"the audit of step {step}: examples of {self._dataset} were others when they were read "
                              f"again ({'; '.join(texts)}): a Dataset with random transforms may give other values "
                              "each time it is asked: leave --audit_every out; if this one does not, the device, its "
                              "memory or its host may be faulty")
        what = "the examples that they were given" if given else "the gradients that they found"
        return AuditError(f"the audit of step {step}: {what} differ between devices: {'; '.join(texts)}: the device, "
                          "its memory or its host may be faulty, take it out")

    def _hosts(self) -> list[str]:
        """The host of each process; a collective."""
        name = np.frombuffer(socket.gethostname().encode()[:_HOST_BYTES].ljust(_HOST_BYTES), np.uint8)
        if jax.process_count() == 1:
            return [name.tobytes().decode().strip()]
        with jax.transfer_guard("allow"):
            names = np.asarray(multihost_utils.process_allgather(name))
        return [each.tobytes().decode().strip() for each in names]


@kept
def _programs(
    layout: Layout, step: AuditedStep, digests: ShardDigests, kind: Any, leaves: tuple[Any, ...], structure: Any
) -> tuple[Any, Any]:
    """The programs of an audited step and of a deal; the step leaves its state as it is.

    `kind` is HostBatches or DeviceBatches. The leaves are those of the state's specs.
    """
    specs = jax.tree.unflatten(structure, leaves)

    def run(state: State, arrays: Any, at: jax.Array) -> tuple[State, jax.Array, jax.Array]:
        after, loss, found = step(state, kind.batch(arrays, at))
        return after, loss[None], found

    def again(state: State, arrays: Any) -> jax.Array:
        return digests(state, kind.batch(arrays, 0))

    results: Any = {"donate": False, "out_specs": (specs, REPLICATED, REPLICATED)}
    return (layout.wrap(run, (specs, kind.specs, REPLICATED), **results),
            layout.wrap(again, (specs, kind.specs), donate=False))
