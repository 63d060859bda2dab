"""metrics.jsonl, its TensorBoard twin, the console, and the bar."""

import io
import json
import os
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import write_lines
from tensorboard.summary.writer.record_writer import RecordWriter

from distmlp import Config
from distmlp.errors import WriteError
from distmlp.progress import Cadence, Progress, Reached, best
from distmlp.run.log import HEADER, Log, describe, header, read_lines, summary


def line(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "epoch": step // 5, **more}


def written(path: Path) -> list[dict[str, object]]:
    """Without the checksums."""
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "crc32"} for line in lines]


def started(folder: Path, step: int = 0, first: bool = True, config: Config = Config()) -> Log:  # noqa: B008 - frozen
    log = Log(folder, first)
    log.start(step, read_lines(folder).values, config)
    return log


def test_a_line_is_on_disk_when_it_is_written(tmp_path: Path) -> None:
    log = started(tmp_path)
    log.line(line(5, train_loss=0.5))
    assert written(tmp_path / "metrics.jsonl") == [line(5, train_loss=0.5)] == read_lines(tmp_path).values
    log.close()


def test_starting_makes_the_lines_those_given(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(line(step)) + "\n" for step in (5, 10, 15)))
    log = Log(tmp_path)
    log.start(10, [line(5), line(10)], Config())
    log.close()
    assert written(tmp_path / "metrics.jsonl") == [line(5), line(10)]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["metrics.jsonl", "tensorboard"]


def test_lines_are_set_aside_under_a_new_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for number in (5, 10):
        (tmp_path / "metrics.jsonl").write_text(json.dumps(line(number)) + "\n")
        log = Log(tmp_path)
        log.start(0, [], Config())
        log.close()
        assert read_lines(tmp_path).values == []
    assert written(tmp_path / "metrics-old.jsonl") == [line(5)]
    assert written(tmp_path / "metrics-old-2.jsonl") == [line(10)]
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    assert told[1].endswith(str(tmp_path / "metrics-old-2.jsonl"))


@pytest.mark.parametrize("torn", ['{"step": 1', "", "\x00\x00", '{"step": 15, "epo'])
def test_a_line_torn_by_a_crash_is_dropped_and_said(
    torn: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(line(5)) + "\n" + torn)
    assert read_lines(tmp_path).values == [line(5)]
    log = started(tmp_path, 5)
    log.line(line(10))
    log.close()
    assert written(path) == [line(5), line(10)]
    assert capsys.readouterr().err == (f"distmlp: {path}: its last line was torn, and is left out\n" if torn else "")
    assert not (tmp_path / "damaged").exists()


