"""The one description of a run: a frozen dataclass, from which the flags of the command line are generated."""

import contextlib
import dataclasses
import hashlib
import json
import math
import operator
import os
import re
from pathlib import Path
from typing import Any

from distmlp.errors import InputError

PATHS = ("dataset", "data_dir", "compilation_cache_dir", "workdir")  # of the local file system
NAMED_DATASETS = ("digits", "mnist", "fashion_mnist", "synthetic")
FROM_PYTHON = "python:"  # begins --dataset in the run.flags of a run whose data were given from Python

# What a setting belongs to decides who must share it; this is the only place that says so.
SCOPES = {
    "experiment": "decides the result: the same in all processes and whenever the run is resumed",
    "length": "the same in all processes; a resumed run may go on for longer, unless its schedule depends on it",
    "conduct": "how the run is carried out: the same in all processes, but free to change when it is resumed",
    "host": "of one host: processes may differ in it",
    "start": "of one start: not in run.flags, which repeats the run anywhere; processes may differ in it",
}


def _setting(
    default: Any,
    help: str,
    scope: str = "experiment",
    *,
    topic: str = "",
    rare: bool = False,
    minimum: float | None = None, maximum: float | None = None, above: float | None = None,
    choices: tuple[str, ...] | None = None,
) -> Any:
    """A field with its flag's help and range, and its scope (see SCOPES).

    `topic` begins a topic of the help, to which the fields below it belong; a `rare` flag is in --helpfull only. The
    first of `choices` is the default.
    """
    return dataclasses.field(default=default, metadata={
        "help": help, "scope": scope, "topic": topic, "rare": rare, "minimum": minimum, "maximum": maximum,
        "above": above, "choices": choices,
    })  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Every setting of a run. Defaults are the JAX tutorial's wherever it has a value, except for the data set."""

    dataset: str = _setting(
        "digits",
        "digits, mnist, fashion_mnist, synthetic; an .npz, .csv or .parquet file; a folder of .npy files "
        "(memory-mapped), of train.csv and test.csv, or of class folders with pictures; or one that distmlp pack made",
        topic="Data")
    shuffle: bool = _setting(False, "draw a new order of the training set for each epoch")
    input_scaling: str = _setting(
        "none",
        "none: values as they are (the tutorial's 0..255); unit: divided by the largest training value; "
        "standard: per feature, with the training set's mean and standard deviation",
        choices=("none", "unit", "standard"))
    test_fraction: float = _setting(
        0.0, "part of the examples to hold out as the test set, where there is none: drawn by --seed, each class in "
        "proportion", minimum=0, maximum=0.9)
    validation_fraction: float = _setting(
        0.0, "part of the training examples to hold out, likewise, and to choose the best checkpoint by",
        minimum=0, maximum=0.9)
    fold: str = _setting(
        "", "I/K, as 1/5: of the training examples in K parts, drawn likewise, hold out the I-th, and choose the best "
        "checkpoint by it")
    label_column: str = _setting("", "a table's column of labels; empty: the one named label, target, class or y")
    ignore_columns: str = _setting("", "columns of a table to leave out, separated by commas")
    weight_column: str = _setting(
        "", "a table's column of weights: what each training example counts in the loss; empty: all alike")
    header: str = _setting("auto", "a text table's first line: the columns' names, or, with none, a row of columns "
                           "that are named 0, 1, ...", choices=("auto", "none"))
    text_columns: str = _setting(
        "refuse", "columns of text in a table: refuse them, or one_hot, a feature of 0 and 1 for each word that occurs",
        choices=("refuse", "one_hot"))
    missing: str = _setting(
        "refuse", "absent values in a table: refuse them, or take the training set's mean of the column, or zero",
        choices=("refuse", "mean", "zero"))
    image_size: int = _setting(0, "height and width to which pictures are brought; 0: all are alike already", minimum=0)
    image_mode: str = _setting("auto", "pictures as gray or in colour; auto: as the first of them",
                               choices=("auto", "gray", "rgb"))
    class_weight: str = _setting(
        "none", "what an example counts in the loss, by its class: none, all alike; balanced, each class as much as "
        "the others", choices=("none", "balanced"))
    data_dir: str = _setting("data", "folder of torchvision's data sets, or to download them to", "host")
    verify_data: bool = _setting(True, "compare each block of a packed data set with its checksum when it is first "
                                 "read", "host", rare=True)
    num_classes: int = _setting(0, "number of classes; 0: as many as the labels say", minimum=0)
    num_workers: int = _setting(0, "spawned loader processes, for data sets that are read item by item", "host",
                                rare=True, minimum=0)
    synthetic_examples: int = _setting(60000, "training examples of --dataset=synthetic", rare=True, minimum=1)
    synthetic_features: int = _setting(784, "features of --dataset=synthetic", rare=True, minimum=1)
    synthetic_classes: int = _setting(10, "classes of --dataset=synthetic", rare=True, minimum=2)

    hidden_sizes: tuple[int, ...] = _setting((512, 512), "widths of the hidden layers, separated by commas",
                                             topic="Model")
    seed: int = _setting(0, "of the initial parameters, of the order of the examples (--shuffle), of those held out, "
                         "and of --dataset=synthetic itself", minimum=0, maximum=2**31 - 1)
    data_seed: int = _setting(-1, "of those held out, and of --dataset=synthetic, so that runs with several seeds have "
                              "the same data; -1: that of --seed", rare=True, minimum=-1, maximum=2**31 - 1)
    prng: str = _setting(
        "threefry",
        "JAX's random numbers for the initial parameters: threefry as today; threefry_original as before JAX 0.5, "
        "when the tutorial's page was made; rbg",
        rare=True, choices=("threefry", "threefry_original", "rbg"))
    compute_dtype: str = _setting("float32", "type of the matrix products' inputs; all else is float32",
                                  choices=("float32", "bfloat16"))
    matmul_precision: str = _setting(
        "default", "of float32 matrix products on accelerators; default: JAX chooses (TF32 on recent NVIDIA GPUs)",
        rare=True, choices=("default", "high", "highest"))

    num_epochs: int = _setting(8, "passes over the training set", "length", topic="Training", minimum=1)
    max_steps: int = _setting(0, "train for exactly so many steps instead of num_epochs; 0: off", "length", minimum=0)
    batch_size: int = _setting(128, "examples per optimizer step, over all devices together", minimum=1)
    optimizer: str = _setting("sgd", "optimizer", choices=("sgd", "adam", "adamw"))
    learning_rate: float = _setting(0.01, "step size, or its peak under a schedule", above=0)
    schedule: str = _setting("constant", "learning-rate schedule", choices=("constant", "warmup_cosine"))
    warmup_steps: int = _setting(0, "steps of linear warm-up, part of the schedule's length", minimum=0)
    schedule_steps: int = _setting(0, "length of the schedule in steps, after which the rate is 0; 0: the length of "
                                   "the run", rare=True, minimum=0)
    momentum: float = _setting(0.0, "momentum of sgd", minimum=0)
    weight_decay: float = _setting(
        0.0, "adds this times the parameters to the gradient (sgd, adam) or to the update (adamw)", minimum=0)
    clip_norm: float = _setting(0.0, "clip the gradient to this global norm; 0: off", rare=True, minimum=0)

    platform: str = _setting("auto", "stop unless JAX has this platform; auto takes what JAX finds; cpu leaves "
                             "accelerators alone", "conduct", topic="Devices", choices=("auto", "cpu", "gpu", "tpu"))
    num_devices: int = _setting(0, "devices to use; 0: all there are", "conduct", minimum=0)
    expect_devices: int = _setting(0, "stop unless the run has exactly so many devices; 0: off", "conduct", minimum=0)
    reduction: str = _setting(
        "fast",
        "how shard gradients are added: fast (psum; on several CPU processes in pairs), or invariant (one fixed order: "
        "the same bits on any devices)",
        choices=("fast", "invariant"))
    num_shards: int = _setting(
        0,
        "shards of a global batch; more than the devices accumulates gradients on each. "
        "0: as many as devices, or 8 with --reduction=invariant",
        minimum=0)
    state: str = _setting(
        "auto",
        "of parameters and optimizer, replicated: each device holds all of it; sharded: each its part, gathered as it "
        "is needed; auto: sharded where a device has no room for all of it",
        "conduct", choices=("auto", "replicated", "sharded"))
    parallelism: str = _setting("auto", "auto is single on one device and shard_map on more", "conduct", rare=True,
                                choices=("auto", "single", "pmap", "shard_map"))
    data_placement: str = _setting(
        "auto",
        "host: batches are sent as they are needed; device: each device holds the data set and gathers them itself; "
        "auto: device where the set is in memory and fits",
        "conduct", rare=True, choices=("auto", "host", "device"))
    steps_per_dispatch: int = _setting(0, "at most so many steps per dispatch; 0: about a quarter of a second of them",
                                       "conduct", rare=True, minimum=0)
    eval_batch_size: int = _setting(500, "examples per device and evaluation step", rare=True, minimum=1)
    check_replicas_every: int = _setting(
        1000, "compare the devices' copies of the state every so many steps (and at each save); 0: only at saves",
        "conduct", rare=True, minimum=0)

    audit_every: int = _setting(
        0, "with --reduction=invariant, compute one step in so many, and one before each save, on other devices too; "
        "stop if they differ; 0: off", "conduct", rare=True, minimum=0)

    workdir: str | None = _setting(
        "", "folder of the run; empty: runs/<dataset>-<UTC time>, new each time (from Python, None: no folder)",
        "start", topic="The run's folder")
    eval_every_epochs: int = _setting(1, "evaluate every so many epochs; 0: only at the end", "conduct", minimum=0)
    eval_every_steps: int = _setting(0, "also evaluate every so many steps; 0: off", "conduct", minimum=0)
    choose_by: str = _setting(
        "accuracy", "what the best checkpoint and --patience go by, on the validation set or else the test set; roc_auc"
        " of more than two classes is the mean of each against the rest",
        choices=("accuracy", "balanced_accuracy", "macro_f1", "loss", "roc_auc"))
    patience: int = _setting(0, "stop after so many evaluations without a better one of the validation set (see "
                             "--choose_by); 0: off", "conduct", minimum=0)
    eval_train: bool = _setting(False, "evaluate on the training set too", "conduct")
    checkpoint_every_steps: int = _setting(0, "save every so many steps; 0: off", "conduct", minimum=0)
    checkpoint_every_seconds: float = _setting(
        0.0,
        "save when so many seconds have passed since the last save; 0: off. "
        "With neither steps nor seconds: after each evaluation. The end of the run is always saved",
        "conduct", minimum=0)
    keep_checkpoints: int = _setting(2, "keep the newest so many checkpoints, and the best (see --choose_by)",
                                     "conduct", minimum=1)
    ledger: bool = _setting(False, "keep WORKDIR/ledger.jsonl, each step's examples and loss, for launch.compare",
                            "conduct")
    ledger_digests_every: int = _setting(100, "with --ledger, also digests of the parameters every so many steps",
                                         "conduct", rare=True, minimum=1)
    stall_seconds: float = _setting(600.0, "end the process, with all stacks, if nothing goes on for so long; 0: off",
                                    "host", rare=True, minimum=0, maximum=10**6)
    profile_steps: str = _setting("", "FIRST:LAST, counted from 1: writes a profile of these steps to "
                                  "WORKDIR/profile", "conduct", rare=True)
    compilation_cache_dir: str = _setting(
        "~/.cache/distmlp", "where compiled programs are kept for the next start, 1 GiB at most; empty: nowhere",
        "host", rare=True)

    coordinator_address: str = _setting(
        "", "HOST:PORT of process 0, where no launcher (torchrun, Slurm, Open MPI, ...) says it", "start",
        topic="Several processes")
    num_processes: int = _setting(0, "number of processes, with --coordinator_address", "start", minimum=0)
    process_id: int = _setting(-1, "number of this process from 0, with --coordinator_address", "start", minimum=-1)
    startup_seconds: float = _setting(120.0, "how long processes wait for one another when they start", "host",
                                      rare=True, above=0, maximum=10**6)
    heartbeat_seconds: int = _setting(10, "jax gives up a process that is silent for so long, and ends the others; "
                                      "below the time that a host may freeze or swap for, it ends runs that would "
                                      "have gone on", "host", rare=True, minimum=3, maximum=10**6)

    def __post_init__(self) -> None:
        """Takes numbers of NumPy, JAX and torch as Python's, and paths as text: what a setting is kept as."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            plain = _plain(value)
            if plain is not value:
                object.__setattr__(self, field.name, plain)

    def validate(self) -> None:
        """Raises InputError for a value that cannot be right whatever the data and the devices are."""
        for field in dataclasses.fields(self):
            self._validate_field(field, getattr(self, field.name))
        for name in PATHS:
            check_local(f"--{name}", getattr(self, name) or "")
        for name in ("dataset", "data_dir"):  # of which the current folder would be taken
            if not getattr(self, name):
                raise InputError(f"--{name}= is empty, as if by a shell variable that is not set: name one, or leave "
                                 "the flag out")
        sizes: Any = self.hidden_sizes
        if not isinstance(sizes, (tuple, list)) or not all(type(size) is int and size >= 1 for size in sizes):
            raise InputError(f"--hidden_sizes={as_text(sizes)}: give whole numbers from 1 up, as in 512,512")
        first, _, last = self.profile_steps.partition(":")
        profiled = first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)
        place = (bool(self.coordinator_address), self.num_processes > 0, self.process_id >= 0)
        constant = self.schedule == "constant"
        of_folds = re.fullmatch(r"(\d+)/(\d+)", self.fold)
        for wrong, text in (
            (self.fold and not (of_folds and 1 <= int(of_folds[1]) <= int(of_folds[2]) and int(of_folds[2]) > 1),
             f"--fold={self.fold}: give I/K, the I-th of K parts, as in 1/5"),
            (self.fold and self.validation_fraction,
             f"--fold={self.fold} makes a validation set, and so does "
             f"--validation_fraction={self.validation_fraction}: leave one of them out"),
            (self.patience and not (self.eval_every_epochs or self.eval_every_steps),
             f"--patience={self.patience} counts evaluations, and there is one only, at the end: give "
             "--eval_every_epochs=1"),
            (self.momentum >= 1, f"--momentum={self.momentum} must be below 1"),
            (self.momentum and self.optimizer != "sgd",
             f"--momentum goes with --optimizer=sgd, not with {self.optimizer}"),
            (self.warmup_steps and constant, "--warmup_steps goes with --schedule=warmup_cosine"),
            (self.schedule_steps and constant, "--schedule_steps goes with --schedule=warmup_cosine"),
            (self.schedule_steps and self.warmup_steps >= self.schedule_steps,
             "--warmup_steps must be below --schedule_steps"),
            (self.profile_steps and not profiled,
             f"--profile_steps={self.profile_steps}: give FIRST:LAST, counted from 1, as in 100:120"),
            (any(place) and not all(place),
             "--coordinator_address, --num_processes and --process_id go together: give all three"),
            (self.coordinator_address and not re.fullmatch(r".+:\d+", self.coordinator_address),
             f"--coordinator_address={self.coordinator_address}: give HOST:PORT"),
            (all(place) and self.process_id >= self.num_processes,
             f"--process_id={self.process_id} must be below --num_processes={self.num_processes}"),
            *((self.workdir is None and getattr(self, name), f"--{name} goes with a folder: give a workdir")
              for name in ("ledger", "profile_steps", "checkpoint_every_steps", "checkpoint_every_seconds")),
            (self.audit_every and self.reduction != "invariant",
             f"--audit_every={self.audit_every} goes with --reduction=invariant: with {self.reduction} devices may "
             "differ in the last bits"),
            (self.parallelism == "single" and self.num_devices > 1,
             f"--parallelism=single uses one device: give --num_devices=1, not {self.num_devices}, "
             "or --parallelism=shard_map"),
        ):
            if wrong:
                raise InputError(text)

    def _validate_field(self, field: dataclasses.Field[Any], value: Any) -> None:
        flag, meta = f"--{field.name}={as_text(value)}", field.metadata
        alike: dict[Any, tuple[Any, ...]] = {float: (float, int), str | None: (str, type(None))}
        kinds = alike.get(field.type, (field.type,))
        if isinstance(kinds[0], type) and type(value) not in kinds:
            raise InputError(f"{flag}: give {'an' if field.type is int else 'a'} {kinds[0].__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{flag} must be a finite number")
        if meta["choices"] and value not in meta["choices"]:
            raise InputError(f"{flag}: choose one of {', '.join(meta['choices'])}")
        for bound, fits, words in (("minimum", operator.ge, "at least"), ("maximum", operator.le, "at most"),
                                   ("above", operator.gt, "above")):
            if meta[bound] is not None and not fits(value, meta[bound]):
                raise InputError(f"{flag} must be {words} {meta[bound]}")

    def settings(self, *scopes: str) -> dict[str, Any]:
        """The settings of these scopes, or all, as JSON values."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)
                  if not scopes or field.metadata["scope"] in scopes}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}

    def experiment(self) -> dict[str, Any]:
        """The settings that decide the result, as JSON values: what a resumed run must share."""
        length_decides = self.schedule != "constant" and not self.schedule_steps
        return self.settings("experiment", *(["length"] if length_decides else []))

    @property
    def drawing_seed(self) -> int:
        """The seed by which examples are held out, and by which a synthetic data set is made."""
        return self.seed if self.data_seed < 0 else self.data_seed

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.max_steps or self.num_epochs * steps_per_epoch

    def layer_sizes(self, features: int, classes: int) -> tuple[int, ...]:
        """The widths of the layers, input and output included."""
        return features, *self.hidden_sizes, classes


