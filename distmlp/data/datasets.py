"""The data of a run: what its source gives, divided into parts and checked; and the statistics that scale inputs."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from distmlp.config import FROM_PYTHON, Config
from distmlp.data import given, named, read, scaling, spread, tables, weights
from distmlp.data.arrays import Part, Source
from distmlp.data.columns import Columns
from distmlp.data.examples import ArrayDataset, Examples, ItemDataset, blocks, check_lengths
from distmlp.data.labels import Classes, find_classes
from distmlp.data.order import far_batch
from distmlp.data.packed import Pack, Packed, Statistics
from distmlp.data.split import HoldOut, hold_out, hold_out_fold
from distmlp.data.typed import Table
from distmlp.errors import InputError, listed

__all__ = ["ArrayDataset", "Data", "Examples", "ItemDataset", "input_scaling", "load"]

_ROWS, _ITEMS = 1000, 100  # examples that are looked at: of arrays, and of what is read item by item
_BYTES = 15  # values above, and 0 to 1, may be the same pictures
_RARE = 0.05  # share of the training examples
_ALIKE = 0.95  # share of pictures whose backgrounds have to be alike, for it to be one of the set


@dataclasses.dataclass(frozen=True)
class Data:
    """The parts of a data set, all of the same width, and what the model needs to know of them."""

    train: Examples
    test: Examples
    num_features: int
    num_classes: int
    name: str = ""
    validation: Examples | None = None
    classes: list[Any] | None = None  # what the labels call the classes, by number: text, whole numbers or booleans
    columns: list[str] | None = None  # names of the features
    table: Columns | None = None  # the table's, by which later tables become the same features
    remarks: Sequence[str] = ()  # what the user should know
    numbered: bool = False  # the labels are the numbers of `classes`
    pictures: bool = False  # the examples are picture files
    weights: np.ndarray | None = None  # float32 [N]: what the training examples count in the loss; None: each 1
    statistics: Statistics | None = None  # of the training set's values, where they are known without reading them
    packed: dict[str, Any] | None = None  # the settings by which a pack's files were read, which a run need not repeat

    @property
    def sizes(self) -> list[int]:
        """What all processes must agree on: numbers of training and test examples, of features and of classes."""
        return [len(self.train), len(self.test), self.num_features, self.num_classes]

    @property
    def chooser(self) -> Examples:
        """The examples by which the best state is chosen: the validation set, or else the test set."""
        return self.test if self.validation is None else self.validation

    @property
    def parts(self) -> list[Examples]:
        return [part for part in (self.train, self.test, self.validation) if part is not None]

    @property
    def called(self) -> Sequence[Any]:
        """What the labels call each class, in order."""
        return self.classes or range(self.num_classes)

    def description(self) -> str:
        """One line on the features, the classes and the weights, as people should check them; none where there are no
        names and no weights."""
        if not (self.classes or self.columns or self.weights is not None):
            return ""
        features = f" ({listed(self.columns, 5)})" if self.columns else ""
        if self.table and self.table.words:
            features = f" from {len(self.table.names):,} columns{features}"
        classes = f" ({listed(self.classes, 5)})" if self.classes else ""
        weights = "" if self.weights is None else f", weights from {self.weights.min():.3g} to {self.weights.max():.3g}"
        return f"{self.name}: {self.num_features:,} features{features}, {self.num_classes:,} classes{classes}{weights}"

    def fingerprint(self) -> str:
        """Digests of the parts, of the names of classes and columns, and of the weights, if there are any."""
        prints = [part.fingerprint() for part in self.parts]
        if self.classes or self.columns:
            classes = self.classes and [str(name) for name in self.classes]
            prints.append(hashlib.blake2b(repr((classes, self.columns)).encode(), digest_size=16).hexdigest())
        if self.weights is not None:
            prints.append(hashlib.blake2b(self.weights.data, digest_size=16).hexdigest())
        return " ".join(prints)

    def modified(self) -> list[int | None]:
        """When the file of each part was last written; see Examples.modified."""
        return [part.modified() for part in self.parts]

    def info(self) -> dict[str, Any]:
        """What a checkpoint says of the data, as JSON values, so that the model can be used without them."""
        return {
            "name": self.name, "classes": self.classes, "columns": self.columns,
            **({"table": self.table.as_json()} if self.table else {}),  # how later tables become features
            "shape": list(self.train.shape), "dtype": str(self.train.dtype),  # of one example
            **self._values,
            **({"numbered": self.numbered} if self.classes else {}),  # the labels are the numbers of the classes
            **({"pictures": True} if self.pictures else {}),  # the examples were picture files
            **({"packed": self.packed} if self.packed else {}),  # by these, files were read
        }

    @functools.cached_property
    def _values(self) -> dict[str, float | None]:
        """The range of the training set's values, and the background of its pictures: 0 dark .. 1 bright.

        Where it is not in memory, some examples are read for it. If one cannot be, nothing is known: training, which
        reads them all, says what is wrong.
        """
        size, train = len(self.train), self.train
        rows = np.linspace(0, size - 1, min(size, _ITEMS if train.one_by_one else _ROWS)).astype(int)
        try:
            some = train.take(rows)[0]
        except InputError:
            return {"largest": None, "background": None}
        whole = train.resident[0] if train.resident else some
        smallest, largest = min(float(whole.min()), 0.0), float(whole.max())
        alike = 1 if self.pictures else _ALIKE  # a file of the training set must not be taken for one to be inverted
        background = _background(some, train.shape, smallest, largest, alike)
        return {"largest": largest, "background": background, **({"smallest": smallest} if smallest else {})}


def training_remarks(config: Config, data: Data) -> list[str]:
    """What to say of a training set before it is trained on, as `config` asks."""
    return [text for text in (order_remark(config, data), balance_remark(config, data)) if text]


def order_remark(config: Config, data: Data) -> str:
    """What to say of a training set whose order is not a random one, if that is the order of each epoch; else ""."""
    labels = data.train.labels
    far = None if config.shuffle else far_batch(labels, config.batch_size)
    if far is None:
        return ""
    inside, whole = (np.bincount(part, minlength=data.num_classes) / len(part) for part in (far, labels))
    most = int((inside - whole).argmax())
    name = data.called[most]
    return (f"the training set is in no random order: of {len(far):,} examples in a row {inside[most]:.0%} are of "
            f"class {name}, of all {whole[most]:.0%}; give --shuffle, or each epoch learns in that order and ends on "
            "some of the classes")


def balance_remark(config: Config, data: Data) -> str:
    """What to say of a training set with a rare class, if nothing was done about it; else "".

    A class is rare that has less than 5 % of the examples; of more than ten classes, less than half of an equal share.
    """
    counts = np.bincount(data.train.labels, minlength=data.num_classes)
    rarest = int(np.where(counts > 0, counts, len(data.train) + 1).argmin())
    share, equal = counts[rarest] / len(data.train), 1 / np.count_nonzero(counts)
    if share >= min(_RARE, equal / 2) or config.class_weight != "none" or config.choose_by != "accuracy":
        return ""
    return (f"{share:.1%} of the training examples are of class {data.called[rarest]}: --class_weight=balanced lets it "
            "count as much as the others, and --choose_by=balanced_accuracy or macro_f1 chooses the best checkpoint by "
            "all classes alike")


def _background(
    examples: np.ndarray, shape: tuple[int, ...], smallest: float, largest: float, alike: float
) -> float | None:
    """The median of the values at the edges of pictures, 0 dark .. 1 bright; None where these are no gray pictures, or
    if fewer than this share of them are as dark or as bright at their edges."""
    shape = tuple(size for size in shape if size != 1)
    if largest <= smallest or len(shape) != 2 or min(shape) < 3:
        return None
    pixels = examples.reshape(-1, *shape)
    edges = np.concatenate((pixels[:, 0], pixels[:, -1], pixels[:, :, 0], pixels[:, :, -1]), axis=1)
    background = float((np.median(edges) - smallest) / (largest - smallest))
    each = (np.median(edges, axis=1) - smallest) / (largest - smallest)
    return background if np.mean((each > 0.5) == (background > 0.5)) >= alike else None


class Learned(NamedTuple):
    """What is known of a model."""

    info: dict[str, Any]  # what its checkpoint says of the data that it has learned from
    picture: Callable[[Path], np.ndarray] | None = None  # how it takes a picture file, as a row


def load(
    config: Config, train_set: Any = None, test_set: Any = None, validation_set: Any = None,
    learned: Learned | None = None, tested: bool = True,
) -> Data:
    """The data of a run: what --dataset names, or sets given from Python; an InputError if they cannot be trained on.

    Args:
      train_set, test_set, validation_set: tuples of arrays (x, y) or (x, y, weights), or map-style Datasets of pairs or
        dicts.
      learned: what is known of a model that is to judge these data: they have the same classes as those that it has
        learned from (of which config.num_classes says how many there are, if they have no names), and the same columns
        by name. Nothing is held out for it: a source without a test set is one.
      tested: whether there must be a test set; else, where there is none, it has no examples.
    """
    info, picture = learned or (None, None)
    known_columns = Columns.of_checkpoint(info) if info else None
    if train_set is not None:
        source = given.source(config, train_set, test_set, validation_set)
    elif test_set is None and validation_set is None:
        by_name = named.LOADERS.get(config.dataset)
        source = by_name(config) if by_name else read.source(config, info is not None, known_columns, picture)
    else:
        raise InputError("test_set and validation_set go with a train_set: give it, too")
    of_model = info is not None and bool(info.get("classes") or config.num_classes)
    known = Classes.of(info or {}, config.num_classes) if of_model else _classes(config, source)
    found: dict[str, Any] = {name: _examples(part, known, source.pack) for name, part in source.parts.items()}
    columns, weighed = source.columns, None
    remarks = [*source.remarks, *(
        f"{part.name}: the weights are ignored, for evaluation counts each example once"
        for name, part in source.parts.items() if part.weights is not None and (name != "train" or info is not None))]
    if info is None:
        spread.check(source.parts["train"].features, source.parts["train"].name)
        named_columns = columns is not None or source.pack is not None
        weighed = _given_weights(config, source.parts["train"], len(found["train"]), named_columns)
        stay = _hold_out(source.pack.rest(config) if source.pack else config, found, known.names)
        train = found["train"]
        weighed = weights.of_training(None if weighed is None else weighed[stay], train.labels,
                                      config.class_weight == "balanced", train.name)  # fmt: skip
        if columns and source.pack is None:
            columns = columns.learned(train.table, config)
            remarks += columns.remarks(train.name)
    parts: dict[str, Examples] = {}
    for name, part in found.items():
        if isinstance(part, _TableRows):
            images, more = tables.encoded(part.table, columns)
            part, remarks = ArrayDataset(images, part.labels, part.name), remarks + more
        parts[name] = part
    remarks += [] if source.pack else _range_remarks(parts, info)  # a pack's rows are verified where they are read
    if info is not None:
        parts.setdefault("test", parts["train"])
    train = parts["train"]
    if not tested:
        parts.setdefault("test", train.part(np.arange(0), "no test set"))
    if "test" not in parts:
        again = "pack its sources again, with" if source.pack and source.pack.learned else "give"
        raise InputError(f"{source.pack.folder} was packed without a test set: {again} --test_fraction=0.2"
                         if source.pack else f"{train.name} comes without a test set: give one, or --test_fraction=0.2")
    for part in parts.values():
        if part.num_features != train.num_features:
            raise InputError(f"{train.name} has {train.num_features} features but {part.name} has "
                             f"{part.num_features}: they must agree")
    name = Path(config.dataset).stem.removeprefix(FROM_PYTHON)
    whole = source.pack is not None and len(train) == len(source.parts["train"].features)
    return Data(train, parts["test"], train.num_features, known.number, name, parts.get("validation"), known.names,
                columns.features if columns else None, columns, remarks, known.numbered, source.pictures, weighed,
                source.pack.statistics if source.pack and whole and config.class_weight == "none" else None,
                source.pack.reading if source.pack else None)  # fmt: skip


@dataclasses.dataclass(frozen=True)
class _TableRows:
    """Rows of a table with class numbers, of whose columns training has yet to learn."""

    table: Table
    labels: np.ndarray
    name: str

    def __len__(self) -> int:
        return len(self.labels)

    def part(self, rows: np.ndarray, name: str) -> "_TableRows":
        return _TableRows(self.table.take(rows), self.labels[rows], name)

    def keep(self, rows: np.ndarray) -> "_TableRows":
        """As part; the others' memory is given back, and this is used up."""
        return _TableRows(self.table.keep(rows), self.labels[rows], self.name)


