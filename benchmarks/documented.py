"""Puts the measured tables of a results file into README.md and docs/, where a comment names their script:

    <!-- measured: end_to_end -->

    python benchmarks/documented.py [FILE]
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]
RESULTS = REPOSITORY / "benchmarks/results/two_cores.json"
_BLOCK = re.compile(r"(<!-- measured: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def tables(text: str, measured: dict[str, Any]) -> str:
    """The page with the tables of all scripts that it names."""
    return _BLOCK.sub(lambda found: f"{found[1]}{_table(measured[found[2]])}\n{found[3]}", text)


def _table(entry: dict[str, Any]) -> str:
    env = entry["environment"]
    versions = ", ".join(f"{name} {env['versions'][name]}" for name in ("jax", "torch") if name in env["versions"])
    commit = f", commit {env['commit']}" if env.get("commit") else ""
    cpu = re.split(r" (?:Processor|CPU)\b", env["cpu"].replace("(R)", ""))[0]
    source = f"`{entry['command']}`, {env['time'][:10]}{commit}, {env['cores']} cores of {cpu}, {versions}"
    return "\n\n".join([*entry["tables"], source])


def main() -> None:
    measured = json.loads(Path(*sys.argv[1:] or [RESULTS]).read_text())
    for page in PAGES:
        page.write_text(tables(page.read_text(), measured))


if __name__ == "__main__":
    main()
