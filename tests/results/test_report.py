"""The report: one page without a network, in which names are text."""

import dataclasses
import json
import re
import shutil
import statistics
import sys
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from conftest import Page, make_arrays, small_config, write_lines

from distmlp import Config, InputError, load, train
from distmlp.data import datasets
from distmlp.plan import rates
from distmlp.plan.cards import CARDS
from distmlp.results import run_data, shown
from distmlp.results.report import report
from launch.plan import main


def test_a_run_on_pictures(digits_run: Path) -> None:
    page = report([digits_run])
    parsed = Page(page)
    model = load(digits_run)
    result = model.evaluate_set(run_data.split(model))
    for heading in ("Loss", "Accuracy", "Throughput", "Learning rate", "Calibration", "Confusion matrix",
                    "Worst mistakes", "Weights of the first layer", "Goodput", "Starts and ends", "Checkpoints",
                    "Versions"):
        assert heading in parsed.text
    assert parsed.tags.count("svg") == 5
    assert parsed.tags.count("img") == min(24, result.count - result.correct) + 32
    assert "finished at step 69" in parsed.text
    assert f"{result.correct} of 360 test examples are right" in parsed.text
    assert [name for name, *_ in result.measures] == [
        "accuracy interval", "log loss", "balanced accuracy", "ROC AUC", "average precision", "top-3 accuracy",
        "calibration error"]
    for row in result.measures:  # name, value and what it means
        assert all(text in parsed.text for text in row)
    assert "script" not in parsed.tags
    assert all(address.startswith(("data:", "#")) for address in parsed.addresses)
    assert not re.search(r"url\((?!#)|@import|https?://(?!www\.w3\.org/)", page)
    assert "#010203" not in page  # the charts' ink is the page's


