"""Which streams of rows lie at files and folders, one for each part of the data set; and batches as a stream."""

import contextlib
import functools
import itertools
import json
import pickle
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from distmlp.config import Config
from distmlp.data import arrays, columnar, packed, pictures, read, refused
from distmlp.data.arrays import Batches, Stored, as_array, part_of
from distmlp.data.columnar import Raw
from distmlp.data.columns import Columns
from distmlp.data.pictures import Pictures, StoredPictures
from distmlp.data.streams import Stream
from distmlp.data.tables import Reader, Tables
from distmlp.errors import InputError, listed

PARTS = ("train", "test", "validation")  # in the order in which they are read


def for_model(path: Path, config: Config, columns: Columns) -> dict[str, Stream]:
    """The streams of the parts of tables at a path, for a model that has learned from such columns."""
    return _tables({"train": [path]} if path.is_file() else _parts(path), config, known=columns)


def found(sources: Sequence[Path], config: Config, partitions: bool = False) -> dict[str, Stream]:
    """The streams of the parts that files and folders hold: train, and test and validation where there are such.

    Args:
      partitions: folders named COLUMN=VALUE are columns of the tables in them.

    Raises:
      InputError: they are not there, of several kinds, or of none.
    """
    for path in sources:
        refused.check_place(path)
    if len(sources) == 1 and sources[0].is_dir():
        return _folder(sources[0], config, partitions)
    named = {path: part_named(path) for path in sources}
    parts: dict[str, list[Path]] = {}
    for path in sources:
        part = named[path] if "train" in named.values() else "train"
        if not part:
            raise InputError(f"{path} is beside {next(p for p in sources if named[p] == 'train')}: name all of them "
                             "train, test or val, or none")
        parts.setdefault(part, []).append(path)
    kinds = {_kind(path) for path in sources}
    if kinds == {".npy"}:
        return arrays.streams([{path.stem: Stored(path) for path in sources}], [sources[0].parent], sources)
    if kinds == {".npz"}:
        _check_alike({path: [path.name] for path in sources})
        return arrays.streams([*map(arrays.stored, sources)], sources, sources)
    if kinds != {"table"}:
        for path in sources:
            if _kind(path) not in ("table", ".npy", ".npz"):
                raise refused.unread(path) if path.is_file() else InputError(
                    f"{path} is a folder of another kind than the other sources: give it alone")
        raise InputError("tables and arrays cannot be packed together: give sources of one kind")
    if "train" not in named.values():
        _check_alike({file: file.relative_to(path.parent).parts for path in sources for file in below(path)})
    return _tables({part: [file for path in paths for file in below(path)] for part, paths in parts.items()}, config,
                   partitions)  # fmt: skip


def _kind(path: Path) -> str:
    if path.is_dir():
        return "table" if below(path) else "folder"
    suffix = path.suffix.lower()
    return suffix if suffix in (".npy", ".npz") else "table" if columnar.is_table(path) else "other"


def tables(path: Path) -> list[Path]:
    """The tables at a path and below it; none where it is a pack, or arrays or pictures lie there, which are meant."""
    refused.check_place(path)
    if path.is_file():
        return [path] if columnar.is_table(path) else []
    if packed.is_pack(path) or any(path.glob("*.npy")):
        return []
    pictured = any(map(pictures.holds_pictures, arrays.visible(path)))
    return below(path) if read.tables_at(path) or not pictured else []


def below(path: Path) -> list[Path]:
    """The tables at a path and below it, in the order of their names; what begins with . or _ is none, as Spark's
    _SUCCESS and _temporary."""
    if not path.is_dir():
        return [path]
    return [file for file in sorted(arrays.walk(path, (".", "_"))) if file.is_file() and columnar.is_table(file)]


def _folder(folder: Path, config: Config, partitions: bool) -> dict[str, Stream]:
    if packed.is_pack(folder):
        raise InputError(f"{folder} is a pack already: give the tables, arrays or pictures it was made of")
    if refused.is_saved(folder):
        return _saved(folder, config)
    if files := sorted(folder.glob("*.npy")):
        return arrays.streams([arrays.stored(folder)], [folder], files)
    inner = arrays.visible(folder)
    if any(map(pictures.holds_pictures, inner)):
        like: pictures.ImageFolder | None = None
        streams: dict[str, Stream] = {}
        for part, root in pictures.roots(folder).items():
            images = pictures.ImageFolder(root, config, like)
            like, streams[part] = like or images, Pictures(images)
        return streams
    parts = _parts(folder)
    if not any(parts.values()):
        archives = sorted(folder.glob("*.npz"))
        if archives:
            return found(archives, config)
        raise InputError(f"{folder} holds no tables, arrays or folders of pictures")
    return _tables(parts, config, partitions)


