"""Eight emulated CPU devices, asked for before anything starts a JAX backend; fixtures that several files use."""

import atexit
import contextlib
import functools
import gc
import hashlib
import importlib
import inspect
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from drills.runs import heed, with_devices

DEVICES = 8

XLA_FLAGS = os.environ["XLA_FLAGS"] = with_devices(os.environ.get("XLA_FLAGS", ""), DEVICES)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["PJRT_NPROC"] = "16"  # with fewer threads than twice the devices, collectives starve one another
os.environ.pop("JAX_NUM_CPU_DEVICES", None)  # it would override XLA_FLAGS
if "DISTMLP_TESTS_HOME" not in os.environ:  # of all processes that the tests start: what one compiles, others take over
    os.environ["DISTMLP_TESTS_HOME"] = tempfile.mkdtemp(prefix="distmlp-tests-")
    atexit.register(shutil.rmtree, os.environ["DISTMLP_TESTS_HOME"], ignore_errors=True)
os.environ["HOME"] = os.environ["DISTMLP_TESTS_HOME"]

gc.set_threshold(100_000, 50, 50)  # as launch/command.py

import numpy as np  # noqa: E402
import pytest  # noqa: E402

from distmlp.errors import STOP_SIGNALS  # noqa: E402

heed(STOP_SIGNALS)

REPOSITORY = Path(__file__).resolve().parent.parent


# The longest files, longest first: whichever process has one of these last, the other would wait for it.
LONGEST = (
    "cluster/test_processes.py", "test_docs.py", "verify/test_verify.py", "run/test_faults_invariance.py",
    "test_accuracy.py", "run/test_faults_crash.py", "parallel/test_sharded.py", "parallel/test_parity.py",
    "cluster/test_faults.py", "test_estimator.py", "test_train_process.py", "run/test_faults_surroundings.py",
    "cluster/test_slow_process.py", "run/test_signals.py", "many/test_sweep.py", "run/test_recovery.py",
    "test_examples.py", "parallel/test_audit.py", "parallel/test_backend.py", "run/test_rows.py",
    "test_validation.py", "test_mutants.py", "test_weights.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {REPOSITORY / "tests" / name: place for place, name in enumerate(LONGEST)}
    for item in items:
        places.setdefault(item.path, len(places))
    # In a file, those that are compiled alike come together: see `pytest_runtest_setup`.
    items.sort(key=lambda item: (places[item.path], not _is_light(item)))


def _is_light(item: pytest.Item) -> bool:
    return item.get_closest_marker("full_xla") is None


def pytest_collection_finish() -> None:
    """What the imports have made stays: no collection of garbage, of which the product asks for some, goes over it."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """With -n, the tests of a file share a process, which has compiled their programs; files come in their order."""
    from xdist.scheduler import LoadFileScheduling

    config.option.loadscopereorder = False
    return LoadFileScheduling(config, log)


@pytest.fixture(scope="session", autouse=True)
def _eight_devices() -> None:
    import jax

    jax.config.update("jax_numpy_rank_promotion", "raise")
    jax.config.update("jax_numpy_dtype_promotion", "strict")
    # What one test has compiled, the next takes from here.
    jax.config.update("jax_compilation_cache_dir", tempfile.mkdtemp(dir=Path.home()))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.0)
    count = jax.device_count()
    assert count == DEVICES, f"the tests need {DEVICES} emulated CPU devices, not {count}: was JAX started too early?"


# Options of XLA for CPUs. A program that is not split for threads takes a fifth less of the processors' time to be
# compiled, and is the same.
FULL: dict[str, Any] = {"xla_cpu_parallel_codegen_split_count": 1}
# With these, a program takes a quarter of the time to be compiled, and longer to run.
LIGHT: dict[str, Any] = FULL | {
    "xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True,
    "xla_cpu_use_fusion_emitters": False,
}  # fmt: skip


@functools.cache
def _compiling(light: bool) -> tuple[Callable[..., Any], str]:
    """JAX's own choice of XLA's options, with `LIGHT` or `FULL`; and those as XLA_FLAGS.

    Without those that this XLA does not know: 0.12's has fewer.
    """
    import jax
    from jax._src import compiler

    own = inspect.unwrap(compiler.get_compile_options)
    known = []
    for name, value in (LIGHT if light else FULL).items():
        with contextlib.suppress(jax.errors.JaxRuntimeError):
            jax.jit(lambda: 0).lower().compile({name: value})
            known.append((name, value))

    @functools.wraps(own)
    def options(*args: Any, **details: Any) -> Any:
        chosen = own(*args, **details)
        if getattr(details.get("backend"), "platform", "") == "cpu":
            chosen.env_option_overrides = [*known, *chosen.env_option_overrides]
        return chosen

    return options, " ".join(f"--{name}={str(value).lower()}" for name, value in known)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """Only tests marked `full_xla` have their programs compiled as a user's are."""
    import jax
    from jax._src import compiler

    from distmlp.kept import forget

    options, flags = _compiling(_is_light(item))
    if options is not compiler.get_compile_options:
        os.environ["XLA_FLAGS"] = f"{XLA_FLAGS} {flags}"  # of processes that the test starts
        compiler.get_compile_options = options
        jax.clear_caches()
        forget()


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A test that leaves --workdir out writes runs/ to its own folder, not to the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="session")
def mnist_dir() -> str:
    """The folder of torchvision's MNIST files."""
    folder = os.environ.get("DISTMLP_DATA_DIR")
    if not folder:
        pytest.skip("needs MNIST: set DISTMLP_DATA_DIR to the --data_dir that holds it")
    return str(Path(folder).absolute())