def refuse_of_members(config: Config) -> None:
    """Raises InputError for settings that the members of a sweep cannot have."""
    for wrong, text in (
        (config.state == "sharded", "--state=sharded is for one large model over all devices, and a sweep trains "
                                    "several on each: leave it out"),
        (config.ledger, "--ledger keeps the steps of a single run: leave it out of a sweep"),
        (config.profile_steps, "--profile_steps looks at a single run: leave it out of a sweep"),
        (config.audit_every, "--audit_every checks a single run: leave it out of a sweep"),
        *((getattr(config, name), f"--{name} saves a single run, and a sweep saves each member once it is done: leave "
                                  "it out") for name in ("checkpoint_every_steps", "checkpoint_every_seconds")),
    ):  # fmt: skip
        if wrong:
            raise InputError(text)


def _plain(value: Any) -> Any:
    """A number, text, or tuple or list of them as Python's own; what is one already, and all else, as it is."""
    if type(value) in (bool, int, float, str):
        return value
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "shape", None) == () and hasattr(value, "item"):
        return value.item()
    if getattr(value, "ndim", 0) == 1 and hasattr(value, "tolist"):
        return tuple(value.tolist())
    if isinstance(value, (tuple, list)):
        plain = type(value)(map(_plain, value)) if type(value) in (tuple, list) else value
        return value if all(a is b for a, b in zip(plain, value, strict=True)) else plain
    return value


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """One phrase for each name whose values differ."""
    names = sorted(saved.keys() | current.keys())
    return [
        f"{name} was {as_text(saved.get(name))}, is {as_text(current.get(name))}"
        for name in names
        if saved.get(name) != current.get(name)
    ]


