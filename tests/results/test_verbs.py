"""The verbs on a run's folder, as a user starts them."""

import json
from pathlib import Path

import numpy as np
from conftest import WINES, RunTrain
from PIL import Image

from distmlp import Config, load, train
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
    call_verb: RunTrain, digits_run: Path, tmp_path: Path
) -> None:
    images, _ = datasets.load(Config()).test.take(np.arange(10))
    expected = load(digits_run).predict(images)
    for n, image in enumerate(images.reshape(-1, 8, 8)):
        Image.fromarray(np.rint(image * (255 / 16)).astype(np.uint8)).save(tmp_path / f"{n}.png")
    np.save(tmp_path / "rows.npy", images)
    files = [*(f"{n}.png" for n in range(10)), "absent.png", "rows.npy"]
    done = call_verb("predict", str(digits_run), *files, "--json")
    assert done.returncode == 1
    assert done.stderr == "distmlp: error: absent.png does not exist\n"
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["file"] for line in lines] == [*files[:10], *["rows.npy"] * 10]
    assert [line.get("row") for line in lines] == [*[None] * 10, *range(10)]
    assert [line["class"] for line in lines] == [*expected.classes] * 2
    np.testing.assert_allclose([line["probabilities"] for line in lines], np.tile(expected.probabilities, (2, 1)),
                               atol=1e-6)
    assert [line["probability"] for line in lines] == [max(line["probabilities"]) for line in lines]


def test_every_verb_on_a_table_with_text_labels(call_verb: RunTrain, wine_run: Path, tmp_path: Path) -> None:
    *_, last, _ = map(json.loads, (wine_run / "metrics.jsonl").read_text().splitlines())
    done = call_verb("evaluate", str(wine_run), "--json", "--checkpoint=newest")
    result = json.loads(done.stdout)
    assert result["classes"] == sorted(WINES)
    assert (result["loss"], result["accuracy"]) == (last["test_loss"], last["test_accuracy"])
    done = call_verb("predict", str(wine_run), str(wine_run.parent / "wine.csv"), "--json")
    predicted = [json.loads(line)["class"] for line in done.stdout.splitlines()]
    actual = [line.rpartition(",")[2] for line in (wine_run.parent / "wine.csv").read_text().splitlines()[1:]]
    assert (done.returncode, len(predicted)) == (0, 178)
    assert np.mean([p == a for p, a in zip(predicted, actual, strict=True)]) > 0.9
    done = call_verb("export", str(wine_run), "--format=npz", "--output=wine.npz")
    with np.load(tmp_path / "wine.npz") as arrays:
        assert arrays["classes"].tolist() == sorted(WINES)
    done = call_verb("report", str(wine_run), "--output=wine.html")
    assert (done.returncode, done.stderr) == (0, "")
    assert "Barolo &lt;b&gt;" in (tmp_path / "wine.html").read_text()
    done = call_verb("compare", str(wine_run), str(wine_run))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.endswith("the runs are the same as far as they go: up to step 50\n")


def test_mnist_accuracy_and_ten_pictures(call_verb: RunTrain, mnist_dir: str, tmp_path: Path) -> None:
    config = Config(dataset="mnist", data_dir=mnist_dir, max_steps=40, learning_rate=0.1, input_scaling="unit",
                    workdir=str(tmp_path / "run"), num_devices=1)
    *_, last, _ = train(config).history
    result = json.loads(call_verb("evaluate", "run", "--json").stdout)
    assert (result["accuracy"], result["loss"]) == (last["test_accuracy"], last["test_loss"])
    images, _ = datasets.load(config).test.take(np.arange(10))
    for n, image in enumerate(images.reshape(-1, 28, 28)):
        Image.fromarray(image).save(tmp_path / f"{n}.png")
    done = call_verb("predict", "run", *(f"{n}.png" for n in range(10)), "--json")
    assert done.returncode == 0
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    expected = load(tmp_path / "run").predict(images)
    assert [line["class"] for line in lines] == expected.classes.tolist()
    np.testing.assert_allclose([line["probabilities"] for line in lines], expected.probabilities, atol=1e-6)


def test_distmlp_is_one_command_for_all_verbs() -> None:
    from launch import cli

    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")} - {
        "__init__", "cli", "command", "flags", "help", "verb"}
    assert set(cli.VERBS) == files


def test_predict_imports_no_torch(run_verb: RunTrain, digits_run: Path, tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.zeros((1, 64)))
    for name in ("torch", "sklearn"):
        (tmp_path / f"{name}.py").write_text("raise ImportError('not for predictions')")
    done = run_verb("cli", "predict", str(digits_run), "x.npy")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("x.npy  row 0  ")


def test_the_rows_of_a_table_are_counted_from_1(call_verb: RunTrain, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("a,b,label\n" + "1,2,x\n3,1,y\n" * 9)
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n3,4\n")
    train(Config(dataset="t.csv", test_fraction=0.2, num_epochs=1, batch_size=4, hidden_sizes=(4,),
                 workdir="run"))
    shown = [line.split()[:3] for line in call_verb("predict", "run", "rows.csv").stdout.splitlines()]
    assert shown == [["rows.csv", "row", "1"], ["rows.csv", "row", "2"]]
    (tmp_path / "rows.csv").write_text("a,b\n1,2\n,4\n")
    assert "row 2 of column a" in call_verb("predict", "run", "rows.csv").stderr


def test_wrong_usage_is_one_line(call_verb: RunTrain, digits_run: Path) -> None:
    for verb, *arguments in (["predict", str(digits_run)], ["evaluate", "absent"], ["evaluate"]):
        done = call_verb(verb, *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("distmlp: error: ")
        assert done.stderr.count("\n") == 1
