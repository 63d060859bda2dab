"""What every source of data gives, a Part for each part of the data set; and arrays: in .npz and .npy files, read whole
or as a stream, and in batches that are given from Python.
"""

import contextlib
import math
import os
import zipfile
import zlib
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distmlp.data import columnar, refused
from distmlp.data.spread import Spread, may_round
from distmlp.data.streams import Labels, Stream, finite
from distmlp.errors import InputError, listed, one_line

if TYPE_CHECKING:
    from distmlp.data.columns import Columns
    from distmlp.data.packed import Pack

_PARTS = {"train": ("train", "training"), "test": ("test", "testing"), "validation": ("val", "valid", "validation")}
_FEATURES = ("x", "data", "images", "features", "inputs")
_LABELS = ("y", "target", "targets", "label", "labels")
_WEIGHTS = ("w", "weights", "sample_weight")
_ROWS = 8192  # of a stream, read at a time
_BYTES = 4 << 20  # of a stream, read at a time, at most


class Part(NamedTuple):
    """Features [N, ...] or a typed.Table, and labels [N] of any kind; or a Dataset, whose items alone may have them."""

    features: Any
    labels: Any
    name: str  # for messages
    files: list[Path] | None = None  # of pictures, the file of each
    weights: Any = None  # [N], what each example counts in the loss; None: each 1


class Source(NamedTuple):
    """What the function `source` of each kind of source makes, or it raises an InputError, which says what is wrong."""

    parts: dict[str, Part]  # train; test and validation where there are such
    names: list[str] | None = None  # of the classes, by number
    columns: "Columns | None" = None  # of tables and frames
    remarks: Sequence[str] = ()  # what the user should know
    pictures: bool = False  # the examples are picture files
    pack: "Pack | None" = None  # whose parts these are: Packed, as features


def visible(folder: Path) -> list[Path]:
    """The folders in a folder, in the order of their names, without hidden ones as .ipynb_checkpoints."""
    return sorted(inner for inner in folder.iterdir() if inner.is_dir() and not inner.name.startswith("."))


def walk(folder: Path, hidden: tuple[str, ...] = (".",)) -> Iterator[Path]:
    """The files in a folder and in those below it, also where links lead, but for one that leads back up. What begins
    as `hidden` says is left out, with all below it. An InputError if a folder cannot be read."""
    for root, inner, names in os.walk(folder, followlinks=True, onerror=_unread):
        inner[:] = [name for name in inner if not name.startswith(hidden) and not _leads_back(Path(root, name), folder)]
        yield from (Path(root, name) for name in names if not name.startswith(hidden))


def _unread(error: OSError) -> None:
    raise InputError(f"{error.filename} cannot be read ({error.strerror}): make it readable, or move it away") from None


def _leads_back(path: Path, folder: Path) -> bool:
    """Whether it is a link to what it lies in, or to one of the folders on the way to it from `folder` on."""
    return path.is_symlink() and any(parent.resolve().is_relative_to(path.resolve()) for parent in path.parents
                                     if parent.is_relative_to(folder))


def part_of(path: Path) -> str:
    """The part that a file or folder is named as, in any case; "" if it is none."""
    name = (path.name if path.is_dir() else path.name.partition(".")[0]).lower()
    return next((part for part, names in _PARTS.items() if name in names), "")


def by_part(paths: Iterable[Path]) -> dict[str, Path]:
    """Of files or folders, those that are named as a part is, in any case; an InputError where two are one part."""
    found: dict[str, Path] = {}
    for path in paths:
        part = part_of(path)
        if part in found:
            raise InputError(f"{found[part]} and {path} could both be meant as the {part} set: move one away")
        if part:
            found[part] = path
    return found


