"""pack: rows of any sources become a packed data set (packed.py), in memory that does not grow with them.

First the labels are read: they say which classes there are, how many rows, and which of them are held out. Then, where
words or means are to be learned, the features of the training part; and then all features, which are written as they
are read. All of it is done in FOLDER.unfinished, which becomes FOLDER at the end. What is done is noted there, so that
the same command goes on after whatever stopped it.
"""

import contextlib
import fcntl
import itertools
import json
import math
import mmap
import os
import shutil
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from distmlp import machine
from distmlp.config import Config, check_named, digest_json
from distmlp.data import scaling, sources, split, streams, weights
from distmlp.data.columns import Columns
from distmlp.data.labels import Classes, Seen
from distmlp.data.packed import FORMAT, HEADER, MANIFEST, PARTS, SETTINGS, UNFINISHED, Pack, Writer, npy_header
from distmlp.data.scaling import BLOCK
from distmlp.data.spread import Spread
from distmlp.data.streams import Stream
from distmlp.data.tables import Tables
from distmlp.errors import InputError, WriteError

_NOTED_SECONDS = 10.0  # between notes of how far the writing has come
_SPAN = 1 << 22  # bytes of a memory-mapped array that are worked on at a time
_SPARE = 16 << 20  # bytes that are to stay free on the disk


def pack(batches: Iterable[Any], folder: str | Path, config: Config | None = None) -> Path:
    """Makes a data set for --dataset=FOLDER of batches of any number, in memory that does not grow with it.

    Args:
      batches: tuples (x, y) or (x, y, weights) of arrays or tensors: features [N, ...], labels [N] and what each row
        counts in the loss [N]; or frames, which have a column of labels. A list, or what can be gone through again and
        again, is gone through several times, in one order; what cannot, as a generator, or iter(...) of what shuffles,
        is kept on the disk meanwhile, beside the folder.
      folder: is made, and must not be there.
      config: its settings of data, as test_fraction, are applied; see `python -m launch.pack --help`.

    Raises:
      InputError: the batches cannot be trained on, the folder is there, or there is no room for it.
      WriteError: it could not be written.
      Exception: whatever the batches raise themselves.
    """
    check_named("folder", folder)
    config = config or Config()
    config.validate()
    output, given = _free(Path(os.path.expanduser(folder)).absolute()), _Given(batches)
    with _begun(output, None, given) as work:
        try:
            once = iter(batches) is batches  # they can be gone through once, as `of_batches` must see
            with sources.of_batches(iter(given) if once else given, config, work) as stream:
                _Packing(config, {"train": stream}, output, work, "", None).run()
        except BaseException:
            shutil.rmtree(work, ignore_errors=True)
            raise
    return output


class _Given:
    """Batches, and the OSError that they have raised themselves: it is none of writing."""

    def __init__(self, batches: Iterable[Any]) -> None:
        self._batches = batches
        self.raised: OSError | None = None

    def __iter__(self) -> Iterator[Any]:
        try:
            yield from self._batches
        except OSError as error:
            self.raised = error
            raise


def pack_sources(
    paths: Sequence[Path], output: Path, config: Config, partitions: bool = False
) -> tuple[Pack, list[str]]:
    """The same of files and folders; goes on where an earlier call with the same sources and settings was stopped.
    Returns the pack, and what the user should know.
    """
    found = sources.found(paths, config, partitions)
    if found.keys() == {"test"} or "train" not in found:
        raise InputError(f"{paths[0]} holds no training set, but {', '.join(found)}: name the parts train, test and "
                         "val, or none of them")
    output = _free(output)
    listed = [_file(path) for stream in found.values() for path in stream.files]
    settings = {name: getattr(config, name) for name in (*SETTINGS, "drawing_seed", "num_classes")}
    key = digest_json([FORMAT, machine.version("distmlp"), str(output), listed, settings, partitions])
    with _begun(output, key) as work:
        return _Packing(config, found, output, work, key, listed).run()