def check_local(name: str, path: str) -> None:
    """Raises InputError for a URL, as gs://bucket/run: it would become a folder named gs: in the current one."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", path):
        raise InputError(f"{name}={path}: give a path, not a URL; buckets can be mounted as folders to read "
                         "from (gcsfuse, mount-s3, blobfuse2)")


def check_named(name: str, path: "str | Path", remedy: str = "name a folder") -> None:
    """Raises InputError for an empty path: it would stand for the current folder, or for a new one."""
    if not str(path):
        raise InputError(f"{name}='' is empty, as if by a variable that is not set: {remedy}")


def is_path(dataset: str) -> bool:
    """Whether this value of --dataset is neither a name nor of data that were given from Python."""
    return dataset not in NAMED_DATASETS and not dataset.startswith(FROM_PYTHON)


def resolve_paths(config: Config) -> Config:
    """Paths made absolute once, so that neither Orbax nor run.flags depends on the current folder."""
    given = {name: getattr(config, name) for name in PATHS if getattr(config, name)}
    if not is_path(config.dataset):
        given.pop("dataset", None)
    changes: dict[str, Any] = {name: _absolute(name, path) for name, path in given.items()}
    return dataclasses.replace(config, **changes)


def _absolute(name: str, path: str) -> str:
    expanded = os.path.expanduser(path)
    if not expanded.startswith("~/"):
        return str(Path(expanded).absolute())
    if name == "compilation_cache_dir":  # a run goes on without (parallel/backend.py)
        return path
    raise InputError(f"--{name}={path}: this user has no home folder: set HOME, or give a path without ~")


def run_flags(config: Config) -> str:
    """The text of a flagfile that repeats the run, without its workdir."""
    kept = [field.name for field in dataclasses.fields(Config) if field.metadata["scope"] != "start"]
    lines = [f"--{name}={_quoted(flag_value(getattr(config, name)))}" for name in kept]
    return "\n".join(["# Repeats this run: python -m launch.train --flagfile=run.flags", *lines, ""])


def _quoted(value: str) -> str:
    """A value as a line of a flagfile has it: as JSON has a text, where it would not come back otherwise."""
    plain = value == value.rstrip() and not re.search("[\r\n\ufeff]", value) and not value.startswith('"')
    return value if plain else json.dumps(value)


def unquoted(line: str) -> str:
    """A line of a flagfile, --name=value, with its value as it was before `_quoted`."""
    flag, equals, value = line.partition("=")
    if line.startswith("-") and value[:1] == value[-1:] == '"':
        with contextlib.suppress(ValueError):
            return flag + equals + json.loads(value)
    return line


def flag_value(value: Any) -> str:
    """A setting as a flag has it."""
    return str(value).lower() if isinstance(value, bool) else as_text(value)


def as_text(value: Any) -> str:
    """A setting as messages show it."""
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