def _examples(part: Part, known: Classes, pack: Pack | None) -> "Examples | _TableRows":
    if pack is not None:
        return _of_classes(part.features, pack.classes, known)
    if not isinstance(part.features, (np.ndarray, Table)):
        return ItemDataset(part.features, part.name, known, part.files)
    labels = known.encode(part.labels, part.name)
    if isinstance(part.features, np.ndarray):
        return ArrayDataset(part.features, labels, part.name, part.files)
    check_lengths(len(part.features.numbers), len(labels), part.name)
    return _TableRows(part.features, labels, part.name)


def _of_classes(examples: Packed, own: Classes, known: Classes) -> Packed:
    """A pack's part, whose labels are the numbers of its own classes, with those of the classes that are known."""
    numbers = known.encode(np.array(own.called), examples.name)
    return examples if (numbers == np.arange(own.number)).all() else examples.relabelled(numbers)


def _classes(config: Config, source: Source) -> Classes:
    if source.pack is not None:
        own = source.pack.classes
        if config.num_classes not in (0, own.number):
            raise InputError(f"--num_classes={config.num_classes}: {source.pack.folder} was packed with {own.number} "
                             "classes: leave the flag out")
        return own
    train, names = source.parts["train"], source.names
    known = config.num_classes or (config.synthetic_classes if config.dataset == "synthetic" else 0)
    if train.labels is not None:
        return find_classes(train.labels, train.name, known, names)
    if known or names:
        named = bool(names) and known in {0, len(names or ())}
        return Classes(known or len(names or ()), names if named else None, named)
    listed = given.listed_labels(train.features)
    if listed is None:
        raise InputError(f"--num_classes is needed for {train.name}: its labels are read item by item, and it has "
                         "neither .classes nor .targets")
    return find_classes(listed, train.name, 0)


