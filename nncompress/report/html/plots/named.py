"""Numbers of named things: a row each, with a bar or a mark per series."""

from __future__ import annotations

from dataclasses import dataclass

from nncompress.report.facts.content import Bars, Number
from nncompress.report.facts.shown import shown
from nncompress.report.html.plots.frame import COLOURS, RIGHT, WIDTH, Frame, Tick, ticks_of
from nncompress.report.html.plots.scale import scale
from nncompress.results import Estimate

NAMES = 138  # width of the names' column
LETTERS = 18  # that fit it
BAR, GAP, TOP, BOTTOM = 11, 9, 8, 46


@dataclass(frozen=True)
class Piece:
    """A bar from zero, or a mark at its end; `low` and `high` are the ends of its interval."""

    look: int
    start: float
    end: float
    y: float
    said: str
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Row:
    """A name and its pieces."""

    name: str
    short: str
    y: float
    pieces: tuple[Piece, ...]


@dataclass(frozen=True, kw_only=True)
class NamedDrawing(Frame):
    """All of a plot."""

    bars: Bars
    ticks: tuple[Tick, ...]
    zero: float
    rows: tuple[Row, ...]
    thickness: int = BAR


def drawing(bars: Bars, most: int) -> NamedDrawing:
    """Where everything is; at most so many rows, the first ones."""
    shown_rows = bars.rows[:most]
    series = 1 if bars.dots else len(bars.series)
    tall = series * BAR + GAP
    height = TOP + len(shown_rows) * tall + BOTTOM
    left, right, bottom = NAMES, WIDTH - RIGHT, height - BOTTOM
    numbers = [n for row in shown_rows for value in row.values for n in _numbers(value)]
    along = scale(numbers, left, right, log=bars.axis.log, zero=not bars.dots, most=3)
    zero = along.at(0.0) if not bars.axis.log else left
    rows = []
    for position, row in enumerate(shown_rows):
        top = TOP + position * tall + GAP / 2
        pieces = []
        for look, value in enumerate(row.values):
            if value is None:
                continue
            middle, *ends = _numbers(value)
            name = f"{row.name}, {bars.series[look]}" if len(bars.series) > 1 else row.name
            y = top + BAR / 2 if bars.dots else top + look * BAR
            low, high = (along.at(end) for end in ends) if ends else (None, None)
            said = f"{name}: {shown(value, bars.axis.unit)}{f'; {row.said}' if row.said else ''}"
            pieces.append(Piece(look % COLOURS, zero, along.at(middle), y, said, low, high))
        rows.append(Row(row.name, _short(row.name), top + (tall - GAP) / 2, tuple(pieces)))
    return NamedDrawing(
        part=bars,
        width=WIDTH,
        height=height,
        left=left,
        right=right,
        top=TOP,
        bottom=bottom,
        left_out=bars.left_out + len(bars.rows) - len(shown_rows),
        bars=bars,
        ticks=ticks_of(along, bars.axis),
        zero=zero,
        rows=tuple(rows),
    )


def _numbers(value: Number) -> list[float]:
    if isinstance(value, Estimate):
        return [value.value, value.low, value.high] if value.low == value.low else [value.value]
    return [] if value is None else [value]


def _short(name: str) -> str:
    """A long name by its end, where layers differ."""
    return name if len(name) <= LETTERS else f"…{name[1 - LETTERS :]}"
