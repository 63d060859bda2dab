"""What every source of data gives, a Part for each part of the data set; and the arrays in .npz and .npy files."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from distmlp.data import refused
from distmlp.errors import InputError, one_line

if TYPE_CHECKING:
    from distmlp.data.columns import Columns
    from distmlp.data.packed import Pack

_PARTS = {"train": ("train", "training"), "test": ("test", "testing"), "validation": ("val", "valid", "validation")}
_FEATURES = ("x", "data", "images", "features", "inputs")
_LABELS = ("y", "target", "targets", "label", "labels")
_WEIGHTS = ("w", "weights", "sample_weight")


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
    with _opened(path) as (names, get):
        if names is None:
            raise InputError(f"{path} holds a single array: give an .npz file of features and labels")
        return _chosen(path, names, get)


def features(path: Path) -> np.ndarray:
    """Of the arrays in such a file or folder, or of the one in an .npy file, that of features: the only one there is,
    one named x or the like, or else the test set's.
    """
    with _opened(path) as (names, get):
        return get("" if names is None else features_name(path, names))


def features_name(path: Path, names: Sequence[str]) -> str:
    """Of named arrays, that of features; see `features`."""
    if len(names) == 1:
        return names[0]
    plain = [name for name in names if name.lower() in _FEATURES]
    parts = [_find(path, names, _FEATURES, part) for part in ("test", "train", "validation")]
    found = plain or list(filter(None, parts))
    if not found:
        raise InputError(f"{path} holds {one_line(', '.join(names) or 'nothing')}: name the array of rows x or data")
    return found[0]


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[list[str] | None, Callable[[str], np.ndarray]]]:
    """The names of the arrays at a path, None for a single one without a name; and how to get one by its name."""
    if path.is_dir():
        files = {file.stem: file for file in sorted(path.glob("*.npy"))}
        yield [*files], lambda name: _load(files[name], mmap_mode="r")
        return
    refused.check_file(path)
    with path.open("rb") as file:  # given a path, a damaged file would stay open
        loaded = _load(path, file)
        if not isinstance(loaded, Mapping):
            yield None, lambda name: loaded
            return
        with loaded:  # type: ignore[attr-defined] # an NpzFile, which is a Mapping, too
            yield [*loaded], lambda name: _load(path, loaded, name)


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
    return Source({
        part: Part(get(features), get(labels), f"{path}: {', '.join(filter(None, (features, labels, weights)))}",
                   weights=get(weights) if weights else None)
        for part, (features, labels, weights) in pairs(path, names).items()
    })