def _file(path: Path) -> dict[str, Any]:
    stat = path.stat()
    return {"path": str(path.absolute()), "bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def _free(output: Path) -> Path:
    """The folder that --output names, where a link leads; raises InputError if it is not to become a pack."""
    output = Path(os.path.realpath(output)) if output.is_symlink() else output
    if os.path.ismount(output):  # another folder cannot take its place
        raise InputError(f"--output={output} is a mount point: give a folder in it, as in --output={output / 'pack'}")
    if os.path.lexists(output) and (not output.is_dir() or any(output.iterdir())):
        raise InputError(f"--output={output} is there already: give another, or remove it")
    return output


@contextlib.contextmanager
def _begun(output: Path, key: str | None, given: _Given | None = None) -> Iterator[Path]:
    """The folder to work in, which no other process works in: empty unless it holds the beginning of what has this
    key. An OSError is one of writing, unless it comes from the batches that are given."""
    work = output.with_name(f"{output.name}.unfinished")
    try:
        work.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(work, os.O_RDONLY)
    except OSError as error:
        raise InputError(f"--output={output} cannot be made ({error.strerror}): give another folder") from None
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(f"{work} is being written by another process: wait for it, or give another "
                                 "--output") from None
        if not (key and _key(work) == key):
            if any(work.iterdir()) and not any((work / name).exists() for name in (UNFINISHED, MANIFEST)):
                raise InputError(f"{work} is there, and was not made by pack: remove it")
            for path in work.iterdir():
                path.unlink()
            (work / UNFINISHED).write_text(json.dumps({"key": key}), encoding="utf-8")
        yield work
    except OSError as error:
        if given and error is given.raised:
            raise
        raise WriteError(work, error.strerror or str(error)) from None
    finally:
        os.close(descriptor)


def _key(work: Path) -> Any:
    """Of what was begun in a folder; None if nothing was."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        return json.loads((work / UNFINISHED).read_text(encoding="utf-8"))["key"]
    return None


def _write_json(path: Path, value: Any) -> None:
    """Whole or not at all."""
    new = path.with_name(path.name + ".new")
    with new.open("w", encoding="utf-8") as file:
        json.dump(value, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(path)


class _Packing:
    """One data set on its way."""

    def __init__(
        self, config: Config, parts: dict[str, Stream], output: Path, work: Path, key: str,
        files: list[dict[str, Any]] | None,
    ) -> None:
        """`work`: the folder that becomes `output`; `key`: of what is done there; `files`: the sources."""
        self._config, self._parts, self._output, self._work = config, parts, output, work
        self._key, self._files = key, files
        self._disk, self._syncing = ThreadPoolExecutor(1), list[Future[bool]]()
        self._noted, self._spreads = time.monotonic(), {"train": Spread()}
        weights.check_column(config.weight_column, isinstance(parts["train"], Tables), parts["train"].name)
        self._fractions = {part: getattr(config, f"{part}_fraction") for part in ("test", "validation")}
        for part, fraction in self._fractions.items():
            if fraction and part in parts:
                raise InputError(f"--{part}_fraction={fraction}: {parts['train'].name} comes with a {part} set, "
                                 f"{parts[part].name}: leave the flag out")

    def run(self) -> tuple[Pack, list[str]]:
        note = json.loads((self._work / UNFINISHED).read_text(encoding="utf-8"))
        begun: dict[str, Iterator[np.ndarray]] = {}
        with self._disk:
            if "plan" in note:
                self._restore(note["plan"])
            else:
                plan, begun = self._planned()
                note = {"key": self._key, "plan": plan, "written": {}}
                if self._note_is_due:
                    self._note(note)
            info = self._written(note, begun)
            self._synced()
        _write_json(self._work / MANIFEST, {"sha256": digest_json(info), "pack": info})
        kept = {MANIFEST, *(f"{letter}_{part}.npy" for part, letters in info["parts"].items() for letter in letters)}
        for path in sorted(self._work.iterdir(), key=lambda path: path.name == UNFINISHED):  # which goes last
            if path.name not in kept:
                path.unlink()
        self._work.replace(self._output)
        machine.sync(self._output.parent)
        made = Pack(self._output)
        return made, self._remarks(made)

    def _sync(self, path: Path) -> None:
        """Begins to bring a file to the disk, which takes its time, and no processor's."""
        self._syncing.append(self._disk.submit(machine.sync, path))

    def _synced(self) -> None:
        while self._syncing:
            self._syncing.pop().result()

    @property
    def _note_is_due(self) -> bool:
        return bool(self._key) and time.monotonic() - self._noted > _NOTED_SECONDS

    def _note(self, note: dict[str, Any]) -> None:
        """Notes what has been done, once all of it is on the disk."""
        self._synced()
        _write_json(self._work / UNFINISHED, note)
        self._noted = time.monotonic()

    def _remarks(self, made: Pack) -> list[str]:
        found = [*dict.fromkeys(text for stream in self._parts.values() for text in stream.remarks)]
        if "test" not in made.parts:
            later = "pack with --test_fraction" if made.learned else "give --test_fraction here or to train"
            found.append(f"there is no test set, which training needs: {later}, or give a part named test")
        return found

    def _planned(self) -> tuple[dict[str, Any], dict[str, Iterator[np.ndarray]]]:
        """What is to be written, once the labels and, where something is to be learned, the features were read; and the
        features of the parts."""
        seen: dict[str, Seen] = {}
        self._weights.unlink(missing_ok=True)
        for part, stream in self._parts.items():
            seen[part] = self._read_labels(part, stream)
        train = self._parts["train"]
        classes = seen["train"].classes(self._config.num_classes, train.classes)
        for part in self._parts:
            numbers = seen[part].numbers(classes)
            codes = np.load(self._codes(part), mmap_mode="r+")
            for span in _spans(codes):
                codes[span] = numbers[codes[span]]
        self._mark(train, classes)
        with _bar("learning", seen["train"].examples) as bar:
            if isinstance(train, Tables):
                marks = self._marks()
                train.learn(marks, bar.update)
        columns = train.columns if isinstance(train, Tables) else None
        for stream in self._parts.values():
            if stream is not train and isinstance(stream, Tables) and columns:
                stream.restore(columns, stream.counts)
        firsts, begun = dict[str, np.ndarray](), dict[str, Iterator[np.ndarray]]()
        for part, stream in self._parts.items():
            features = stream.features(0, self._spreads.get(part))
            firsts[part] = first = next(features)
            begun[part] = itertools.chain([first], features)
            widths = [math.prod(each.shape[1:]) for each in (firsts["train"], first)]
            if widths[0] != widths[1]:
                raise InputError(f"{train.name} has {widths[0]} features but {stream.name} has {widths[1]}: they must "
                                 "agree")
        first = firsts["train"]
        marks = self._marks()
        held = np.zeros(len(PARTS), np.int64) if marks is None else sum(
            (np.bincount(marks[span], minlength=len(PARTS)) for span in _spans(marks)), np.zeros(len(PARTS), int))
        rows = {part: seen[part].examples for part in self._parts}
        if marks is not None:
            rows |= {part: int(count) for part, count in zip(PARTS, held, strict=True) if count}
        plan = {
            "rows": rows, "shape": list(first.shape[1:]),
            "dtypes": {part: str(firsts.get(part, first).dtype) for part in rows},
            "classes": classes.names, "num_classes": classes.number, "numbered": classes.numbered,
            "table": columns.as_json() if columns else None, "pictures": train.pictures,
            "counts": {part: stream.counts for part, stream in self._parts.items() if isinstance(stream, Tables)},
        }  # fmt: skip
        self._check_room(plan)
        plan["files"] = self._write_labels(rows, marks)
        return plan, begun

    def _restore(self, plan: dict[str, Any]) -> None:
        for part, stream in self._parts.items():
            if isinstance(stream, Tables):
                columns = Columns.of_checkpoint({"table": plan["table"]})
                assert columns is not None
                stream.restore(columns, plan["counts"][part])

    @property
    def _weights(self) -> Path:
        """The file of the training examples' weights, float64; empty if they have none."""
        return self._work / "weights"

    def _codes(self, part: str) -> Path:
        return self._work / f"labels_{part}.codes"

    def _read_labels(self, part: str, stream: Stream) -> Seen:
        seen, path = Seen(stream.name), self._codes(part)
        with path.open("wb") as file, self._weights.open("ab") as weighed, _bar(f"reading labels ({part})") as bar:
            file.write(bytes(HEADER))
            for codes, given in streams.codes(stream, seen):
                if given is not None and part == "train":
                    name = f"{stream.name}, from example {seen.examples - len(codes)} on"
                    weighed.write(weights.checked(given, len(given), name).data)
                file.write(codes.data)
                bar.update(len(codes))
            if not seen.examples:
                raise InputError(f"{stream.name} is empty: give at least one example")
            file.seek(0)
            file.write(npy_header(_INT32, (seen.examples,)))
        return seen

    def _mark(self, train: Stream, classes: Classes) -> None:
        """Notes which rows are held out: 0 for the training part, 1 for test and 2 for validation."""
        if not any(self._fractions.values()):
            return
        labels = np.load(self._codes("train"), mmap_mode="r")
        with (self._work / "marks.npy").open("wb") as file:  # of a hole that is mapped, a full disk kills who writes
            file.write(npy_header(np.uint8, labels.shape))
            for span in _spans(labels):
                file.write(bytes(len(labels[span])))
        marks = np.load(self._work / "marks.npy", mmap_mode="r+")
        for part, fraction in self._fractions.items():
            if fraction:
                wanted = split.HoldOut(part, fraction, self._config.drawing_seed)
                split.mark(marks, labels, PARTS.index(part), wanted, train.name, classes.names)
        self._sync(self._work / "marks.npy")

    def _marks(self) -> np.ndarray | None:
        path = self._work / "marks.npy"
        return np.load(path, mmap_mode="r") if path.exists() else None

    def _check_room(self, plan: dict[str, Any]) -> None:
        width = math.prod(plan["shape"])
        needed = _SPARE + sum(rows * (width * np.dtype(plan["dtypes"][part]).itemsize + 4)
                              for part, rows in plan["rows"].items())  # fmt: skip
        free = shutil.disk_usage(self._work).free
        if needed > free:
            raise InputError(f"--output={self._output} needs {needed / 1e6:,.1f} MB, and {free / 1e6:,.1f} MB are "
                             "free: make room, or give a folder on another disk")

    def _write_labels(self, rows: dict[str, int], marks: np.ndarray | None) -> dict[str, dict[str, Any]]:
        """Writes labels and weights; what pack.json is to say of their files."""
        files: dict[str, dict[str, Any]] = {}
        for part in rows:
            source = part if part in self._parts else "train"
            codes = np.load(self._codes(source), mmap_mode="r")
            with Writer(self._path("y", part), 1, _INT32) as writer:
                for span in _spans(codes):
                    block = codes[span]
                    if marks is not None and source == "train":
                        block = block[marks[span] == PARTS.index(part)]
                    writer.add(block[:, None])
                files[part] = {"y": writer.end()}
            self._sync(self._path("y", part))
        if self._weights.stat().st_size:
            given = np.memmap(self._weights, np.float64, "r")
            with Writer(self._path("w", "train"), 1, np.dtype(np.float64)) as writer:
                for span in _spans(given):
                    block = given[span]
                    writer.add((block if marks is None else block[marks[span] == 0])[:, None])
                files["train"]["w"] = writer.end()
            self._sync(self._path("w", "train"))
        return files

    def _path(self, letter: str, part: str) -> Path:
        return self._work / f"{letter}_{part}.npy"

    def _written(self, note: dict[str, Any], begun: dict[str, Iterator[np.ndarray]]) -> dict[str, Any]:
        """Writes the features, from where the note says on; what pack.json is to say. `begun`: the features of parts,
        where reading them has begun."""
        plan, done = note["plan"], note["written"]
        width, dtypes = math.prod(plan["shape"]), {part: np.dtype(kind) for part, kind in plan["dtypes"].items()}
        marks = self._marks()
        written: dict[str, dict[str, Any]] = {}
        with _bar("packing", sum(plan["rows"].values())) as bar:
            for part, stream in self._parts.items():
                split_up = marks if part == "train" else None
                into = [each for each in plan["rows"] if each == part or (part == "train" and each not in self._parts)]
                before = done.get(part, {"read": 0, "files": {}})
                row, spread = before["read"], self._spreads.get(part)
                if spread and "spread" in before:
                    spread.restore(before["spread"])
                bar.update(row)
                with contextlib.ExitStack() as stack:
                    writers = {}
                    for each in into:
                        writer = Writer(self._path("x", each), width, dtypes[each], **before["files"].get(each, {}))
                        writers[each] = stack.enter_context(writer)
                    for block in streams.ahead(begun.get(part) or stream.features(row, spread)):
                        if not np.can_cast(block.dtype, dtypes[part]):
                            raise InputError(f"{stream.name}, row {row}: values of type {block.dtype}, but the first "
                                             f"are {dtypes[part]}: give all alike")
                        block = block.reshape(len(block), width)
                        chosen = None if split_up is None else split_up[row : row + len(block)]
                        for each, writer in writers.items():
                            writer.add(block if chosen is None else block[chosen == PARTS.index(each)])
                        row += len(block)
                        bar.update(len(block))
                        if self._note_is_due:
                            files = {each: writer.settle() for each, writer in writers.items()}
                            done[part] = {"read": row, "files": files}
                            if spread:
                                done[part]["spread"] = spread.as_json()
                            self._note(note)
                    for each, writer in writers.items():
                        if writer.rows != plan["rows"][each]:
                            raise InputError(f"{stream.name} has changed while it was read: {writer.rows:,} rows of "
                                             f"{each} instead of {plan['rows'][each]:,}; pack it again")
                        written[each] = {"x": writer.end()} | plan["files"][each]
                for each in into:
                    self._sync(self._path("x", each))
        parts = {part: written[part] for part in PARTS if part in written}
        settings = {name: getattr(self._config, name) for name in SETTINGS}
        return {
            "format": FORMAT, "made_by": f"distmlp {machine.version('distmlp')}", "parts": parts,
            **{name: plan[name] for name in ("shape", "classes", "num_classes", "numbered", "table", "pictures")},
            "settings": settings, "seed": self._config.drawing_seed, "sources": self._files,
            "statistics": self._statistics(parts["train"]),
        }  # fmt: skip

    def _statistics(self, files: dict[str, Any]) -> dict[str, Any]:
        """Of the training part, as training would compute it: read once more, from the file just written."""
        features = np.load(self._path("x", "train"), mmap_mode="r")

        def blocks() -> Iterator[np.ndarray]:
            for span in _spans(features):
                yield from (features[start : start + BLOCK] for start in range(span.start, span.stop, BLOCK))

        given = None
        if "w" in files:
            labels = np.memmap(self._path("y", "train"), np.int32, "r", HEADER)
            values = np.memmap(self._path("w", "train"), np.float64, "r", HEADER)
            given = weights.of_training(values, labels, False, self._parts["train"].name)
        rows = scaling.Rows(blocks, given, streams.by_cores)
        mean, deviation = scaling.moments(rows, features.shape[1])
        return {"largest": scaling.largest(rows), "mean": mean.tolist(), "deviation": deviation.tolist()}


_INT32 = np.dtype(np.int32)


def _spans(mapped: np.ndarray) -> Iterator[slice]:
    """Parts of a memory-mapped array, of whole BLOCKs of rows, which take no memory once they were worked on."""
    rows = max(1, _SPAN // mapped[:1].nbytes // BLOCK) * BLOCK
    for start in range(0, len(mapped), rows):
        yield slice(start, min(start + rows, len(mapped)))
        mapped._mmap.madvise(mmap.MADV_DONTNEED)  # type: ignore[attr-defined] # a memmap


def _bar(what: str, total: int | None = None) -> Any:
    """A progress bar on a terminal."""
    return tqdm(total=total, desc=what, unit=" rows", unit_scale=True, leave=False, disable=None)
