"""Which examples each member learns from, and which it is scored by: positions in a pool that members share."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np

from distmlp.config import Config
from distmlp.data import weights
from distmlp.data.datasets import ArrayDataset, Data, Examples, input_scaling
from distmlp.data.split import hold_out_fold
from distmlp.errors import InputError
from distmlp.parallel.members import Pool, pool_bytes

# Settings that decide which examples there are; the other settings of a run have the same.
_DATA = ("dataset", "test_fraction", "validation_fraction", "fold", "label_column", "ignore_columns", "weight_column",
         "header", "text_columns", "missing", "image_size", "image_mode", "class_weight", "num_classes",
         "synthetic_examples", "synthetic_features", "synthetic_classes")  # fmt: skip

Load = Callable[[Config], Data]  # what a run alone would read


@dataclasses.dataclass(frozen=True, eq=False)
class Share:
    """What the members of one fold share."""

    pool: Pool | None  # NumPy's; None: the examples are not in memory
    rows: np.ndarray  # int64: the positions of those to learn from
    held: np.ndarray  # int64: of those to score by
    weights: np.ndarray | None  # float32 [rows]: what each counts in the loss; None: each 1
    data: Callable[[], Data]  # as a run alone has it; its arrays may be copies
    _scalings: dict[str, tuple[np.ndarray, ...]] = dataclasses.field(default_factory=dict)

    def scaling(self, kind: str) -> tuple[np.ndarray, ...]:
        """By what inputs are scaled, as --input_scaling says: found from the examples to learn from."""
        if kind not in self._scalings:
            self._scalings[kind] = () if kind == "none" else input_scaling(kind, self.data())
        return self._scalings[kind]


class Shares:
    """The shares of all members; what a fold only takes a part of is read once."""

    def __init__(self, load: Load, room: int) -> None:
        """`room`: bytes that all pools together may have."""
        self._load, self._room = load, room
        self._loaded: dict[Any, Data] = {}
        self._pools: dict[int, Pool | None] = {}
        self._shares: dict[Any, Share] = {}

    def whole(self, config: Config) -> Data:
        """What the run reads, before a fold is held out of it."""
        config = dataclasses.replace(config, fold="")
        key = _key(config)
        if key not in self._loaded:
            self._loaded[key] = self._load(config)
        return self._loaded[key]

    def of(self, config: Config) -> Share:
        key = _key(config)
        if key not in self._shares:
            try:
                self._shares[key] = self._made(config)
            except InputError as error:  # the flag that was given is another one
                number, _, count = config.fold.partition("/")
                error.args = (str(error).replace(f"--fold={number}/{count}", f"--folds={count}"),)
                raise
        return self._shares[key]

    def _made(self, config: Config) -> Share:
        if not config.fold:
            whole = self.whole(config)
            if whole.validation is None:
                raise InputError("a sweep needs examples to score by, other than the test set's: give --folds=5, "
                                 "--validation_fraction=0.2, or a validation set beside the training set")
            return self._two(whole)
        raw = self.whole(dataclasses.replace(config, class_weight="none"))
        learned = raw.table is not None and bool(raw.table.fill or raw.table.words)  # from all rows
        balanced = config.class_weight == "balanced"
        if raw.validation is not None or learned or (balanced and raw.weights is not None):
            return self._two(self._load(config))
        train = raw.train
        stay, held = hold_out_fold(train.labels, config.fold, config.drawing_seed, train.name, raw.classes)
        given = None if raw.weights is None else raw.weights[stay].astype(np.float64)
        counted = weights.of_training(given, train.labels[stay], balanced, train.name)

        def data() -> Data:
            return dataclasses.replace(raw, train=train.part(stay, train.name), weights=counted, statistics=None,
                                       validation=train.part(held, f"{train.name} (validation part)"))

        if id(raw) not in self._pools:  # which all folds share, and `whole` keeps
            self._pools[id(raw)] = self._pool([train])
        return Share(self._pools[id(raw)], stay, held, counted, data)

    def _two(self, data: Data) -> Share:
        """Of data whose training and validation sets are apart."""
        assert data.validation is not None
        sizes = [len(data.train), len(data.validation)]
        rows, held = np.split(np.arange(sum(sizes)), sizes[:1])
        pool = self._pool([data.train, data.validation])
        if pool is not None:
            train, validation = (_within(pool, *each) for each in ((data.train, rows), (data.validation, held)))
            data = dataclasses.replace(data, train=train, validation=validation)
        return Share(pool, rows, held, data.weights, lambda: data)

    def _pool(self, parts: list[Examples]) -> Pool | None:
        """These sets one behind the other, in memory if they fit there, beside the pools so far."""
        size = pool_bytes(parts)
        if size is None or size > self._room:
            return None
        self._room -= size
        taken = [part.resident or part.take(np.arange(len(part))) for part in parts]
        return Pool(*map(_joined, zip(*taken, strict=True)))


def _within(pool: Pool, part: Examples, rows: np.ndarray) -> Examples:
    """This set, which is at these rows of the pool, one behind the other; in that memory if it has its own."""
    if not isinstance(part, ArrayDataset) or part.resident is None or part.dtype != pool.images.dtype:
        return part
    view, place = copy.copy(part), slice(rows[0], rows[-1] + 1)
    view.images, view.labels = pool.images[place], pool.labels[place]
    return view


def _joined(arrays: tuple[np.ndarray, ...]) -> np.ndarray:
    return arrays[0] if len(arrays) == 1 else np.concatenate(arrays)


def _key(config: Config) -> Any:
    return (*(getattr(config, name) for name in _DATA), config.drawing_seed)