def source(path: Path) -> Source:
    """The arrays in an .npz file, or in a folder of .npy files, which are memory-mapped."""
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.glob("*.npy"))}
        return _chosen(path, [*files], lambda name: _load(files[name], mmap_mode="r"))
    refused.check_file(path)
    with path.open("rb") as file:  # given a path, a damaged file would stay open
        loaded = _load(path, file)
        if not isinstance(loaded, Mapping):
            raise InputError(f"{path} holds a single array: give an .npz file of features and labels")
        with loaded:  # type: ignore[attr-defined] # an NpzFile, which is a Mapping, too
            return _chosen(path, [*loaded], lambda name: _load(path, loaded, name))


def features_name(path: Path, names: Sequence[str]) -> str:
    """Of named arrays, that of features: the only one there is, the test set's, or else one named x or the like."""
    if len(names) == 1:
        return names[0]
    plain = [name for name in names if name.lower() in _FEATURES]
    found = _find(path, names, _FEATURES, "test") or (plain[0] if len(plain) == 1 else "")
    found = found or _find(path, names, _FEATURES, "train") or _find(path, names, _FEATURES, "validation")
    if not found:
        raise InputError(f"{path} holds {one_line(', '.join(names) or 'nothing')}: name the array of rows x or data")
    return found


def _load(path: Path, file: Any = None, name: str = "", **options: Any) -> Any:
    """An array or an archive of arrays; damage surfaces as any of a dozen types, from NumPy, zipfile and zlib."""
    try:
        return file[name] if name else np.load(file or path, **options)
    except Exception as error:  # the docstring says which
        reason = one_line(error)
        if reason.startswith("Object arrays"):
            raise InputError(f"{path}{name and ': '}{name} holds Python objects, which are not safe to read: "
                             "save text as text, as in y.astype(str), and all else as numbers") from None
        if path.suffix.lower() not in (".npz", ".npy"):
            raise refused.unread(path) from None
        reason = "it does not begin as one of them" if "pickled" in reason else reason  # which NumPy takes it for
        raise InputError(f"{path} cannot be read as NumPy arrays, it may be damaged or truncated "
                         f"({reason}): bring back an intact copy") from None


def _find(path: Path, names: Sequence[str], words: tuple[str, ...], part: str) -> str:
    """The array that is named by one of the words and by the part, or by a word alone for the training set; or ""."""
    affixes = _PARTS[part]
    wanted = {joined for word in words for affix in affixes for joined in (f"{word}_{affix}", f"{affix}_{word}")}
    found = [name for name in names if name.lower().replace("-", "_") in wanted]
    if not found and part == "train":
        found = [name for name in names if name.lower() in words]
    if len(found) > 1:
        raise InputError(f"{path} holds {' and '.join(found)}, which could both be meant: leave one out")
    return found[0] if found else ""


def pairs(path: Path, names: Sequence[str]) -> dict[str, tuple[str, str, str]]:
    """Features, labels and weights ("" for none) of each part among named arrays, by the usual names: x_train, y_train
    and w_train, data and target, val_images, ..."""
    parts = {}
    for part, affixes in _PARTS.items():
        features, labels = _find(path, names, _FEATURES, part), _find(path, names, _LABELS, part)
        weights = _find(path, names, _WEIGHTS, part)
        if features and labels:
            parts[part] = features, labels, weights
        elif features or labels or part == "train":
            lacking = "y" if features else "x"
            held = one_line(", ".join(names) or "no arrays")
            raise InputError(f"{path} lacks {lacking}_{affixes[0]}, it holds {held}: "
                             "it must hold x_train, y_train, x_test, y_test, or for instance data, target")
    return parts


def _chosen(path: Path, names: Sequence[str], get: Callable[[str], np.ndarray]) -> Source:
    found = pairs(path, names)
    return Source({
        part: Part(get(features), get(labels), f"{path}: {', '.join(filter(None, (features, labels, weights)))}",
                   weights=get(weights) if weights else None)
        for part, (features, labels, weights) in found.items()
    }, remarks=not_read(path, _beside(found, names)))


