"""How the report's lines are drawn, so that they can be told apart."""

from distmlp.results import charts
from distmlp.results.charts import Curve


def test_curves_are_told_apart_by_dashes_and_dots() -> None:
    def marks(**how: bool) -> tuple[bool, int]:
        """Whether there are dashes, and how many marks: of the axes, and the dots."""
        svg = charts.chart([Curve((0, 1, 2), (0, 1, 2), "#123456", **how)], "loss")
        return "stroke-dasharray" in svg, svg.count("<use ")

    dashed, ticks = marks()
    assert not dashed
    assert marks(dashed=True) == (True, ticks)
    assert marks(dots=True) == (False, ticks + 3)


def test_a_calibration_curve_has_dots_and_a_dashed_line_where_it_should_be() -> None:
    svg = charts.calibration((0.525, 0.93), (0.5, 1.0), "#123456")
    (ideal,) = (path for path in svg.split("<path ") if "#888888" in path)
    assert "stroke-dasharray" in ideal
    assert svg.count("stroke-dasharray") == 1
    assert svg.count("<use ") - charts.chart([Curve((0, 1), (0, 1), "#888888")], "y").count("<use ") == 2