def _parts(folder: Path) -> dict[str, list[Path]]:
    """The tables in a folder by part; all are of the training set, if no name says another thing of some of them."""
    tables = [file for file in sorted(folder.iterdir()) if file.is_file() and columnar.is_table(file)
              and not file.name.startswith((".", "_"))]
    parts: dict[str, list[Path]] = {}
    for path in [*tables, *arrays.visible(folder)]:
        if files := below(path):
            parts.setdefault(part_named(path), []).extend(files)
    if "train" not in parts:
        if "" not in parts and len(parts) > 1:
            return parts
        files = below(folder)
        _check_alike({file: file.relative_to(folder).parts for file in files})
        return {"train": files}
    if strangers := parts.pop("", None):
        raise InputError(f"{folder} holds {strangers[0].name} beside {parts['train'][0].name}: name all of them train, "
                         "test or val, or move it away")
    return parts


def part_named(path: Path) -> str:
    """As part_of, also of one of the many files of a part, as train-00000-of-00001.parquet."""
    numbered = re.fullmatch(r"([a-z]+)[-_]?[0-9].*", path.name.lower())
    return _word(numbered[1]) if numbered else part_of(path)


def part_below(folder: Path, file: Path) -> str:
    """The part that a file in a folder is of, by its own name or that of a folder between, the upper one first."""
    names = file.relative_to(folder).parts
    return next(filter(None, (part_named(folder.joinpath(*names[: end + 1])) for end in range(len(names)))), "")


@functools.cache
def _word(word: str) -> str:
    return part_of(Path(word))


def _check_alike(files: dict[Path, Sequence[str]]) -> None:
    """Raises InputError where the words in these names say of some files that they are held out, and not of all: they
    would be one training set. Folders named COLUMN=VALUE say nothing."""
    said = {file: {_word(word) for name in names if "=" not in name
                   for word in re.findall("[a-z]+", name.lower())} - {""} for file, names in files.items()}  # fmt: skip
    held = next((file for file in files if said[file] - {"train"}), None)
    other = next((file for file in files if held and said[file] != said[held]), None)
    if other:
        raise InputError(f"{held} and {other} would be one training set: name all of them train, test or val, as in "
                         "train.csv, or give the training set alone")


def _tables(
    files: dict[str, list[Path]], config: Config, partitions: bool = False, known: Columns | None = None
) -> dict[str, Stream]:
    """`known`: the columns of the training set, where it is not among these."""
    streams: dict[str, Stream] = {}
    train: Tables | None = None
    stems: dict[Path, Path] = {}
    for file in (file for part in files.values() for file in part):
        if (same := stems.setdefault(file.with_name(columnar.stem(file)), file)) != file:
            raise InputError(f"{same} and {file} could both be meant: move one away")
    for part in sorted(files, key=PARTS.index):
        opened = [_opener(file, config, train, known, partitions) for file in files[part]]
        streams[part] = stream = Tables(opened, files[part], config, train.columns if train else known)
        train = train if train or known else stream
    return streams


def _opener(
    file: Path, config: Config, train: Tables | None, known: Columns | None, partitions: bool
) -> Callable[[], Raw]:
    def opened() -> Raw:
        raw = Reader(config, train.columns if train else known).opened(file, sure=known is None)
        return columnar.with_constants(raw, _partitions(file)) if partitions else raw

    return opened


def _partitions(file: Path) -> dict[str, str]:
    """What the names of a file's folders say, as COLUMN=VALUE."""
    pairs = (part.partition("=") for part in file.parent.parts)
    return {name: value for name, equals, value in pairs if equals and name}