def pytest_terminal_summary(terminalreporter: Any) -> None:
    skipped = sum("DISTMLP_DATA_DIR" in str(report.longrepr) for report in terminalreporter.getreports("skipped"))
    if skipped:
        terminalreporter.section("MNIST was not tested", yellow=True)
        terminalreporter.line(f"{skipped} tests were skipped: set DISTMLP_DATA_DIR to the --data_dir that holds MNIST, "
                              "or to an empty folder to download it to")


RunTrain = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture
def run_verb(tmp_path: Path) -> RunTrain:
    """run_verb(verb, *arguments, devices=1, env={}, timeout=300): `python -m launch.<verb>` as a process of its own.

    It starts as a user's would, in the test's folder, with nothing of this process's JAX settings but the platform.
    """

    def run(
        verb: str, *arguments: str, devices: int = 1, env: dict[str, str] | None = None, timeout: float = 300
    ) -> "subprocess.CompletedProcess[str]":
        environment = process_env(devices) | (env or {})
        command = [sys.executable, "-m", f"launch.{verb}", *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=timeout, check=False
        )

    return run


@pytest.fixture
def call_verb(capsys: pytest.CaptureFixture[str]) -> RunTrain:
    """call_verb(verb, *arguments): as `run_verb`, of a verb on a run, called in this process."""

    def call(verb: str, *arguments: str) -> "subprocess.CompletedProcess[str]":
        from launch import command

        capsys.readouterr()
        said = ""
        try:
            code = importlib.import_module(f"launch.{verb}").main(list(arguments))
        except Exception as error:  # `ending` tells them apart
            code, said = command.ending(error)
        out, err = capsys.readouterr()
        return subprocess.CompletedProcess([verb, *arguments], code, out, err + f"{said}\n" * bool(said))

    return call


@pytest.fixture
def run_train(run_verb: RunTrain) -> RunTrain:
    """run_train(*flags, ...): `run_verb` of train."""
    return functools.partial(run_verb, "train")


def process_env(devices: int = 1) -> dict[str, str]:
    """The environment of a training process with so many emulated devices."""
    env = {name: value for name, value in os.environ.items() if name != "PJRT_NPROC"}
    env["XLA_FLAGS"] = with_devices(env["XLA_FLAGS"], devices)
    env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(REPOSITORY), env.get("PYTHONPATH")]))
    return env


def make_arrays(train: int = 96, test: int = 40, features: int = 12, classes: int = 4) -> dict[str, np.ndarray]:
    """A small learnable set: the label is the largest of some random projections."""
    rng = np.random.default_rng(0)
    projections = rng.standard_normal((features, classes))
    arrays = {}
    for name, size in (("train", train), ("test", test)):
        images = rng.integers(0, 256, (size, features), dtype=np.uint8)
        labels = ((images - 127.5) @ projections).argmax(axis=1).astype(np.uint8)
        labels[:classes] = np.arange(classes)  # every class occurs
        arrays |= {f"x_{name}": images, f"y_{name}": labels}
    return arrays


def small_config(dataset: str, **changes: Any) -> Any:
    """A Config of a run that takes a second."""
    from distmlp import Config

    defaults: dict[str, Any] = {
        "dataset": dataset, "hidden_sizes": (8,), "batch_size": 20, "num_epochs": 2, "eval_batch_size": 16,
        "learning_rate": 0.001, "workdir": "run",
    }  # fmt: skip
    return Config(**(defaults | changes))


