"""The verbs on a run's folder, as a user starts them."""

import json
from pathlib import Path

import numpy as np
from conftest import RunTrain
from PIL import Image

from distmlp import Config, load
from distmlp.data import datasets


def test_evaluate_prints_the_numbers_that_training_logged(run_verb: RunTrain, digits_run: Path) -> None:
    *_, last, _ = map(json.loads, (digits_run / "metrics.jsonl").read_text().splitlines())
    done = run_verb("evaluate", str(digits_run), "--json")
    assert (done.returncode, done.stderr) == (0, "")
    result = json.loads(done.stdout)
    assert result["checkpoint_step"] == last["step"] == 69
    assert result["classes"] == list(range(10))
    for name, logged in (("loss", "loss"), ("accuracy", "accuracy"), ("correct", "correct"), ("count", "count")):
        assert result[name] == last[f"test_{logged}"], name
    assert np.trace(result["confusion"]) == result["correct"]


def test_predict_takes_pictures_and_rows_and_names_what_it_cannot_read(
    run_verb: RunTrain, digits_run: Path, tmp_path: Path
) -> None:
    images, _ = datasets.load(Config()).test[np.arange(10)]
    expected = load(digits_run).predict(images)
    for n, image in enumerate(images.reshape(-1, 8, 8)):
        Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)).save(tmp_path / f"{n}.png")
    np.save(tmp_path / "rows.npy", images)
    files = [*(f"{n}.png" for n in range(10)), "absent.png", "rows.npy"]
    done = run_verb("predict", str(digits_run), *files, "--json")
    assert done.returncode == 1
    assert done.stderr == "distmlp: error: absent.png does not exist\n"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [*files[:10], *["rows.npy"] * 10]
    assert [line.get("row") for line in lines] == [*[None] * 10, *range(10)]
    assert [line["class"] for line in lines] == [*expected.classes] * 2
    np.testing.assert_allclose([line["probabilities"] for line in lines], np.tile(expected.probabilities, (2, 1)),
                               atol=1e-6)
    assert [line["probability"] for line in lines] == [max(line["probabilities"]) for line in lines]


def test_wrong_usage_is_one_line(run_verb: RunTrain, digits_run: Path) -> None:
    for verb, *arguments in (["predict", str(digits_run)], ["evaluate", "absent"], ["evaluate"]):
        done = run_verb(verb, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("distmlp: error: ")
        assert done.stderr.count("\n") == 1
