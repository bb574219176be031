"""Numbers and intervals as text, by their unit."""

from __future__ import annotations

import math

from nncompress.report.facts.content import Cell, Unit
from nncompress.report.units import count, duration, size
from nncompress.results import Estimate


def shown(value: Cell, unit: Unit = "text") -> str:
    """A cell: (1094376, "bytes") -> "1.09 MB"; an estimate with its interval: "1.54x [1.53, 1.55]"."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, Estimate):
        if not math.isfinite(value.low) and not math.isfinite(value.high):
            return number(value.value, unit)
        return f"{number(value.value, unit)} [{_bare(value.low, unit)}, {_bare(value.high, unit)}]"
    return number(value, unit)


def number(value: float, unit: Unit) -> str:
    """A number with its unit."""
    if not math.isfinite(value):
        return "–" if math.isnan(value) else "∞" if value > 0 else "−∞"
    match unit:
        case "count":
            return count(value)
        case "bytes":
            return size(value)
        case "seconds":
            return duration(value) if value else "0 s"
        case "share":
            return f"{_bare(value, unit)} %"
        case "times":
            return f"{value:.2f}x"
        case "points":
            return f"{value:+.2f} points"
        case _:
            return _bare(value, unit)


def _bare(value: float, unit: Unit) -> str:
    """Without a unit, as within an interval."""
    match unit:
        case "share":
            return f"{100 * value:.2f}" if abs(value) < 0.1 else f"{100 * value:.1f}"
        case "times":
            return f"{value:.2f}"
        case "points":
            return f"{value:+.2f}"
        case "signed":
            return f"{value:+.3g}"
        case "bytes" | "seconds":
            return number(value, unit)
        case _:
            return f"{value:,.0f}" if abs(value) >= 1000 and value == int(value) else f"{value:.4g}"
