"""Makes the pictures of docs/images: python docs/pictures.py [batch] [zero] [report] [sweep]

Those of pages (report, sweep) are of runs that this trains, and need Chromium. docs/house.py and docs/notebook.py make
the others.
"""

import functools
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable
from html import escape
from pathlib import Path

from PIL import Image

REPOSITORY = Path(__file__).resolve().parent.parent
IMAGES = REPOSITORY / "docs/images"
_WIDTH = 440  # of a drawing, whose text of 14 can be read on a telephone
_PAGE, _SCALE = 420, 1.5  # the width of a photographed page, in CSS pixels, and how many pixels of it are one
_COLOURS = {"parameters": "#2471a3", "gradients": "#d68910", "optimizer": "#1e8449"}


def drawing(height: int, parts: Iterable[str], style: str = "") -> str:
    """An SVG on white paper, so that it can be read on a dark page, too."""
    return "\n".join([
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" width="{_WIDTH}" height="{height}" '
        'font-family="Helvetica, Arial, sans-serif" font-size="14">',
        f"<style>text {{ fill: #1c2430 }} .middle {{ text-anchor: middle }} .bold {{ font-weight: bold }} {style}",
        "</style>",
        f'<rect width="{_WIDTH}" height="{height}" fill="#fff"/>', *parts, "</svg>\n",
    ])  # fmt: skip


def text(x: float, y: float, words: str, kind: str = "") -> str:
    return f'<text class="{kind}" x="{x:g}" y="{y:g}">{escape(words)}</text>'


def arrow(x: float, top: float, bottom: float) -> str:
    return (f'<path d="M{x:g} {top:g}V{bottom - 6:g}" stroke="#5c6675" fill="none"/>'
            f'<path d="M{x - 4:g} {bottom - 7:g}h8l-4 7z" fill="#5c6675"/>')  # fmt: skip


def batch(images: int = 29, shards: int = 8) -> str:
    """How a batch is dealt to the devices, and becomes one step."""
    rows, step, left, cell = -(-images // shards), 53, 10, 44
    parts = [text(left, 24, f"a batch of {images} images, dealt like cards", "bold")]
    for shard in range(shards):
        x, middle = left + step * shard, left + step * shard + cell / 2
        for row in range(rows):
            image, y = shard + shards * row, 38 + 27 * row
            kind = "image" if image < images else "empty"
            parts.append(f'<rect class="{kind}" x="{x:g}" y="{y}" width="{cell}" height="23" rx="3"/>')
            parts.append(text(middle, y + 17, str(image) if image < images else "", "middle"))
        y = 38 + 27 * rows
        parts += [arrow(middle, y + 2, y + 20),
                  f'<rect class="device" x="{x:g}" y="{y + 20}" width="{cell}" height="44" rx="3"/>',
                  text(middle, y + 38, "dev.", "middle"), text(middle, y + 55, str(shard), "middle"),
                  arrow(middle, y + 66, y + 84)]  # fmt: skip
    y = 38 + 27 * rows + 84
    wide = step * (shards - 1) + cell
    for at, words in enumerate((f"sum of the {shards} gradients, each divided by {images}",
                                "the same new parameters, on each device")):  # fmt: skip
        parts.append(f'<rect class="whole" x="{left}" y="{y + 50 * at}" width="{wide}" height="32" rx="3"/>')
        parts.append(text(_WIDTH / 2, y + 50 * at + 21, words, "middle"))
    parts.append(arrow(_WIDTH / 2, y + 32, y + 50))
    y += 104
    parts.append(f'<rect class="empty" x="{left}" y="{y - 13}" width="24" height="18" rx="3"/>')
    parts.append(text(left + 32, y + 1, "an empty row of weight 0: shards have one shape"))
    style = (".image { fill: #dcebf7; stroke: #2471a3 } .empty { fill: #fff; stroke: #5c6675; stroke-dasharray: 3 } "
             ".device { fill: #fdf3d8; stroke: #9a7d0a } .whole { fill: #e3f2e6; stroke: #1e8449 }")  # fmt: skip
    return drawing(y + 16, parts, style)


def zero(devices: int = 4) -> str:
    """Who holds what under the stages of ZeRO."""
    stages = (("replicated", ""), ("stage 1", "optimizer"), ("stage 2", "gradients optimizer"),
              ("stage 3, as --state=sharded", "parameters gradients optimizer"))  # fmt: skip
    left, step, bar = 10, 107, 99
    parts = [text(left + step * device + bar / 2, 22, f"device {device}", "middle") for device in range(devices)]
    y = 36
    for name, sharded in stages:
        parts.append(text(left, y + 14, name, "bold"))
        for device in range(devices):
            for at, (what, colour) in enumerate(_COLOURS.items()):
                x, top = left + step * device, y + 22 + 16 * at
                part = bar / devices
                from_, width = (part * device, part) if what in sharded.split() else (0, bar)
                parts.append(f'<rect x="{x}" y="{top}" width="{bar}" height="12" fill="#f0f2f5"/>')
                parts.append(f'<rect x="{x + from_:g}" y="{top}" width="{width:g}" height="12" fill="{colour}"/>')
        y += 84
    for at, (what, colour) in enumerate(_COLOURS.items()):
        x = left + 128 * at
        parts.append(f'<rect x="{x}" y="{y}" width="14" height="14" fill="{colour}"/>')
        parts.append(text(x + 20, y + 12, "optimizer's state" if what == "optimizer" else what))
    return drawing(y + 28, parts)


def photograph(page: Path, height: int) -> bytes:
    """The upper part of an HTML page, on a narrow screen."""
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    if chromium is None:
        sys.exit("docs/pictures.py: Chromium is needed for pictures of pages: install it, or name batch or zero")
    shot = page.with_suffix(".png")
    subprocess.run([chromium, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--no-first-run",
                    "--disable-background-networking", f"--user-data-dir={page.parent / 'chromium'}",
                    f"--force-device-scale-factor={_SCALE}", f"--window-size={_PAGE},{height}",
                    f"--screenshot={shot}", page.as_uri()], check=True, capture_output=True)  # fmt: skip
    with Image.open(shot) as picture:
        picture.convert("RGB").quantize(64).save(shot, optimize=True)
    return shot.read_bytes()


def page(command: str, run: str, height: int) -> bytes:
    """The report of what a command of distmlp's leaves in `run`."""
    with tempfile.TemporaryDirectory() as name:
        folder, env = Path(name), os.environ | {"PYTHONPATH": str(REPOSITORY)}
        for words in (command, f"distmlp report {run} --output=report.html"):
            verb = [sys.executable, "-m", "launch.cli", *words.split()[1:]]
            subprocess.run(verb, cwd=folder, env=env, check=True)
        report = folder / "report.html"
        report.write_text(report.read_text().replace(f"{folder}/", ""))  # a path that no reader has
        return photograph(report, height)


PICTURES: dict[str, Callable[[], bytes]] = {
    "batch.svg": lambda: batch().encode(),
    "zero.svg": lambda: zero().encode(),
    "report.png": functools.partial(page, "distmlp train digits.flags --workdir=runs/digits", "runs/digits", 608),
    "sweep.png": functools.partial(
        page, "distmlp sweep digits.flags --vary learning_rate 0.0003 0.001 0.003 0.01 0.03 --num_epochs=5 --folds=5 "
        "--workdir=runs/rates", "runs/rates", 583),
}  # fmt: skip

if __name__ == "__main__":
    for name, make in PICTURES.items():
        if len(sys.argv) < 2 or name.partition(".")[0] in sys.argv[1:]:
            (IMAGES / name).write_bytes(make())
