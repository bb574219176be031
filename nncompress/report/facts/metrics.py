"""The names that metrics go by in a record.

A record is only text: a metric in it that is code of the user's (`file.py:function`), or another package's,
is not imported to show its number.
"""

from __future__ import annotations

from dataclasses import dataclass

from nncompress.analysis.metrics.base import Metric
from nncompress.analysis.metrics.registry import METRICS, named_metric
from nncompress.report.facts.content import Number, Unit
from nncompress.report.facts.limits import clipped
from nncompress.report.facts.shown import number
from nncompress.results import Estimate
from nncompress.search.measure import BY_ORIGINAL


@dataclass(frozen=True)
class Shown:
    """How a metric's numbers are read.

    Attributes:
        unit: of its values; of_change: of differences between two of them.
    """

    title: str
    unit: Unit
    of_change: Unit
    higher_is_better: bool = True

    def text(self, value: float) -> str:
        """A value as people read it."""
        return number(value, self.unit)

    def loss(self, value: float) -> str:
        """What is lost, above 0 where something is: "0.50 points"."""
        return f"{100 * value:.2f} points" if self.of_change == "points" else f"{value:.3g}"

    def change(self, value: Number) -> Number:
        """A difference in the unit that people read: points for shares."""
        if value is None or self.of_change != "points":
            return value
        if isinstance(value, Estimate):
            return Estimate(100 * value.value, 100 * value.low, 100 * value.high, value.confidence)
        return 100 * value


def metric_named(name: str | None) -> Shown:
    """Of a metric that a record names; one that is not ours by its name alone."""
    if name in BY_ORIGINAL:
        known: Metric = BY_ORIGINAL[name]()
    elif name is None or name not in METRICS or METRICS.origin(name):
        return Shown(clipped(name or "metric"), "number", "signed")
    else:
        known = named_metric(name)
    units: tuple[Unit, Unit] = ("share", "points") if known.share else ("number", "signed")
    return Shown(known.title, *units, known.higher_is_better)
