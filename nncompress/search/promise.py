"""The promise; and how much of a share of right answers is lost at most, with what confidence."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import ClassVar

from nncompress.results import Result

CONFIDENCE = 0.95  # one-sided
RESULT = "result.json"  # in the folder of a search: what was taken at last, and what is promised of it
_STEPS = 60  # of bisection: beyond the precision of a float


@dataclass(frozen=True)
class Promise(Result):
    """What is said of a metric, from samples that nothing was chosen by.

    Attributes:
        metric: its name.
        original, changed: its values, shares as 0 … 1.
        drop: what is lost, below 0 where it is won; low, high: each a one-sided bound with `confidence`.
        interval: what the bounds are, in words.
        bound: what was asked for; None: nothing was.
        kept: high is not above the bound.
        needed: how many such samples it would take; None where no number would do.
        looks: how many searches of this folder were held against these samples, this one included.
    """

    kind: ClassVar[str] = "promise"

    metric: str
    samples: int
    original: float
    changed: float
    drop: float
    low: float
    high: float
    interval: str
    confidence: float
    bound: float | None
    kept: bool
    needed: int | None
    looks: int


def largest_drop(
    only_original: float, only_changed: float, samples: float, confidence: float = CONFIDENCE
) -> float:
    """The upper end of the one-sided interval of a paired drop in top-1, 0 … 1.

    The score interval of Tango (1998), "Equivalence test and confidence interval for the difference in
    proportions for the paired-sample design": unlike Wald's, it does not collapse to a point where the two
    models answer alike.

    Args:
        only_original, only_changed: samples that only this one has right.
        samples: all samples.
    """
    z = NormalDist().inv_cdf(confidence)
    low, high = (only_original - only_changed) / samples, 1.0
    for _ in range(_STEPS):
        middle = (low + high) / 2
        inside = _score(middle, only_original, only_changed, samples) > -z
        low, high = (middle, high) if inside else (low, middle)
    return high


def _score(drop: float, only_original: float, only_changed: float, samples: float) -> float:
    """Standard errors by which the counts lie above what `drop` would give."""
    a = 2 * samples
    b = -only_original - only_changed + (2 * samples - only_original + only_changed) * drop
    c = -only_changed * drop * (1 - drop)
    rate = (math.sqrt(max(0.0, b * b - 4 * a * c)) - b) / (2 * a)  # of only_changed, at its likeliest
    variance = samples * (2 * rate + drop * (1 - drop))
    distance = only_original - only_changed - samples * drop
    if variance <= 0:
        return 0.0 if distance == 0 else math.copysign(math.inf, distance)
    return distance / math.sqrt(variance)
