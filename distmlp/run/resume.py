"""How a run goes on after any end: what lies beside the arrays in its checkpoints, and which ones are another run's."""

import functools
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import jax
import numpy as np

from distmlp import machine
from distmlp.cluster.group import Group
from distmlp.config import Config, differences
from distmlp.data.datasets import Data
from distmlp.errors import DivergedError, InputError, WriteError
from distmlp.parallel.step import State
from distmlp.run import banner
from distmlp.run.store import Meta, Store


class Resume:
    """Saves and restores one run; `warn` is called with what its user should know."""

    def __init__(
        self, config: Config, data: Data, num_shards: int, store: Store, warn: Callable[[str], None], group: Group
    ) -> None:
        self.config, self.data, self.num_shards, self.store = config, data, num_shards, store
        self._warn, self._group = warn, group
        self.saved_step, self._saved_at = 0, time.monotonic()

    def restore(self, state: State, total_steps: int) -> tuple[State, int, dict[str, Any]] | None:
        """The newest intact checkpoint's state, of the shapes of `state`, its step and totals; None without any.

        Raises:
          InputError: the data, or the flags, are not those that the run began with; or no checkpoint is intact.
        """
        self._group.agree({f"the digest of --dataset={self.config.dataset}": self._fingerprint})
        self._group.go_in_step()
        restored = self.store.newest_intact(state, lambda meta: self._check_meta(meta, total_steps))
        if restored is None:
            return None
        state, meta, notes = restored
        if meta.get("data_modified", self.data.modified()) != self.data.modified():
            notes.append(f"the files of --dataset={self.config.dataset} were written again since the run began; the "
                         "rows that are compared are the same: if others are not, give another --workdir")
        changed = differences(meta["versions"], _versions()) if self.config.reduction == "invariant" else []
        if changed:
            notes.append(f"{'; '.join(changed)}: the parameters may differ in their last bits from an unbroken run's")
        for note in notes:
            self._warn(note)
        self.saved_step = meta["step"]
        return state, meta["step"], meta["totals"]

    def _check_meta(self, meta: Meta, total_steps: int) -> None:
        workdir = f"--workdir={self.store.workdir}"
        saved = Config().settings() | meta["settings"]
        experiment = self.config.experiment()
        changed = differences({f"--{name}": saved[name] for name in experiment},
                              {f"--{name}": value for name, value in experiment.items()})  # fmt: skip
        if changed:
            raise InputError(f"{workdir} holds another run ({'; '.join(changed)}): "
                             "give the same flags, or another --workdir")
        if meta["data"] != self._fingerprint:
            raise InputError(f"the data of --dataset={self.config.dataset} are not those that the run in "
                             f"{workdir} began with: bring them back, or give another --workdir")
        if self.config.reduction == "invariant" and meta["num_shards"] != self.num_shards:
            raise InputError(f"--num_shards was {meta['num_shards']}, is {self.num_shards}: "
                             f"give --num_shards={meta['num_shards']}")
        if meta["step"] > total_steps:
            raise InputError(f"{workdir} is at step {meta['step']}, beyond the {total_steps} steps asked for: "
                             "raise --num_epochs or --max_steps")

    def save(self, state: State, step: int, totals: dict[str, Any], best_step: int) -> None:
        """Begins a checkpoint, with the totals from before this step's line; raises as Store.save does."""
        meta: Meta = {
            "settings": self.config.settings(),
            "num_shards": self.num_shards,
            "data": self._fingerprint,
            "data_modified": self.data.modified(),
            "data_info": self.data.info(),
            "totals": totals,
            "versions": _versions(),
        }
        self.store.save(step, state, meta, best_step)
        self.saved_step, self._saved_at = step, time.monotonic()

    @functools.cached_property
    def _fingerprint(self) -> str:
        """The data's, for which all of them are read once."""
        return self.data.fingerprint()

    def seconds_passed(self) -> bool:
        """Whether --checkpoint_every_seconds have, since the last save, by the first process's clock; a collective."""
        passed = time.monotonic() - self._saved_at >= self.config.checkpoint_every_seconds
        return bool(self._group.gather(np.array(passed, np.int32))[0])

    def last_checkpoint(self) -> str:
        """What there is to go on from, for a message."""
        with suppress(WriteError, DivergedError):  # another error is on its way
            self.store.wait()
        steps = self.store.steps()
        return f"the newest checkpoint is of step {steps[0]}" if steps else "there is no checkpoint yet"


def _versions() -> dict[str, str]:
    """What the bits of an invariant run depend on besides its settings."""
    device = jax.devices()[0]
    processor = machine.processor() if device.platform == "cpu" else device.device_kind
    return {**banner.versions(), "processor": processor, "PJRT_NPROC": os.environ.get("PJRT_NPROC", "not set")}
