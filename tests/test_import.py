"""Importing distmlp starts nothing. (That imports point downwards is import-linter's to see: pyproject.toml.)"""

import os
import subprocess
import sys
from pathlib import Path

from conftest import REPOSITORY


def test_importing_the_package_starts_no_backend_and_is_light() -> None:
    code = (
        "import sys, distmlp\n"
        "assert 'jax' not in sys.modules and 'torch' not in sys.modules\n"
        "import distmlp.loop\n"
        "from jax._src import xla_bridge\n"
        "assert not xla_bridge.backends_are_initialized()\n"
        "assert callable(distmlp.train)\n"
        "from distmlp.cluster.group import Group\n"
        "group = Group.join(distmlp.Config())\n"
        "assert group.first and not group.several and group.exchange(1) == [1]\n"
        "assert not xla_bridge.backends_are_initialized()\n"
    )
    subprocess.run([sys.executable, "-W", "error", "-c", code], cwd=REPOSITORY, check=True, timeout=120)


def in_a_folder(code: str, folder: Path, timeout: float) -> None:
    """Runs it there, in a process of its own, which must end well."""
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, timeout=timeout,
                   env=os.environ | {"PYTHONPATH": str(REPOSITORY)}, stdout=subprocess.DEVNULL)  # fmt: skip


def test_a_run_on_arrays_needs_neither_torch_nor_scikit_learn(tmp_path: Path) -> None:
    """They take longer to import than such a run."""
    code = (
        "import sys, distmlp\n"
        "config = distmlp.Config(hidden_sizes=(8,), num_epochs=1, shuffle=True, validation_fraction=0.1,\n"
        "                        workdir='run')\n"
        "distmlp.train(config)\n"
        "assert not {'torch', 'sklearn', 'scipy', 'pandas'} & sys.modules.keys()\n"
    )
    in_a_folder(code, tmp_path, 120)


def test_nothing_that_is_imported_late_adds_to_jaxs_kinds_of_effects(tmp_path: Path) -> None:
    """While one thread traces a program another imports what the run needs later: jax's walk over them would fail."""
    code = (
        "import distmlp.loop, distmlp.many.sweep\n"
        "from jax._src.effects import EffectTypeSet\n"
        "def add(self, kind):\n"
        "    raise AssertionError(kind)\n"
        "EffectTypeSet.add_type = add\n"
        "import distmlp.run.keeping, distmlp.run.tensorboard, distmlp.data.loader\n"
        "distmlp.train(distmlp.Config(hidden_sizes=(8,), num_epochs=1, workdir='run', data_placement='host'))\n"
        "distmlp.sweep(distmlp.Config(hidden_sizes=(8,), num_epochs=1, workdir='swept'), {'seed': [0, 1]}, folds=2)\n"
    )
    in_a_folder(code, tmp_path, 240)
