"""A packed data set: rows of one width in .npy files, which are memory-mapped, and pack.json, which says what they are.

    x_train.npy  uint8 or float32 [N, features]
    y_train.npy  int32 [N, 1], the numbers of the classes
    w_train.npy  float64 [N, 1], the weights of the training examples, where they have any
    pack.json    classes, columns, sources, settings, statistics, and a CRC-32 of each block of rows of each file

and the same of test and validation, where there are such parts. A block is some thousand rows, about 1 MiB. It is
verified before one of its rows is given out. Shuffled, the first batches have rows of nearly all blocks; so where a
training is prepared, a thread begins to go through them.
"""

import copy
import dataclasses
import hashlib
import io
import json
import mmap
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

try:
    from isal.isal_zlib import crc32  # ten times as fast, by instructions that processors have for it
except ImportError:
    from zlib import crc32

from distmlp import machine
from distmlp.config import Config, digest_json, flag_value
from distmlp.data.columns import Columns
from distmlp.data.labels import Classes
from distmlp.errors import InputError, listed, one_line

MANIFEST, UNFINISHED = "pack.json", "unfinished.json"
FORMAT = 1
HEADER = 128  # bytes before an .npy file's values
BLOCK_BYTES = 1 << 20
# The settings that the pack has applied already: a training run need not repeat them, and must not contradict them.
SETTINGS = ("label_column", "weight_column", "ignore_columns", "header", "text_columns", "missing", "image_size",
            "image_mode", "test_fraction", "validation_fraction")  # fmt: skip
PARTS = ("train", "test", "validation")


