"""How much top-1 is lost at most, with what confidence, and how many samples it takes to say so."""

from __future__ import annotations

import math
from statistics import NormalDist

CONFIDENCE = 0.95  # one-sided
MOST_RECORDS = 10**9
_STEPS = 60  # of bisection: beyond the precision of a float


def largest_drop(
    only_original: float, only_changed: float, records: float, confidence: float = CONFIDENCE
) -> float:
    """The upper end of the one-sided interval of a paired drop in top-1, 0 … 1.

    The score interval of Tango (1998), "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design": unlike Wald's, it does not collapse to a point where the two
    models answer alike.

    Args:
        only_original, only_changed: samples that only this one has right.
        records: all samples.
    """
    z = NormalDist().inv_cdf(confidence)
    low, high = (only_original - only_changed) / records, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        inside = _score(middle, only_original, only_changed, records) > -z
        low, high = (middle, high) if inside else (low, middle)
    return high


def smallest_drop(
    only_original: float, only_changed: float, records: float, confidence: float = CONFIDENCE
) -> float:
    """The lower end, one-sided."""
    return -largest_drop(only_changed, only_original, records, confidence)


def records_needed(only_original: int, only_changed: int, records: int, bound: float) -> int | None:
    """How many samples it would take to promise `bound`, were the two models as unlike as they were on these.

    Returns: None where no number would do: the drop itself is not below the bound.
    """
    rates = only_original / records, only_changed / records
    if rates[0] - rates[1] >= bound:
        return None

    def enough(count: int) -> bool:
        return largest_drop(rates[0] * count, rates[1] * count, count) <= bound

    low, high = 1, 1
    while not enough(high):
        low, high = high, 2 * high
        if high > MOST_RECORDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _score(drop: float, only_original: float, only_changed: float, records: float) -> float:
    """Standard errors by which the counts lie above what `drop` would give."""
    a = 2 * records
    b = -only_original - only_changed + (2 * records - only_original + only_changed) * drop
    c = -only_changed * drop * (1 - drop)
    rate = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # of only_changed, at its likeliest
    variance = records * (2 * rate + drop * (1 - drop))
    distance = only_original - only_changed - records * drop
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)
