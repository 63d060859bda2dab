"""What a notebook shows of a training: a small table and two curves, as SVG that needs no other package."""

from collections.abc import Sequence
from html import escape

from distmlp.progress import Line, best

_WIDTH, _HEIGHT, _LEFT, _EDGE = 330, 170, 52, 18  # of a chart; and the room beside its curves
_COLOURS = ("#3b82f6", "#f97316")
_Points = list[tuple[float, float]]


def html(history: Sequence[Line]) -> str:
    """The table and the curves of a history: losses and accuracies over the steps."""
    lines = [line for line in history if not line.get("final")]
    held = "validation" if any("validation_loss" in line for line in lines) else "test"
    losses = {name: _points(lines, f"{name}_loss") for name in ("train", held)}
    accuracies = {name: _points(lines, f"{name}_accuracy") for name in ("train", held)}
    charts = [_chart("loss", losses), _chart("accuracy", accuracies)]
    rows = "".join(f"<tr><th style='text-align:left'>{escape(name)}</th><td>{escape(text)}</td></tr>"
                   for name, text in _table(history, lines, held))  # fmt: skip
    return f"<div><table>{rows}</table>{''.join(charts)}</div>"


def _table(history: Sequence[Line], lines: Sequence[Line], held: str) -> list[tuple[str, str]]:
    last: Line = history[-1] if history else {"step": 0, "epoch": 0}
    top = best(history)
    rows = [("steps", f"{last['step']:,} ({last['epoch']:,} epochs)" + ("" if last.get("final") else ", not finished"))]
    if lines and "train_loss" in lines[-1]:
        rows.append(("train loss", f"{lines[-1]['train_loss']:.5f}"))
    if top["step"]:
        name = top.get("choose_by", "accuracy")
        if name == "accuracy":
            rows.append((f"best {held} accuracy", f"{top[f'{held}_accuracy']:.2%} at step {top['step']:,}"))
        else:
            rows += [(f"best {held} {name.replace('_', ' ')}", f"{top[f'{held}_{name}']:.5f} at step {top['step']:,}"),
                     (f"{held} accuracy there", f"{top[f'{held}_accuracy']:.2%}")]  # fmt: skip
    for name, key in (("test accuracy of the best", "best_test_accuracy"), ("test accuracy", "test_accuracy")):
        found = [line[key] for line in history if key in line]
        if found:
            rows.append((name, f"{found[-1]:.2%}"))
    if last.get("final"):
        rows += [("time", f"{last['total_seconds']:.1f} s"), ("parameters", f"{last['params_sha256'][:16]}...")]
    return rows


def _points(lines: Sequence[Line], key: str) -> _Points:
    return [(line["step"], line[key]) for line in lines if key in line]


def _chart(title: str, curves: dict[str, _Points]) -> str:
    """An SVG element with these curves; empty if there is nothing to draw."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    (left, right), (low, high) = ((min(values), max(values)) for values in zip(*points, strict=True))
    left = 0 if left == right else left

    def place(x: float, y: float) -> tuple[float, float]:
        across, up = (x - left) / ((right - left) or 1), (y - low) / ((high - low) or 1)
        return _LEFT + across * (_WIDTH - _LEFT - _EDGE), _HEIGHT - _EDGE - up * (_HEIGHT - 3 * _EDGE)

    parts = [f"<text x='{_LEFT}' y='12'>{escape(title)}</text>"]
    for number, (name, curve) in enumerate(curves.items()):
        if curve:
            spots, colour = [place(*point) for point in curve], _COLOURS[number]
            line = " ".join(f"{x:.1f},{y:.1f}" for x, y in spots)
            parts += [
                f"<polyline points='{line}' fill='none' stroke='{colour}' stroke-width='1.6'/>",
                f"<circle cx='{spots[-1][0]:.1f}' cy='{spots[-1][1]:.1f}' r='2.5' fill='{colour}'/>",
                f"<text x='{_WIDTH - _EDGE - 150 + 75 * number}' y='12' style='fill:{colour}'>{escape(name)}</text>",
            ]
    for value in (low, high):
        y = place(left, value)[1]
        parts += [
            f"<line x1='{_LEFT}' x2='{_WIDTH - _EDGE}' y1='{y:.1f}' y2='{y:.1f}' stroke='currentColor' "
            "opacity='0.25'/>",
            f"<text x='{_LEFT - 4}' y='{y + 4:.1f}' text-anchor='end'>{value:.4g}</text>",
        ]
    parts.append(f"<text x='{_WIDTH - _EDGE}' y='{_HEIGHT - 4}' text-anchor='end'>step {right:,}</text>")
    return (f"<svg width='{_WIDTH}' height='{_HEIGHT}' font-family='sans-serif' font-size='11' fill='currentColor'>"
            f"{''.join(parts)}</svg>")
