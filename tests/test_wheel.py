"""What is installed is whole: a wheel, used outside the clone; and the private parts of JAX that it leans on."""

import ast
import importlib
import re
import shutil
import subprocess
import sys
import sysconfig
import tomllib
import venv
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import REPOSITORY, process_env

from launch import flags


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy: a build leaves things beside what it builds."""
    source = tmp_path_factory.mktemp("source")
    for name in ("distmlp", "launch", "configs"):
        shutil.copytree(REPOSITORY / name, source / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(REPOSITORY / name, source)
    command = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", "dist", "."]
    subprocess.run(command, cwd=source, check=True, capture_output=True, timeout=300)
    (built,) = (source / "dist").glob("*.whl")
    return built


def test_a_wheel_holds_all_files_of_the_package(wheel: Path) -> None:
    held = {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name}
    ours = {
        path.relative_to(REPOSITORY).as_posix()
        for folder in ("distmlp", "distmlp/configs", "launch")
        for path in (REPOSITORY / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    assert held == ours
    assert "distmlp/configs/digits.flags" in held


def test_what_is_shown_of_the_wheel_is_well_formed(wheel: Path) -> None:
    done = subprocess.run([sys.executable, "-m", "twine", "check", "--strict", str(wheel)], capture_output=True,
                          text=True, check=False, timeout=120)  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_quick_start_by_name_with_an_installed_wheel(wheel: Path, tmp_path: Path) -> None:
    """By the command that pip installs, in an environment that has nothing else of its own and sees no clone."""
    fresh, elsewhere = tmp_path / "fresh", tmp_path / "elsewhere"
    venv.create(fresh, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(fresh / "bin" / "python"), "install", "-q", "--no-deps",
           "--no-index", str(wheel)]  # fmt: skip
    subprocess.run(pip, check=True, capture_output=True, timeout=300)
    (packages,) = fresh.glob("lib/python*/site-packages")
    (packages / "others.pth").write_text(sysconfig.get_path("purelib"))  # what else it needs is not downloaded again
    elsewhere.mkdir()
    env = {name: value for name, value in process_env().items() if name != "PYTHONPATH"} | {"HOME": str(tmp_path)}

    def run(program: str, *arguments: str) -> str:
        done = subprocess.run([fresh / "bin" / program, *arguments], cwd=elsewhere, env=env, capture_output=True,
                              text=True, check=False, timeout=300)  # fmt: skip
        assert done.returncode == 0, done.stderr
        return done.stdout

    trained = run("distmlp", "train", "digits.flags", "--num_epochs=1", "--workdir=run")
    assert "64-512-512-10" in trained
    assert run("python", "-c", "import distmlp; print(distmlp.__file__)").startswith(str(packages))
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert run("distmlp", "--version") == f"distmlp {version}\n"
    assert len(run("distmlp", "configs", "--copy=mine").splitlines()) == len(list(flags.CONFIGS.iterdir()))
    assert {path.name for path in (elsewhere / "mine").iterdir()} == {path.name for path in flags.CONFIGS.iterdir()}


@pytest.mark.parametrize("argument", ["digits.flags", "configs/digits.flags"])
def test_a_file_of_the_users_goes_before_a_config_of_that_name(argument: str, tmp_path: Path) -> None:
    for given in ([argument], [f"--flagfile={argument}"]):
        assert flags.parse(["train", *given]).batch_size == 64
    (tmp_path / argument).parent.mkdir(exist_ok=True)
    (tmp_path / argument).write_text("--batch_size=7\n")
    for given in ([argument], [f"--flagfile={argument}"]):
        assert flags.parse(["train", *given]).batch_size == 7


def test_configs_does_not_overwrite(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from distmlp import InputError
    from launch.configs import main

    assert main([]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert "digits.flags              Quick start: scikit-learn's handwritten digits, ..." in shown
    assert all(len(line) <= 80 for line in shown)
    (tmp_path / "1gpu.flags").write_text("mine")
    for names in (["1gpu.flags"], ["digits.flags", "1gpu.flags"]):
        with pytest.raises(InputError, match="exists already"):
            main([*names, f"--copy={tmp_path}"])
        assert [path.read_text() for path in tmp_path.iterdir()] == ["mine"]
    with pytest.raises(InputError, match=r"2gpu.flags is no config: choose from 1gpu.flags, 8gpu.flags"):
        main(["2gpu.flags"])


def private_names() -> Iterator[Any]:
    """(module, name) of each private name of JAX and Orbax that is used, and the file and line it is used in."""
    for folder in ("distmlp", "launch", "tests", "benchmarks"):
        for path in sorted((REPOSITORY / folder).rglob("*.py")):
            text = path.read_text()
            if not re.search(r"^\s*from (jax|jaxlib|orbax)\S*\._", text, re.MULTILINE):
                continue  # to parse all takes a second
            tree, modules = ast.parse(text), {}
            where = path.relative_to(REPOSITORY)
            for node in ast.walk(tree):
                if isinstance(node, ast.ImportFrom) and is_private(node.module or ""):
                    for alias in node.names:
                        modules[alias.asname or alias.name] = (node.module, alias.name)
                        yield pytest.param(node.module, alias.name, id=f"{where}:{node.lineno}:{alias.name}")
            for node in ast.walk(tree):
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in modules:
                    module, name = modules[node.value.id]
                    yield pytest.param(module, f"{name}.{node.attr}", id=f"{where}:{node.lineno}:{name}.{node.attr}")


def is_private(module: str) -> bool:
    root, *parts = module.split(".")
    return root in ("jax", "jaxlib", "orbax") and any(part.startswith("_") for part in parts)


@pytest.mark.parametrize(("module", "name"), list(private_names()))
def test_private_names_are_there(module: str, name: str) -> None:
    """A newer JAX or Orbax may have them elsewhere: the test's name says where each is used."""
    first, *rest = name.split(".")
    try:
        found = getattr(importlib.import_module(module), first)
    except AttributeError:
        found = importlib.import_module(f"{module}.{first}")
    for attribute in rest:
        found = getattr(found, attribute)


def test_private_names_are_looked_for() -> None:
    ids = [str(parameter.id) for parameter in private_names()]
    assert any(found.startswith("distmlp/parallel/backend.py:") and found.endswith("backends_are_initialized")
               for found in ids)  # fmt: skip

