"""Numbers against numbers: marks and curves between two axes."""

from __future__ import annotations

from dataclasses import dataclass

from nncompress.report.facts.content import Axis, Plot, Point
from nncompress.report.facts.limits import thinned
from nncompress.report.html.plots.frame import COLOURS, RIGHT, WIDTH, Frame, Tick, ticks_of
from nncompress.report.html.plots.scale import Scale, scale

HEIGHT = 300
SMALL = (300, 190)
LEFT, TOP, BOTTOM = 62, 30, 48


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


@dataclass(frozen=True, kw_only=True)
class Drawing(Frame):
    """All of a plot."""

    x: Axis
    y: Axis
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
    return Drawing(
        part=plot,
        width=width,
        height=height,
        left=left,
        right=right,
        top=top,
        bottom=bottom,
        small=plot.small,
        x=plot.x,
        y=plot.y,
        x_ticks=ticks_of(x, plot.x),
        y_ticks=ticks_of(y, plot.y),
        curves=tuple(curves),
    )


def _scale(values: list[float], start: float, end: float, axis: Axis, most: int) -> Scale:
    share, whole = axis.unit == "share", axis.unit == "count"
    return scale(values, start, end, log=axis.log, share=share, whole=whole, most=most)


def _thinned(points: tuple[Point, ...], most: int) -> list[Point]:
    kept = {id(p) for p in thinned(points, most)}
    return [p for p in points if id(p) in kept or p.chosen]
