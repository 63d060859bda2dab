"""StepReader: torch's DataLoader, which reads the examples of a step at once, also in processes of its own."""

import atexit
import contextlib
import multiprocessing
import pickle
import signal
import traceback
import warnings
from collections.abc import Iterable, Iterator
from multiprocessing import resource_tracker
from typing import Any

import numpy as np
import torch
import torch.utils.data

from distmlp.data.examples import AnyDataset, ItemDataset
from distmlp.errors import InputError, one_line

Step = tuple[np.ndarray, np.ndarray]  # indices int64 and weights float32, of one shape


class _Rows(torch.utils.data.Dataset[Any]):
    """The data set as the DataLoader sees it: an item is what StepReader yields, or what is wrong with it."""

    def __init__(self, dataset: AnyDataset) -> None:
        self.dataset = dataset

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, step: Step) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray] | InputError:
        indices, weights = step
        real = weights > 0
        try:
            if real.all():
                return *self.dataset[indices], weights, indices
            images = np.zeros((*indices.shape, self.dataset.num_features), self.dataset.dtype)
            labels = np.zeros(indices.shape, np.int32)
            if real.any():
                images[real], labels[real] = self.dataset[indices[real]]
            return images, labels, weights, indices
        except InputError as error:  # raised by StepReader: torch would bury its line in the worker's stack
            if error.__cause__ and torch.utils.data.get_worker_info():  # pickling would lose the cause
                error.add_note("".join(traceback.format_exception(error.__cause__)))
            return error


def _identity(batch: Any) -> Any:
    return batch


_STOP_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2}


@contextlib.contextmanager
def _blocked_signals() -> Iterator[None]:
    """Processes that are started meanwhile never see what asks for a stop: such signals reach the whole process group,
    and only the trainer, which saves, is to act on them (run/signals.py)."""
    resource_tracker.ensure_running()  # its own start would unblock them
    others = multiprocessing.active_children()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    for process in multiprocessing.active_children():
        if process not in others:
            atexit.register(process.kill)  # multiprocessing's SIGTERM would not end it, and its wait never


class StepReader(torch.utils.data.DataLoader[Any]):
    """torch's DataLoader over steps, each given by example indices (int64) and weights (float32) of one shape.

    Yields (images [..., features], labels, weights, indices). For rows of weight 0 nothing is read: they are zeros.

    Args:
      dataset: indexed by an integer array, it returns so many (images, labels) at once.
      steps: can be iterated over again and again.
      num_workers: spawned processes that read ahead; only used where items are read one by one.
      seed: of the random numbers in these processes.
    """

    def __init__(self, dataset: AnyDataset, steps: Iterable[Step], num_workers: int = 0, seed: int = 0) -> None:
        self._examples = dataset
        num_workers = num_workers if isinstance(dataset, ItemDataset) else 0
        super().__init__(
            _Rows(dataset),
            batch_size=None,
            sampler=steps,
            collate_fn=_identity,
            num_workers=num_workers,
            # JAX is multithreaded: a forked worker can deadlock.
            multiprocessing_context="spawn" if num_workers else None,
            persistent_workers=bool(num_workers),
            generator=torch.Generator().manual_seed(seed),  # else every epoch would draw from torch's global one
        )

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override] # torch's is of a class of its own
        with _blocked_signals() if self.num_workers else contextlib.nullcontext(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # torch's lines beside the one below
            try:
                steps = super().__iter__()
            except (pickle.PicklingError, AttributeError, TypeError) as error:
                raise InputError(f"{self._examples.name} cannot be sent to the processes of --num_workers="
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
