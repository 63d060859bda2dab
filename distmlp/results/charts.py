"""The report's charts: SVG that takes its text's colour from the page, and pictures as PNG in data addresses."""

import base64
import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from distmlp.results.extras import need

COLOURS = ("#3b82f6", "#f97316", "#10b981", "#a855f7", "#ef4444", "#06b6d4", "#eab308", "#ec4899")
_INK = "#010203"  # stands for the page's colour of text


class Curve(NamedTuple):
    """A line of a chart."""

    x: Sequence[float]
    y: Sequence[float]
    colour: str
    dashed: bool = False
    dots: bool = False


def chart(curves: Sequence[Curve], y_label: str, *, x_label: str = "step", log: bool = False) -> str:
    """An SVG element with these curves; they are told apart by the page, which names their colours."""
    with _figure() as (figure, axes):
        for x, y, colour, dashed, dots in curves:
            style = "--" if dashed else "-"
            marker = "o" if dots or len(x) == 1 else ""
            axes.plot(x, y, style, color=colour, marker=marker, markersize=3.5, linewidth=1.6)
        if log:
            axes.set_yscale("log")
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True, linewidth=0.5, alpha=0.25)
        return _svg(figure)


def calibration(sure: Sequence[float], right: Sequence[float], colour: str) -> str:
    """A calibration curve: how often the network is right in some ranges of its probabilities."""
    curves = (Curve((0, 1), (0, 1), "#888888", dashed=True), Curve(sure, right, colour, dots=True))
    return chart(curves, "how often it is right", x_label="how sure it is")


class Dots(NamedTuple):
    """Scores against the values of a setting."""

    x: Sequence[float]
    y: Sequence[float]
    bars: Sequence[tuple[float, float, float]]  # x, mean, error
    log: bool = False  # whether the values' axis is logarithmic
    names: Sequence[str] = ()  # of the values 0, 1, ..., where they are no numbers


def scores(dots: Dots, x_label: str, y_label: str, colour: str, lowest: float | None, highest: float | None) -> str:
    """A dot for each score, and bars with their errors, joined by a line. What lies beyond `lowest` or `highest` is a
    triangle at the edge."""
    with _figure() as (figure, axes):
        y = np.asarray(dots.y, np.float64)
        shown = np.clip(y, lowest, highest) if (lowest, highest) != (None, None) else y
        inside = shown == y
        for which, marker in ((inside, "o"), (shown > y, "v"), (shown < y, "^")):
            size, alpha = (3.2, 0.55) if len(y) > 50 else (4.5, 0.9)
            axes.plot(np.asarray(dots.x)[which], shown[which], marker, color="#888888", alpha=alpha, markersize=size,
                      markeredgewidth=0)  # fmt: skip
        if dots.bars:
            x, means, errors = map(np.array, zip(*sorted(dots.bars), strict=True))
            axes.errorbar(x, means, errors, color=colour, marker="o", markersize=4.5, linewidth=1.2, capsize=3)
        if (lowest, highest) != (None, None):
            margin = 0.06 * (shown.max() - shown.min())
            axes.set_ylim(shown.min() - margin, shown.max() + margin)
        if dots.log:
            axes.set_xscale("log")
        if dots.names:
            every = -(-len(dots.names) // 12)
            long = max(map(len, dots.names)) * len(dots.names[::every]) > 55
            axes.set_xticks(range(0, len(dots.names), every), dots.names[::every], rotation=30 if long else 0,
                            ha="right" if long else "center")  # fmt: skip
            axes.set_xlim(-0.5, len(dots.names) - 0.5)
        axes.set_xlabel(x_label)
        axes.set_ylabel(y_label)
        axes.grid(True, linewidth=0.5, alpha=0.25)
        return _svg(figure)


def bundle(
    curves: Sequence[tuple[Sequence[float], Sequence[float]]], chosen: Sequence[bool], y_label: str, colour: str, *,
    log: bool = False,
) -> str:
    """Many curves, of which those that are chosen have the colour, and the others are grey, behind them."""
    collections = need("matplotlib.collections", "report", "the report")
    with _figure() as (figure, axes):
        for which, own, alpha, width in ((False, "#888888", 0.35, 0.9), (True, colour, 0.8, 1.2)):
            lines = [np.column_stack(curve) for curve, picked in zip(curves, chosen, strict=True) if picked is which]
            axes.add_collection(collections.LineCollection(lines, colors=own, alpha=alpha, linewidths=width))
        axes.autoscale()
        if log:
            axes.set_yscale("log")
        axes.set_xlabel("step")
        axes.set_ylabel(y_label)
        axes.grid(True, linewidth=0.5, alpha=0.25)
        return _svg(figure)


def picture(values: np.ndarray, largest: float, smallest: float = 0) -> str:
    """The address of a PNG of pixel values [height, width] or [height, width, 3], from `smallest` to `largest`."""
    shares = (values.astype(np.float64) - smallest) / ((largest - smallest) or 1)
    return _png(Image.fromarray(np.rint(shares.clip(0, 1) * 255).astype(np.uint8)))


def weight_picture(weights: np.ndarray) -> str:
    """The address of a PNG of weights [height, width]: red below 0, white at 0, blue above."""
    scale = np.abs(weights).max() or 1
    strength = (np.abs(weights) / scale)[..., None]
    ends = np.where((weights < 0)[..., None], (178, 24, 43), (33, 102, 172))
    return _png(Image.fromarray((255 + strength * (ends - 255.0)).astype(np.uint8)))


def _png(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


@contextmanager
def _figure() -> Iterator[tuple[Any, Any]]:
    matplotlib = need("matplotlib", "report", "the report")
    figures = need("matplotlib.figure", "report", "the report")
    ink = dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), _INK)
    style = {**ink, "svg.fonttype": "none", "svg.hashsalt": "distmlp", "font.family": "sans-serif", "font.size": 9,
             "axes.spines.top": False, "axes.spines.right": False, "axes.formatter.use_mathtext": False}
    with matplotlib.rc_context(style):
        figure = figures.Figure(figsize=(5, 3), layout="constrained")
        yield figure, figure.subplots()


def _svg(figure: Any) -> str:
    """The figure as an SVG element without size, fonts and colours of its own."""
    file = io.StringIO()
    figure.savefig(file, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = file.getvalue()
    text = re.sub(r"(?s)^.*?<svg ", "<svg ", text)
    text = re.sub(r'(<svg [^>]*?)height="[^"]*" ', r"\1", text, count=1)
    text = re.sub(r'(<svg [^>]*?)width="[^"]*" ', r"\1", text, count=1)
    text = re.sub(r"(?s)<metadata>.*?</metadata>", "", text)
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    return text.replace(_INK, "currentColor")
