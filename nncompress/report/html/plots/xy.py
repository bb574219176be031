"""Numbers against numbers: marks and curves between two axes."""

from __future__ import annotations

from dataclasses import dataclass

from nncompress.report.facts.content import Axis, Plot, Point
from nncompress.report.facts.limits import thinned
from nncompress.report.facts.shown import number
from nncompress.report.html.plots.scale import Scale, scale

WIDTH, HEIGHT = 460, 300
SMALL = (300, 190)
LEFT, RIGHT, TOP, BOTTOM = 62, 16, 30, 48
COLOURS = 8  # series that look different


@dataclass(frozen=True)
class Tick:
    """A line across the plot, and what stands at its end."""

    place: float
    text: str


@dataclass(frozen=True)
class Mark:
    """A point that can be pointed at."""

    x: float
    y: float
    said: str
    chosen: bool


@dataclass(frozen=True)
class Curve:
    """A series: its marks, and the line through them where it is one."""

    name: str
    look: int
    line: str
    marks: tuple[Mark, ...]


@dataclass(frozen=True)
class Drawing:
    """All of a plot."""

    plot: Plot
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    x_ticks: tuple[Tick, ...]
    y_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]


def drawing(plot: Plot, most: int) -> Drawing:
    """Where everything is.

    Args:
        most: marks of a series; more are thinned out evenly, chosen ones stay.
    """
    width, height = SMALL if plot.small else (WIDTH, HEIGHT)
    left, right, top, bottom = LEFT, width - RIGHT, TOP, height - BOTTOM
    points = [point for series in plot.series for point in series.points]
    x = _scale([p.x for p in points], left, right, plot.x, 4)
    y = _scale([p.y for p in points], bottom, top, plot.y, 3 if plot.small else 5)
    curves = []
    for position, series in enumerate(plot.series):
        shown = _thinned(series.points, most)
        marks = tuple(Mark(x.at(p.x), y.at(p.y), p.said, p.chosen) for p in shown)
        line = " ".join(f"{m.x:g},{m.y:g}" for m in marks) if series.joined else ""
        curves.append(Curve(series.name, position % COLOURS, line, marks))
    ticks = (ticks_of(x, plot.x), ticks_of(y, plot.y))
    return Drawing(plot, width, height, left, right, top, bottom, *ticks, tuple(curves))


def _scale(values: list[float], start: float, end: float, axis: Axis, most: int) -> Scale:
    share, whole = axis.unit == "share", axis.unit == "count"
    return scale(values, start, end, log=axis.log, share=share, whole=whole, most=most)


def _thinned(points: tuple[Point, ...], most: int) -> list[Point]:
    kept = {id(p) for p in thinned(points, most)}
    return [p for p in points if id(p) in kept or p.chosen]


def ticks_of(along: Scale, axis: Axis) -> tuple[Tick, ...]:
    texts = [number(value, axis.unit) for value in along.ticks]
    if axis.unit == "count" and len(set(texts)) < len(texts):
        texts = [f"{value:g}" for value in along.ticks]
    forms = {
        "share": "{:.6g} %",
        "number": "{:.6g}",
        "points": "{:+.6g}",
        "signed": "{:+.6g}",
        "times": "{:.6g}x",
    }
    if axis.unit in forms:
        texts = [forms[axis.unit].format(100 * v if axis.unit == "share" else v) for v in along.ticks]
    return tuple(Tick(along.at(value), text) for value, text in zip(along.ticks, texts))