def test_a_damaged_file_is_kept_and_lines_that_are_gone_are_counted(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path, history = tmp_path / "metrics.jsonl", [line(5), line(10), line(15)]
    for number, name in enumerate(("metrics.jsonl", "metrics-2.jsonl")):
        write_lines(path, history)
        damaged = path.read_bytes().replace(b'"step": 10', b'"step": 1%d' % (number + 1))
        path.write_bytes(damaged)
        log = Log(tmp_path)
        log.start(15, [line(5), line(10), line(15)], Config(), expected=3)
        log.close()
        assert (tmp_path / "damaged" / name).read_bytes() == damaged
        assert written(path) == history
        assert capsys.readouterr().err == (f"distmlp: {path}: line 2 is not what was written, and left out; the file "
                                           f"as it was is {tmp_path / 'damaged' / name}\n")  # fmt: skip
    write_lines(path, history[:1])
    log = Log(tmp_path)
    log.start(15, history[:1], Config(), expected=3)
    log.close()
    assert capsys.readouterr().err == f"distmlp: {path} lacks 2 of the lines that it had\n"


def test_the_best_line_is_the_first_among_equals_also_in_the_summary() -> None:
    assert best([])["step"] == best([line(5)])["step"] == 0
    history = [line(5, test_accuracy=0.5), line(10, test_accuracy=0.7), line(12), line(15, test_accuracy=0.7),
               line(20, test_accuracy=0.6, test_correct=3, test_count=5, seconds=1.25),
               line(20, final=True, params_sha256="ab", total_seconds=4.5)]
    assert best(history) is history[1]
    assert summary(history, Path("/runs/a")).splitlines() == [
        "final test accuracy 60.00 % (3 of 5), best 70.00 % at step 10",
        "(the best was chosen on the test set; --validation_fraction avoids that)",
        "parameters ab",
        "time         4.5 s, of which 1.2 s training steps",
        "checkpoints  20, and the best one, 10, in /runs/a/checkpoints",
        "next         python -m launch.evaluate /runs/a",
        "workdir      /runs/a",
    ]


def events(folder: Path) -> Iterator[Any]:
    from tensorboard.compat.proto.event_pb2 import Event

    for path in sorted(folder.iterdir()):
        content, at = path.read_bytes(), 0
        while at < len(content):  # length, its checksum, the event, its checksum
            size = int.from_bytes(content[at : at + 8], "little")
            yield Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    for step in (0, 5):
        log = started(tmp_path, step, config=Config(seed=7, hidden_sizes=(8, 4)))
        log.line(line(step + 5, train_loss=0.25, test_correct=step, final=True, params_sha256="ab"))
        seen = list(events(tmp_path / "tensorboard"))  # on disk when `line` returns
        log.close()
    values = [(event.step, v) for event in seen for v in event.summary.value]
    scalars = {(v.tag, step): v.simple_value for step, v in values if v.HasField("simple_value")}
    assert scalars == {("train_loss", 5): 0.25, ("train_loss", 10): 0.25, ("test_correct", 5): 0.0,
                       ("test_correct", 10): 5.0}  # fmt: skip
    assert [event.file_version for event in seen if event.file_version] == ["brain.Event:2"] * 2
    texts = {v.tag: v.tensor.string_val[0].decode() for _, v in values if v.tensor.string_val}
    assert texts.keys() == {"settings"}
    assert "\n| seed | 7 |\n" in texts["settings"]
    assert "| workdir |" in texts["settings"]
    hyperparameters = b"".join(v.metadata.plugin_data.content for _, v in values if v.tag.endswith("_start_info"))
    assert b"hidden_sizes" in hyperparameters
    assert b"8,4" in hyperparameters
    assert b"workdir" not in hyperparameters
    assert [event.step for event in seen if event.HasField("session_log")] == [1, 6]  # what TensorBoard drops before


def test_tensorboard_reads_a_later_start_last_whatever_the_clock_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It reads files in the order of their names; the first event of each drops what came before from its step on."""
    now = time.time()
    for step, clock in ((0, now), (5, now - 3e7), (10, now - 3e7), (15, 12.5), (20, now + 3e7), (25, now)):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        log = started(tmp_path, step)
        log.line(line(step + 5, train_loss=0.25))
        log.close()
    starts = [event.step for event in events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert starts == [1, 6, 11, 16, 21, 26]


def test_a_clock_that_began_again_in_1970(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are compared as texts."""
    for step, clock in ((0, 99.5), (5, 100.25), (10, 1e9)):
        monkeypatch.setattr("time.time", lambda clock=clock: clock)
        started(tmp_path, step).close()
    starts = [event.step for event in events(tmp_path / "tensorboard") if event.HasField("session_log")]
    assert starts == [1, 6, 11]


def test_a_disk_that_is_full_for_tensorboard_is_an_error_not_a_hang(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = started(tmp_path)
    monkeypatch.setattr(RecordWriter, "flush", lambda self: os.write(os.open("/dev/full", os.O_WRONLY), b"x"))
    with pytest.raises(WriteError, match="No space left on device"):
        log.line(line(5, train_loss=0.5))
    log.close()
    assert read_lines(tmp_path).values == [line(5, train_loss=0.5)]


def test_other_processes_than_the_first_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = started(tmp_path, first=False)
    log.line(line(5))
    log.say("hello")
    log.warn("hello")
    log.note("hello")
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_no_bar_where_the_output_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log, config = Log(tmp_path), Config()
    log.show_progress(Progress(Cadence(config, 5), Reached(3)), 20, 96)
    log.close_bar()
    assert capsys.readouterr() == ("", "")


def test_a_line_for_people() -> None:
    full = describe(line(10, train_loss=0.12345, test_loss=0.2, train_accuracy=0.98, test_accuracy=0.9712,
                         seconds=1.5, examples_per_second=12345.6))  # fmt: skip
    assert HEADER.endswith("  train acc  test acc  seconds  examples/s")
    assert full.split() == ["epoch", "2", "10", "0.12345", "0.20000", "98.00%", "97.12%", "1.50", "12,346"]
    assert len(full) == len(HEADER) == 80
    part = describe(line(10, train_loss=0.12345, seconds=1.5, examples_per_second=12345.6))
    assert part.split() == ["epoch", "2", "10", "0.12345", "1.50", "12,346"]
    assert part[part.index("1.50"):] == full[full.index("1.50"):]


@pytest.mark.parametrize("encoding", ["ascii", "utf-8"])
def test_every_letter_can_be_said_and_kept_in_any_locale(
    encoding: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The second name is as an ASCII locale reads that of a folder."""
    output = io.TextIOWrapper(io.BytesIO(), encoding=encoding)  # strict, as Python's own
    monkeypatch.setattr(sys, "stdout", output)
    named = os.fsdecode(b"K\xe4fer")
    log = started(tmp_path, config=Config(dataset=named, label_column="Käfer"))
    log.say(f"classes Käfer, {named}")
    log.close()
    assert (tmp_path / "log.txt").read_bytes() == b"classes K\xc3\xa4fer, K\\udce4fer\n"
    letter = "ä" if encoding == "utf-8" else "\\xe4"
    assert output.buffer.getvalue().decode(encoding) == f"classes K{letter}fer, K\\udce4fer\n"
def test_what_the_best_is_chosen_by_has_the_place_of_the_training_accuracy() -> None:
    config = Config(choose_by="macro_f1")
    heading = header(config, validation=True)
    assert len(heading) == 80
    assert "  macro F1   val acc" in heading
    assert "train acc" in header(Config(choose_by="macro_f1", eval_train=True), validation=False)
    assert header(Config(choose_by="loss"), validation=False) == HEADER
    made = {"step": 5, "epoch": 1, "choose_by": "macro_f1", "validation_macro_f1": 0.75, "validation_accuracy": 0.5}
    assert describe(made).endswith("    75.00%    50.00%")
    assert "70.00%" in describe(made | {"train_accuracy": 0.7})


def test_the_end_of_a_run_says_what_the_best_was_chosen_by() -> None:
    evaluated = {"test_accuracy": 0.5, "test_correct": 4, "test_count": 8, "choose_by": "loss"}
    lines = [{"step": step, "epoch": step, "test_loss": loss, **evaluated} for step, loss in ((1, 0.25), (2, 0.5))]
    final = {"step": 2, "epoch": 2, "final": True, "params_sha256": "abc", "total_seconds": 1.0}
    text = summary([*lines, final], Path("run"))
    assert text.startswith("final test accuracy 50.00 % (4 of 8), loss 0.50000, best 50.00 %, loss 0.25000 at step 1\n")


def test_a_run_that_was_evaluated_once_says_nothing_of_a_choice() -> None:
    line = {"step": 2, "epoch": 2, "test_loss": 0.5, "test_accuracy": 0.5, "test_correct": 4, "test_count": 8}
    final = {"step": 2, "epoch": 2, "final": True, "params_sha256": "abc", "total_seconds": 1.0}
    assert "next         python -m launch.evaluate 'a run'\n" in summary([line, final], Path("a run"))
    first = summary([{"step": 1, "epoch": 1}, line, final], Path("run")).splitlines()[0]
    assert first == "final test accuracy 50.00 % (4 of 8)"
    assert "chosen" not in summary([line, final], Path("run"))