@pytest.fixture
def npz(tmp_path: Path) -> str:
    """Path of an .npz data set: 96 training and 40 test examples, 12 features, 4 classes."""
    path = tmp_path / "small.npz"
    np.savez(path, **make_arrays())
    return str(path)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Any, Path]:
    """The Config of a finished run, on 8 devices, and its workdir: copy it, do not train in it."""
    from distmlp import train

    folder = tmp_path_factory.mktemp("finished")
    np.savez(folder / "small.npz", **make_arrays())
    config = small_config(str(folder / "small.npz"), workdir=str(folder / "run"))
    train(config)
    return config, folder / "run"


@pytest.fixture(scope="session")
def digits_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run on scikit-learn's digits, trained on 8 devices: read it, do not change it."""
    from distmlp import Config, train

    workdir = tmp_path_factory.mktemp("digits") / "run"
    train(Config(
        dataset="digits", hidden_sizes=(32,), batch_size=64, num_epochs=3, input_scaling="standard", optimizer="adam",
        learning_rate=0.01, workdir=str(workdir),
    ))
    return workdir


WINES = ("Barolo <b>", "Grignolino & Co", "Barbera d'Asti")


@pytest.fixture(scope="session")
def wine_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a finished run on scikit-learn's wines, a CSV with text labels beside it: read it only."""
    from sklearn.datasets import load_wine

    from distmlp import Config, train

    folder, wine = tmp_path_factory.mktemp("wines"), load_wine()
    rows = [",".join([*(name.split("/")[0] for name in wine.feature_names), "label"])]
    order = np.random.default_rng(0).permutation(len(wine.target))
    rows += [",".join([*map(str, wine.data[i].tolist()), WINES[wine.target[i]]]) for i in order]
    (folder / "wine.csv").write_text("\n".join(rows) + "\n")
    train(Config(
        dataset=str(folder / "wine.csv"), test_fraction=0.2, hidden_sizes=(16,), batch_size=32, num_epochs=10,
        shuffle=True, input_scaling="standard", optimizer="adam", learning_rate=0.01, ledger=True, num_devices=1,
        workdir=str(folder / "<i>wines"),
    ))
    return folder / "<i>wines"


def asked_rows(path: Path, model: Any, header: str = "") -> list[tuple[str, np.ndarray]]:
    """What predict reads at a path: the name of each file, and the features in it; `header` is --header."""
    from distmlp.errors import remark
    from distmlp.results import bulk

    found = []
    for opened in bulk.sources(model, header).at(path, apart=True):
        rows = opened()
        blocks = bulk.checked(model, bulk.blocks(rows))
        found.append((rows.name, np.concatenate([block.features for block in blocks])))
        for text in rows.remarks():
            remark(text)
    return found


@pytest.fixture
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Charts of reports stay empty: drawing takes most of a report's time."""
    monkeypatch.setattr("distmlp.results.charts._svg", lambda figure: "")


def snapshot(folder: Path) -> dict[str, tuple[int, str]]:
    """Modification time and digest of everything in a folder."""
    return {
        str(path.relative_to(folder)):
            (path.stat().st_mtime_ns, hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in sorted(folder.rglob("*"))
    }  # fmt: skip


def write_lines(path: Path, values: Iterable[dict[str, Any]]) -> None:
    """Makes these the lines of one of a run's files, with their checksums."""
    from distmlp.run.lines import sealed

    plain = ({name: part for name, part in value.items() if name != "crc32"} for value in values)
    path.write_text("".join(f"{sealed(value)}\n" for value in plain))


def flip_bit(folder: Path) -> None:
    """Changes one bit in the middle of the largest of a checkpoint's files that lead to all its arrays.

    Of the others, in ocdbt.process_0, Orbax leaves some there to which nothing leads any more.
    """
    path = max((folder / "state" / "d").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.fixture
def compilations() -> Iterator[list[str]]:
    """Names of the functions that XLA compiles while the test runs."""
    import jax.monitoring
    from jax._src import monitoring  # the public module cannot take a listener off again

    names: list[str] = []

    def listen(event: str, duration: float, **details: Any) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            names.append(str(details.get("fun_name", "")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    yield names
    monitoring.unregister_event_duration_listener(listen)


class Page(HTMLParser):
    """The tags, addresses and text of a page; raises for elements that do not close as they were opened."""

    VOID = ("meta", "link", "img", "br")

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
