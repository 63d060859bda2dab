"""What the checks have in common: the devices and processes that are here, and small runs on them."""

import dataclasses
import functools
import subprocess
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from distmlp import training
from distmlp.cluster.group import Group
from distmlp.config import FROM_PYTHON, Config
from distmlp.data import datasets
from distmlp.parallel import backend
from distmlp.parallel.digest import params_sha256
from distmlp.parallel.layout import Layout, make_layouts
from distmlp.progress import Progress
from distmlp.training import Program

FEATURES, CLASSES = 50, 5
TRAIN, TEST, BATCH_SIZE = 253, 103, 50  # uneven: the last batch of an epoch has 3 examples, fewer than shards


class NotHere(Exception):
    """The promise does not apply here, or nothing here shows it; the text says why."""


class NotHeld(Exception):
    """The promise does not hold; the text says what was found."""


@functools.cache
def examples() -> tuple[np.ndarray, np.ndarray]:
    """Learnable examples, uint8 [TRAIN + TEST, FEATURES], and their labels: the largest of some random projections."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (TRAIN + TEST, FEATURES), dtype=np.uint8)
    labels = ((images - 127.5) @ rng.standard_normal((FEATURES, CLASSES))).argmax(axis=1)
    labels[:CLASSES] = labels[-CLASSES:] = np.arange(CLASSES)
    return images, labels


@dataclasses.dataclass(frozen=True)
class Here:
    """The devices of all processes.

    Attributes:
      layout: of all devices, adding in the fixed order.
      folder: an empty one that all processes see; None: there is none.
      command: that which trains, to which flags are added.
      jobs: the processes that are started with it.
    """

    group: Group
    layout: Layout
    folder: Path | None = None
    command: Sequence[str] = ()
    jobs: list["subprocess.Popen[bytes]"] = dataclasses.field(default_factory=list)

    @property
    def count(self) -> int:
        return len(self.layout.devices)

    @property
    def counted(self) -> str:
        return "1 device" if self.count == 1 else f"{self.count} devices"

    @property
    def local(self) -> list[jax.Device]:
        """This process's devices."""
        return [self.layout.devices[at] for at in self.layout.local_positions]

    def config(self, **changes: Any) -> Config:
        """A run of a second."""
        settings: dict[str, Any] = {
            "dataset": f"{FROM_PYTHON}verify", "hidden_sizes": (33, 17), "batch_size": BATCH_SIZE, "max_steps": 14,
            "learning_rate": 0.1, "momentum": 0.9, "input_scaling": "unit", "shuffle": True, "reduction": "invariant",
            "num_shards": self.layout.num_shards, "eval_every_epochs": 0, "check_replicas_every": 0,
            "steps_per_dispatch": 4, "workdir": None,
        }  # fmt: skip
        return Config(**(settings | changes))

    def load(self, config: Config) -> datasets.Data:
        """The data of a run: the examples, or what --dataset names."""
        if not config.dataset.startswith(FROM_PYTHON):
            return datasets.load(config)
        images, labels = examples()
        return datasets.load(config, (images[:TRAIN], labels[:TRAIN]), (images[TRAIN:], labels[TRAIN:]))

    def program(self, config: Config, data: datasets.Data, layout: Layout | None = None) -> Program:
        """The run's parts, on all devices unless a layout of some of this process's says otherwise."""
        lead = self.group.lead if layout is None else lambda steps: steps
        layout = layout or make_layouts(config)[0]
        return Program(config, data, layout, min(self.group.exchange(layout.device_memory)), lead)

    def sha256(self, layout: Layout | None = None, data: datasets.Data | None = None, **changes: Any) -> str:
        """Of the parameters at the end of a run, in memory; see `program`."""
        config = self.config(**changes)
        data = data or self.load(config)
        with backend.pinned(config), closing(self.program(config, data, layout)) as parts:
            parts.compile()
            state = parts.initial_state(parts.scaling())
            state, *_ = training.carry(parts, state, Progress(parts.cadence), lambda line: None)
            return params_sha256(parts.held.arrays(state.params))

    def agree(self, found: dict[str, str], on: str = "the parameters") -> None:
        """Raises NotHeld unless all that this process and the others found is the same."""
        by_name = {name if process == 0 else f"{name} (process {process})": value
                   for process, of in enumerate(self.group.exchange(found)) for name, value in of.items()}  # fmt: skip
        if len(set(by_name.values())) > 1:
            raise NotHeld(f"{on} differ: {', '.join(f'{name} {value[:8]}' for name, value in by_name.items())}")

    def gathered(self, array: jax.Array) -> np.ndarray:
        """An array that is dealt to the devices, in the host's memory of each process."""
        if self.group.several:
            return np.asarray(multihost_utils.process_allgather(array, tiled=True))
        return np.asarray(array)

    def name(self, position: int) -> str:
        """What to call a device, by its place among all."""
        device = self.layout.devices[position]
        return f"device {position} ({device.device_kind}, process {device.process_index})"
