"""Importing distmlp starts nothing. (That imports point downwards is import-linter's to see: pyproject.toml.)"""

import subprocess
import sys

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
