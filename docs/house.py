"""Counts the code, and writes what docs/code.md and its picture say of it: python docs/house.py

The picture has the layers that import-linter checks (pyproject.toml), the table what each wing's `__init__.py` says.
"""

import ast
import re
import tomllib
from pathlib import Path

REPOSITORY = Path(__file__).resolve().parent.parent
DISTMLP, LAUNCH = REPOSITORY / "distmlp", REPOSITORY / "launch"
PAGE = REPOSITORY / "docs/code.md"
PICTURE = REPOSITORY / "docs/images/wings.svg"
_PLACE = re.compile(r"(<!-- counted: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)

# What to read for the core, in this order, and why: first the files of an hour, then those that go around them.
FIRST = {
    "model.py": "the tutorial's network and loss",
    "optim.py": "the optimizers",
    "data/order.py": "which examples a batch has",
    "parallel/specs.py": "how each array lies on the devices",
    "parallel/layout.py": "the devices, and arrays on them",
    "parallel/reduce.py": "how gradients are added",
    "parallel/step.py": "one training step",
}
THEN = {
    "data/batches.py": "batches as arrays, the short ones filled up",
    "data/loader.py": "read by torch's DataLoader, dealt by its DistributedSampler",
    "parallel/feed.py": "many steps in one dispatch",
    "progress.py": "losses added up, and what is due",
    "training.py": "the core: no file, no signal, no other process",
    "loop.py": "`train(config)`: the core in a run's folder",
}
_LINES_A_MINUTE = 20  # half as fast as prose is read: a line has six words
WAY = {"data": "123", "parallel": "45", "progress": "6", "run": "7"}  # of a batch: the numbers of the page's text
_WIDTH, _ROW, _GAP, _LEFT = 440, 40, 8, 10


def lines(path: Path) -> int:
    """Of a Python file, or of all in a folder and those below it."""
    files = sorted(path.rglob("*.py")) if path.is_dir() else [path]
    return sum(len(file.read_text().splitlines()) for file in files)


def place(name: str) -> Path:
    """A part of distmlp: a wing, or a file."""
    folder = DISTMLP / name
    return folder if folder.is_dir() else folder.with_suffix(".py")


def layers() -> list[list[str]]:
    """The parts of distmlp in the order of import-linter's contract: each imports only what stands further down."""
    contracts = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    rows = next(contract["layers"] for contract in contracts if contract["type"] == "layers")
    return [[part.strip() for part in row.split("|")] for row in rows]


def subject(wing: Path) -> str:
    """What its __init__.py says first, up to the details."""
    text = ast.get_docstring(ast.parse((wing / "__init__.py").read_text())) or " "
    return text[0].lower() + re.split(r"[.:]", text[1:], maxsplit=1)[0].replace("->", "to")


def rounded(count: int) -> str:
    """To two digits, which stay true for a while."""
    unit: int = 10 ** max(1, len(str(count)) - 2)
    return f"{round(count / unit) * unit:,}"


def wings() -> str:
    """The table of the folders, from the top to the bottom."""
    rows = ["| folder | lines | what it is for |", "| --- | --- | --- |"]
    rows.append(f"| `launch/` | {rounded(lines(LAUNCH))} | the commands and their flags |")
    for part in (part for row in layers() for part in row):
        if place(part).is_dir():
            rows.append(f"| `{part}/` | {rounded(lines(place(part)))} | {subject(place(part))} |")
    return "\n".join(rows)


def core() -> str:
    """The table of what to read first."""
    rows = ["| to read, in this order | lines | what it shows |", "| --- | --- | --- |"]
    rows += [f"| `{name}` | {rounded(lines(DISTMLP / name))} | {text} |" for name, text in (FIRST | THEN).items()]
    return "\n".join(rows)


def hours() -> str:
    """How long it takes to read."""
    first, core = (sum(lines(DISTMLP / name) for name in names) for names in (FIRST, FIRST | THEN))
    whole = lines(DISTMLP) + lines(LAUNCH)
    return (f"All of `distmlp/` and `launch/` has {rounded(whole)} lines. At {_LINES_A_MINUTE} a minute, half the "
            f"speed of prose, that is {whole / _LINES_A_MINUTE / 60:.0f} hours. These {len(FIRST | THEN)} files are "
            f"the core: {_minutes(core)} minutes. The first {len(FIRST)} take {_minutes(first)}: one step on many "
            "devices.")


def _minutes(count: int) -> int:
    return 5 * round(count / _LINES_A_MINUTE / 5)


def written(page: str) -> str:
    """The page with what was counted, where a comment says which table."""
    made = {"wings": wings, "core": core, "hours": hours}
    return _PLACE.sub(lambda found: f"{found[1]}{made[found[2]]()}\n{found[3]}", page)


def picture() -> str:
    """The layers as SVG: a row for each, and in red the way of one batch."""
    rows = [["launch"], *layers()]
    height = _LEFT + len(rows) * (_ROW + _GAP) + 58
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="15">',
        "<style>.wing { fill: #dcebf7; stroke: #2471a3 } .file { fill: #fdf3d8; stroke: #9a7d0a } "
        "text { fill: #1c2430 } .note { font-size: 14px } .way { fill: #b03024 } "
        ".number { fill: #fff; font-size: 13px; font-weight: bold; text-anchor: middle }</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>',
    ]
    for number, row in enumerate(rows):
        shares = [1 + 0.3 * len(WAY.get(name, "")) for name in row]  # room for the numbers
        unit, x = (_WIDTH - 2 * _LEFT - _GAP * (len(row) - 1)) / sum(shares), float(_LEFT)
        for name, share in zip(row, shares, strict=True):
            parts += _box(name, x, _LEFT + number * (_ROW + _GAP), unit * share)
            x += unit * share + _GAP
    y = height - 42
    parts += [f'<text class="note" x="{_LEFT}" y="{y}">Each imports only from rows below its own.</text>']
    parts += _disc("1", _LEFT + 10, y + 19)
    parts += [f'<text class="note" x="{_LEFT + 26}" y="{y + 24}">to 7: the way of one batch, as in the text</text>']
    return "\n".join([*parts, "</svg>\n"])


def _box(name: str, x: float, y: float, width: float) -> list[str]:
    wing = name == "launch" or place(name).is_dir()
    shown = f"{name}/" if wing else f"{name}.py"
    kind, size = "wing" if wing else "file", f'width="{width:.5g}" height="{_ROW}"'
    found = [f'<rect class="{kind}" x="{x:.5g}" y="{y}" {size} rx="5"/>',
             f'<text x="{x + 8:.5g}" y="{y + 26:g}">{shown}</text>']  # fmt: skip
    for at, step in enumerate(reversed(WAY.get(name, ""))):
        found += _disc(step, x + width - 16 - 23 * at, y + _ROW / 2)
    return found


def _disc(step: str, x: float, y: float) -> list[str]:
    return [f'<circle class="way" cx="{x:.5g}" cy="{y:g}" r="10"/>',
            f'<text class="number" x="{x:.5g}" y="{y + 4.5:g}">{step}</text>']  # fmt: skip


if __name__ == "__main__":
    PAGE.write_text(written(PAGE.read_text()))
    PICTURE.write_text(picture())
