"""metrics.jsonl, its TensorBoard twin, and what a resumed run drops."""

import json
from pathlib import Path

import pytest

from distmlp.run.metrics import HEADER, Metrics, describe


def line(step: int, **more: object) -> dict[str, object]:
    return {"step": step, "epoch": step // 5, **more}


def written(path: Path) -> list[dict[str, object]]:
    return [json.loads(text) for text in path.read_text().splitlines()]


def test_a_line_is_on_disk_when_log_returns(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.start(0)
    metrics.log(line(5, train_loss=0.5))
    assert written(metrics.path) == [line(5, train_loss=0.5)] == metrics.history
    assert metrics.logged(5)
    assert not metrics.logged(6)
    metrics.close()


def test_resuming_drops_lines_beyond_the_step_and_the_final_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    lines = [line(5), line(10), line(15), line(15, final=True)]
    path.write_text("".join(json.dumps(entry) + "\n" for entry in lines))
    assert Metrics(path).finished_at == 15
    for step, kept in ((15, [5, 10, 15]), (12, [5, 10]), (0, [])):
        metrics = Metrics(path)
        metrics.start(step)
        metrics.close()
        assert [entry["step"] for entry in written(path)] == kept
        assert metrics.finished_at is None


@pytest.mark.parametrize("torn", ['{"step": 1', "", "\x00\x00", '{"step": 15, "epo'])
def test_a_line_torn_by_a_crash_is_dropped(torn: str, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text(json.dumps(line(5)) + "\n" + torn)
    metrics = Metrics(path)
    assert metrics.history == [line(5)]
    metrics.start(5)
    metrics.log(line(10))
    metrics.close()
    assert written(path) == [line(5), line(10)]


def test_the_best_line_is_the_latest_among_equals(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    assert metrics.best_step([5, 10]) is None
    metrics.history = [line(5, test_accuracy=0.5), line(10, test_accuracy=0.7), line(15, test_accuracy=0.7), line(20)]
    assert metrics.best_step([5, 10, 15, 20]) == 15
    assert metrics.best_step([5, 10, 20]) == 10


def test_tensorboard_has_the_same_numbers(tmp_path: Path) -> None:
    from tensorboardX.proto.event_pb2 import Event

    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.start(0)
    metrics.log(line(5, train_loss=0.25, test_correct=3, final=True, params_sha256="ab"))
    metrics.close()
    scalars = {}
    for path in (tmp_path / "tensorboard").iterdir():
        content, at = path.read_bytes(), 0
        while at < len(content):  # length, its checksum, the event, its checksum
            size = int.from_bytes(content[at : at + 8], "little")
            event = Event.FromString(content[at + 12 : at + 12 + size])
            at += 16 + size
            scalars |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    assert scalars == {("train_loss", 5): 0.25, ("test_correct", 5): 3.0}


def test_quiet_processes_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl", quiet=True)
    metrics.start(0)
    metrics.log(line(5))
    metrics.say("hello")
    metrics.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_no_bar_where_the_output_is_no_terminal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.bar(1, 20, 96, 0.5)
    metrics.close_bar()
    assert capsys.readouterr() == ("", "")


def test_a_line_for_people() -> None:
    full = describe(line(10, train_loss=0.12345, test_loss=0.2, train_accuracy=0.98, test_accuracy=0.9712,
                         seconds=1.5, examples_per_second=12345.6))  # fmt: skip
    assert HEADER.endswith("train acc   test acc  seconds  examples/s")
    assert full.split() == ["2", "10", "0.12345", "0.20000", "98.00%", "97.12%", "1.50", "12,346"]
    assert len(full) == len(HEADER) == 80
    part = describe(line(10, train_loss=0.12345, seconds=1.5, examples_per_second=12345.6))
    assert part.split() == ["2", "10", "0.12345", "1.50", "12,346"]
    assert part[part.index("1.50"):] == full[full.index("1.50"):]