def _given_weights(config: Config, train: Part, count: int, table: bool) -> np.ndarray | None:
    """The weights of a training set's `count` examples, float64 [N]; None if none are given."""
    weights.check_column(config.weight_column, table, train.name)
    return None if train.weights is None else weights.checked(train.weights, count, train.name)


def _range_remarks(parts: dict[str, Examples], info: dict[str, Any] | None) -> list[str]:
    """On parts whose values all lie between 0 and 1 where the training set's go far beyond, or the other way round, as
    of pictures of which some are divided by 255. `info`: what a model knows of its training set, if this is not it."""
    def largest(part: Examples) -> float | None:
        if not part.resident:
            return None
        images = part.resident[0]
        some = images[np.linspace(0, len(images) - 1, min(len(images), _ROWS)).astype(int)]
        return float(some.max()) if some.min() >= 0 else None

    known = largest(parts["train"]) if info is None else info.get("largest")
    found = []
    for name, part in parts.items():
        if (name != "train" or info is not None) and known and (own := largest(part)):
            small, large = sorted((known, own))
            if small <= 1 and large > _BYTES:
                found.append(f"{part.name}: its values go up to {own:g}, the training set's to {known:g}: if one of "
                             "them was divided by 255 and the other not, do the same to both")
    return found


def _hold_out(
    config: Config, parts: "dict[str, Examples | _TableRows]", names: list[Any] | None
) -> np.ndarray | slice:
    """Takes the parts that --test_fraction and --validation_fraction or --fold ask for out of the training set. Returns
    which examples stay in it.

    They are drawn by the seed, with the classes (of these names) in proportion, and are in the order of the set. Labels
    that are not known are all alike, and so have no influence.
    """
    staying: np.ndarray | slice = slice(None)
    for part in ("test", "validation"):
        fraction, whole = getattr(config, f"{part}_fraction"), parts["train"]
        fold = config.fold if part == "validation" else ""
        if not fraction and not fold:
            continue
        if part in parts:
            flag = f"--fold={fold}" if fold else f"--{part}_fraction={fraction}"
            raise InputError(f"{flag}: {whole.name} comes with a {part} set, {parts[part].name}: leave the flag out")
        if fold:
            stay, held = hold_out_fold(whole.labels, fold, config.drawing_seed, whole.name, names)
        else:
            stay, held = hold_out(whole.labels, HoldOut(part, fraction, config.drawing_seed), whole.name, names)
        parts[part] = whole.part(held, f"{whole.name} ({part} part)")
        parts["train"] = whole.keep(stay) if isinstance(whole, _TableRows) else whole.part(stay, whole.name)
        staying = stay if isinstance(staying, slice) else staying[stay]
    return staying


def input_scaling(kind: str, data: Data) -> tuple[np.ndarray, ...]:
    """() or (shift, scale), float32 [features]: the network's input is (x - shift) * scale. `kind` is none, unit or
    standard.

    They are computed once and carried in every checkpoint. unit divides by the training set's largest absolute value,
    standard gives each feature mean 0 and standard deviation 1 over that set, by the examples' weights; constant
    features become 0. An example of weight 0 is none.
    """
    if kind == "none":
        return ()
    width, known = data.num_features, data.statistics
    rows = scaling.Rows(lambda: blocks(data.train), data.weights)
    if kind == "unit":
        largest = known.largest if known else scaling.largest(rows)
        return np.zeros(width, np.float32), np.full(width, 1 / (largest or 1), np.float32)
    mean, deviation = (np.array(known.mean), np.array(known.deviation)) if known else scaling.moments(rows, width)
    scale = np.divide(1, deviation, out=np.zeros(width), where=deviation > 0)
    return mean.astype(np.float32), scale.astype(np.float32)
