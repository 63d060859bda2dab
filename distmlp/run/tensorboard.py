"""A run's numbers for TensorBoard: a file of its events.

Such a file is a sequence of records (length, its checksum, an event, its checksum), and an event is a message of
Protocol Buffers: fields, each with a number that TensorBoard's .proto files give it. These few are written here, for
the packages that write them import torch, which takes longer than many a run.
"""

import os
import re
import socket
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np

from distmlp.config import Config, as_text
from distmlp.progress import Line

Fields = dict[int, Any]  # by number: an int, a float (64 bits), a float32, text, bytes, fields, or a list of these


class EventFile:
    """A file of events; each is on disk before the method returns, which raises an OSError of the disk."""

    def __init__(self, folder: Path, purge_step: int, config: Config) -> None:
        """Creates the file; TensorBoard then shows nothing from older files of step `purge_step` or later.

        It shows all settings of the run as a text, and those that decide its result as hyperparameters.
        """
        folder.mkdir(exist_ok=True)
        name = f"events.out.tfevents.{_later(folder):017.6f}.{socket.gethostname()}"
        self._file = (folder / name).open("wb")
        rows = "\n".join(f"| {name} | {_text(value)} |" for name, value in config.settings().items())
        settings = [_plugin("text", "settings/text_summary", {}, f"| setting | value |\n| --- | --- |\n{rows}")]
        self._write(0, {3: "brain.Event:2"})  # the version of the format
        self._write(purge_step, {7: {1: 1}})  # a session begins
        for values in (*_hyperparameters(config), settings):
            self._write(purge_step - 1, {5: {1: values}})
        self._flush()

    def scalars(self, line: Line) -> None:
        with np.errstate(over="ignore"):  # what 32 bits cannot hold is infinite
            scalars = [{1: name, 2: np.float32(value)} for name, value in line.items()
                       if type(value) in (int, float) and name not in ("step", "epoch")]  # fmt: skip
        self._write(line["step"], {5: {1: scalars}})
        self._flush()

    def close(self) -> None:
        self._file.close()

    def _write(self, step: int, what: Fields) -> None:
        event = _message({1: time.time(), 2: step, **what})
        length = struct.pack("<Q", len(event))
        self._file.write(b"".join((length, _checksum(length), event, _checksum(event))))

    def _flush(self) -> None:
        self._file.flush()
        os.fsync(self._file.fileno())


def _hyperparameters(config: Config) -> list[list[Fields]]:
    """Summaries of one value each: which settings and metrics there are, and the settings of this run."""
    kinds: list[Fields] = []
    values: list[Fields] = []
    for name, value in config.settings("experiment", "length").items():
        told = value if isinstance(value, (bool, int, float)) else _text(value)
        kind, field, written = ((2, 4, int(told)) if isinstance(told, bool) else
                                (1, 3, told) if isinstance(told, str) else (3, 2, float(told)))  # fmt: skip
        kinds.append({1: name, 4: kind})
        values.append({1: name, 2: {field: written}})
    metrics: list[Fields] = [{1: {2: name}} for name in ("train_loss", "test_loss", "test_accuracy")]
    return [
        [_plugin("hparams", "_hparams_/experiment", {2: {4: kinds, 5: metrics}})],
        [_plugin("hparams", "_hparams_/session_start_info", {3: {1: values}})],
        [_plugin("hparams", "_hparams_/session_end_info", {4: {1: 1}})],  # of success: nobody comes to say otherwise
    ]


def _plugin(plugin: str, tag: str, content: Fields, shown: str = "") -> Fields:
    """A value that one of TensorBoard's plugins shows; `shown`: a text, as a tensor of one."""
    tensor: Fields = {8: {1: 7, 2: {2: {1: 1}}, 8: shown}} if shown else {}
    return {1: tag, **tensor, 9: {1: {1: plugin, 2: _message(content)}}}


def _message(fields: Fields) -> bytes:
    """Fields as Protocol Buffers write them."""
    parts: list[bytes] = []
    for number, given in fields.items():
        for value in given if isinstance(given, list) else [given]:
            match value:
                case int():
                    parts += _varint(number << 3), _varint(value)
                case float():
                    parts += _varint(number << 3 | 1), struct.pack("<d", value)
                case np.floating():  # of 32 bits
                    parts += _varint(number << 3 | 5), value.astype("<f4").tobytes()
                case _:
                    data = (_message(value) if isinstance(value, dict) else
                            value.encode() if isinstance(value, str) else value)  # fmt: skip
                    parts += _varint(number << 3 | 2), _varint(len(data)), data
    return b"".join(parts)


def _varint(number: int) -> bytes:
    """A number of 0 or more: seven bits to a byte, the low ones first."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def _table() -> list[int]:
    """Of the checksum, CRC-32C, for each byte."""
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0x82F63B78 if value & 1 else 0)
        table.append(value)
    return table


_TABLE = _table()


def _checksum(data: bytes) -> bytes:
    """As a record has it: rotated, and with a constant added."""
    found = 0xFFFFFFFF
    for byte in data:
        found = found >> 8 ^ _TABLE[(found ^ byte) & 0xFF]
    found ^= 0xFFFFFFFF
    return struct.pack("<I", (found >> 15 | found << 17) + 0xA282EAD8 & 0xFFFFFFFF)


def _text(value: Any) -> str:
    """A setting as Unicode can have it, which not every file's name is."""
    return as_text(value).encode(errors="backslashreplace").decode()


def _later(folder: Path) -> float:
    """The time, or one after those in the names of a folder's files: TensorBoard reads these in the order of their
    names, and the clock may have been set back since."""
    found = (re.match(r"events\.out\.tfevents\.(\d+(\.\d+)?)\.", path.name) for path in folder.iterdir())
    return max([time.time(), *(float(match[1]) + 1e-3 for match in found if match)])
