"""The one description of a run: a frozen dataclass. The command-line flags are generated from it (flags.py)."""

import dataclasses
import hashlib
import json
import math
import re
from pathlib import Path
from typing import Any

SCHEDULES = ("constant", "warmup_cosine")
NAMED_DATASETS = ("digits", "mnist", "fashion_mnist", "synthetic")
FROM_PYTHON = "python:"  # begins --dataset in the run.flags of a run whose data were given from Python


class InputError(Exception):
    """Something the user gave is wrong: one line that names the flag or the file, and the remedy. Exit code 2."""


def _field(
    default: Any,
    help: str,
    *,
    minimum: float | None = None,
    maximum: float | None = None,
    above: float | None = None,
    choices: tuple[str, ...] | None = None,
    on_resume: str = "fixed",
) -> Any:
    """A field with its flag's help, its range, and whether a resumed run may change it: fixed, free, or length."""
    metadata = {"help": help, "minimum": minimum, "maximum": maximum, "above": above, "choices": choices,
                "on_resume": on_resume}
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True)
class Config:
    """Every setting of a run. Defaults are the JAX tutorial's wherever it has a value, except for the data set."""

    dataset: str = _field(
        "digits", "digits, mnist, fashion_mnist, synthetic, an .npz file, or a folder of .npy files (memory-mapped)"
    )
    data_dir: str = _field("data", "where torchvision's data sets are, or are downloaded to", on_resume="free")
    num_classes: int = _field(0, "number of classes; 0: one more than the largest label", minimum=0)
    input_scaling: str = _field(
        "none",
        "none: values as they are (the tutorial's 0..255); unit: divided by the largest training value; "
        "standard: per feature, with the training set's mean and standard deviation",
        choices=("none", "unit", "standard"),
    )
    shuffle: bool = _field(False, "draw a new order of the training set for each epoch")
    synthetic_examples: int = _field(60000, "training examples of --dataset=synthetic", minimum=1)
    synthetic_features: int = _field(784, "features of --dataset=synthetic", minimum=1)
    synthetic_classes: int = _field(10, "classes of --dataset=synthetic", minimum=2)

    hidden_sizes: tuple[int, ...] = _field((512, 512), "widths of the hidden layers, separated by commas")
    compute_dtype: str = _field(
        "float32", "type of the matrix products' inputs; all else is float32", choices=("float32", "bfloat16")
    )
    matmul_precision: str = _field(
        "default",
        "precision of float32 matrix products on accelerators: default lets JAX choose (TF32 on recent NVIDIA GPUs)",
        choices=("default", "high", "highest"),
    )

    batch_size: int = _field(128, "examples per optimizer step, over all devices together", minimum=1)
    num_shards: int = _field(
        0,
        "shards of a global batch; more than the devices accumulates gradients on each. "
        "0: as many as devices, or 8 with --reduction=invariant",
        minimum=0,
    )
    num_epochs: int = _field(8, "passes over the training set", minimum=1, on_resume="length")
    max_steps: int = _field(0, "train for exactly so many steps instead of num_epochs; 0: off", minimum=0,
                            on_resume="length")
    seed: int = _field(0, "of the initial parameters, the order of the examples, and synthetic data", minimum=0,
                       maximum=2**31 - 1)

    optimizer: str = _field("sgd", "optimizer", choices=("sgd", "adam", "adamw"))
    learning_rate: float = _field(0.01, "step size, or its peak under a schedule", above=0)
    momentum: float = _field(0.0, "momentum of sgd", minimum=0)
    weight_decay: float = _field(
        0.0, "adds this times the parameters to the gradient (sgd, adam) or to the update (adamw)", minimum=0
    )
    schedule: str = _field("constant", "learning-rate schedule", choices=SCHEDULES)
    schedule_steps: int = _field(0, "length of the schedule in steps; 0: the length of the run", minimum=0)
    warmup_steps: int = _field(0, "steps of linear warm-up, part of the schedule's length", minimum=0)
    clip_norm: float = _field(0.0, "clip the gradient to this global norm; 0: off", minimum=0)

    parallelism: str = _field(
        "auto", "auto is single on one device and shard_map on more",
        choices=("auto", "single", "pmap", "shard_map"), on_resume="free",
    )
    reduction: str = _field(
        "fast",
        "how shard gradients are added: fast (psum; on several CPU processes in pairs), or invariant (one fixed order: "
        "the same bits on any devices)",
        choices=("fast", "invariant"),
    )
    num_devices: int = _field(0, "devices to use; 0: all there are", minimum=0, on_resume="free")
    expect_devices: int = _field(0, "stop unless the run has exactly so many devices; 0: off", minimum=0,
                                 on_resume="free")

    workdir: str = _field("", "folder of the run; empty: runs/<dataset>-<UTC time>, new each time", on_resume="free")
    checkpoint_every_steps: int = _field(0, "save every so many steps", minimum=0, on_resume="free")
    checkpoint_every_seconds: float = _field(
        0.0,
        "save when so many seconds have passed since the last save. "
        "With neither steps nor seconds: after each evaluation. The end of the run is always saved",
        minimum=0, on_resume="free",
    )
    keep_checkpoints: int = _field(2, "keep the newest so many checkpoints, and the best by test accuracy", minimum=1,
                                   on_resume="free")
    eval_every_epochs: int = _field(1, "evaluate every so many epochs; 0: only at the end", minimum=0,
                                    on_resume="free")
    eval_every_steps: int = _field(0, "also evaluate every so many steps; 0: off", minimum=0, on_resume="free")
    eval_train: bool = _field(False, "evaluate on the training set too", on_resume="free")
    eval_batch_size: int = _field(500, "examples per device and evaluation step", minimum=1)
    num_workers: int = _field(0, "spawned loader processes, for data sets that are read item by item", minimum=0,
                              on_resume="free")
    data_placement: str = _field(
        "auto",
        "host: batches are sent as they are needed; device: each device holds the data set and gathers them itself; "
        "auto: device where the set is in memory and fits",
        choices=("auto", "host", "device"), on_resume="free",
    )
    steps_per_dispatch: int = _field(
        0, "at most so many steps per dispatch; 0: about a quarter of a second of them",
        minimum=0, on_resume="free",
    )
    compilation_cache_dir: str = _field(
        "~/.cache/distmlp", "where compiled programs are kept for the next start; empty: nowhere", on_resume="free"
    )
    profile_steps: str = _field("", "A:B writes a profile of steps A to B to WORKDIR/profile", on_resume="free")
    check_replicas_every: int = _field(
        1000, "compare the devices' copies of the state every so many steps (and at each save); 0: only at saves",
        minimum=0, on_resume="free",
    )
    stall_seconds: float = _field(600.0, "end the process, with all stacks, if no step finishes for so long; 0: off",
                                  minimum=0, on_resume="free")

    coordinator_address: str = _field(
        "", "HOST:PORT of process 0, where no launcher (torchrun, Slurm, Open MPI, ...) says it", on_resume="free"
    )
    num_processes: int = _field(0, "number of processes, with --coordinator_address", minimum=0, on_resume="free")
    process_id: int = _field(-1, "number of this process from 0, with --coordinator_address", minimum=-1,
                             on_resume="free")
    startup_seconds: float = _field(120.0, "how long processes wait for one another when they start", above=0,
                                    on_resume="free")
    heartbeat_seconds: int = _field(10, "a process that is silent for so long is given up by the others; it costs a "
                                    "few bytes a second, but below the time that a host may freeze or swap for, it "
                                    "ends runs that would have gone on", minimum=3, on_resume="free")

    def __post_init__(self) -> None:
        if isinstance(self.hidden_sizes, list):
            object.__setattr__(self, "hidden_sizes", tuple(self.hidden_sizes))

    def validate(self) -> None:
        """Raises InputError for a value that cannot be right whatever the data and the devices are."""
        for field in dataclasses.fields(self):
            self._validate_field(field, getattr(self, field.name))
        if not all(type(size) is int and size >= 1 for size in self.hidden_sizes):
            raise InputError(f"--hidden_sizes={_text(self.hidden_sizes)}: give whole numbers from 1 up, as in 512,512")
        if self.momentum >= 1:
            raise InputError(f"--momentum={self.momentum} must be below 1")
        if self.momentum and self.optimizer != "sgd":
            raise InputError(f"--momentum goes with --optimizer=sgd, not with {self.optimizer}")
        if self.warmup_steps and self.schedule == "constant":
            raise InputError("--warmup_steps goes with --schedule=warmup_cosine")
        if self.schedule_steps and self.schedule == "constant":
            raise InputError("--schedule_steps goes with --schedule=warmup_cosine")
        if self.schedule_steps and self.warmup_steps >= self.schedule_steps:
            raise InputError("--warmup_steps must be below --schedule_steps")
        if not re.fullmatch(r"(\d+:\d+)?", self.profile_steps):
            raise InputError(f"--profile_steps={self.profile_steps}: give FIRST:LAST, as in 100:120")
        given = [bool(self.coordinator_address), self.num_processes > 0, self.process_id >= 0]
        if any(given) and not all(given):
            raise InputError("--coordinator_address, --num_processes and --process_id go together: give all three")
        if self.coordinator_address and not re.fullmatch(r".+:\d+", self.coordinator_address):
            raise InputError(f"--coordinator_address={self.coordinator_address}: give HOST:PORT")
        if self.process_id >= max(self.num_processes, 0) and all(given):
            raise InputError(f"--process_id={self.process_id} must be below --num_processes={self.num_processes}")
        if self.parallelism == "single" and self.num_devices > 1:
            raise InputError(f"--parallelism=single uses one device: give --num_devices=1, not {self.num_devices}, "
                             "or --parallelism=shard_map")

    def _validate_field(self, field: dataclasses.Field[Any], value: Any) -> None:
        flag, meta = f"--{field.name}={_text(value)}", field.metadata
        if field.type is float and isinstance(value, int) and not isinstance(value, bool):
            object.__setattr__(self, field.name, float(value))
        elif isinstance(field.type, type) and type(value) is not field.type:
            raise InputError(f"{flag}: give {'an' if field.type is int else 'a'} {field.type.__name__}")
        if isinstance(value, float) and not math.isfinite(value):
            raise InputError(f"{flag} must be a finite number")
        if meta["choices"] and value not in meta["choices"]:
            raise InputError(f"{flag}: choose one of {', '.join(meta['choices'])}")
        if meta["minimum"] is not None and value < meta["minimum"]:
            raise InputError(f"{flag} must be at least {meta['minimum']}")
        if meta["maximum"] is not None and value > meta["maximum"]:
            raise InputError(f"{flag} must be at most {meta['maximum']}")
        if meta["above"] is not None and value <= meta["above"]:
            raise InputError(f"{flag} must be above {meta['above']}")

    def settings(self) -> dict[str, Any]:
        """All settings as JSON values."""
        return {name: list(v) if isinstance(v, tuple) else v for name, v in dataclasses.asdict(self).items()}

    def experiment(self) -> dict[str, Any]:
        """The settings that decide the result, as JSON values: what a resumed run must share."""
        values = self.settings()
        length_decides = self.schedule != "constant" and not self.schedule_steps
        kept = ("fixed", "length") if length_decides else ("fixed",)
        return {f.name: values[f.name] for f in dataclasses.fields(self) if f.metadata["on_resume"] in kept}

    def total_steps(self, steps_per_epoch: int) -> int:
        return self.max_steps or self.num_epochs * steps_per_epoch


def digest_json(value: Any) -> str:
    """SHA-256 of a JSON value in its canonical form."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def differences(saved: dict[str, Any], current: dict[str, Any]) -> list[str]:
    """One phrase for each name whose values differ."""
    names = sorted(saved.keys() | current.keys())
    return [
        f"{name} was {_text(saved.get(name))}, is {_text(current.get(name))}"
        for name in names
        if saved.get(name) != current.get(name)
    ]


def resolve_paths(config: Config) -> Config:
    """Paths made absolute once, so that neither Orbax nor run.flags depends on the current folder."""
    changes: dict[str, Any] = {"data_dir": str(Path(config.data_dir).expanduser().absolute())}
    if config.dataset not in NAMED_DATASETS and not config.dataset.startswith(FROM_PYTHON):
        changes["dataset"] = str(Path(config.dataset).expanduser().absolute())
    if config.compilation_cache_dir:
        changes["compilation_cache_dir"] = str(Path(config.compilation_cache_dir).expanduser().absolute())
    if config.workdir:
        changes["workdir"] = str(Path(config.workdir).expanduser().absolute())
    return dataclasses.replace(config, **changes)


def _text(value: Any) -> str:
    return ",".join(map(str, value)) if isinstance(value, (list, tuple)) else str(value)