def npy_header(dtype: Any, shape: tuple[int, ...]) -> bytes:
    """The HEADER bytes before an .npy file's values."""
    header = io.BytesIO()
    form = {"descr": np.lib.format.dtype_to_descr(np.dtype(dtype)), "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, form)
    if len(header.getvalue()) != HEADER:
        raise AssertionError("NumPy writes another header")
    return header.getvalue()


class Statistics(NamedTuple):
    """What is known of the values of the training part."""

    largest: float  # absolute value
    mean: list[float]  # of each feature
    deviation: list[float]


class Array:
    """One of the .npy files: `values`, memory-mapped, and which of its blocks have been verified."""

    def __init__(self, path: Path, info: dict[str, Any]) -> None:
        """Raises InputError if the file is not there, or has another size."""
        self.path, self.rows = path, int(info["rows"])
        self.dtype, self.width = np.dtype(info["dtype"]), int(info["width"])
        self.block = int(info["block_rows"])
        self.sums = np.frombuffer(bytes.fromhex(info["crc32"]), ">u4")
        size = HEADER + self.rows * self.width * self.dtype.itemsize
        try:
            found = path.stat().st_size
            if found != size:
                raise InputError(f"{path} is damaged: it has {found:,} bytes, not {size:,}: bring back an intact copy")
            self.values: np.ndarray = np.memmap(path, self.dtype, "r", HEADER, (self.rows, self.width))
        except OSError as error:
            raise InputError(f"{path} cannot be read ({error.strerror}): bring back the pack's file") from None
        self.unverified = np.ones(len(self.sums), bool)
        # Of a file that memory cannot hold, the system is told which pages are needed, all at once: else it would read
        # one after the other, and with each of them many that are gone before they are needed.
        self.scattered = self.values.nbytes > machine.memory() // 2
        if self.scattered:
            self._map.madvise(mmap.MADV_RANDOM)

    @property
    def _map(self) -> mmap.mmap:
        return self.values._mmap  # type: ignore[attr-defined] # a memmap's

    def ask(self, rows: np.ndarray) -> None:
        """These rows, of any shape, will be read soon; nothing is waited for."""
        if not self.scattered:
            return
        rows, row_bytes = np.unique(rows), self.width * self.dtype.itemsize
        begins = (HEADER + rows * row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
        ends = HEADER + (rows + 1) * row_bytes
        waiting = self.unverified[rows // self.block]
        for begin, end in set(zip(begins[~waiting].tolist(), ends[~waiting].tolist(), strict=True)):
            self._map.madvise(mmap.MADV_WILLNEED, begin, end - begin)
        for block in np.unique(rows[waiting] // self.block).tolist():  # which are read as a whole
            begin = (HEADER + block * self.block * row_bytes) // mmap.PAGESIZE * mmap.PAGESIZE
            end = HEADER + min(self.rows, (block + 1) * self.block) * row_bytes
            self._map.madvise(mmap.MADV_WILLNEED, begin, end - begin)

    def damaged(self, block: int) -> bool:
        """Whether a block's values are not those that were written."""
        try:
            rows = self.values[block * self.block : (block + 1) * self.block]
            return bool(crc32(rows.data) != self.sums[block])
        except (OSError, ValueError):
            return True

    def verify(self, blocks: Sequence[int] | np.ndarray) -> None:
        """Raises InputError if one of these blocks is damaged; those that are not are verified."""
        for block in blocks[::-1]:  # to meet the thread that goes ahead, and not to go beside it
            if self.unverified[block]:
                if self.damaged(block):
                    raise InputError(self.message(int(block)))
                self.unverified[block] = False

    def verify_ahead(self) -> None:
        """Begins to verify all blocks, in a thread, which ends when nothing else holds this object.

        Of a file that memory cannot hold, none: what was read for it would be gone before it is needed.
        """
        if not self.scattered and self.unverified.any():
            threading.Thread(target=_verify_ahead, args=(weakref.ref(self),), name="verifying", daemon=True).start()

    def message(self, block: int) -> str:
        first = block * self.block
        last = min(first + self.block, self.rows) - 1
        return (f"{self.path} is damaged: rows {first:,} to {last:,} are not what was packed: bring back an intact "
                "copy, or pack the data again")

    def digest(self) -> str:
        """Of all values, by the checksums."""
        return f"{self.rows} {self.width} {self.dtype} {self.block} {hashlib.sha256(self.sums.tobytes()).hexdigest()}"


def _verify_ahead(of: "weakref.ref[Array]") -> None:
    """Whoever needs a block that is damaged finds it so again, and says it."""
    block = 0
    while (array := of()) is not None and block < len(array.sums):
        if array.unverified[block] and not array.damaged(block):
            array.unverified[block] = False
        block += 1
        del array  # which may have been the last that holds it


class Writer:
    """Rows that are appended to an .npy file, and a CRC-32 of each block. Until it is closed, the file is none."""

    def __init__(self, path: Path, width: int, dtype: "np.dtype[Any]", rows: int = 0, crc32: str = "") -> None:
        """`rows`: so many are in the file already, with these checksums, as `settle` has told."""
        self.rows, self._dtype, self._width = rows, dtype, width
        row_bytes = width * dtype.itemsize
        self.block = max(1, BLOCK_BYTES // row_bytes)  # rows
        self._buffer = np.empty((self.block, width), dtype)
        self._file, self._sums = io.FileIO(path, "r+" if rows else "w+"), bytearray.fromhex(crc32)
        self._filled = rows % self.block
        self._at = HEADER + (rows - self._filled) * row_bytes  # where the block that is being filled begins
        if self._filled:
            begun = os.pread(self._file.fileno(), self._filled * row_bytes, self._at)
            self._buffer[: self._filled] = np.frombuffer(begun, dtype).reshape(self._filled, width)

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def add(self, rows: np.ndarray) -> None:
        """Rows [n, width]."""
        start = 0
        while start < len(rows):
            stop = min(len(rows), start + self.block - self._filled)
            self._buffer[self._filled : self._filled + stop - start] = rows[start:stop]
            self._filled += stop - start
            start = stop
            if self._filled == self.block:
                self._flush()
        self.rows += len(rows)

    def _flush(self) -> None:
        """Ends the block."""
        data = self._buffer[: self._filled]
        self._at += self._write(data, self._at)
        self._sums += crc32(data.data).to_bytes(4, "big")
        self._filled = 0

    def _write(self, data: np.ndarray, at: int) -> int:
        content, written = memoryview(data.reshape(-1).view(np.uint8)), 0  # type: ignore[arg-type] # a buffer
        while written < len(content):
            written += os.pwrite(self._file.fileno(), content[written:], at + written)
        return written

    def settle(self) -> dict[str, Any]:
        """Brings all rows to the disk; what another Writer needs to go on behind them."""
        self._write(self._buffer[: self._filled], self._at)
        os.fsync(self._file.fileno())
        return {"rows": self.rows, "crc32": self._sums.hex()}

    def end(self) -> dict[str, Any]:
        """Ends the file, which is not synced to the disk; what pack.json says of it."""
        if self._filled:
            self._flush()
        os.pwrite(self._file.fileno(), npy_header(self._dtype, (self.rows, self._width)), 0)
        return {"rows": self.rows, "width": self._width, "dtype": str(self._dtype), "block_rows": self.block,
                "crc32": self._sums.hex()}  # fmt: skip


class Packed:
    """A part of a packed data set as Examples. Its values are finite: they were checked when it was packed."""

    one_by_one = False

    def __init__(self, images: Array, labels: np.ndarray, shape: tuple[int, ...], digest: str, resident: bool) -> None:
        """`labels`: int32 [N], verified; `digest`: of the whole part; `resident`: whether it is held in memory."""
        self.name, self.labels, self.shape = str(images.path), labels, shape
        self.num_features, self.dtype = images.width, images.dtype
        self._images, self._digest, self._resident = images, digest, resident
        self._rows: np.ndarray | None = None  # the positions in the file; None: all of them

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def resident(self) -> tuple[np.ndarray, np.ndarray] | None:
        """Memory-mapped, and verified as a whole, if it is small enough to be held in memory."""
        if not self._resident:
            return None
        self._images.verify(np.flatnonzero(self._images.unverified))
        return self._images.values, self.labels

    def verify_ahead(self) -> None:
        """To be called where all of it will be read soon."""
        self._images.verify_ahead()

    def ask(self, indices: np.ndarray) -> None:
        self._images.ask(indices if self._rows is None else self._rows[indices])

    def take(self, indices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        rows = indices if self._rows is None else self._rows[indices]
        images = self._images
        if images.unverified.any():
            blocks = np.unique(rows // images.block)
            images.verify(blocks[images.unverified[blocks]])
        return np.asarray(images.values[rows]), self.labels[indices]

    def part(self, rows: np.ndarray, name: str) -> "Packed":
        part = copy.copy(self)  # the file and what is verified of it are shared
        part.name, part.labels, part._resident = name, self.labels[rows], False
        part._rows = rows if self._rows is None else self._rows[rows]
        part._digest = digest_json([self._digest, hashlib.sha256(rows.tobytes()).hexdigest()])
        return part

    def relabelled(self, numbers: np.ndarray) -> "Packed":
        """The same rows, whose class has another number: what `numbers` has at the place of its own."""
        other = copy.copy(self)
        other.labels = np.asarray(numbers, np.int32)[self.labels]
        other._digest = digest_json([self._digest, numbers.tolist()])
        return other

    def fingerprint(self) -> str:
        """Digest of shape, dtype and all values and labels, by the checksums: nothing is read for it."""
        return self._digest

    def modified(self) -> None:
        return None


class Pack:
    """What a folder that `pack` has made says of itself."""

    def __init__(self, folder: Path) -> None:
        """Raises InputError if pack.json cannot be read, or is damaged."""
        self.folder, path = folder, folder / MANIFEST
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            self.info: dict[str, Any] = content["pack"]
            sound = content["sha256"] == digest_json(self.info)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{path} is damaged ({one_line(error)}): bring back an intact copy") from None
        if not sound:
            raise InputError(f"{path} is damaged: it is not what was written: bring back an intact copy")
        if self.info["format"] != FORMAT:
            raise InputError(f"{folder} was packed by another version, {self.info['made_by']}: use that one, or pack "
                             "the data again")

    @property
    def parts(self) -> list[str]:
        return [*self.info["parts"]]

    @property
    def columns(self) -> Columns | None:
        return Columns.of_checkpoint({"table": self.info["table"]})

    @property
    def classes(self) -> Classes:
        return Classes(self.info["num_classes"], self.info["classes"], self.info["numbered"])

    @property
    def statistics(self) -> Statistics:
        return Statistics(**self.info["statistics"])

    @property
    def reading(self) -> dict[str, Any]:
        """The settings by which its files were read, where they are not the defaults."""
        return {name: value for name, value in self.info["settings"].items()
                if not name.endswith("_fraction") and value != getattr(Config(), name)}

    def array(self, part: str, letter: str) -> Array:
        """One of a part's files: x, the features, y, the labels, or w, the weights."""
        return Array(self.folder / f"{letter}_{part}.npy", self.info["parts"][part][letter])

    def arrays(self) -> Iterator[Array]:
        """All files."""
        yield from (self.array(part, letter) for part, letters in self.info["parts"].items() for letter in letters)

    def examples(self, part: str, most: int, verify: bool = True) -> Packed:
        """A part, held in memory if it takes no more than so many bytes. Without `verify`, blocks are taken as good."""
        images, labels = self.array(part, "x"), self.array(part, "y")
        if verify:
            labels.verify(range(len(labels.sums)))
        else:
            images.unverified[:] = False
        digest = digest_json([images.digest(), labels.digest(), self.info["shape"]])
        small = images.values.nbytes <= most
        return Packed(images, np.asarray(labels.values[:, 0]), tuple(self.info["shape"]), digest, small)

    def weights(self, verify: bool = True) -> np.ndarray | None:
        """Those of the training examples, float64 [N]; None if they have none."""
        if "w" not in self.info["parts"]["train"]:
            return None
        weights = self.array("train", "w")
        if verify:
            weights.verify(range(len(weights.sums)))
        return np.asarray(weights.values[:, 0])

    def check_columns(self, known: Columns | None) -> None:
        """Raises InputError if the features are not those that a model's columns become."""
        own = self.columns
        if own and known and (own.features, own.fill) != (known.features, known.fill):
            raise InputError(f"{self.folder}: its rows were packed from other columns, words or means than the run was "
                             "trained on: give the tables themselves")

    def check_settings(self, config: Config) -> None:
        """Raises InputError for a setting that says something else than the pack was made with."""
        if config.fold and self.learned:
            raise InputError(f"--fold={config.fold}: {self.folder} was packed with words or means of all its training "
                             "rows, so also of those to be held out: give the tables themselves")
        default, made = Config(), self.info["settings"]
        for name in SETTINGS:
            value = getattr(config, name)
            if value in (getattr(default, name), made[name]):
                continue
            if name.endswith("_fraction") and name.removesuffix("_fraction") not in self.parts and not self.learned:
                continue  # nothing was held out, and nothing was learned from what would now be
            said = f"with --{name}={flag_value(made[name])}" if made[name] != getattr(default, name) else "without it"
            raise InputError(f"--{name}={flag_value(value)}: {self.folder} was packed {said}: leave the flag out, or "
                             "pack the data again")

    def rest(self, config: Config) -> Config:
        """Without the fractions of parts that the pack has."""
        has_test, has_validation = "test" in self.parts, "validation" in self.parts
        return dataclasses.replace(config, test_fraction=0.0 if has_test else config.test_fraction,
                                   validation_fraction=0.0 if has_validation else config.validation_fraction)

    @property
    def learned(self) -> bool:
        """Whether words or means were learned from the training part."""
        return bool(self.columns and (self.columns.words or self.info["settings"]["missing"] == "mean"))

    def damage(self) -> list[str]:
        """What is wrong with the files, a line for each damaged block, after reading all of them."""
        found: list[str] = []
        with ThreadPoolExecutor(machine.cores()) as pool:
            for part, letters in self.info["parts"].items():
                for letter in letters:
                    try:
                        array = self.array(part, letter)
                    except InputError as error:
                        found.append(str(error))
                        continue
                    damaged = pool.map(array.damaged, range(len(array.sums)))
                    found += [array.message(block) for block, wrong in enumerate(damaged) if wrong]
        return found

    def summary(self) -> str:
        """One line on what it holds."""
        parts = ", ".join(f"{part} {info['x']['rows']:,}" for part, info in self.info["parts"].items())
        width = next(iter(self.info["parts"].values()))["x"]["width"]
        size = sum(path.stat().st_size for path in self.folder.iterdir())
        names = f" ({listed(self.info['classes'], 5)})" if self.info["classes"] else ""
        return (f"{self.folder}: rows {parts}; {width:,} features, {self.info['num_classes']:,} classes{names}; "
                f"{size / 1e6:,.1f} MB")


def is_pack(path: Path) -> bool:
    """Whether a folder holds a pack; an InputError if it is one that was not finished."""
    if (path / UNFINISHED).exists():
        raise InputError(f"{path} is a pack that was not finished: give the same command again to go on with it")
    return (path / MANIFEST).exists()
