"""load(RUN): the model of a checkpoint, verified, on one device, beside a training run."""

import dataclasses
import errno
import json
import shutil
import subprocess
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
import pandas as pd
import pytest
import torch
from conftest import flip_bit, process_env, small_config, snapshot, write_lines

from distmlp import Config, InputError, load, model, train
from distmlp.config import digest_json
from distmlp.data import datasets
from distmlp.parallel import backend
from distmlp.parallel.digest import StateDigest, host_digest
from distmlp.parallel.layout import make_layout
from distmlp.parallel.specs import REPLICATED
from distmlp.results import models, run_data
from distmlp.run import store


def lines(run: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture
def copy(digits_run: Path, tmp_path: Path) -> Path:
    """A copy of the run, to be changed."""
    return Path(shutil.copytree(digits_run, tmp_path / "copy"))


def test_predictions_are_those_of_the_checkpoints_network(digits_run: Path) -> None:
    loaded = load(digits_run)
    data = datasets.load(Config())
    assert isinstance(data.test, datasets.ArrayDataset)
    x = (data.test.images.astype(np.float32) - loaded.scaling[0]) * loaded.scaling[1]
    expected = np.exp(model.batched_predict(loaded.params, x))
    predictions = loaded.predict(data.test.images.reshape(-1, 8, 8))
    assert (predictions.probabilities.dtype, predictions.probabilities.shape) == (np.float32, (360, 10))
    np.testing.assert_allclose(predictions.probabilities, expected, atol=1e-6)
    np.testing.assert_array_equal(predictions.classes, expected.argmax(axis=1))
    one = loaded.predict(data.test.images[5:6])  # in another block size
    np.testing.assert_allclose(one.probabilities[0], expected[5], atol=1e-6)
    assert loaded.predict(data.test.images[:0]).probabilities.shape == (0, 10)


def test_a_network_for_which_a_device_has_no_room_is_refused(digits_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one that only fits sharded: no device here says how much it has, so one is made to."""
    loaded, rows, labels = load(digits_run), np.zeros((3, 64), np.uint8), np.zeros(3, np.int64)
    needed = sum(w.nbytes + 1025 * b.nbytes for w, b in loaded.params)  # of 512 rows, twice
    calls = (lambda: loaded.predict(rows), lambda: list(loaded.probabilities([rows])),
             lambda: loaded.evaluate(rows, labels))  # fmt: skip
    for memory in (needed - 1, needed):
        monkeypatch.setattr(backend, "device_memory", lambda device, memory=memory: memory)
        for call in calls:
            if memory == needed:
                call()
                continue
            with pytest.raises(InputError, match=r"GiB, and a cpu device has [\d.]+: set JAX_PLATFORMS=cpu"):
                call()


def test_what_was_trained_on_a_gpu_is_used_on_the_cpu(copy: Path) -> None:
    path = copy / "checkpoints" / "69" / "meta" / "metadata"
    meta = json.loads(path.read_text())
    del meta["digest"]
    meta["settings"]["platform"] = "gpu"
    path.write_text(json.dumps(meta | {"digest": digest_json(meta)}))
    assert len(load(copy, 69).predict(np.zeros((3, 64), np.uint8)).classes) == 3


def test_programs_are_kept_where_this_user_may_write(digits_run: Path, tmp_path: Path) -> None:
    own = load(digits_run)
    for given, used in ((str(tmp_path), str(tmp_path)), ("", ""), ("/dev/null/cache", Config().compilation_cache_dir)):
        config = dataclasses.replace(own.config, compilation_cache_dir=given)
        assert dataclasses.replace(own, config=config).config_here.compilation_cache_dir == used


def test_threads_can_share_a_model(digits_run: Path) -> None:
    images = np.random.default_rng(0).integers(0, 17, (64, 64)).astype(np.float32)
    blocks = [images[start : start + size] for size in (1, 3, 8, 20) for start in (0, 7, 31)]
    expected = [load(digits_run).predict(block).probabilities for block in blocks]
    shared = load(digits_run)
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda block: shared.predict(block).probabilities, blocks * 5))
    for probabilities, alone in zip(found, expected * 5, strict=True):
        np.testing.assert_array_equal(probabilities, alone)


def test_a_model_can_be_loaded_after_a_fork(digits_run: Path) -> None:
    """As each worker of a service does, though the program of its parent has imported all that it needs."""
    program = """
import os, sys, warnings
import numpy as np
from distmlp import load
warnings.simplefilter("ignore", RuntimeWarning)  # jax's, of the threads that it could have
child = os.fork()
if not child:
    print(load(sys.argv[1]).predict(np.zeros((1, 64))).probabilities.shape, flush=True)
    os._exit(0)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    done = subprocess.run([sys.executable, "-c", program, str(digits_run)], env=process_env(), capture_output=True,
                          text=True, timeout=120, check=False)  # fmt: skip
    assert (done.returncode, done.stdout, done.stderr) == (0, "(1, 10)\n", "")


def test_evaluation_gives_the_numbers_of_the_log_to_the_last_digit(digits_run: Path) -> None:
    for step in (46, 69):
        loaded = load(digits_run, step)
        result = loaded.evaluate_set(run_data.split(loaded))
        logged = next(line for line in lines(digits_run) if line["step"] == step)
        assert result.checkpoint_step == step
        assert (result.loss, result.accuracy) == (logged["test_loss"], logged["test_accuracy"])
        assert (result.correct, result.count) == (logged["test_correct"], logged["test_count"])
        assert (result.confusion.sum(), result.confusion.trace()) == (result.count, result.correct)
        np.testing.assert_array_equal(result.confusion.sum(axis=1), result.per_class["support"])


def test_arrays_are_evaluated_as_the_data_set_is(digits_run: Path) -> None:
    loaded, test = load(digits_run), datasets.load(Config()).test
    images, labels = test.take(np.arange(len(test)))
    assert loaded.evaluate(images, labels).as_json() == loaded.evaluate_set(test).as_json()
    with pytest.raises(InputError, match="label 11 is none of the classes 0, 1, 2"):
        loaded.evaluate(images[:2], [3, 11])


def test_best_newest_and_a_step_choose_the_checkpoint(copy: Path) -> None:
    kept = sorted(int(path.name) for path in (copy / "checkpoints").iterdir() if path.name.isdecimal())
    assert kept == [46, 69]
    text = [line | ({"test_accuracy": 0.5} if line["step"] == 69 else {}) for line in lines(copy)]
    write_lines(copy / "metrics.jsonl", text)
    assert load(copy).step == load(copy, "best").step == 46
    assert load(copy, "newest").step == load(copy, 69).step == 69
    (copy / "metrics.jsonl").unlink()
    assert load(copy).step == 69
    with pytest.raises(InputError, match=r"no checkpoint of .* was evaluated; give --checkpoint=newest"):
        load(copy, "best")
    with pytest.raises(InputError, match=r"--checkpoint=7: .* has those of step 69, "):
        load(copy, 7)
    with pytest.raises(InputError, match="give best, newest or a step's number"):
        load(copy, "last")


def test_loading_needs_no_lock_and_changes_nothing(copy: Path) -> None:
    for path in [copy, *copy.rglob("*")]:
        path.chmod(0o555 if path.is_dir() else 0o444)
    before = snapshot(copy)
    loaded = load(copy)
    loaded.predict(np.zeros((1, 64), np.uint8))
    assert snapshot(copy) == before


@pytest.mark.parametrize("what", ["state", "meta", "values"])
def test_a_damaged_checkpoint_is_named_and_never_used(copy: Path, what: str) -> None:
    newest = copy / "checkpoints" / "69"
    if what == "state":
        flip_bit(newest)
    elif what == "meta":
        path = newest / "meta" / "metadata"
        path.write_text(path.read_text().replace('"seed": 0', '"seed": 1'))
    else:  # arrays that can be read, but are others than were saved
        path = newest / "meta" / "metadata"
        meta = json.loads(path.read_text())
        del meta["digest"]
        meta["digests"][".params[1][0]"] = "00000000"
        path.write_text(json.dumps(meta | {"digest": digest_json(meta)}))
    before = snapshot(copy)
    with pytest.raises(InputError, match=r"checkpoint 69 of .* is damaged \(.*\): give --checkpoint=46"):
        load(copy, "newest")
    assert snapshot(copy) == before
    assert load(copy, 46).step == 46


def test_a_checkpoint_deleted_while_it_is_read_gives_way_to_the_next(
    copy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = store.Manager.read_meta

    def delete_newest(manager: Any, step: int) -> Any:
        if step == 69:
            shutil.rmtree(copy / "checkpoints" / "69", ignore_errors=True)
        return real(manager, step)

    monkeypatch.setattr(store.Manager, "read_meta", delete_newest)
    assert load(copy, "newest").step == 46


@pytest.mark.parametrize("item", ["meta", "state"])
@pytest.mark.parametrize("times", [1, 2])
def test_an_error_of_the_moment_is_no_damage(
    item: str, times: int, digits_run: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    restore, failures = ocp.CheckpointManager.restore, [OSError(errno.EIO, "Input/output error")] * times

    def flaky(self: Any, step: int, args: Any) -> Any:
        if item in args and failures:
            raise failures.pop()
        return restore(self, step, args=args)

    monkeypatch.setattr(ocp.CheckpointManager, "restore", flaky)
    if times == 2:
        name = {"meta": "metadata", "state": "arrays"}[item]
        with pytest.raises(InputError, match=rf"is damaged \(its {name} cannot be read \(Input/output error\)\)"):
            load(digits_run, 69)
    assert load(digits_run, 69).step == 69


def test_no_run_no_checkpoint_wrong_width(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="is no folder: give the --workdir of a run"):
        load(tmp_path / "absent")
    with pytest.raises(InputError, match=r"^run='' is empty, as if by a variable that is not set: name a folder$"):
        load("")
    with pytest.raises(InputError, match="holds no run: give the --workdir of one"):
        load(tmp_path)
    (tmp_path / "run.flags").touch()
    with pytest.raises(InputError, match="holds no checkpoint yet"):
        load(tmp_path)
    loaded = load(digits_run)
    with pytest.raises(InputError, match="rows have 63 values, but the run was trained on 64"):
        loaded.predict(np.zeros((2, 63)))
    with pytest.raises(InputError, match="row 1 has a value that is NaN"):
        loaded.predict(np.array([[0.0] * 64, [np.nan] * 64]))
    with pytest.raises(InputError, match=r"must be numbers of shape \[N, ...\]"):
        loaded.predict([["a"] * 64])


def test_data_that_are_not_the_runs_are_refused(copy: Path, npz: str, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = load(copy)
    monkeypatch.setattr(datasets.Data, "fingerprint", lambda data: "changed")
    with pytest.raises(InputError, match="the data of --dataset=digits are not those"):
        run_data.split(loaded)
    with pytest.raises(InputError, match=r"has 12 features, but .* was trained on 64"):
        run_data.split(loaded, dataset=npz)
    with pytest.raises(InputError, match="--split=dev: choose one of train, test, validation"):
        run_data.split(loaded, "dev")


def test_the_hosts_digest_is_the_devices() -> None:
    rng = np.random.default_rng(0)
    state = {"a": rng.standard_normal((7, 5), np.float32), "b": np.int32(-3), "c": rng.standard_normal(4096, "f4")}
    layout = make_layout(Config(num_devices=1))
    digests = StateDigest(layout, REPLICATED).check(jax.tree.map(jax.numpy.asarray, state), 0)
    assert list(digests.values()) == [host_digest(array) for array in state.values()]


@pytest.fixture
def typed_run(tmp_path: Path) -> Any:
    """Trains on three clouds of points whose labels are these, and loads the run; the points and labels beside it."""

    def make(names: list[Any]) -> tuple[Any, np.ndarray, np.ndarray]:
        rng = np.random.default_rng(0)
        numbers = rng.permutation(np.arange(60) % len(names))
        x = (rng.standard_normal((60, 4)) + 6 * np.eye(4)[numbers]).astype(np.float32)
        y = np.array(names)[numbers]
        train(small_config("", optimizer="adam", learning_rate=0.1, num_epochs=5), (x, y), (x, y))
        return load("run"), x, y

    return make


@pytest.mark.parametrize("names", [[1, 2, 3], [-1, 1], [False, True], ["b", "a"], ["01", "1"], [0, 1, 2]], ids=str)
def test_classes_are_of_the_labels_own_type(typed_run: Any, names: list[Any]) -> None:
    loaded, x, y = typed_run(names)
    predictions = loaded.predict(x)
    assert (predictions.classes.dtype, (predictions.classes == y).mean()) == (y.dtype, 1)
    assert list(loaded.classes) == sorted(names)
    result = loaded.evaluate(x, y)
    assert (result.accuracy, json.loads(json.dumps(result.as_json()))["classes"]) == (1, sorted(names))
    assert loaded.evaluate(x.tolist(), pd.Series(y)).accuracy == 1
    assert loaded.evaluate(x, torch.tensor(y) if y.dtype.kind != "U" else y.astype(object)).accuracy == 1
    assert loaded.evaluate(torch.tensor(x, requires_grad=True), y).accuracy == 1
    np.testing.assert_array_equal(loaded.predict_proba(torch.nn.Parameter(torch.tensor(x))), predictions.probabilities)


def test_labels_of_another_kind_than_the_runs_are_refused(typed_run: Any, tmp_path: Path) -> None:
    loaded, x, y = typed_run([0, 1, 2])
    words = np.array(["zero", "one", "two"])[y]
    np.savez(tmp_path / "words.npz", x=x, y=words)
    with pytest.raises(InputError, match="y: label 'zero' is none of the classes 0, 1, 2"):
        loaded.evaluate(x, np.sort(words)[::-1])
    with pytest.raises(InputError, match=r"words\.npz: x, y: label '.*' is none of the classes 0, 1, 2"):
        run_data.split(loaded, dataset=str(tmp_path / "words.npz"))


def test_a_checkpoint_of_version_0_2_has_its_classes_as_text(typed_run: Any) -> None:
    loaded, x, y = typed_run([1, 2, 3])
    info = loaded.data_info | {"classes": ["1", "2", "3"]}
    del info["numbered"]
    old = dataclasses.replace(loaded, meta=loaded.meta | {"data_info": info})
    assert (old.predict(x).classes == y.astype(str)).all()
    assert old.evaluate(x, y).accuracy == old.evaluate(x, y.astype(str)).accuracy == 1
    assert len(run_data.split(loaded, dataset=save_arrays(x, y))) == len(run_data.split(old, dataset=save_arrays(x, y)))


def save_arrays(x: np.ndarray, y: np.ndarray) -> str:
    np.savez("arrays.npz", x=x, y=y)
    return "arrays.npz"


def test_many_classes_are_counted_by_the_pairs_that_occur() -> None:
    """12,000 classes need no matrix of 144,000,000 numbers, of 8 bytes each."""
    count, scaling = 12_000, (np.zeros(1, np.float32), np.ones(1, np.float32))
    params = [(np.zeros((count, 1), np.float32), np.arange(count, dtype=np.float32) == 7)]
    params = [(weights, biases.astype(np.float32)) for weights, biases in params]
    known = models.Model(Path("run"), 3, params, scaling, Config(eval_batch_size=50), {})
    known.evaluate(np.zeros((50, 1), np.float32), np.full(50, 7))  # compiles
    tracemalloc.start()
    result = known.evaluate(np.zeros((100, 1), np.float32), np.arange(100))
    text, peak = str(result), tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 100e6
    assert (result.correct, result.pairs[7].tolist(), len(result.pairs)) == (1, [7, 7, 1], 100)
    assert "      1  0 taken for 7" in text
    report = result.as_json()
    assert ("confusion" in report, report["confusion_pairs"][8]) == (False, [8, 7, 1])
