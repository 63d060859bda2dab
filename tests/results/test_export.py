"""Exports, each loaded by the library that it is for."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from conftest import RunTrain

from distmlp import Config, InputError, load, train
from distmlp.data import datasets
from distmlp.results import exported
from distmlp.results.ensemble import Ensemble
from distmlp.results.export import FORMATS, export, parameters
from distmlp.results.models import Model, Predictions
from launch import export as verb


@pytest.fixture(scope="module")
def model(digits_run: Path) -> Model:
    return load(digits_run)


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """The test set, float32 [360, 64]."""
    test = datasets.load(Config()).test
    return test.take(np.arange(len(test)))[0].astype(np.float32)


def softmax(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def check(predictions: Predictions, probabilities: Any) -> None:
    np.testing.assert_allclose(probabilities, predictions.probabilities, atol=1e-6)
    np.testing.assert_array_equal(np.argmax(probabilities, axis=1), predictions.classes)


def check_metadata(model: Model, metadata: Any) -> None:
    assert json.loads(metadata["classes"]) == list(model.classes) == list(range(10))
    assert json.loads(metadata["settings"]) == model.meta["settings"]
    assert json.loads(metadata["step"]) == 69


def test_torch_loads_safetensors_in_two_lines(model: Model, x: np.ndarray, tmp_path: Path) -> None:
    import safetensors
    import safetensors.torch
    import torch

    export(model, "safetensors", tmp_path / "model.safetensors")
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 10))
    net.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    with torch.no_grad():
        check(model.predict(x), torch.softmax(net(torch.from_numpy(x)), 1).numpy())
    with safetensors.safe_open(tmp_path / "model.safetensors", "np") as file:
        check_metadata(model, file.metadata())


def test_numpy_predicts_from_npz(model: Model, x: np.ndarray, tmp_path: Path) -> None:
    export(model, "npz", tmp_path / "model.npz")
    with np.load(tmp_path / "model.npz") as arrays:  # without pickles
        hidden = np.maximum(x @ arrays["w0"].T + arrays["b0"], 0)
        check(model.predict(x), softmax(hidden @ arrays["w1"].T + arrays["b1"]))
        assert arrays["w0"].shape == (32, 64)
        np.testing.assert_array_equal(arrays["classes"], np.arange(10))
        check_metadata(model, json.loads(arrays["metadata"].item()))


@pytest.mark.parametrize("scaled", [True, False])
def test_onnxruntime_runs_onnx(model: Model, x: np.ndarray, tmp_path: Path, scaled: bool) -> None:
    import onnxruntime

    if not scaled:
        model, x = dataclasses.replace(model, scaling=()), x / 16
    export(model, "onnx", tmp_path / "model.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "model.onnx", providers=["CPUExecutionProvider"])
    for rows in (x, x[:1]):
        probabilities, classes = session.run(["probabilities", "class"], {"x": rows})
        check(model.predict(rows), probabilities)
        np.testing.assert_array_equal(classes, model.predict(rows).classes)
    check_metadata(model, session.get_modelmeta().custom_metadata_map)


def test_jax_calls_stablehlo_for_any_number_of_rows(model: Model, x: np.ndarray, tmp_path: Path) -> None:
    from jax import export as jax_export

    export(model, "stablehlo", tmp_path / "model.bin")
    exported = jax_export.deserialize(bytearray((tmp_path / "model.bin").read_bytes()))
    assert "tpu" in exported.platforms
    for rows in (x, x[:1]):
        check(model.predict(rows), exported.call(rows))
    check_metadata(model, json.loads((tmp_path / "model.bin.json").read_text()))


@pytest.fixture(scope="module")
def far(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, np.ndarray]:
    """A model of features whose means are a million times their deviations, and rows."""
    rng, labels = np.random.default_rng(0), np.arange(600) % 3
    x = rng.standard_normal((600, 6)) + 1.5 * (np.arange(6) % 3 == labels[:, None]) + 1e6
    config = Config(hidden_sizes=(32,), batch_size=16, num_epochs=8, input_scaling="standard", optimizer="adam",
                    learning_rate=0.01, num_devices=1, workdir=str(tmp_path_factory.mktemp("far") / "run"))
    train(config, (x, labels), (x, labels))
    return load(config.workdir), x.astype(np.float32)


def test_scaling_that_folding_would_lose_is_kept_apart(far: tuple[Model, np.ndarray], tmp_path: Path) -> None:
    import onnxruntime
    import safetensors.torch
    import torch
    from jax import export as jax_export

    (model, x), files = far, {form: tmp_path / form for form in FORMATS}
    apart = {form: export(model, form, path) for form, path in files.items()}
    assert apart == {"safetensors": True, "npz": True, "onnx": False, "stablehlo": False}
    with np.load(files["npz"]) as arrays:
        assert sorted(arrays) == ["b0", "b1", "classes", "metadata", "scale", "shift", "w0", "w1"]
        inputs = (x - arrays["shift"]) * arrays["scale"]
        hidden = np.maximum(inputs @ arrays["w0"].T + arrays["b0"], 0)
        check(model.predict(x), softmax(hidden @ arrays["w1"].T + arrays["b1"]))
    tensors = safetensors.torch.load_file(files["safetensors"])
    shift, scale = tensors.pop("shift"), tensors.pop("scale")
    net = torch.nn.Sequential(torch.nn.Linear(6, 32), torch.nn.ReLU(), torch.nn.Linear(32, 3))
    net.load_state_dict(tensors)
    with torch.no_grad():
        check(model.predict(x), torch.softmax(net((torch.from_numpy(x) - shift) * scale), 1).numpy())
    session = onnxruntime.InferenceSession(files["onnx"], providers=["CPUExecutionProvider"])
    check(model.predict(x), session.run(["probabilities"], {"x": x})[0])
    check(model.predict(x), jax_export.deserialize(bytearray(files["stablehlo"].read_bytes())).call(x))


def test_scaling_is_folded_where_that_loses_nothing(model: Model, wine_run: Path) -> None:
    wine = load(wine_run)
    for each in (model, wine, dataclasses.replace(model, scaling=(np.zeros(64, "f4"), np.full(64, 1 / 16, "f4")))):
        apart, layers = parameters(each)
        assert apart == {}
        x = exported.rows(each)
        difference = exported.logits(layers, x) - exported.logits(each.params, exported.scaled(each, x))
        assert np.abs(difference).max() < 2e-5


@pytest.mark.parametrize("form", FORMATS)
def test_a_file_that_does_not_predict_what_the_run_does_is_not_written(
    model: Model, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = dataclasses.replace(model, scaling=(model.scaling[0] + 0.5, model.scaling[1]))
    content = FORMATS[form](wrong)
    monkeypatch.setitem(FORMATS, form, lambda model: content)
    with pytest.raises(InputError, match=rf"^--format={form}: the exported network would not predict what the run "
                                         r"does, its probabilities are off by 0\.\d+: nothing was written; choose"):
        export(model, form, tmp_path / "model")
    assert list(tmp_path.iterdir()) == []
    export(wrong, form, tmp_path / "model")


@pytest.mark.parametrize("form", FORMATS)
def test_networks_of_other_precision_and_size_are_as_they_predict(model: Model, form: str, tmp_path: Path) -> None:
    half = dataclasses.replace(model, config=dataclasses.replace(model.config, compute_dtype="bfloat16"))
    sure = dataclasses.replace(model, params=[(400 * weights, biases) for weights, biases in model.params])
    linear = dataclasses.replace(model, params=[(model.params[1][0] @ model.params[0][0], model.params[1][1])])
    for n, each in enumerate((half, sure, linear)):
        export(each, form, tmp_path / str(n))
        assert (tmp_path / str(n)).stat().st_size > 1000


def test_what_cannot_be_exported(model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match="--format=pickle: choose one of safetensors, npz, onnx, stablehlo"):
        export(model, "pickle", tmp_path / "model")
    for form in FORMATS:
        with pytest.raises(InputError, match=r"absent/m cannot be written \(No such file or directory\)"):
            export(model, form, tmp_path / "absent" / "m")
    (tmp_path / "full").mkdir()
    with pytest.raises(InputError, match=r"full cannot be written \(Is a directory\)"):
        export(model, "npz", tmp_path / "full")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]
    for form, module in (("safetensors", "safetensors.numpy"), ("onnx", "onnx"), ("stablehlo", "flatbuffers")):
        monkeypatch.setitem(sys.modules, module, None)
        with pytest.raises(InputError, match=rf"--format={form} needs \w+.*: pip install 'distmlp\[export\]'"):
            export(model, form, tmp_path / "model")
    assert [path.name for path in tmp_path.iterdir()] == ["full"]


def test_parameters_that_a_format_has_no_room_for(
    model: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("distmlp.results.export._MOST", 4 * (64 * 32 + 32 + 32 * 10 + 10) - 1)
    for each, others in ((model, "npz or safetensors"), (Ensemble.of(model.run, [model] * 2), "npz")):
        for form in ("onnx", "stablehlo"):
            with pytest.raises(InputError, match=rf"^--format={form} holds .* at most, and .*: export it as {others}$"):
                export(each, form, tmp_path / "model")
    export(model, "npz", tmp_path / "model.npz")
    monkeypatch.setattr("distmlp.results.export._MOST", 4 * (64 * 32 + 32 + 32 * 10 + 10))
    export(model, "stablehlo", tmp_path / "model.bin")


def test_the_verb_writes_the_file(call_verb: RunTrain, digits_run: Path, tmp_path: Path) -> None:
    done = call_verb("export", str(digits_run), "--format=npz", "--output=model.npz")
    assert (done.returncode, done.stderr) == (0, "")
    assert "the checkpoint of step 69 as npz" in done.stdout
    with np.load(tmp_path / "model.npz") as arrays:
        assert "b1" in arrays


@pytest.mark.parametrize("form", ["npz", "stablehlo"])
def test_a_file_of_other_precision_than_predict_is_said_so(
    model: Model, x: np.ndarray, form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    half = dataclasses.replace(model, config=dataclasses.replace(model.config, compute_dtype="bfloat16"))
    monkeypatch.setattr("distmlp.results.load.load", lambda *_: half)
    assert verb.main(["run", f"--format={form}", f"--output={tmp_path / 'm'}"]) == 0
    said = capsys.readouterr().err
    if form == "npz":
        assert said == ("distmlp: the file computes in float32, and predict in bfloat16: --format=stablehlo gives "
                        "predict's numbers\n")  # fmt: skip
    else:
        assert said == ""
        content = (tmp_path / "m").read_bytes()
        np.testing.assert_allclose(exported._stablehlo(content, x, half), half.predict(x).probabilities, atol=1e-6)


@pytest.mark.parametrize(("info", "largest"), [({"largest": 255.0}, 255), ({}, 1)])
def test_an_export_is_checked_with_rows_of_the_size_of_the_data(info: dict[str, float], largest: float) -> None:
    rows = exported.rows(SimpleNamespace(num_features=64, data_info=info, scaling=None))
    assert 0.9 * largest < rows.max() < largest
    assert rows.min() == 0
