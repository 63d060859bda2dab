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
