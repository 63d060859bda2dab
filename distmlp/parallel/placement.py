"""Where the training set lies: on the devices, or on the host."""

import os

from distmlp.config import Config, InputError
from distmlp.data.datasets import AnyDataset, ArrayDataset
from distmlp.parallel.mesh import Layout


def choose_placement(config: Config, dataset: AnyDataset, layout: Layout) -> tuple[str, str]:
    """Where the training set lies, host or device, and why.

    Raises:
      InputError: --data_placement=device for data that are read from files as they are needed.
    """
    if not isinstance(dataset, ArrayDataset) or dataset.mapped:
        if config.data_placement == "device":
            raise InputError(f"--data_placement=device needs data in memory, and {dataset.name} is read from its "
                             "files: give --data_placement=host")
        return "host", "read as needed"
    if config.data_placement != "auto":
        return config.data_placement, "asked for"
    room, size = device_memory(layout) // 4, dataset.images.nbytes
    if size > room:
        return "host", f"{size / 1e6:,.1f} MB are more than a quarter of a device's memory"
    return "device", f"{size / 1e6:,.1f} MB fit"


def device_memory(layout: Layout) -> int:
    """Bytes of memory of a device; emulated ones share the host's."""
    if layout.memory:
        return layout.memory
    device = layout.devices[layout.local_positions[0]]
    stats = device.memory_stats() or {}
    host = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // len(layout.local_positions)
    return int(stats.get("bytes_limit", host))