def _saved(folder: Path, config: Config) -> dict[str, Stream]:
    """A Hugging Face data set that was saved to disk, or several, as its splits are."""
    inner = [folder] if (folder / "dataset_info.json").exists() else arrays.visible(folder)
    if not inner:
        raise InputError(f"{folder} holds no split: bring back an intact copy, or save it again by save_to_disk")
    parts = arrays.by_part(inner) if len(inner) > 1 else {"train": inner[0]}
    if strangers := [path.name for path in inner if path not in parts.values()]:
        raise InputError(f"{folder} holds {listed(strangers)} of {listed([path.name for path in inner])}: name all of "
                         "them train, test or val, or move it away")
    streams: dict[str, Stream] = {}
    label = ""  # of pictures; the training set's is every part's
    for part in sorted(parts, key=PARTS.index):
        path = parts[part]
        try:
            features = json.loads((path / "dataset_info.json").read_text(encoding="utf-8"))["features"]
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            files = [path / file["filename"] for file in state["_data_files"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} cannot be read as a saved data set ({error}): save it again by "
                             "save_to_disk") from None
        if state.get("_indices_files") or not files:
            raise InputError(f"{path} holds a selection of rows, not the rows: call flatten_indices() before "
                             "save_to_disk")
        kinds = {name: kind.get("_type") if isinstance(kind, dict) else "" for name, kind in features.items()}
        classes = {name: features[name]["names"] for name, kind in kinds.items() if kind == "ClassLabel"}
        train: Any = streams.get("train")
        stored = "Image" in kinds.values()
        if train and train.pictures != stored:
            holds = [f"{'a' if has else 'no'} column of pictures" for has in (stored, train.pictures)]
            raise InputError(f"{path} has {holds[0]}, but {parts['train']} has {holds[1]}: save both alike")
        if stored:
            image, label = _picked(path, kinds, label or config.label_column)
            streams[part] = StoredPictures(files, image, label, classes.get(label), config, train)
        else:
            raws = [functools.partial(columnar.file, file, lambda cells: True) for file in files]
            streams[part] = Tables(raws, files, config, train.columns if train else None, classes)
        names, known = streams[part].classes, train.classes if train else None
        if names and known and names != known:
            raise InputError(f"{path} has the classes {listed(names)}, but {parts['train']} {listed(known)}: give both "
                             "the same, in one order")
    return streams


def _picked(path: Path, kinds: dict[str, Any], given: str) -> tuple[str, str]:
    """The columns of pictures and of labels of a saved data set; `given`: the latter, if it is known."""
    images = [name for name, kind in kinds.items() if kind == "Image"]
    if len(images) > 1:
        raise InputError(f"{path} has {len(images)} columns of pictures, {listed(images)}: keep one, by "
                         "remove_columns() before save_to_disk")
    others = {name: kind for name, kind in kinds.items() if name not in images}
    found = [name for name, kind in others.items()
             if (name.strip() == given.strip() if given else kind == "ClassLabel" or name == "label")]
    if len(found) != 1:
        wanted = f"named {given}" if given else "of kind ClassLabel or named label"
        raise InputError(f"{path} has {len(found) or 'no'} columns {wanted}: give --label_column, one of "
                         f"{listed([*others])}")
    return images[0], found[0]


@contextlib.contextmanager
def of_batches(batches: Iterable[Any], config: Config, folder: Path) -> Iterator[Stream]:
    """Batches as a stream, without those of no rows. Frames, and what can be gone through once only, are kept in
    `folder` meanwhile."""
    once = (given := iter(batches)) is batches
    iterator: Iterator[Any] = itertools.filterfalse(_empty, given)
    first = next(iterator, None)
    frames = first is not None and columnar.is_frame(first)
    if not once:
        iterator = itertools.filterfalse(_empty, batches)
    else:
        iterator = itertools.chain([first] if first is not None else [], iterator)
    spool = folder / "batches.arrow"
    if frames:
        import pyarrow as pa

        writer = None
        for number, batch in enumerate(iterator):
            try:
                table = pa.Table.from_pandas(batch, preserve_index=False) if hasattr(batch, "iloc") else (
                    batch.to_arrow() if hasattr(batch, "to_arrow") else pa.table(batch))  # fmt: skip
                if writer is None:
                    writer = pa.ipc.new_file(str(spool), table.schema)
                writer.write_table(table.cast(writer.schema) if hasattr(writer, "schema") else table)
            except (pa.ArrowException, TypeError, ValueError) as error:
                raise InputError(f"batch {number} is no frame like the first ({error}): give all alike") from None
        assert writer is not None  # the first is a frame
        writer.close()
        yield Tables([lambda: columnar.file(spool, lambda cells: True)._replace(name="batches")], [], config)
    elif once:
        with spool.open("wb") as file:
            for batch in iterator:
                pickle.dump(tuple(map(as_array, batch)) if isinstance(batch, (tuple, list)) else batch, file)
        yield Batches(lambda: _unpickled(spool))
    else:
        yield Batches(lambda: itertools.filterfalse(_empty, batches))


def _empty(batch: Any) -> bool:
    """Whether it is a frame, or arrays, of no rows."""
    parts = batch if isinstance(batch, (tuple, list)) else [batch] if columnar.is_frame(batch) else []
    with contextlib.suppress(TypeError):  # a number
        return len(parts) > 0 and not any(map(len, parts))
    return False


def _unpickled(path: Path) -> Iterator[Any]:
    """What `of_batches` has just written itself."""
    with path.open("rb") as file, contextlib.suppress(EOFError):
        while True:
            yield pickle.load(file)
