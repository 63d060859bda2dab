"""Several networks as one: the mean of their probabilities, and how far they disagree.

Two members disagree on an example where they predict different classes. How often they do, for two of them drawn at
random, is the ensemble's disagreement (as in Fort, Hu and Lakshminarayanan: Deep Ensembles: A Loss Landscape
Perspective, arXiv:1912.02757): 0 where all say the same, near 1 where each says something else.
"""

import dataclasses
import functools
import math
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distmlp.config import Config
from distmlp.data import columnar
from distmlp.data.arrays import as_array
from distmlp.data.columns import Columns
from distmlp.data.given import label_array
from distmlp.data.labels import Classes
from distmlp.data.tables import Reader
from distmlp.errors import InputError, remark
from distmlp.results.models import Model, Predictions

if TYPE_CHECKING:  # imports scikit-learn, which predictions do not need
    from distmlp.data.examples import Readable
    from distmlp.results.evaluation import EnsembleReport, Watch

_ROWS = 8192  # of an evaluation, at a time


@dataclasses.dataclass(frozen=True)
class Ensemble:
    """The members that a sweep has kept; it answers as a Model does."""

    run: Path  # the sweep's folder
    members: tuple[Model, ...]  # the best first

    @classmethod
    def of(cls, run: Path, members: Sequence[Model]) -> "Ensemble":
        """Raises InputError unless all members know the same classes and the same columns or number of features."""
        first = members[0]
        for other in members[1:]:
            alike = (other.classes == first.classes, (other.columns is None) == (first.columns is None),
                     bool(first.columns) or other.num_features == first.num_features)  # fmt: skip
            if not all(alike):
                raise InputError(f"{first.run} and {other.run} were trained on other classes or features: they make no "
                                 "ensemble; load one of them")
        return cls(run, tuple(members))

    @property
    def step(self) -> tuple[int, ...]:
        """Updates that the members' checkpoints have seen."""
        return tuple(member.step for member in self.members)

    @property
    def classes(self) -> tuple[Any, ...]:
        return self.members[0].classes

    @property
    def config(self) -> Config:
        """The best member's."""
        return self.members[0].config

    @property
    def sources(self) -> list[Path]:
        """Where the data lie that the members were trained on, if they have a path."""
        return list(dict.fromkeys(path for member in self.members for path in member.sources))

    @property
    def reading(self) -> Config:
        """The best member's settings by which files are read."""
        return self.members[0].reading

    @property
    def config_here(self) -> Config:
        """The best member's settings with which to use it on this machine."""
        return self.members[0].config_here

    @property
    def data_info(self) -> dict[str, Any]:
        return self.members[0].data_info

    @functools.cached_property
    def columns(self) -> Columns | None:
        """Those of all members together; absent values stay absent where members put different ones in their place."""
        known = [columns for member in self.members if (columns := member.columns) is not None]
        if not known or all(columns == known[0] for columns in known):
            return known[0] if known else None
        names = dict.fromkeys(name for columns in known for name in columns.names)
        words: dict[str, set[str]] = {}
        for columns in known:
            for name, own in columns.words.items():
                words.setdefault(name, set()).update(own)
        ignored = set.intersection(*(set(columns.ignored) for columns in known))
        return dataclasses.replace(
            known[0], names=tuple(names), words={name: sorted(words[name]) for name in names if name in words},
            fill={}, absent=any(columns.absent for columns in known), ignored=tuple(sorted(ignored)),
        )  # fmt: skip

    def reader(self, header: str = "") -> Reader:
        """Reads tables as the ensemble takes them; --header, if it is said of these."""
        config = dataclasses.replace(self.reading, header=header) if header else self.reading
        return Reader(config, self.columns, self.num_features)

    @property
    def num_features(self) -> int:
        """Of the rows that `check` returns."""
        return len(self.columns.features) if self.columns and not self.alike else self.members[0].num_features

    @property
    def alike(self) -> bool:
        """Whether all members take the same features."""
        return self._views == [None] * len(self.members)

    @functools.cached_property
    def _views(self) -> "list[_View | None]":
        """How each member sees the features of all; None: as they are."""
        known = [member.columns for member in self.members]
        if self.columns is None or all(columns == known[0] for columns in known):
            return [None] * len(known)
        places = {key: place for place, key in enumerate(_keys(self.columns))}
        return [_View(np.array([places[key] for key in _keys(columns)]),
                      np.array([columns.fill.get(name, np.nan) if word is None else 0 for name, word in _keys(columns)],
                               np.float32))
                for columns in known if columns is not None]  # fmt: skip

    def in_float32(self) -> "Ensemble":
        """The same networks, their matrix products in float32."""
        return dataclasses.replace(self, members=tuple(member.in_float32() for member in self.members))

    def predict(self, x: Any) -> Predictions:
        """Classes and probabilities of rows or a frame, as a Model's; the probabilities are the mean of the members'.

        Raises:
          InputError: another width, columns that are missing, or values that are no finite numbers.
        """
        probabilities = self.predict_proba(x)
        return Predictions(np.array(self.classes)[probabilities.argmax(axis=1)], probabilities)

    def predict_proba(self, x: Any) -> np.ndarray:
        """The mean of the members' probabilities, float32 [N, classes]; see `predict`."""
        return _mean(self.each(x))

    def predict_log_proba(self, x: Any) -> np.ndarray:
        """Its logarithm, float32 [N, classes]: finite where a probability is 0; see `predict`."""
        return _log_mean(self._outputs(x, logarithms=True))

    def disagreement(self, x: Any) -> np.ndarray:
        """How often two members, drawn at random, predict different classes of each row, float32 [N]."""
        return _disagreement(self.each(x).argmax(axis=2))

    def each(self, x: Any) -> np.ndarray:
        """Each member's probabilities, float32 [members, N, classes]; see `predict`."""
        return np.stack(self._outputs(x, logarithms=False))

    def _outputs(self, x: Any, logarithms: bool) -> list[np.ndarray]:
        """Those of each member, of rows or of a frame, whose first row is number 1."""
        first = int(columnar.is_frame(x))
        return [member.outputs(own, logarithms, first) for member, own in self._seen(self.check(x, first))]

    def answers(self, blocks: Iterable[np.ndarray]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Probabilities [rows, classes] and disagreement [rows] of blocks of rows, which `check` has returned: on all
        devices of this machine."""
        for x in blocks:
            each = np.stack([np.concatenate([*member.probabilities([own])]) for member, own in self._seen(x)])
            yield _mean(each), _disagreement(each.argmax(axis=2))

    def _seen(self, x: np.ndarray) -> Iterator[tuple[Model, np.ndarray]]:
        """Each member, and what `check` has returned as it takes it."""
        for member, view in zip(self.members, self._views, strict=True):
            yield member, x if view is None else view.of(x)

    def check(self, x: Any, first: int = 0) -> np.ndarray:
        """`x` as uint8 or float32 [N, features], those of all members together; see `predict` for what it raises. Its
        first row is number `first`."""
        if self.alike:
            return self.members[0].check(x, first)
        if columnar.is_frame(x):
            x, remarks = self.reader().features(x, "the frame")
            for text in remarks:
                remark(text)
        x = as_array(x)
        if x.ndim != 2 or x.dtype.kind not in "uifb" or x.shape[1] != self.num_features:
            raise InputError(f"rows to predict must be a frame, or numbers of shape [N, {self.num_features}], the "
                             f"columns and words of all members, not {x.dtype} {list(x.shape)}")
        for member, own in self._seen(x):
            member.check(own, first)
        return x

    def evaluate(self, x: Any, y: Any) -> "EnsembleReport":
        """Exact loss, accuracy and confusions on rows `x` [N, ...] with labels `y` [N] of the training set's kind; and
        what each member has by itself.

        Raises:
          InputError: as `predict`; or a label that is none of the classes.
        """
        from distmlp.data.datasets import ArrayDataset

        x, labels = self.check(x), Classes.of(self.data_info, len(self.classes)).encode(label_array(y), "y")
        seen = [(None, x)] if self.alike else self._seen(x)
        return self.evaluate_sets([ArrayDataset(own, labels, "x, y") for _, own in seen])

    def evaluate_sets(self, sets: "Sequence[Readable]", watch: "Watch | None" = None) -> "EnsembleReport":
        """The same on a data set whose labels are the classes' numbers: as all members take it, or as each one does.

        Raises:
          InputError: the members' sets do not have the same examples.
        """
        from distmlp.parallel.evaluate import Evaluation, Seen
        from distmlp.results.evaluation import EnsembleReport, Tally

        sets = sets if len(sets) > 1 else [*sets] * len(self.members)
        size, classes = len(sets[0]), len(self.classes)
        tally, pairs = Tally(sets[0], self.classes, watch), np.zeros((2, 0), np.int64)  # codes, and how often
        right, apart, loss = np.zeros(len(self.members), np.int64), 0.0, 0.0
        for start in range(0, size, _ROWS):
            rows = np.arange(start, min(start + _ROWS, size))
            taken = {id(examples): examples.take(rows) for examples in sets if len(examples) == size}
            images, labels = taken[id(sets[0])]
            outputs = []
            for member, examples in zip(self.members, sets, strict=True):
                own = taken.get(id(examples))
                if own is None or (own[1] != labels).any():
                    raise InputError(f"{member.run} and {self.members[0].run} have other examples in {sets[0].name}: "
                                     "evaluate on data of one's own, by --dataset")
                outputs.append(member.outputs(own[0], logarithms=True, first=start))
            log_probs, each = _log_mean(outputs), np.stack(outputs).argmax(axis=2)
            predicted = log_probs.argmax(axis=1).astype(np.int32)
            right += (each == labels).sum(axis=1)
            apart += float(_disagreement(each).sum(dtype=np.float64))
            loss -= float(np.take_along_axis(log_probs, labels[:, None], axis=1).sum(dtype=np.float64))
            new = np.stack([labels.astype(np.int64) * classes + predicted, np.ones_like(labels, np.int64)])
            pairs = _added(np.concatenate([pairs, new], axis=1))
            tally.look(Seen(images, labels, predicted, log_probs))
        found = np.stack([*np.divmod(pairs[0], classes), pairs[1]], axis=1)
        result = Evaluation(loss / size / classes, int(found[found[:, 0] == found[:, 1], 2].sum()), size, found)
        return EnsembleReport(**tally.fields(0, result), members=len(self.members), alone=(right / size).tolist(),
                              disagreement=apart / size)  # fmt: skip


class _View(NamedTuple):
    """How a member takes features that are those of all members together."""

    places: np.ndarray  # int64 [features of the member]: which of them are its own
    fill: np.ndarray  # float32 [features of the member]: what stands for an absent value; NaN: none may be absent

    def of(self, x: np.ndarray) -> np.ndarray:
        own = x[:, self.places]
        return own if own.dtype == np.uint8 else np.where(np.isnan(own), self.fill, own)


def _keys(columns: Columns) -> list[tuple[str, str | None]]:
    """What each feature is: a column, or a word of a column of text."""
    return [(name, word) for name in columns.names for word in columns.words.get(name, [None])]  # type: ignore[list-item] # None


def _mean(each: "np.ndarray | Sequence[np.ndarray]") -> np.ndarray:
    return np.asarray(np.mean(np.asarray(each), axis=0, dtype=np.float64), np.float32)


def _log_mean(each: Sequence[np.ndarray]) -> np.ndarray:
    """The logarithm of the mean, of logarithms."""
    return np.asarray(np.logaddexp.reduce(np.stack(each)) - np.float32(math.log(len(each))))


def _disagreement(predicted: np.ndarray) -> np.ndarray:
    """Of class numbers [members, N], the share of pairs of members with different ones, float32 [N]."""
    members = len(predicted)
    same = np.zeros(predicted.shape[1], np.int64)
    for own in predicted:
        same += (predicted == own).sum(axis=0)
    return ((members * members - same) / (members * (members - 1))).astype(np.float32)


def _added(pairs: np.ndarray) -> np.ndarray:
    """Codes and how often, int64 [2, N], each code once, in order."""
    codes, places = np.unique(pairs[0], return_inverse=True)
    counts = np.zeros(len(codes), np.int64)
    np.add.at(counts, places, pairs[1])
    return np.stack([codes, counts])
