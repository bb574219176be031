"""What all plots are made of: a place of a size with room for words around it, and ticks along an axis."""

from __future__ import annotations

from dataclasses import dataclass

from nncompress.report.facts.content import Axis, Bars, Plot
from nncompress.report.facts.shown import number
from nncompress.report.html.plots.scale import Scale

WIDTH, RIGHT = 460, 16
COLOURS = 8  # series that look different


@dataclass(frozen=True, kw_only=True)
class Frame:
    """What is drawn, and where, in the units of its own coordinates."""

    part: Plot | Bars
    width: int
    height: int
    left: float
    right: float
    top: float
    bottom: float
    small: bool = False
    left_out: int = 0


@dataclass(frozen=True)
class Tick:
    """A line across the plot, and what stands at its end."""

    place: float
    text: str


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
