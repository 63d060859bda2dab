"""The plan that docs/planning.md shows is the one that is made today."""

import re

from compiled import NEEDS_TARGETS
from conftest import REPOSITORY

from distmlp.plan import plan, text
from launch import flags

pytestmark = NEEDS_TARGETS


def test_the_plan_in_the_documentation_is_that_of_today(mnist_dir: str) -> None:
    page = (REPOSITORY / "docs" / "planning.md").read_text()
    shown = re.findall(r"```text\n(target.*?)```", page, re.DOTALL)
    config = flags.parse(["plan", "8gpu.flags", f"--data_dir={mnist_dir}"])
    made = re.sub(r"in \d+\.\d s;", "in N s;", text.text(plan.make(config, "h100:8")))
    assert [re.sub(r"in \d+\.\d s;", "in N s;", block) for block in shown] == [f"{made}\n"]
