"""Numbers to places on an axis, and the round numbers that stand along it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

STEPS = (1, 2, 2.5, 5, 10)  # of ticks, times a power of ten
TINY = 1e-100  # nearer to zero is zero


@dataclass(frozen=True)
class Scale:
    """From numbers to places.

    Attributes:
        low, high: numbers at the two ends.
        start, end: places of those.
        ticks: round numbers between them, ascending.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool
    ticks: tuple[float, ...]

    def at(self, value: float) -> float:
        """The place of a number; what lies beyond an end is put there."""
        if self.log:
            low, high, value = (math.log10(max(v, TINY)) for v in (self.low, self.high, value))
        else:
            low, high = self.low, self.high
        share = (value - low) / (high - low)
        return round(self.start + min(max(share, 0.0), 1.0) * (self.end - self.start), 2)


def scale(
    values: Sequence[float],
    start: float,
    end: float,
    *,
    log: bool = False,
    zero: bool = False,
    share: bool = False,
    whole: bool = False,
    most: int = 5,
) -> Scale:
    """A scale that holds all values, between round numbers.

    Args:
        log: by powers of ten; values that are not positive are put at its low end.
        zero: it begins at zero.
        whole: the numbers are counts: no tick lies between two.
        share: the numbers are shares: where all are at most 1, no tick is above.
        most: ticks, nearly.
    """
    found = [v if abs(v) >= TINY else 0.0 for v in values if math.isfinite(v)]
    if log and any(v > 0 for v in found):
        return _log(found, start, end, most)
    low, high = min(found, default=0.0), max(found, default=1.0)
    if zero:
        low, high = min(low, 0.0), max(high, 0.0)
    if high - low <= abs(high) * 1e-9:
        margin = 0.01 if share else abs(high) * 0.1 or 1.0
        low, high = (low if zero and low == 0 else low - margin), high + margin
    step = _step((high - low) / most)
    if whole and step < 10:
        step = float(max(1, math.ceil(step)))
    bounded = share and max(found, default=0.0) <= 1 < high + step
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = tuple(i * step for i in range(first, last + 1) if not bounded or i * step <= 1 + 1e-9)
    return Scale(ticks[0], ticks[-1], start, end, False, ticks)


def _step(least: float) -> float:
    power = 10.0 ** math.floor(math.log10(least))
    return next(power * s for s in STEPS if power * s >= least * (1 - 1e-9))


def _log(values: Sequence[float], start: float, end: float, most: int) -> Scale:
    positive = [v for v in values if v > 0]
    low, high = math.floor(math.log10(min(positive)) + 1e-9), math.ceil(math.log10(max(positive)) - 1e-9)
    high = max(high, low + 1)
    every = max(1, -(-(high - low) // most))
    ticks = tuple(10.0**p for p in range(low, high + 1, every))
    return Scale(10.0**low, 10.0**high, start, end, True, ticks)
