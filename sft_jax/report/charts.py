"""Layout of line charts, which the templates draw as SVG."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

# Plotting area within the template's 360 x 234.
LEFT, RIGHT, TOP, BOTTOM = 50, 348, 10, 196
# Lines with more points than this have no markers and so no tooltips.
MARKED_POINTS = 40


class Tick(NamedTuple):
    """A tick on an axis."""

    at: float
    text: str


class Point(NamedTuple):
    """A point of a line: its position and tooltip."""

    x: float
    y: float
    text: str


class Line(NamedTuple):
    """A series of a chart.

    Attributes:
      label: its label in the legend.
      paths: coordinates of unbroken segments, for SVG's polyline.
      marks: points to mark.
    """

    label: str
    paths: tuple[str, ...]
    marks: tuple[Point, ...]


class Chart(NamedTuple):
    """A line chart over epochs; `described` is its text alternative."""

    title: str
    described: str
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    lines: tuple[Line, ...]


def line_chart(
    title: str,
    series: Mapping[str, Sequence[tuple[int, float | None]]],
    show: Callable[[float], str] = "{:.4g}".format,
    show_tick: Callable[[float], str] = "{:g}".format,
) -> Chart | None:
    """Lays out a line chart. Missing or non-finite values leave gaps.

    Args:
      title: title of the chart.
      series: label -> (epoch, value) in order.
      show: formats a value.
      show_tick: formats a tick.

    Returns:
      the chart, or None if there are no values.
    """
    drawn = {
        label: [(epoch, value if _finite(value) else None) for epoch, value in points]
        for label, points in series.items()
        if any(_finite(value) for _, value in points)
    }
    values = [value for points in drawn.values() for _, value in points if value is not None]
    if not values:
        return None
    epochs = [epoch for points in drawn.values() for epoch, _ in points]
    whole = (value for value in nice_ticks(min(epochs), max(epochs), 6) if value == round(value))
    x_ticks = [value for value in whole if min(epochs) <= value <= max(epochs)]
    y_ticks = nice_ticks(min(values), max(values), 5)
    across = _scale(min(epochs), max(epochs), LEFT + 6, RIGHT - 6)
    up = _scale(min(y_ticks[0], *values), max(y_ticks[-1], *values), BOTTOM, TOP)
    return Chart(
        title,
        f"{title}, " + "; ".join(filter(None, (_describe(label, points, show) for label, points in drawn.items()))),
        tuple(Tick(across(value), f"{value:g}") for value in x_ticks),
        tuple(Tick(up(value), show_tick(value)) for value in y_ticks),
        tuple(_line(label, points, across, up, show) for label, points in drawn.items()),
    )


def nice_ticks(low: float, high: float, most: int) -> list[float]:
    """Returns at most `most` + 1 ticks that enclose low..high and are 1, 2 or 5 times a power of ten apart.

    If `low` equals `high`, that is the only tick.
    """
    if not high > low:
        return [low]
    rough = (high - low) / (most - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * unit for factor in (1, 2, 5, 10) if factor * unit >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def _line(label: str, points: list[tuple[int, float | None]], across, up, show) -> Line:
    stretches: list[list[str]] = [[]]
    marks = []
    for epoch, value in points:
        if value is None:
            stretches.append([])
            continue
        x, y = round(across(epoch), 1), round(up(value), 1)
        stretches[-1].append(f"{x},{y}")
        marks.append(Point(x, y, f"{label}, epoch {epoch}: {show(value)}"))
    paths = tuple(" ".join(stretch) for stretch in stretches if len(stretch) > 1)
    return Line(label, paths, tuple(marks) if len(points) <= MARKED_POINTS else ())


def _describe(label: str, points: list[tuple[int, float | None]], show) -> str:
    finite = [(epoch, value) for epoch, value in points if value is not None]
    if not finite:
        return ""
    (first, start), (last, end) = finite[0], finite[-1]
    return f"{label}: {show(start)} in epoch {first}" + (f", {show(end)} in epoch {last}" if last > first else "")


def _scale(low: float, high: float, start: float, stop: float) -> Callable[[float], float]:
    if high == low:
        return lambda value: (start + stop) / 2
    return lambda value: start + (value - low) / (high - low) * (stop - start)


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)
