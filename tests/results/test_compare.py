"""compare: planted differences are found at their step, and runs that are the same are said to be."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import RunTrain, flip_bit, make_arrays, small_config, write_lines

from distmlp import InputError, train
from distmlp.results.compare import _element, compare


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compared")


def run(folder: Path, name: str, arrays: dict[str, np.ndarray] | None = None, **changes: Any) -> Path:
    """The workdir of a finished run of 10 steps in 2 epochs, which all tests of this file share."""
    workdir, data = folder / name, folder / f"{name}.npz"
    if not workdir.exists():
        np.savez(data, **(arrays or make_arrays()))
        defaults = {"shuffle": True, "ledger": True, "ledger_digests_every": 3, "num_devices": 1}
        train(small_config(str(data), workdir=str(workdir), **(defaults | changes)))
    return workdir


@pytest.fixture
def base(folder: Path) -> Path:
    return run(folder, "base")


def found(a: Path, b: Path) -> tuple[int | None, dict[str, str]]:
    """The step at which they part, and the lines by their subject, the last of each."""
    comparison = compare(a, b)
    assert all(len(line) == len(line.strip()) for line in comparison.lines)
    return comparison.parted_at, {line[:12].strip(): line[12:].strip() for line in comparison.lines}


def test_runs_that_are_the_same_are_so_on_any_feed_and_length(folder: Path, base: Path) -> None:
    step, lines = found(base, run(folder, "host", data_placement="host", num_epochs=3))
    assert step is None
    assert lines["examples"] == lines["loss"] == "the same in all 10 steps"
    assert lines["parameters"] == "the same at all 3 steps of which both have digests"
    assert lines["settings"].startswith("A / B: --dataset=")
    assert lines["settings"].endswith("--num_epochs=2 / 3")
    assert lines["how it ran"] == "A / B: --data_placement=auto / host"
    assert lines["verdict"] == "the runs are the same as far as they go: up to step 10"
    assert lines["ledger"] == "B: each whole epoch has all 96 training examples, each once"


def test_one_replaced_example_shows_at_the_step_that_fetches_it(folder: Path, base: Path) -> None:
    from distmlp.data.order import shuffled

    arrays = make_arrays()
    arrays["x_train"][57] = 255 - arrays["x_train"][57]
    expected = int(np.flatnonzero(shuffled(96, 0) == 57)[0]) // 20 + 1
    step, lines = found(base, run(folder, "replaced", arrays))
    assert step == expected
    assert lines["loss"].startswith(f"parts at step {expected}: ")
    assert lines["examples"] == "the same in all 10 steps"
    assert lines["data"] == "other data: their fingerprints differ"
    assert lines["verdict"] == f"the runs part at step {expected}"


def test_one_changed_flag(folder: Path, base: Path) -> None:
    step, lines = found(base, run(folder, "rate", learning_rate=0.0011))
    assert step == 2  # the first loss is of the same parameters
    assert "--learning_rate=0.001 / 0.0011" in lines["settings"]
    assert lines["parameters"].startswith("part between step 0 and step 3: .params[0][0], .params[0][1], ")
    assert lines["metrics"].startswith("part at step 5: train_loss is ")
    step, lines = found(base, run(folder, "seed", seed=1))
    assert step == 1
    assert lines["examples"] == "part at step 1: 20 / 20 of them, not the same"
    step, lines = found(base, run(folder, "batch", batch_size=10, max_steps=10))
    assert lines["examples"] == "part at step 1: 20 / 10 of them, not the same"


def test_one_flipped_bit_in_a_checkpoint(base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    flip_bit(copy / "checkpoints" / "10")
    comparison = compare(base, copy)
    assert comparison.parted_at == 10
    text = "\n".join(comparison.lines)
    assert "checkpoint   10 of B is damaged: " in text
    assert "checkpoint   5: all " in text


def test_the_array_and_the_element_are_named(folder: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from distmlp.results import checkpoints

    real, copy = checkpoints.read_unverified, run(folder, "copy")

    def changed(path: Path, step: int) -> Any:
        stored = real(path, step)
        if path == copy and step == 10:
            weights = stored.arrays[".params[1][0]"].copy()
            weights.view(np.uint32)[2, 3] ^= 1
            stored.arrays[".params[1][0]"] = weights
        return stored

    monkeypatch.setattr(checkpoints, "read_unverified", changed)
    step, lines = found(base, copy)
    assert step == 10
    assert lines["checkpoint"].startswith("10: 1 arrays differ; .params[1][0] in 1 of 32 elements, first at [2, 3]: ")
    assert any("10 of B is damaged: .params[1][0] is not what was saved" in line for line in compare(base, copy).lines)


@pytest.mark.parametrize("changes", [{"eval_every_steps": 2}, {"eval_every_epochs": 0}, {"max_steps": 7}], ids=str)
@pytest.mark.parametrize("ledger", [True, False], ids=["ledger", "none"])
def test_when_a_run_evaluates_or_stops_makes_it_no_other_run(
    folder: Path, base: Path, changes: dict[str, int], ledger: bool
) -> None:
    name = "-".join([*changes, str(ledger)])
    other = run(folder, name, ledger=ledger, **changes)
    step, lines = found(base, other)
    assert (step, lines["verdict"].partition(":")[0]) == (None, "the runs are the same as far as they go")
    assert "/" not in lines["metrics"]
    if "max_steps" in changes and ledger:  # and goes on, with lines of means over other steps
        train(small_config(str(folder / f"{name}.npz"), workdir=str(other), shuffle=True, ledger=True, num_devices=1))
        step, lines = found(base, other)
        assert (step, lines["verdict"][-2:]) == (None, "10")
        assert lines["metrics"] == "the same at all 2 steps that both logged"


def test_metrics_without_a_step_in_common_are_not_the_same(folder: Path) -> None:
    a, b = run(folder, "two", ledger=False, max_steps=2), run(folder, "three", max_steps=3, checkpoint_every_steps=2)
    step, lines = found(a, b)
    assert (step, lines["metrics"]) == (None, "none that both logged at the same steps")
    assert lines["verdict"].endswith("up to step 2")


def test_whole_epochs_are_spoken_of_where_there_are_some(folder: Path, base: Path, tmp_path: Path) -> None:
    _, lines = found(base, run(folder, "four", max_steps=4))
    assert lines["ledger"] == "B has no whole epoch: whether each example counts once is not known"
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    texts = (copy / "ledger.jsonl").read_text().splitlines(keepends=True)
    (copy / "ledger.jsonl").write_text("".join([*texts[:3], *texts[4:8], *texts[9:]]))  # one of each epoch is missing
    assert found(base, copy)[1]["ledger"] == "B has no whole epoch: whether each example counts once is not known"


def test_without_ledgers_metrics_and_checkpoints_are_compared(folder: Path, base: Path) -> None:
    step, lines = found(base, run(folder, "bare", ledger=False))
    assert step is None
    assert lines["ledger"] == "B has none (--ledger keeps one)"
    assert lines["metrics"] == "the same at all 2 steps that both logged"
    step, lines = found(run(folder, "bare"), run(folder, "bare2", ledger=False, learning_rate=0.0011))
    assert step == 5
    assert lines["verdict"] == "the runs part at step 5, or earlier: nothing was compared after step 0"


def test_an_example_fetched_twice_shows_in_its_epoch(base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    path = copy / "ledger.jsonl"
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    lines[8] |= {"examples": f"{int(lines[8]['examples'], 16) ^ 1:016x}"}
    write_lines(path, lines)
    step, text = found(base, copy)
    assert step == 8
    assert text["ledger"] == "B: epoch 2 did not have each training example once"
    write_lines(path, [*lines[:4], *lines[5:]])
    assert any("B lacks 1 of its 10 steps" in line for line in compare(base, copy).lines)


def test_what_cannot_be_compared(folder: Path, base: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder: give the --workdir of a run"):
        compare(base, tmp_path / "absent")
    short = run(folder, "short", ledger=False, max_steps=3)
    with pytest.raises(InputError, match="have no step in common"):
        compare(run(folder, "bare", ledger=False), short)


def test_damaged_lines_are_left_out_and_said(base: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    path = copy / "ledger.jsonl"
    whole = path.read_bytes()
    header, *steps = whole.splitlines(keepends=True)
    for damaged, numbers in (
        (whole.replace(b'"loss": "0x1', b'"loss": "0x0', 1), "line 2 is"),  # a loss still, but another
        (whole.replace(b'"step": 9', b'"st\xffp": 9'), "line 10 is"),
        (whole.replace(header, header.replace(b"96", b"95")), "line 1 is"),
        (b"".join([header, *steps[:3], b"\n", b"[]\n", b'{"step": 4}\n', *steps[3:]]), "lines 5, 6, 7 are"),
        (whole.replace(steps[4], steps[4][:-1] + b" "), "line 6 is"),  # and with it the next one
    ):
        assert damaged != whole
        path.write_bytes(damaged)
        step, lines = found(base, copy)
        assert step is None
        assert lines["damage"] == f"{path}: {numbers} not what was written, and left out"
    path.write_bytes(b"{}\n{}\n")
    assert found(base, copy)[1]["ledger"] == "B has none (--ledger keeps one)"
    path.write_bytes(whole[:-3])  # as a kill leaves it, behind a brace: the run may be writing it
    assert "damage" not in found(base, copy)[1]
    path.write_bytes(whole)
    metrics = copy / "metrics.jsonl"
    metrics.write_bytes(metrics.read_bytes().replace(b'"test_accuracy": 0.', b'"test_accuracy": 1.', 1))
    step, lines = found(base, copy)
    assert (step, lines["damage"]) == (None, f"{metrics}: line 1 is not what was written, and left out")


def test_exit_codes(folder: Path, base: Path, call_verb: RunTrain) -> None:
    done = call_verb("compare", str(base), str(run(folder, "rate", learning_rate=0.0011)))
    assert (done.returncode, done.stderr) == (1, "")
    assert done.stdout.endswith("verdict      the runs part at step 2\n")


@pytest.mark.parametrize(("ours", "theirs", "words"), [
    (np.zeros((2, 3), np.float32), np.zeros((3, 2), np.float32), "w is float32 [2, 3] / float32 [3, 2]"),
    (np.zeros((2, 3), np.float32), np.zeros((2, 3), np.int32), "w is float32 [2, 3] / int32 [2, 3]"),
    (None, np.zeros(2, np.float32), "only B has w"), (np.zeros(2, np.float32), None, "only A has w"),
    (np.zeros((2, 2), np.float32), np.float32([[0, 0], [0, 5]]), "w in 1 of 4 elements, first at [1, 1]: 0 / 5"),
])  # fmt: skip
def test_how_two_arrays_differ(ours: np.ndarray | None, theirs: np.ndarray | None, words: str) -> None:
    a, b = ({} if array is None else {"w": array} for array in (ours, theirs))
    assert _element("w", a, b) == words
