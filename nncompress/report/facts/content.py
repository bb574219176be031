"""A report: sections with their tables, plots and texts, as plain records that every format is made from.

Numbers are plain: seconds, bytes, shares 0 … 1; how they are read by people, their `unit` says
(`nncompress.report.facts.shown`).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from nncompress.results import Estimate, Result

Unit = Literal["text", "number", "count", "bytes", "seconds", "share", "times", "points", "signed"]
Number = Estimate | float | None  # with the interval that it lies in, where that is known
Cell = Estimate | str | float | None


@dataclass(frozen=True)
class Column:
    """A column of a table; its cells may be text where its unit is that of numbers, then aligned as those."""

    title: str
    unit: Unit = "text"


@dataclass(frozen=True)
class Table:
    """Rows with one cell per column; the first cell is the row's heading.

    Attributes:
        left_out: rows that there were besides.
    """

    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""
    left_out: int = 0
    kind: Literal["table"] = "table"


@dataclass(frozen=True)
class Axis:
    """What is drawn along an axis."""

    title: str
    unit: Unit = "number"
    log: bool = False


@dataclass(frozen=True)
class Point:
    """One mark of a plot.

    Attributes:
        said: what is told of it when it is pointed at.
        chosen: it is the one that was taken.
    """

    x: float
    y: float
    said: str
    chosen: bool = False


@dataclass(frozen=True)
class Series:
    """Points of one kind.

    Attributes:
        joined: they are a curve.
    """

    name: str
    points: tuple[Point, ...]
    joined: bool = False


@dataclass(frozen=True)
class Plot:
    """Numbers against numbers.

    Attributes:
        description: what is to be seen, for those who cannot see it.
        small: one of many of its kind.
    """

    title: str
    description: str
    x: Axis
    y: Axis
    series: tuple[Series, ...]
    small: bool = False
    kind: Literal["plot"] = "plot"


@dataclass(frozen=True)
class Bar:
    """One thing with a number per series."""

    name: str
    values: tuple[Number, ...]
    said: str = ""


@dataclass(frozen=True)
class Bars:
    """Numbers of named things: bars from zero, or (`dots`) marks, with their intervals."""

    title: str
    description: str
    axis: Axis
    series: tuple[str, ...]
    rows: tuple[Bar, ...]
    dots: bool = False
    left_out: int = 0
    kind: Literal["bars"] = "bars"


@dataclass(frozen=True)
class Code:
    """Text to copy."""

    title: str
    language: str
    text: str
    kind: Literal["code"] = "code"


Part = Table | Plot | Bars | Code


@dataclass(frozen=True)
class Outcome:
    """What one model is worth against the original.

    Attributes:
        speedup: the original's latency over its own.
        smaller: the original's bytes over its own.
        macs, parameters: share of the original's that is left.
        metric: by which the two were compared, as people read it; "" where none was.
        change: of the metric, changed - original; in points where the metric is a share.
        unit: of the change.
        drift: relative distance of the outputs from the original's.
    """

    model: str
    against: str
    speedup: Number = None
    smaller: float | None = None
    macs: float | None = None
    parameters: float | None = None
    metric: str = ""
    change: Number = None
    unit: Unit = "points"
    drift: float | None = None


@dataclass(frozen=True)
class Section:
    """What one run says.

    Attributes:
        source: the file or folder it was read from, as it was named.
        command: what left it.
        summary: what was gained at what loss, one sentence.
        warnings: of the run, and of the report where it shows less than there is.
    """

    source: str
    command: str
    summary: str
    parts: tuple[Part, ...] = ()
    outcomes: tuple[Outcome, ...] = ()
    warnings: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Report(Result):
    """All runs; the summary is that of the run whose evidence is best."""

    kind: ClassVar[str] = "report"

    title: str
    summary: str
    outcomes: tuple[Outcome, ...]
    sections: tuple[Section, ...]
