"""Config: ranges, what a resumed run must share, and how differences are named."""

import dataclasses
import json
import pickle
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from conftest import small_config

from distmlp import Config, InputError, load, train
from distmlp.config import SCOPES, differences, digest_json, resolve_paths, run_flags
from launch.flags import parse


def test_defaults_are_the_tutorials() -> None:
    config = Config()
    config.validate()
    assert (config.hidden_sizes, config.batch_size, config.num_epochs) == ((512, 512), 128, 8)
    assert (config.optimizer, config.learning_rate, config.schedule) == ("sgd", 0.01, "constant")
    assert (config.momentum, config.weight_decay, config.clip_norm) == (0, 0, 0)
    assert (config.input_scaling, config.shuffle, config.seed, config.compute_dtype) == ("none", False, 0, "float32")
    assert (config.synthetic_examples, config.synthetic_features, config.synthetic_classes) == (60000, 784, 10)


def test_every_field_says_what_it_is_and_has_one_scope() -> None:
    for field in dataclasses.fields(Config):
        assert len(field.metadata["help"]) > 5
        assert field.metadata["scope"] in SCOPES
        assert field.metadata["choices"] is None or field.metadata["choices"][0] == field.default


def test_scopes() -> None:
    config, host = Config(), Config().settings("host")
    assert {"data_dir", "compilation_cache_dir"} <= host.keys()
    assert config.settings("start").keys() == {"workdir", "coordinator_address", "num_processes", "process_id"}
    assert sum(len(config.settings(scope)) for scope in SCOPES) == len(config.settings())


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"dataset": ""}, "--dataset= is empty, as if by a shell variable that is not set"),
        ({"data_dir": ""}, "--data_dir= is empty"),
        ({"batch_size": 0}, "--batch_size=0 must be at least 1"),
        ({"batch_size": -3}, "--batch_size=-3 must be at least 1"),
        ({"batch_size": 1.5}, "--batch_size=1.5: give an int"),
        ({"batch_size": True}, "--batch_size=True: give an int"),
        ({"shuffle": 1}, "--shuffle=1: give a bool"),
        ({"learning_rate": 0.0}, "--learning_rate=0.0 must be above 0"),
        ({"learning_rate": float("nan")}, "--learning_rate=nan must be a finite number"),
        ({"learning_rate": float("inf")}, "--learning_rate=inf must be a finite number"),
        ({"num_epochs": 0}, "--num_epochs=0 must be at least 1"),
        ({"hidden_sizes": (512, 0)}, "--hidden_sizes=512,0: give whole numbers"),
        ({"hidden_sizes": (True,)}, "--hidden_sizes=True: give whole numbers"),
        ({"hidden_sizes": "512"}, "--hidden_sizes=512: give whole numbers"),
        ({"optimizer": "lion"}, "--optimizer=lion: choose one of sgd, adam, adamw"),
        ({"momentum": 1.0}, "--momentum=1.0 must be below 1"),
        ({"momentum": 0.9, "optimizer": "adam"}, "--momentum goes with --optimizer=sgd"),
        ({"warmup_steps": 5}, "--warmup_steps goes with --schedule=warmup_cosine"),
        ({"schedule_steps": 5}, "--schedule_steps goes with --schedule=warmup_cosine"),
        ({"schedule": "warmup_cosine", "warmup_steps": 5, "schedule_steps": 5}, "must be below --schedule_steps"),
        ({"profile_steps": "0:10"}, "--profile_steps=0:10: give FIRST:LAST, counted from 1"),
        ({"profile_steps": "7:5"}, "--profile_steps=7:5: give FIRST:LAST"),
        ({"profile_steps": "7"}, "--profile_steps=7: give FIRST:LAST"),
        ({"profile_steps": "7:"}, "--profile_steps=7:: give FIRST:LAST"),
        ({"coordinator_address": "a:1"}, "go together: give all three"),
        ({"coordinator_address": "a", "num_processes": 2, "process_id": 1}, "--coordinator_address=a: give HOST:PORT"),
        ({"coordinator_address": "a:1", "num_processes": 2, "process_id": 2}, "--process_id=2 must be below"),
        ({"stall_seconds": 1e12}, "--stall_seconds=1000000000000.0 must be at most 1000000"),
        ({"startup_seconds": 1e10}, "--startup_seconds=10000000000.0 must be at most 1000000"),
        ({"heartbeat_seconds": 3000000000}, "--heartbeat_seconds=3000000000 must be at most 1000000"),
        ({"parallelism": "single", "num_devices": 2}, "--parallelism=single uses one device"),
        ({"seed": 2**63}, "--seed=9223372036854775808 must be at most"),
    ],
    ids=str,
)
def test_values_that_cannot_be_right(change: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        dataclasses.replace(Config(), **change).validate()
    assert words in str(caught.value)


def test_from_python_a_list_of_sizes_and_a_whole_learning_rate_are_fine() -> None:
    config, usual = Config(hidden_sizes=[8, 4], learning_rate=1), Config(hidden_sizes=(8, 4), learning_rate=1.0)
    config.validate()
    assert config.hidden_sizes == [8, 4]  # frozen: nothing is assigned to
    assert config.experiment() == usual.experiment()
    assert parse(["train", *run_flags(config).splitlines()[1:]]) == usual
    assert Config(hidden_sizes=()).validate() is None  # softmax regression


@pytest.mark.parametrize(("given", "kept"), [
    ({"num_epochs": np.int64(3), "seed": np.uint8(7)}, {"num_epochs": 3, "seed": 7}),
    ({"learning_rate": np.float64(0.25), "momentum": np.float32(0.5)}, {"learning_rate": 0.25, "momentum": 0.5}),
    ({"learning_rate": np.int32(1)}, {"learning_rate": 1}),
    ({"shuffle": np.True_, "dataset": np.str_("mnist")}, {"shuffle": True, "dataset": "mnist"}),
    ({"num_epochs": np.array(3), "batch_size": torch.tensor(4), "seed": jnp.int32(5)},
     {"num_epochs": 3, "batch_size": 4, "seed": 5}),
    ({"hidden_sizes": (np.int64(8), 4)}, {"hidden_sizes": (8, 4)}),
    ({"hidden_sizes": [np.int64(8), 4]}, {"hidden_sizes": [8, 4]}),
    ({"hidden_sizes": np.array([8, 4])}, {"hidden_sizes": (8, 4)}),
    ({"workdir": Path("runs/a"), "dataset": Path("x.npz")}, {"workdir": "runs/a", "dataset": "x.npz"}),
])  # fmt: skip
def test_numbers_and_paths_of_other_kinds_are_taken(given: dict[str, object], kept: dict[str, object]) -> None:
    config = Config(**given)
    config.validate()
    assert config == Config(**kept)
    assert [type(getattr(config, name)) for name in kept] == [type(value) for value in kept.values()]
    assert json.loads(json.dumps(config.settings())) == json.loads(json.dumps(Config(**kept).settings()))
    assert dataclasses.replace(Config(), **given) == config == pickle.loads(pickle.dumps(config))
    assert parse(["train", *run_flags(config).splitlines()[1:]]).experiment() == config.experiment()


@pytest.mark.parametrize(("given", "words"), [
    ({"num_epochs": np.float64(3)}, "--num_epochs=3.0: give an int"),
    ({"num_epochs": np.True_}, "--num_epochs=True: give an int"),
    ({"shuffle": np.int64(1)}, "--shuffle=1: give a bool"),
    ({"learning_rate": np.float32("nan")}, "--learning_rate=nan must be a finite number"),
    ({"workdir": np.int64(1)}, "--workdir=1: give a str"),
    ({"hidden_sizes": np.array([[8, 4]])}, "--hidden_sizes=[[8 4]]: give whole numbers"),
    ({"hidden_sizes": np.array([0.5])}, "--hidden_sizes=0.5: give whole numbers"),
])  # fmt: skip
def test_what_is_wrong_as_pythons_own_is_wrong_as_others(given: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as caught:
        Config(**given).validate()
    assert words in str(caught.value)


def test_a_run_of_numpys_numbers_in_a_path(npz: str, tmp_path: Path) -> None:
    config = small_config(npz, num_epochs=np.int64(1), seed=np.int64(3), hidden_sizes=np.array([4]),
                          workdir=tmp_path / "path", learning_rate=np.float32(0.5), num_devices=1)
    assert train(config).history[-1]["final"]
    assert load(tmp_path / "path").config.num_epochs == 1
    assert parse(["train", f"--flagfile={tmp_path / 'path' / 'run.flags'}"]).learning_rate == 0.5


def test_length_decides_the_result_only_under_a_schedule_of_the_runs_length() -> None:
    constant = Config()
    assert dataclasses.replace(constant, num_epochs=9).experiment() == constant.experiment()
    cosine = Config(schedule="warmup_cosine")
    assert dataclasses.replace(cosine, num_epochs=9).experiment() != cosine.experiment()
    fixed = Config(schedule="warmup_cosine", schedule_steps=50)
    assert dataclasses.replace(fixed, max_steps=20).experiment() == fixed.experiment()


@pytest.mark.parametrize(
    "change",
    [
        {"num_devices": 3}, {"parallelism": "pmap"}, {"eval_every_steps": 5}, {"checkpoint_every_steps": 7},
        {"checkpoint_every_seconds": 1.0}, {"keep_checkpoints": 9}, {"workdir": "x"}, {"eval_train": True},
    ],
    ids=str,
)  # fmt: skip
def test_what_a_resumed_run_may_change(change: dict[str, object]) -> None:
    assert dataclasses.replace(Config(), **change).experiment() == Config().experiment()


@pytest.mark.parametrize(
    "change",
    [{"seed": 1}, {"batch_size": 64}, {"learning_rate": 0.1}, {"hidden_sizes": (3,)}, {"dataset": "mnist"},
     {"reduction": "invariant"}, {"shuffle": True}, {"prng": "rbg"},
     {"input_scaling": "unit"}, {"compute_dtype": "bfloat16"}],
    ids=str,
)  # fmt: skip
def test_what_a_resumed_run_must_share(change: dict[str, object]) -> None:
    changed = dataclasses.replace(Config(), **change)
    named = differences(Config().experiment(), changed.experiment())
    assert len(named) == 1
    assert next(iter(change)) in named[0]


def test_total_steps() -> None:
    assert Config(num_epochs=3).total_steps(10) == 30
    assert Config(num_epochs=3, max_steps=7).total_steps(10) == 7


def test_digest_json_does_not_depend_on_the_order_of_keys() -> None:
    assert digest_json({"a": 1, "b": [2]}) == digest_json({"b": [2], "a": 1})
    assert digest_json({"a": 1}) != digest_json({"a": 2})


def test_paths_are_made_absolute_once(tmp_path: Path) -> None:
    config = resolve_paths(Config(dataset="x.npz", data_dir="d", workdir="w"))
    assert (config.dataset, config.data_dir, config.workdir) == tuple(str(tmp_path / n) for n in ("x.npz", "d", "w"))
    assert resolve_paths(config) == config
    assert resolve_paths(Config()).dataset == "digits"
    assert resolve_paths(Config()).workdir == ""