def first_table(page: str) -> dict[str, str]:
    """Its one row, by the titles of its columns."""
    rows = re.findall(r"<tr>(.*?)</tr>", page, re.DOTALL)
    titles, row = (re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", text) for text in rows[:2])
    return dict(zip(titles, row, strict=True))


@pytest.mark.usefixtures("undrawn")
def test_a_run_with_a_validation_set_shows_its_test_accuracy(npz: str, tmp_path: Path) -> None:
    config = small_config(npz, validation_fraction=0.25, num_devices=1, workdir=str(tmp_path / "run"))
    *lines, final = train(config).history
    best = max(lines, key=lambda line: line["validation_accuracy"])
    page = report([tmp_path / "run"])
    shown = first_table(page)
    assert set(shown) == {"run", "state", "best step", "validation accuracy", "test accuracy", "training time"}
    assert shown["best step"] == str(best["step"])
    assert shown["validation accuracy"] == f"{100 * best['validation_accuracy']:.2f} %"
    assert shown["test accuracy"] == f"{100 * final['best_test_accuracy']:.2f} %"
    assert shown["training time"] == f"{final['total_seconds']:.1f} s"
    assert page.count("Dots: test set, of the best and of the last checkpoint.") == 2
    assert best["step"] < final["step"]
    newest = first_table(report([tmp_path / "run"], "newest"))
    assert newest["best step"] == shown["best step"]
    assert newest["test accuracy"] == shown["test accuracy"]
    assert newest["shown checkpoint"] == str(final["step"])
    assert newest["its test accuracy"] == f"{100 * final['test_accuracy']:.2f} %"
    Path(npz).rename(tmp_path / "away.npz")  # what the run logged is known without its data
    page = report([tmp_path / "run"])
    assert first_table(page) == shown
    assert "not known" not in page


@pytest.mark.usefixtures("undrawn")
def test_a_mapped_test_set_is_read_in_parts(tmp_path: Path) -> None:
    arrays = make_arrays(train=100, test=100_000, features=100)
    (tmp_path / "data").mkdir()
    for name, array in arrays.items():
        np.save(tmp_path / "data" / f"{name}.npy", array.astype(np.float32) if name[0] == "x" else array)
    train(small_config(str(tmp_path / "data"), max_steps=2, workdir=str(tmp_path / "run"), num_devices=1,
                       eval_batch_size=500))
    shown.show(tmp_path / "run", "run", "#000000", "")  # compiles
    tracemalloc.start()
    shown.show(tmp_path / "run", "run", "#000000", "")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 0.6 * 4 * arrays["x_test"].size  # bytes of the test set: 40 MB


@pytest.mark.usefixtures("undrawn")
def test_a_data_sets_items_are_read_once(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    images, digits = load_digits(return_X_y=True)
    reads: Counter[int] = Counter()

    class Items(torch.utils.data.Dataset[Any]):
        def __len__(self) -> int:
            return 700

        def __getitem__(self, index: int) -> tuple[np.ndarray, int]:
            reads[index] += 1
            return images[index].astype(np.float32), int(digits[index])

    model, data = load(digits_run), datasets.load(Config(num_classes=10), Items(), Items())
    reads.clear()
    result = model.evaluate_set(data.test)
    assert reads == Counter(range(700))
    np.testing.assert_array_equal(result.confusion, model.evaluate(images[:700], digits[:700]).confusion)
    monkeypatch.setattr(run_data, "read", lambda model: data)
    reads.clear()
    page = report([digits_run])
    assert "of 700 test examples are right" in page
    assert reads == Counter(range(700))


@pytest.mark.usefixtures("undrawn")
def test_torn_lines_of_sessions_are_left_out_and_counted(digits_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(digits_run, tmp_path / "run"))
    start, *_, end = (run / "sessions.jsonl").read_text().splitlines()  # and what a slow machine writes in between
    torn = b"\n".join([start.encode(), b'{"time": "20', b"\xff\xfe", b"[]", b'{"start": 4}', end.encode(), b'{"tim'])
    (run / "sessions.jsonl").write_bytes(torn)
    page = report([run])
    assert "finished</td>" in page
    assert f"{run / 'sessions.jsonl'}: lines 2, 3, 4, 5 are not what was written, and left out" in page
    (run / "sessions.jsonl").write_bytes(b"\0" * 9)
    assert "the run has no record of them" in report([run])


@pytest.mark.usefixtures("undrawn")
def test_where_the_time_went_and_which_process_was_slow(digits_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(digits_run, tmp_path / "run"))
    seconds = {"start": 20, "train": 60, "save": 20}
    between = {"time": "2026-01-01 00:00:00", "began": 1767225600.0, "seconds": seconds, "kept": 0}
    restarted = {**between, "began": 1767225750.0, "kept": 50, "start": 23, "hosts": ["a"], "processes": 2,
                 "devices": "2 x cpu", "seconds": {"restore": 25, "train": 25}}  # fmt: skip
    write_lines(run / "sessions.jsonl", [between, restarted])
    lines = [json.loads(text) for text in (run / "metrics.jsonl").read_text().splitlines()]
    for line, slow in zip(lines[:-1], (1, None, 1), strict=True):
        line["process_seconds"] = {"load": [0.001, 0.004], "send": [0.0, 0.0], "compute": [0.002, 0.0025]}
        if slow is not None:
            line["slowest"] = {"process": slow, "host": "node<7>", "times_median": 2.17}
    write_lines(run / "metrics.jsonl", lines)
    page = report([run])
    text = Page(page).text
    assert "37.50 % of the time since the first start trained steps that were kept" in text  # 75 of 200 s
    rows = [re.sub("<[^>]*>", " ", row).split() for row in re.findall(r"<tr>(.*?)</tr>", page)]
    for name, spent, share in (("train", "75.0", "37.50"), ("lost", "10.0", "5.00"), ("down", "50.0", "25.00"),
                               ("restore", "25.0", "12.50"), ("start", "20.0", "10.00"), ("save", "20.0", "10.00")):
        assert [name, spent, share, "%"] in rows
    assert ["0", "1.000", "0.000", "2.000", "0"] in rows
    assert ["1", "4.000", "0.000", "2.500", "2", "node&lt;7&gt;"] in rows
    assert page.count("resumed on 2 x cpu") == 1  # what was written between is no start
    for unknown in (digits_run / "metrics.jsonl", digits_run / "sessions.jsonl"):  # as version 0.2.0 wrote them
        old = [{name: value for name, value in json.loads(text).items() if name not in between or name == "time"}
               for text in unknown.read_text().splitlines()]
        write_lines(run / unknown.name, old if unknown.name == "metrics.jsonl" else [old[0], old[-1]])
    page = report([run])
    assert "Goodput" not in page
    assert "Processes" not in page


def test_names_with_html_are_text_and_rows_are_listed(wine_run: Path) -> None:
    page = report([wine_run])
    parsed = Page(page)
    assert "<i>" not in page
    assert "Barolo <b>" in parsed.text
    assert page.count("<b>") == page.count("</b>")
    assert "Weights of the first layer" not in parsed.text
    assert parsed.tags.count("img") == 0
    assert str(wine_run) in parsed.text


def test_several_runs_show_what_differs(digits_run: Path, wine_run: Path, tmp_path: Path) -> None:
    twin = Path(shutil.copytree(digits_run, tmp_path / "run"))
    parsed = Page(report([digits_run, wine_run, twin]))
    assert str(digits_run) in parsed.text  # the twins' folders have one name
    different = parsed.text.partition("Settings that differ")[2].partition("/test examples are right")[0]
    assert "input_scaling" not in different.partition("checkpoint of step")[0]
    assert "dataset" in different.partition("checkpoint of step")[0]
    assert parsed.tags.count("svg") == 4 + 3
    assert "None." in Page(report([digits_run, twin])).text


@pytest.mark.usefixtures("undrawn")
def test_plan_and_reality_side_by_side(
    digits_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    known = CARDS["v5e"]  # measuring takes seconds
    monkeypatch.setattr(rates, "measure", lambda device, memory, *sizes: dataclasses.replace(known, memory=memory))
    assert main([f"--flagfile={digits_run / 'run.flags'}", "--json"]) == 0
    plan = tmp_path / "plan.json"
    plan.write_text(capsys.readouterr().out)
    cells = [row.split("</td>") for row in report([digits_run], plan=plan).split("<tr>") if "a step<" in row]
    expected, measured = (float(re.sub("<.*>|,", "", cell)) for cell in cells[0][1:3])
    assert expected == round(1e6 * json.loads(plan.read_text())["predicted_step_seconds"])
    lines = map(json.loads, (digits_run / "metrics.jsonl").read_text().splitlines())
    epochs = [line["examples_per_second"] for line in lines if "examples_per_second" in line]
    assert measured == round(1e6 * load(digits_run).config.batch_size / statistics.median(epochs[1:]))


@pytest.mark.usefixtures("undrawn")
def test_a_plan_as_windows_writes_it(digits_run: Path, tmp_path: Path) -> None:
    plan = {"target": "cpu:1", "batch": {"global": 64}, "total_steps": 69, "predicted_step_seconds": 0.001,
            "checkpoint_bytes": 1}
    for encoding in ("utf-8-sig", "utf-16"):
        (tmp_path / "plan.json").write_text(json.dumps(plan), encoding=encoding)
        assert "Plan and reality" in report([digits_run], plan=tmp_path / "plan.json")


def test_what_is_no_plan_is_named(digits_run: Path, tmp_path: Path) -> None:
    for text, problem in (("{", "cannot be read"), ("[]", "is no plan"), ('{"target": "cpu:1"}', "is no plan")):
        (tmp_path / "plan.json").write_text(text)
        with pytest.raises(InputError, match=f"--plan=.*plan.json {problem}"):
            report([digits_run], plan=tmp_path / "plan.json")


@pytest.mark.usefixtures("undrawn")
def test_a_run_that_is_not_finished_and_whose_data_are_gone(wine_run: Path, tmp_path: Path) -> None:
    run = Path(shutil.copytree(wine_run, tmp_path / "run"))
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    start, *_, end = map(json.loads, (run / "sessions.jsonl").read_text().splitlines())
    write_lines(run / "sessions.jsonl", [start, end | {"reason": "Interrupted: SIGTERM"}])
    data = wine_run.parent / "wine.csv"
    data.rename(tmp_path / "wine.csv")
    try:
        parsed = Page(report([run]))
    finally:
        (tmp_path / "wine.csv").rename(data)
    assert "stopped at step 50: Interrupted: SIGTERM" in parsed.text
    assert "What needs the test set is not shown: " in parsed.text
    assert "wine.csv does not exist" in parsed.text
    write_lines(run / "sessions.jsonl", [start])
    assert "is training, or was killed, after the line of step 50" in Page(report([wine_run, run])).text


@pytest.mark.parametrize("package", ["jinja2", "matplotlib"])
def test_a_missing_extra_is_named(digits_run: Path, monkeypatch: pytest.MonkeyPatch, package: str) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(InputError, match=rf"the report needs {package}, .*: pip install 'distmlp\[report\]'"):
        report([digits_run])
