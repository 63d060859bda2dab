"""What surrounds the code: the workflow, the hooks before a commit, the issue templates."""

import ast
import re
from typing import Any

import pytest
import yaml
from conftest import REPOSITORY, small_config

from distmlp import train


def read(path: str) -> Any:
    return yaml.safe_load((REPOSITORY / path).read_text())


def test_the_workflow_does_what_ci_run_does() -> None:
    (job,) = read(".github/workflows/ci.yml")["jobs"].values()
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    (python,) = (step["with"] for step in job["steps"] if "setup-python" in step.get("uses", ""))
    versions = python["python-version"].split()
    assert "3.11" in versions
    assert re.search(rf"\bpython{re.escape(versions[0])}\b", (REPOSITORY / ".ci" / "newest").read_text())


def test_the_hooks_are_the_linters_of_the_readme() -> None:
    hooks = [hook for repository in read(".pre-commit-config.yaml")["repos"] for hook in repository["hooks"]]
    linters = " && ".join(hook["entry"] for hook in hooks)
    assert f"    {linters}\n" in (REPOSITORY / "README.md").read_text()
    assert f"    {linters}\n" in (REPOSITORY / "CONTRIBUTING.md").read_text()


def test_issue_templates_ask_for_the_banner(npz: str, capsys: pytest.CaptureFixture[str]) -> None:
    train(small_config(npz, max_steps=1))
    banner = capsys.readouterr().out
    for template in ("bug", "wish"):
        (field,) = (item for item in read(f".github/ISSUE_TEMPLATE/{template}.yml")["body"] if item["id"] == "banner")
        first, last = re.findall(r"`(\w+)`", field["attributes"]["description"])[:2]
        lines = [line.split()[0] for line in banner.splitlines() if line[:1].strip()]
        assert (lines[0], lines.index(first) < lines.index(last)) == (first, True)
        if template == "bug":
            assert field["validations"]["required"]


def test_text_files_have_an_encoding() -> None:
    """Without one, the locale of whoever runs this decides."""
    for path in [*(REPOSITORY / "distmlp").rglob("*.py"), *(REPOSITORY / "launch").rglob("*.py")]:
        for call in ast.walk(ast.parse(path.read_bytes())):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute):
                continue
            module = call.func.value.id if isinstance(call.func.value, ast.Name) else ""
            binary = any(isinstance(mode, ast.Constant) and "b" in str(mode.value) for mode in call.args)
            if call.func.attr in ("read_text", "write_text") or (
                call.func.attr == "open" and module not in ("os", "Image", "archive") and not binary
            ):
                assert "encoding" in [keyword.arg for keyword in call.keywords], f"{path}:{call.lineno}"
