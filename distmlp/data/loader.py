"""Batches read by torch's DataLoader, also in processes of its own, and dealt to shards by its DistributedSampler.

This imports torch, which takes longer than a small training. So it is imported where it reads: where the training set
does not lie on the devices, and where examples are asked for one by one.
"""

import atexit
import contextlib
import multiprocessing
import pickle
import signal
import warnings
from collections.abc import Iterable, Iterator, Sequence
from multiprocessing import resource_tracker
from typing import Any, cast

import numpy as np
import torch
import torch.utils.data
from torch.utils.data.distributed import DistributedSampler

from distmlp.data.batches import Announced, Batch, Batches, Rows, Step
from distmlp.data.examples import Examples, Readable
from distmlp.data.order import Order, Scattered
from distmlp.errors import STOP_SIGNALS, InputError, one_line

_CHUNK = 256  # steps whose indices are computed at once


class ShardSampler(DistributedSampler[Any]):
    """torch's DistributedSampler (same seed, epoch and replica: same order), but it repeats no example to fill up:
    shard s of S holds the positions p of the epoch's permutation with p ≡ s (mod S), ascending.
    """

    def __init__(self, order: Order, shard: int) -> None:
        examples: Any = range(order.size)  # of which torch's sampler only asks how many there are
        super().__init__(examples, order.num_shards, shard, order.shuffle, order.seed)
        self._order = order

    def indices(self) -> "np.ndarray | Scattered":
        """This shard's example indices in this epoch, int64: a view of the permutation that all shards share."""
        return self._order.dealt(self.epoch, self.rank)

    def __iter__(self) -> Iterator[int]:
        return iter(self.indices()[np.arange(len(self))].tolist())

    def __len__(self) -> int:
        return len(self.indices())


def _identity(batch: Any) -> Any:
    return batch  # what torch does by itself would make tensors of the arrays


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Processes that are started within this context never see a signal that asks for a stop: it reaches the whole
    process group, and only the trainer, which saves, is to act on it (run/signals.py).
    """
    resource_tracker.ensure_running()  # when it starts, it unblocks the signals
    others = multiprocessing.active_children()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for process in multiprocessing.active_children():
        if process not in others:
            atexit.register(process.kill)  # multiprocessing sends SIGTERM, which is blocked, and waits for ever


class ExampleLoader(torch.utils.data.DataLoader[Any]):
    """torch's DataLoader over steps, each given by example indices (int64) and weights (float32) of one shape.

    Yields (images [..., features], labels, weights, indices). For rows of weight 0 nothing is read: they are zeros.
    Where items are read one by one, `num_workers` spawned processes read ahead; `seed` is of their random numbers.
    """

    def __init__(self, dataset: Readable, steps: Iterable[Step], num_workers: int = 0, seed: int = 0) -> None:
        self._name = dataset.name
        num_workers = num_workers if dataset.one_by_one else 0
        self.rows = Rows(dataset, shared=num_workers > 0)
        super().__init__(
            cast(Any, self.rows), batch_size=None, sampler=Announced(steps, dataset), collate_fn=_identity,
            num_workers=num_workers, persistent_workers=bool(num_workers),
            multiprocessing_context="spawn" if num_workers else None,  # JAX has threads: a forked worker can deadlock
            generator=torch.Generator().manual_seed(seed),  # without it each epoch draws from torch's global one
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch's is of a class of its own
        with _blocked_signals() if self.num_workers else contextlib.nullcontext(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # torch's lines beside the one below
            try:
                steps = super().__iter__()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise InputError(f"{self._name} cannot be sent to the processes of --num_workers="
                                 f"{self.num_workers} ({one_line(error)}): give it functions that can be imported "
                                 "instead of lambdas and open files, or give --num_workers=0") from error
        for rows in steps:
            if isinstance(rows, InputError):
                raise rows
            yield rows

    def close(self) -> None:
        """Ends the workers. Left to the garbage collector, they do not end, and torch waits ten seconds for each."""
        if self.num_workers and self._iterator is not None:
            self._iterator._shutdown_workers()  # type: ignore[attr-defined] # there is no public way
            self._iterator = None


class _RestOfEpoch:
    """The steps from a NumpyLoader's position to the end of its epoch."""

    def __init__(self, loader: "NumpyLoader") -> None:
        self._loader = loader

    def __iter__(self) -> Iterator[Step]:
        order, shards, (epoch, step) = self._loader.order, self._loader.local_shards, self._loader.position
        dealt = {}
        for shard in order.filled(shards):
            sampler = ShardSampler(order, shard)
            sampler.set_epoch(epoch)
            dealt[shard] = sampler.indices()
        for start in range(step, order.steps_per_epoch, _CHUNK):
            stop = min(start + _CHUNK, order.steps_per_epoch)
            yield from zip(*order.cut(dealt, start, stop, shards), strict=True)


class NumpyLoader(ExampleLoader, Batches):
    """Yields the `Batch`es of an epoch from the current position on: Batches that are read by torch's DataLoader."""

    def __init__(
        self, dataset: Examples, batch_size: int, num_shards: int = 1, local_shards: Sequence[int] | None = None,
        shuffle: bool = False, seed: int = 0, num_workers: int = 0, weights: np.ndarray | None = None,
    ) -> None:
        Batches.__init__(self, dataset, batch_size, num_shards, local_shards, shuffle, seed, weights)
        self.position = (0, 0)  # epoch and step, both counted from 0
        ExampleLoader.__init__(self, dataset, _RestOfEpoch(self), num_workers, seed)

    def set_position(self, epoch: int, step: int = 0) -> None:
        """The next iteration starts before this step of this epoch, both counted from 0."""
        self.position = (epoch, step)

    def __iter__(self) -> Iterator[Batch]:  # type: ignore[override] # torch's is of a class of its own
        epoch, first = self.position
        for step, (images, labels, real, indices) in enumerate(super().__iter__(), first):
            [weight_sum] = self.order.weight_sums(self.weights, epoch, step, step + 1)
            yield Batch(images, labels, self.weigh(indices, real), weight_sum, indices, real)
