"""The layout: imports point downwards only, and importing distmlp starts nothing."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import REPOSITORY

# Top to bottom. A module may import only from modules below it; launch/ may import anything.
ORDER = [
    "loop", "cadence", "recovery", "banner", "checkpoint", "manager", "totals", "feed", "placement", "evaluate",
    "digest", "metrics", "workdir", "signals", "step", "reduce", "optim", "scaling", "loader", "datasets", "sources",
    "mesh", "cluster", "peers", "hub", "launcher", "model", "flags", "config",
]  # fmt: skip
MODULES = sorted(path for path in (REPOSITORY / "distmlp").glob("*.py") if path.stem != "__init__")


def imported_modules(path: Path) -> set[str]:
    """Modules of distmlp that a file imports, anywhere in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.removeprefix("distmlp.") for alias in node.names if alias.name.startswith("distmlp.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "distmlp":
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("distmlp."):
            found.add(node.module.removeprefix("distmlp."))
        assert not (isinstance(node, ast.ImportFrom) and node.level), f"{path.name}: imports are absolute here"
    return found


def test_every_module_has_its_place() -> None:
    assert {path.stem for path in MODULES} == set(ORDER)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_imports_point_downwards(path: Path) -> None:
    below = set(ORDER[ORDER.index(path.stem) + 1 :])
    assert imported_modules(path) <= below


def test_importing_the_package_starts_no_backend_and_is_light() -> None:
    code = (
        "import sys, distmlp\n"
        "assert 'jax' not in sys.modules and 'torch' not in sys.modules\n"
        "import distmlp.loop\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "assert callable(distmlp.train)\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=REPOSITORY, check=True, timeout=120)
