"""Files that grow by lines: written whole, and read back only as they were written."""

import json
import operator
import os
import resource
from pathlib import Path

import pytest

from distmlp import InputError
from distmlp.run import lines
from distmlp.run.lines import Found, Kind

KIND: Kind = {"step": operator.index}
VALUES = [{"step": 5, "loss": 0.25}, {"step": 10, "loss": 1e-7, "digests": {"a": "0f"}}, {"step": 15, "note": "é\n}"}]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "file.jsonl"
    lines.append(path, map(lines.sealed, VALUES))
    return path


def test_what_is_written_is_read(path: Path) -> None:
    assert lines.read(path, KIND) == Found(path, VALUES)
    assert [list(json.loads(text))[-1] for text in path.read_text().splitlines()] == ["crc32"] * 3
    assert lines.read(path.with_name("absent"), KIND) == Found(path.with_name("absent"), [])


def test_a_changed_byte_is_noticed_whatever_it_changes(path: Path) -> None:
    whole = path.read_bytes()
    for position in range(len(whole)):
        for bit in range(8):
            changed = bytearray(whole)
            changed[position] ^= 1 << bit
            path.write_bytes(changed)
            found = lines.read(path, KIND)
            assert all(value in VALUES for value in found.values)
            assert found.values == VALUES or found.damaged or found.torn, (position, bit)
            assert len(found.values) >= 1


def test_a_file_that_is_cut_off_has_its_whole_lines(path: Path) -> None:
    whole = path.read_bytes()
    ends = [number for number, byte in enumerate(whole) if byte == ord("\n")]
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        ended = sum(size >= end for end in ends)  # a line is whole without its end
        assert lines.read(path, KIND) == Found(path, VALUES[:ended], size not in (0, *ends, *(end + 1 for end in ends)))


def test_damaged_lines_are_numbered_and_the_others_read(path: Path) -> None:
    first, second, third = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(first + b"\xff\xfe\n" + second + b"[]\n\n" + third + b'{"loss": 4}\n')
    found = lines.read(path, KIND)
    assert (found.values, found.torn, found.damaged) == (VALUES, False, (2, 4, 5, 7))
    assert found.damage == f"{path}: lines 2, 4, 5, 7 are not what was written, and left out"
    path.write_bytes(first + second[:-5] + b"\n" + third[:20])
    found = lines.read(path, KIND)
    assert (found.values, found.torn, found.damaged) == (VALUES[:1], True, (2,))
    path.write_bytes(first + b'{"step": 7}\n')  # without a checksum, beside one that has it
    assert lines.read(path, KIND).damaged == (2,)


def test_lines_without_checksums_are_those_of_version_0_2_0(tmp_path: Path) -> None:
    path = tmp_path / "file.jsonl"
    path.write_text('{"step": 5}\n{"step": "6"}\n{"epoch": 1}\n{"step": 8, "more": [1]}\n')
    found = lines.read(path, KIND, {"time": str})
    assert (found.values, found.damaged) == ([{"step": 5}, {"step": 8, "more": [1]}], (2, 3))


def test_what_cannot_be_read_at_all_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be read \(Is a directory\): mend it, or move it away"):
        lines.read(tmp_path, KIND)


def test_a_line_after_a_torn_one_is_apart_from_it(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])
    lines.append(path, [lines.sealed({"step": 20})])
    found = lines.read(path, KIND)
    assert (found.values, found.damaged) == ([*VALUES[:2], {"step": 20}], (3,))


@pytest.mark.parametrize("room", [0, 7])
def test_a_line_that_finds_no_room_leaves_the_file_as_it_was(path: Path, room: int) -> None:
    """A limit of the process does here what a full disk does: part of the line is written, then an error comes."""
    whole, limits = path.read_bytes(), resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (len(whole) + room, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            lines.append(path, [lines.sealed({"step": 20})])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == whole


def test_lines_are_on_disk_only_where_that_is_asked_for(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(os.fstat(descriptor).st_size))
    lines.append(path, ["one", "two"])
    assert synced == []
    lines.append(path, ["three"], durable=True)
    assert synced == [path.stat().st_size]
    assert path.read_text().endswith("\none\ntwo\nthree\n")
    lines.append(path, ["a file's name that is no text: \udcff"])
    assert path.read_text().endswith("no text: \\udcff\n")


def test_a_file_that_has_the_lines_already_is_left_alone(path: Path) -> None:
    before = path.stat()
    assert lines.renew(lines.read(path, KIND), VALUES) == ""
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert lines.renew(lines.read(path, KIND), VALUES[:2]) == ""
    assert lines.read(path, KIND) == Found(path, VALUES[:2])
