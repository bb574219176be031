"""How certain a number is: Student's t, intervals of shares, and the bootstrap over samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from nncompress.results import Estimate

CONFIDENCE = 0.95
Z_95 = 1.959963984540054
RESAMPLES = 2000
_CELLS = 1 << 24  # of resampling weights that are held at once


def student_t(freedom: int, confidence: float = CONFIDENCE) -> float:
    """The t with P(|T| <= t) = `confidence` for Student's T with so many (at least one) degrees of freedom.

    P is a finite sum over powers of the cosine of atan(t / sqrt(freedom)) (Abramowitz & Stegun 26.7.3 and
    26.7.4), so its inverse is found by halving the range of that angle until floats end.
    """
    low, high = 0.0, math.pi / 2
    while low < (angle := (low + high) / 2) < high:
        low, high = (angle, high) if _within(angle, freedom) < confidence else (low, angle)
    return math.sqrt(freedom) * math.tan(low)


def _within(angle: float, freedom: int) -> float:
    """P(|T| <= sqrt(freedom) · tan(angle))."""
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = freedom % 2
    term = cosine if odd else 1.0
    total = term if freedom > 1 else 0.0
    for k in range(2 + odd, freedom - 1, 2):
        term *= (k - 1) / k * cosine * cosine
        total += term
    return (angle + sine * total) * 2 / math.pi if odd else sine * total


def mean_interval(values: np.ndarray) -> Estimate:
    """The mean of independent numbers [N], at least one, with Student's t interval (infinite for one)."""
    mean = float(values.mean())
    if len(values) < 2:
        return Estimate(mean, -math.inf, math.inf, CONFIDENCE)
    half = student_t(len(values) - 1) * float(values.std(ddof=1)) / math.sqrt(len(values))
    return Estimate(mean, mean - half, mean + half, CONFIDENCE)


def share_interval(right: int, count: int) -> Estimate:
    """A share of independent samples, at least one, with its score interval.

    Wilson (1927), "Probable inference, the law of succession, and statistical inference"; unlike the
    Wald and t intervals it has a width where all samples are right, or none, and stays within 0 … 1.
    """
    share, spread = right / count, Z_95**2 / count
    middle = (share + spread / 2) / (1 + spread)
    half = math.sqrt(share * (1 - share) * spread + spread**2 / 4) / (1 + spread)
    return Estimate(share, max(0.0, middle - half), min(1.0, middle + half), CONFIDENCE)


def paired_difference(only_original: int, only_changed: int, samples: int) -> Estimate:
    """changed - original of two paired shares with its 95 % interval.

    The adjusted Wald interval of Bonett & Price (2012), "Adjusted Wald confidence interval for a difference
    of binomial proportions based on paired data": one sample is added to each discordant count.
    """
    p, q = (only_changed + 1) / (samples + 2), (only_original + 1) / (samples + 2)
    half = Z_95 * math.sqrt(max(0.0, p + q - (p - q) ** 2) / (samples + 2))
    low, high = max(-1.0, p - q - half), min(1.0, p - q + half)
    return Estimate((only_changed - only_original) / samples, low, high)


def bootstrap_interval(
    value: Callable[[np.ndarray], np.ndarray], rows: np.ndarray, seed: int = 0
) -> Estimate:
    """A function of sums over samples, with its percentile interval over resampled samples (Efron 1979).

    Args:
        value: sums [..., K] → numbers [...].
        rows: what each sample adds to the sums, [N, K].
    """
    generator = np.random.default_rng(seed)
    count = len(rows)
    at_once = max(1, _CELLS // max(1, count))
    drawn = []
    for start in range(0, RESAMPLES, at_once):
        times = generator.multinomial(count, np.full(count, 1 / count), size=min(at_once, RESAMPLES - start))
        drawn.append(value(times.astype(np.float64) @ rows))
    tail = 50 * (1 - CONFIDENCE)
    with np.errstate(invalid="ignore"):
        low, high = np.nanpercentile(np.concatenate(drawn), [tail, 100 - tail])
    return Estimate(float(value(rows.sum(0))), float(low), float(high), CONFIDENCE)
