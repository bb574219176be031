"""How much worse a changed model is than the original on the same samples, with a bound on it, by any metric.

The bound is one-sided, of any confidence, and made of what each sample adds to the loss:

- scores of 0 and 1 (top-1): the score interval of paired samples (Tango 1998);
- other sums over samples (RMSE, perplexity, F1): Student's t of the jackknife's pseudo-values (Tukey 1958),
  which for a mean are the scores themselves, with the transformation of Hall (1992), "On the removal of
  skewness by transformation", J. R. Statist. Soc. B 54: a loss that few samples carry is skewed, and the
  plain interval holds far too rarely then. Where fewer than `FEW` samples tell the models apart there is no
  distribution to speak of: each difference is taken for the largest by which samples of the original differ
  (of a share, at least the whole of it), and counted as one of 0 and 1 is;
- what is no sum (mAP, classes of the user's): the spread over random draws of the samples, by Student's t;
  of a share as in the score interval, with one sample counting 1 / n. How many samples tell the models apart
  is not known then, so that the confidence is approximate.

Of a share, any sample may lose all of it: the bound is never closer to the loss than what no sample shows may
add (the score interval at no event), however many lose a little. Of all else there is no most that a sample
may lose, so that no bound holds what no sample shows: `how` says how rare that may be.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from nncompress.analysis.intervals import student_t
from nncompress.analysis.metrics.base import Metric, Scores, check_pair
from nncompress.analysis.metrics.resampled import COPIES, NORMAL_95
from nncompress.analysis.metrics.summed import SummedScores
from nncompress.errors import DataError
from nncompress.search.promise import CONFIDENCE, largest_drop

FEW = 30  # samples that tell the models apart, from which on their distribution is looked at
MOST_SAMPLES = 10**9
MOST_FREEDOM = 1000  # its t is 0.1 % above that of any number beyond

_Bound = Callable[[float, float], float]  # samples, confidence → the upper end


@dataclass(frozen=True)
class Loss:
    """What is lost of a metric; below 0 where it is won.

    Attributes:
        value: in the metric's own unit; a share is 0 … 1.
        samples: samples it was measured on.
        how: what the bounds are, in words.
    """

    value: float
    samples: int
    how: str
    _above: _Bound = field(repr=False)
    _below: _Bound = field(repr=False)

    def at_most(self, confidence: float = CONFIDENCE) -> float:
        """The upper bound, one-sided; infinite where these samples give none."""
        return self._above(self.samples, confidence)

    def at_least(self, confidence: float = CONFIDENCE) -> float:
        """The lower bound, one-sided."""
        return -self._below(self.samples, confidence)

    def needed(self, bound: float, confidence: float = CONFIDENCE) -> int | None:
        """How many samples it would take to promise `bound`, were they all like these.

        Returns: None where no number would do.
        """
        if self.value >= bound:
            return None
        low, high = 1, 2
        while self._above(high, confidence) > bound:
            low, high = high, 2 * high
            if high > MOST_SAMPLES:
                return None
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self._above(middle, confidence) <= bound else (middle, high)
        return high


def lost(original: Scores, changed: Scores) -> Loss:
    """What `changed` has lost against `original`.

    Raises:
        DataError: they were measured on other samples or by other metrics, or there is no number.
    """
    check_pair(original, changed)
    sign = 1.0 if original.metric.higher_is_better else -1.0
    if isinstance(original, SummedScores) and isinstance(changed, SummedScores):
        if original.per_sample and changed.per_sample:
            before, after = sign * original.rows[:, 0], sign * changed.rows[:, 0]
            if all(np.isin(np.abs(scores), (0.0, 1.0)).all() for scores in (before, after)):
                return shares(int((before > after).sum()), int((after > before).sum()), len(before))
        value, parts, largest = pseudo_values(original, changed)
        return means(sign * value, sign * parts, largest, original.samples, _whole(original.metric))
    spread = original.less(changed)
    error = (spread.high - spread.value) / NORMAL_95
    return drawn(sign * spread.value, error, original.samples, _whole(original.metric))


def _whole(metric: Metric) -> float:
    """What a sample may lose at most, where that is known: of a share of what is right, all of it; else 0."""
    return 1.0 if metric.share and metric.higher_is_better else 0.0


def shares(only_original: float, only_changed: float, samples: int) -> Loss:
    """Of scores of 0 and 1, by the samples that only one of the two has right."""

    def bound(worse: float, better: float) -> _Bound:
        return lambda count, confidence: largest_drop(
            worse * count / samples, better * count / samples, count, confidence
        )

    return Loss(
        (only_original - only_changed) / samples,
        samples,
        "score interval of paired samples",
        bound(only_original, only_changed),
        bound(only_changed, only_original),
    )


def means(value: float, parts: np.ndarray, largest: float, samples: int, whole: float = 0.0) -> Loss:
    """Of sums over samples.

    Args:
        parts: what each sample (or group of samples) says that the loss is, [n].
        largest: by how much one sample tells the models apart, as far as these samples show.
        whole: by how much one sample may, where that is known; else 0.
    """
    count, largest = len(parts), max(largest, whole)
    differing = int((np.abs(parts) > 1e-12 * max(largest, float(np.abs(parts).max()))).sum())
    deviation = float(parts.std(ddof=1)) if count > 1 else math.inf
    skewness = float(((parts - parts.mean()) ** 3).mean() / parts.std() ** 3) if parts.std() > 0 else 0.0

    def bound(sign: float) -> _Bound:
        worse, better = (float(np.clip(side * parts, 0, None).sum()) for side in (sign, -sign))

        def of(wanted: float, confidence: float) -> float:
            n = count * wanted / samples
            found = -math.inf
            if n > 1 and differing:
                t = student_t(min(max(1, round(n) - 1), MOST_FREEDOM), 2 * confidence - 1)
                found = sign * value - deviation / math.sqrt(n) * _untransformed(-t, sign * skewness, n)
            if differing * n / count < FEW:
                if not largest:
                    return math.inf
                each = n / count / largest
                found = max(found, largest * largest_drop(worse * each, better * each, n, confidence))
            return max(found, sign * value + whole * largest_drop(0, 0, n, confidence))

        return of

    how = f"Student's t with Hall's correction, paired{_unseen(samples, whole)}"
    return Loss(value, samples, how, bound(1.0), bound(-1.0))


def drawn(value: float, error: float, samples: int, whole: float = 0.0) -> Loss:
    """Of what is no sum over samples.

    Args:
        error: the standard error of `value`, told by `COPIES` draws of the samples.
        whole: by how much one sample may tell the models apart, where that is known; else 0.
    """

    def bound(center: float) -> _Bound:
        def of(wanted: float, confidence: float) -> float:
            if not error:
                return math.inf  # no draw tells the models apart, which says nothing of other samples
            t = student_t(COPIES - 1, 2 * confidence - 1)
            one = t * whole / wanted / 2
            return center + t * (one + math.hypot(error * math.sqrt(samples / wanted), one))

        return of

    how = f"{COPIES} random draws of the samples, paired; approximate{_unseen(samples, whole)}"
    return Loss(value, samples, how, bound(value), bound(-value))


def _unseen(samples: int, whole: float) -> str:
    """Where there is no most that a sample can lose: what may be missing from the bound."""
    if whole:
        return ""
    share = 1 - (1 - CONFIDENCE) ** (1 / max(samples, 1))  # a more common one would show with CONFIDENCE
    return f"; losses of fewer than {share:.2%} of all samples may be missing: one has no upper limit here"


def pseudo_values(original: SummedScores, changed: SummedScores) -> tuple[float, np.ndarray, float]:
    """The original's value less the changed one's, what each sample says that it is, and the range of what
    samples of the original say of its value."""
    before, after = original.rows, changed.rows
    width = max(before.shape[1], after.shape[1])
    before, after = (np.pad(rows, ((0, 0), (0, width - rows.shape[1]))) for rows in (before, after))
    count = len(before)
    whole, without = (original.of(before.sum(0)), original.of(before.sum(0) - before))
    value = whole - original.of(after.sum(0))
    parts = count * value - (count - 1) * (without - original.of(after.sum(0) - after))
    alone = count * whole - (count - 1) * without
    if not (np.isfinite(value) and np.isfinite(parts).all() and np.isfinite(alone).all()):
        raise DataError(
            f"--metric {original.metric.name} gives NaN or infinity",
            got=f"{original.value:g} and {changed.value:g} on {original.samples} samples",
            remedy="more samples",
        )
    largest = max(float(np.ptp(alone)), float(np.abs(parts).max())) if count > 1 else 0.0
    return float(value), parts, largest


def _untransformed(quantile: float, skewness: float, n: float) -> float:
    """The studentized mean whose transformed value (Hall 1992) is `quantile`."""
    a = skewness / 3
    if abs(a) < 1e-9:
        return quantile
    inner = 1 + 3 * a * (quantile / math.sqrt(n) - skewness / (6 * n))
    return math.sqrt(n) / a * (math.cbrt(inner) - 1)
