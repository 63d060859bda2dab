"""What a sweep's folder is good for: the refitted model, the mean of the kept members, and the report."""

import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from conftest import Page, make_arrays, small_config
from sklearn import metrics

from distmlp import InputError, load, sweep
from distmlp.results import charts, run_data, shown_sweep
from distmlp.results.compare import compare
from distmlp.results.ensemble import Ensemble
from distmlp.results.evaluation import EnsembleReport
from distmlp.results.export import export
from distmlp.results.report import report
from distmlp.run import lines, swept
from launch import evaluate as evaluate_verb
from launch import export as export_verb
from launch import predict as predict_verb

Capture = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep over two learning rates and two widths on two folds, of which five of eight members are kept."""
    root = tmp_path_factory.mktemp("swept")
    np.savez(root / "set.npz", **make_arrays())
    config = small_config(str(root / "set.npz"), input_scaling="standard", num_devices=1, num_epochs=20, shuffle=True,
                          workdir=str(root / "sweep"))  # fmt: skip
    return sweep(config, {"learning_rate": [0.1, 1.0], "hidden_sizes": [(4,), (8, 6)]}, folds=2, keep=5).folder


@pytest.fixture
def x() -> np.ndarray:
    return make_arrays()["x_test"]


def members(folder: Path) -> list[Any]:
    return [load(path) for path in swept.kept(folder)]


def test_an_ensemble_is_the_mean_of_its_members(folder: Path, x: np.ndarray) -> None:
    ensemble, own = load(folder, ensemble=True), members(folder)
    assert len({tuple(len(biases) for _, biases in member.params) for member in own}) == 2  # of several shapes
    each = np.stack([member.predict_proba(x) for member in own])
    np.testing.assert_allclose(ensemble.predict_proba(x), each.mean(axis=0), atol=1e-7)
    np.testing.assert_allclose(np.exp(ensemble.predict_log_proba(x)), each.mean(axis=0), atol=1e-6)
    assert ensemble.predict(x).classes.tolist() == each.mean(axis=0).argmax(axis=1).tolist()
    far = ensemble.predict_log_proba(x.astype(np.float32) * 1e6)  # where probabilities are 0
    assert np.isfinite(far).all()
    classes = each.argmax(axis=2)
    pairs = np.mean([a != b for a, b in itertools.combinations(classes, 2)], axis=0)
    np.testing.assert_allclose(ensemble.disagreement(x), pairs, atol=1e-6)
    probabilities, apart = map(np.concatenate, zip(*ensemble.answers([x[:7], x[7:]]), strict=True))
    np.testing.assert_allclose(probabilities, each.mean(axis=0), atol=1e-7)
    np.testing.assert_array_equal(apart, ensemble.disagreement(x))
    assert 0 < pairs.mean() < 1

    y = make_arrays()["y_test"]
    found = ensemble.evaluate(x, y)
    assert found.disagreement == pytest.approx(pairs.mean())
    assert found.alone == [np.mean(own_classes == y) for own_classes in classes]
    assert found.log_loss == pytest.approx(metrics.log_loss(y, each.mean(axis=0), labels=range(4)), rel=1e-5)
    assert found.accuracy == np.mean(each.mean(axis=0).argmax(axis=1) == y)
    predicted = each.mean(axis=0).argmax(axis=1)
    np.testing.assert_array_equal(found.confusion, metrics.confusion_matrix(y, predicted, labels=range(4)))
    assert f"mean of 5 members: {found.correct} of 40 correct" in str(found)


def test_the_verbs_take_the_refitted_model_or_the_ensemble(folder: Path, x: np.ndarray, capsys: Capture) -> None:
    refit, ensemble = load(folder / "members" / "refit"), load(folder, ensemble=True)
    np.save("x.npy", x)

    def printed(verb: Any, *arguments: str) -> Any:
        assert verb.main([str(folder), *arguments]) == 0
        return [json.loads(line) for line in capsys.readouterr().out.splitlines()]

    assert printed(evaluate_verb, "--json")[0] == json.loads(json.dumps(run_data.evaluate(refit).as_json()))
    [found] = printed(evaluate_verb, "--ensemble", "--json")
    assert found == json.loads(json.dumps(run_data.evaluate(ensemble).as_json()))
    assert (found["members"], len(found["alone"]), found["count"]) == (5, 5, 40)
    for model, flags in ((refit, []), (ensemble, ["--ensemble"])):
        rows = printed(predict_verb, "x.npy", "--json", *flags)
        np.testing.assert_allclose([row["probabilities"] for row in rows], model.predict_proba(x), atol=1e-6)
        assert ("disagreement" in rows[0]) == bool(flags)
        assert predict_verb.main([str(folder), "x.npy", "--output=p.npy", *flags]) == 0
        np.testing.assert_allclose(np.load("p.npy"), model.predict_proba(x), atol=1e-6)
        assert export_verb.main([str(folder), "--format=npz", "--output=m.npz", *flags]) == 0
        with np.load("m.npz") as arrays:
            assert ("m4.w1" in arrays, "w1" in arrays) == (bool(flags), not flags)
        capsys.readouterr()
    assert compare(folder, folder / "members" / "refit").parted_at is None


def test_exports_of_an_ensemble_are_one_program(folder: Path, x: np.ndarray, tmp_path: Path) -> None:
    import onnxruntime
    from jax import export as jax_export

    ensemble, x = load(folder, ensemble=True), x.astype(np.float32)
    expected = ensemble.predict(x)
    for form in ("npz", "onnx", "stablehlo"):
        assert not export(ensemble, form, tmp_path / form)
    session = onnxruntime.InferenceSession(tmp_path / "onnx", providers=["CPUExecutionProvider"])
    for rows in (x, x[:1]):
        probabilities, classes = session.run(["probabilities", "class"], {"x": rows})
        np.testing.assert_allclose(probabilities, expected.probabilities[: len(rows)], atol=1e-6)
        np.testing.assert_array_equal(classes, expected.classes[: len(rows)])
    assert json.loads(session.get_modelmeta().custom_metadata_map["step"]) == [m.step for m in ensemble.members]
    program = jax_export.deserialize(bytearray((tmp_path / "stablehlo").read_bytes()))
    np.testing.assert_allclose(program.call(x), expected.probabilities, atol=1e-6)
    with np.load(tmp_path / "npz") as arrays:  # as docs/many_models.md has it
        found = []
        for number in range(5):
            begin = f"m{number}."
            layers, h = sum(name.startswith(f"{begin}w") for name in arrays), x
            for n in range(layers):
                h = h @ arrays[f"{begin}w{n}"].T + arrays[f"{begin}b{n}"]
                h = np.maximum(h, 0) if n < layers - 1 else h
            powers = np.exp(h - h.max(axis=1, keepdims=True))
            found.append(powers / powers.sum(axis=1, keepdims=True))
        np.testing.assert_allclose(np.mean(found, axis=0), expected.probabilities, atol=1e-6)
        assert len(json.loads(json.loads(arrays["metadata"].item())["settings"])) == 5
    with pytest.raises(InputError, match=r"--format=safetensors is for a single network: .* onnx, npz or stablehlo"):
        export(ensemble, "safetensors", tmp_path / "torch")


def test_members_that_have_learned_other_words_and_means(tmp_path: Path, capsys: Capture) -> None:
    random = np.random.default_rng(4)
    number, words = random.standard_normal(90).astype(np.float32), random.integers(0, 30, 90)
    number[::5] = np.nan
    frame = pd.DataFrame({"number": number, "word": [f"w{n}" for n in words],
                          "label": np.where(np.nan_to_num(number) + words / 30 > 0.5, "yes", "no")})  # fmt: skip
    frame.to_csv(tmp_path / "t.csv", index=False)
    config = small_config(str(tmp_path / "t.csv"), missing="mean", text_columns="one_hot", test_fraction=0.3,
                          num_devices=1, learning_rate=0.3, workdir="sweep")  # fmt: skip
    folder = sweep(config, {"seed": [0, 1]}, folds=2, keep=4).folder
    ensemble, own = load(folder, ensemble=True), members(folder)
    assert len({member.num_features for member in own}) > 1
    assert len({member.columns.fill["number"] for member in own}) == 2
    expected = np.mean([member.predict_proba(frame) for member in own], axis=0)
    capsys.readouterr()
    np.testing.assert_allclose(ensemble.predict_proba(frame), expected, atol=1e-7)
    assert predict_verb.main([str(folder), str(tmp_path / "t.csv"), "--ensemble", "--output=p.npy"]) == 0
    np.testing.assert_allclose(np.load("p.npy"), expected, atol=1e-7)
    assert predict_verb.main([str(folder), str(tmp_path / "t.csv"), "--ensemble", "--output=p.csv",
                              "--columns=word", "--probabilities"]) == 0  # fmt: skip
    table = pd.read_csv("p.csv")
    assert [*table] == ["word", "class", "probability", "disagreement", "p_no", "p_yes"]
    np.testing.assert_allclose(table["disagreement"], ensemble.disagreement(frame), atol=1e-6)
    capsys.readouterr()
    assert predict_verb.main([str(folder), str(tmp_path / "t.csv"), "--ensemble", "--json"]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    np.testing.assert_allclose([row["probabilities"] for row in rows], expected, atol=1e-6)
    whole = run_data.evaluate(ensemble, dataset=str(tmp_path / "t.csv"))
    names = np.array(ensemble.classes)
    assert whole.accuracy == np.mean(names[expected.argmax(axis=1)] == frame["label"])
    tested = run_data.evaluate(ensemble)
    assert isinstance(tested, EnsembleReport)
    assert tested.count == 27
    assert tested.alone == [run_data.evaluate(member).accuracy for member in own]
    with pytest.raises(InputError, match="encode text or absent values as each has learned to"):
        export(ensemble, "onnx", tmp_path / "m.onnx")
    with pytest.raises(InputError, match=r"--split=validation: the members of .* have other validation sets"):
        run_data.evaluate(ensemble, "validation")


def test_a_report_of_a_sweep(folder: Path) -> None:
    page = report([folder])
    parsed = Page(page)
    standings = swept.standings(swept.read(folder).members, "accuracy")
    rate, sizes = standings[0].settings.values()
    best = f"learning_rate={rate:g}, hidden_sizes={','.join(map(str, sizes))}"
    for text in ("Accuracy by learning_rate", "Accuracy by hidden_sizes", "Training loss of all members",
                 "Accuracy of all members", "What an ensemble gains", "8 members: 4 settings, 2 folds",
                 f"{best}: {standings[0].mean:.4f} ± {standings[0].error:.4f}", "All 8 members",
                 "sweep, refitted", "Worst mistakes"):  # fmt: skip
        assert text in parsed.text, text
    found = run_data.evaluate(load(folder, ensemble=True))
    assert f"{100 * found.accuracy:.2f} %" in parsed.text
    assert parsed.tags.count("svg") == 4 + 5  # two settings and two curves, and the refitted run's
    assert all(address.startswith(("data:", "#")) for address in parsed.addresses)


def test_standings_have_standard_errors_and_leave_halved_ones_behind() -> None:
    def line(rate: float, seed: int, score: float | None, **more: Any) -> dict[str, Any]:
        return {"settings": {"learning_rate": rate, "seed": seed}, "score": score, **more}

    scores = {0.1: (0.90, 0.94, 0.98), 0.2: (0.93, 0.93, 0.90), 0.3: (0.80, 0.80, 0.80), 0.4: (0.99, None, 0.99)}
    members = [line(rate, seed, score) for rate, own in scores.items() for seed, score in enumerate(own)]
    members += [line(0.5, 0, 0.99, halted=1), line(0.6, 0, 0.7, halted=2)]
    found = swept.standings(members, "accuracy")
    assert [each.settings["learning_rate"] for each in found] == [0.1, 0.2, 0.3, 0.4, 0.6, 0.5]
    assert found[0].mean == pytest.approx(0.94)
    assert found[0].error == pytest.approx(np.std([0.90, 0.94, 0.98], ddof=1) / np.sqrt(3))
    assert found[-1].error is None
    assert [each.settings["learning_rate"] for each in swept.within_one_error(found, "accuracy")] == [0.1, 0.2]
    losses = swept.standings(members, "loss")
    assert [each.settings["learning_rate"] for each in losses][:3] == [0.3, 0.2, 0.1]
    assert len(swept.within_one_error(losses, "loss")) == 1


def test_a_seed_of_which_a_member_has_no_score_has_no_mean(monkeypatch: pytest.MonkeyPatch) -> None:
    scores = {0: (0.9, 0.8), 1: (0.99, None), 2: (0.0, 0.0), 3: (None, None)}
    members = [{"settings": {"learning_rate": rate, "seed": seed}, "score": score}
               for seed, own in scores.items() for rate, score in enumerate(own)]
    found, drawn = swept.Swept(Path("sweep"), members, None, None, ""), list[charts.Dots]()
    monkeypatch.setattr(charts, "scores", lambda dots, *_: drawn.append(dots))
    standings = swept.standings(members, "accuracy")
    shown_sweep._against_settings(shown_sweep.Sweep("s", "s", "red", "accuracy", ["seed"], found, standings, []), "red")
    assert {place: mean for place, mean, _ in drawn[0].bars} == {0: pytest.approx(0.85), 2: 0}
    assert drawn[0].y == [0.9, 0.8, 0.99, 0, 0]


def test_folders_without_what_is_asked_for(folder: Path, tmp_path: Path) -> None:
    def rewritten(name: str, keep: Any) -> Path:
        copy = Path(shutil.copytree(folder, tmp_path / name))
        values = [changed for value in lines.read(copy / swept.LINES, {}).values if (changed := keep(dict(value)))]
        (copy / swept.LINES).write_text("".join(f"{lines.sealed(value)}\n" for value in values))
        return copy

    unfinished = rewritten("unfinished", lambda line: line if "member" in line else None)
    single = rewritten("single", lambda line: None if line.get("refit") else line | {"kept": [3]})
    for ensemble in (False, True):
        with pytest.raises(InputError, match=r"holds a sweep that is not finished: give the same command again"):
            load(unfinished, ensemble=ensemble)
    with pytest.raises(InputError, match=r"was not trained again \(--norefit\): .* a member's run, as .*members/3,"):
        load(single)
    with pytest.raises(InputError, match=r"1 member is kept, and an ensemble needs two: sweep again with --keep=8"):
        load(single, ensemble=True)
    alone = rewritten("alone", lambda line: line | ({"halted": 0} if line.get("member", 3) != 3 else {"kept": [3]}))
    with pytest.raises(InputError, match=r"only 1 member was trained to the end with a finite score, and an ensemble"):
        load(alone, ensemble=True)
    with pytest.raises(InputError, match=r"members/refit holds no sweep: give the --workdir of one"):
        load(folder / "members" / "refit", ensemble=True)
    assert "The sweep is not finished" in Page(report([unfinished])).text
    page = Page(report([single])).text
    assert "What an ensemble of the kept members gains is not shown" in page
    assert "Worst mistakes" not in page  # there is no run


def test_members_of_other_classes_are_no_ensemble(folder: Path) -> None:
    one, *others = members(folder)
    info = one.meta | {"data_info": dict(one.data_info) | {"classes": ["a", "b", "c", "d"]}}
    with pytest.raises(InputError, match="were trained on other classes or features: they make no ensemble"):
        Ensemble.of(folder, [*others, dataclasses.replace(one, meta=info)])