def _beside(parts: Mapping[str, tuple[str, str, str]], names: Sequence[str]) -> list[str]:
    """The names of no part."""
    return sorted({*names} - {name for trio in parts.values() for name in trio})


def not_read(path: Path, names: Sequence[str]) -> list[str]:
    """A remark on the files or arrays of these names, if there are any: they are no part."""
    if not names:
        return []
    named = "train, test and val" + (", and weights w_train" if any("weight" in name.lower() for name in names) else "")
    return [f"{path}: {listed(names)} {'is' if len(names) == 1 else 'are'} not read: the parts are named {named}"]


class Stored:
    """An array in an .npy file or in an .npz archive, which is read block by block."""

    def __init__(self, path: Path, member: str = "") -> None:
        self._path, self._member = path, member
        self.name = f"{path}: {member.removesuffix('.npy')}" if member else str(path)
        with self._opened() as (_, shape, fortran, dtype):
            self.shape, self._fortran, self.dtype = shape, fortran, dtype
        if not self.shape:
            raise InputError(f"{self.name} is a single value, no array of rows")
        if self.dtype.hasobject:
            raise InputError(f"{self.name} holds Python objects, which are not safe to read: save text as text, as in "
                             "y.astype(str), and all else as numbers")

    def __len__(self) -> int:
        return int(self.shape[0])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[Any, tuple[int, ...], bool, Any]]:
        try:
            with contextlib.ExitStack() as stack:
                file: Any = stack.enter_context(self._path.open("rb"))
                if self._member:
                    archive = stack.enter_context(zipfile.ZipFile(file))
                    file = stack.enter_context(archive.open(self._member))
                version = np.lib.format.read_magic(file)
                read = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
                yield file, *read[version](file)
        except InputError:
            raise
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
            raise InputError(f"{self.name} cannot be read as NumPy arrays, it may be damaged or truncated ({error}): "
                             "bring back an intact copy") from None

    def blocks(self, start: int) -> Iterator[np.ndarray]:
        """The rows from `start` on."""
        row_bytes = int(self.dtype.itemsize * np.prod(self.shape[1:], dtype=np.int64))
        size = max(1, min(_ROWS, _BYTES // max(1, row_bytes)))
        if self._fortran and len(self.shape) > 1:
            array = np.load(self._path, mmap_mode="r") if not self._member else np.load(self._path)[self._member[:-4]]
            for begin in range(start, len(self), size):
                yield np.ascontiguousarray(array[begin : begin + size])
            return
        with self._opened() as (file, *_):
            file.seek(start * row_bytes, os.SEEK_CUR)
            for begin in range(start, len(self), size):
                rows = min(size, len(self) - begin)
                content = file.read(rows * row_bytes)
                if len(content) < rows * row_bytes:
                    raise ValueError(f"it ends in row {begin + len(content) // max(1, row_bytes)}")
                yield np.frombuffer(content, self.dtype).reshape(rows, *self.shape[1:])


Trio = tuple[Stored, Stored, Stored | None]  # features, labels and weights, if there are any


def stored(path: Path) -> dict[str, Stored]:
    """The arrays in an .npz file, or in a folder of .npy files, by name."""
    if path.is_dir():
        return {file.stem: Stored(file) for file in sorted(path.glob("*.npy"))}
    try:
        with zipfile.ZipFile(path) as archive:
            members = [name for name in archive.namelist() if name.endswith(".npy")]
    except (OSError, zipfile.BadZipFile) as error:
        raise InputError(f"{path} cannot be read as NumPy arrays, it may be damaged or truncated ({error}): bring back "
                         "an intact copy") from None
    return {name.removesuffix(".npy"): Stored(path, name) for name in members}


def streams(named: Sequence[dict[str, Stored]], paths: Sequence[Path], files: Sequence[Path]) -> dict[str, Stream]:
    """By part, the rows of the arrays of one or several places, which lie at these paths and in these files."""
    sets: dict[str, list[Trio]] = {}
    remarks: list[str] = []
    for arrays, path in zip(named, paths, strict=True):
        found = pairs(path, [*arrays])
        for part, (x, y, weights) in found.items():
            sets.setdefault(part, []).append((arrays[x], arrays[y], arrays[weights] if weights else None))
        remarks += not_read(path, _beside(found, [*arrays]))
    return {part: Arrays(sets[part], files, remarks if part == "train" else []) for part in _PARTS if part in sets}


class Arrays:
    """The rows of arrays, one after the other."""

    pictures, classes = False, None

    def __init__(self, sets: "Sequence[Trio]", files: Sequence[Path], remarks: list[str]) -> None:
        """`sets`: features, labels and weights, if there are any."""
        self._sets, self.files, self.remarks = sets, files, remarks
        self.name = sets[0][0].name if len(sets) == 1 else f"{sets[0][0].name} and {len(sets) - 1:,} more"
        for x, y, weights in sets:
            _check_kind(x.dtype, x.shape[1:], sets[0][0].shape[1:], x.name)
            if len(x) != len(y):
                raise InputError(f"{x.name} has {len(x)} examples but {len(y)} labels: give as many of both")
            if weights is not None and len(x) != len(weights):
                raise InputError(f"{x.name} has {len(x)} examples but {len(weights)} weights: give as many of both")
            if weights is not None and weights.shape[1:] not in ((), (1,)):
                raise InputError(f"{weights.name}: weights must be numbers of shape [examples], one for each, not "
                                 f"{weights.dtype} {list(weights.shape)}")
        if len({weights is None for _, _, weights in sets}) > 1:
            raise InputError(f"{self.name}: some of them have weights, others have none: give all alike")
        self._bytes = all(x.dtype == np.uint8 for x, _, _ in sets)

    def labels(self) -> Iterator[Labels]:
        for _, y, weights in self._sets:
            if weights is None:
                yield from map(Labels, y.blocks(0))
                continue
            parts, rest = weights.blocks(0), np.zeros(0)
            for labels in y.blocks(0):  # whose blocks may have other numbers of rows
                while len(rest) < len(labels):
                    rest = np.concatenate([rest, next(parts).reshape(-1)])
                yield Labels(labels, rest[: len(labels)])
                rest = rest[len(labels) :]

    def features(self, start: int = 0, spread: Spread | None = None) -> Iterator[np.ndarray]:
        row = start
        spread = spread if any(may_round(x.dtype) for x, _, _ in self._sets) else None
        if spread:
            spread.begin(math.prod(self._sets[0][0].shape[1:]))
        for x, _, _ in self._sets:
            if start < len(x):
                for block in x.blocks(start):
                    if spread:
                        spread.add(block.reshape(len(block), -1))
                    yield finite(block if self._bytes else _float32(block), self.name, row)
                    row += len(block)
            start = max(0, start - len(x))
        if spread:
            spread.check(self.name)


class Batches:
    """Batches that are given from Python: tuples (x, y) or (x, y, weights) of arrays, gone through anew by
    `batches()`: labels and features must not come from two orders of them."""

    pictures, classes, files = False, None, ()

    def __init__(self, batches: Callable[[], Iterable[Any]], name: str = "batches") -> None:
        self._batches, self.name, self.remarks = batches, name, list[str]()
        first = next(iter(self._pairs()), None)
        if first is None:
            raise InputError(f"{name} is empty: give at least one batch")
        self._shape, self._bytes = first[0].shape[1:], first[0].dtype == np.uint8
        self._digests: array[int] | None = None  # of each batch's labels and weights, once they have been read

    def _pairs(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray | None]]:
        weighed = False
        for number, batch in enumerate(self._batches()):
            name = f"batch {number} of {self.name}"
            if not isinstance(batch, (tuple, list)) or len(batch) not in (2, 3):
                raise InputError(f"{name} is a {type(batch).__name__}: give tuples (x, y) or (x, y, weights) of "
                                 "arrays, or frames")
            x, y, *more = map(as_array, batch)
            if x.ndim < 2 or any(len(x) != len(each) for each in (y, *more)):
                shapes = " and ".join(str(list(each.shape)) for each in (x, y, *more))
                raise InputError(f"{name} must be features of shape [N, ...] and N labels, and N weights if there are "
                                 f"any, not {shapes}")
            if number and bool(more) != weighed:
                raise InputError(f"{name} {'has' if more else 'lacks'} weights, unlike those before: give all alike")
            weighed = bool(more)
            yield x, y, more[0] if more else None

    def labels(self) -> Iterator[Labels]:
        digests = array("L")
        for _, y, weights in self._pairs():
            digests.append(_digest(y, weights))
            yield Labels(y, weights)
        self._digests = digests

    def features(self, start: int = 0, spread: Spread | None = None) -> Iterator[np.ndarray]:
        row, number = 0, -1
        spread = None if self._bytes else spread
        if spread:
            spread.begin(math.prod(self._shape))
        known = None if self._digests is None else iter(self._digests)
        for number, (x, y, weights) in enumerate(self._pairs()):
            if known is not None and _digest(y, weights) != next(known, None):
                raise self._others(number)
            _check_kind(x.dtype, x.shape[1:], self._shape, f"{self.name}, row {row}")
            if self._bytes and x.dtype != np.uint8:
                raise InputError(f"{self.name}, row {row}: values of type {x.dtype}, but the first are uint8: give all "
                                 "alike")
            if row + len(x) > start:
                block = x[max(0, start - row) :]
                if spread:
                    spread.add(block.reshape(len(block), -1))
                yield finite(block if self._bytes else _float32(block), self.name, max(row, start))
            row += len(x)
        if known is not None and next(known, None) is not None:
            raise self._others(number + 1)
        if spread:
            spread.check(self.name)

    def _others(self, number: int) -> InputError:
        return InputError(f"{self.name} are not the same each time they are gone through, from batch {number} on, as "
                          "where they are shuffled: give iter(...) of them, which is kept on the disk meanwhile, or "
                          "turn shuffling off")


def _digest(labels: np.ndarray, weights: np.ndarray | None) -> int:
    """Of a batch's labels and weights: where these are equal, any features that come with them are rightly theirs."""
    digest = 0
    for values in (labels, weights):
        if values is not None:
            content = repr(values.tolist()).encode() if values.dtype.hasobject else values.tobytes()
            digest = zlib.crc32(content, digest)
    return digest


def as_array(value: Any) -> np.ndarray:
    """An array, tensor of any kind, frame, picture or number as a NumPy array."""
    if hasattr(value, "detach"):
        value = (value.float() if str(value.dtype) == "torch.bfloat16" else value).detach().cpu()
    columnar.refuse_sparse_or_masked(value)
    arrow = hasattr(value, "to_pylist")  # whose to_numpy() takes no text
    array = np.asarray(value.to_numpy() if hasattr(value, "to_numpy") and not arrow else value)
    if array.ndim and array.dtype.kind in "US" and isinstance(value, Sequence):
        objects = np.array(value, object)
        if not all(isinstance(each, str if array.dtype.kind == "U" else bytes) for each in objects.flat):
            return objects  # what is no text must not become text, as a gap would "nan"
    return array


def _float32(block: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, and is found
        return block.astype(np.float32, copy=False)


def _check_kind(dtype: Any, shape: Sequence[int], wanted: Sequence[int], name: str) -> None:
    if np.dtype(dtype).kind not in "uifb" or 0 in shape:
        raise InputError(f"{name}: features must be numbers of shape [examples, ...], not {dtype}")
    if tuple(shape) != tuple(wanted):
        raise InputError(f"{name} has rows of the shape {list(shape)}, but the first {list(wanted)}: they must agree")
