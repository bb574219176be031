"""Metrics that are a function of sums over samples, and the sums of one model.

Most metrics are what each sample adds to some sums, and a function of these sums. So a value over all
samples, its interval (by drawing the samples anew) and the interval of the difference of two models on the
same samples follow from one pass over the data, for shares and means as for ratios that are no mean over
samples (F1, the mean of intersections over unions, perplexity).
"""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
from torch import Tensor

from nncompress.analysis.intervals import (
    bootstrap_interval,
    mean_interval,
    paired_difference,
    share_interval,
)
from nncompress.analysis.metrics.base import Metric, Scores, check_pair
from nncompress.data import Batch
from nncompress.errors import DataError
from nncompress.results import Estimate

_BYTES = 1 << 28  # of sums; samples beyond are pooled with earlier ones


class SummedMetric(Metric):
    """A function of sums over samples."""

    @abstractmethod
    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        """What each of N samples adds, float64 [N, K]; K may grow, the new sums have been 0 before.

        Args:
            output: the answers [N, ...], on the CPU.
            origin: of the data, for messages.
            first_sample: the number of the batch's first sample, for messages.
        Raises:
            DataError: labels do not fit the answers.
        """

    @abstractmethod
    def value(self, sums: np.ndarray) -> np.ndarray:
        """Sums [..., K] → values [...]."""

    def begin(self) -> SummedScores:
        return SummedScores(self)


class MeanMetric(SummedMetric):
    """The mean over all that is counted: sums are [score · weight, weight]. Of nothing there is none: NaN.

    Samples drawn anew of which nothing counts (transcripts without a word) are left out of intervals.
    """

    def value(self, sums: np.ndarray) -> np.ndarray:
        total, weight = sums[..., 0], sums[..., 1]
        return np.divide(total, weight, out=np.full_like(total, np.nan), where=weight != 0)


class SummedScores:
    """The sums of `metric` per sample.

    Sums of many numbers (one per class) over very many samples are kept for groups of samples: sample i
    belongs to group i modulo their number, so that the groups of two models on the same data are the same.
    """

    def __init__(self, metric: SummedMetric) -> None:
        self.metric: Metric = metric
        self._summed = metric
        self.samples = 0
        self._rows: np.ndarray | None = None
        self._most = 0

    def add(self, output: Tensor, batch: Batch, origin: str) -> None:
        rows = self._summed.sums(output, batch, origin, self.samples)
        if self._rows is None:
            self._most = max(256, _BYTES // (8 * rows.shape[1]))
            self._rows = np.zeros((0, rows.shape[1]))
        where = (self.samples + np.arange(len(rows))) % self._most
        self.samples += len(rows)
        (held, width), needed = self._rows.shape, min(self.samples, self._most)
        wider = max(width, rows.shape[1])
        if needed > held or wider > width:
            grown = np.zeros((max(held, min(self._most, max(needed, 2 * held))), wider))
            grown[:held, :width] = self._rows
            self._rows = grown
        np.add.at(self._rows[:, : rows.shape[1]], where, rows)

    @property
    def rows(self) -> np.ndarray:
        """[samples or groups, K]

        Raises:
            DataError: no sample was added.
        """
        if self._rows is None:
            raise DataError("there are no samples to measure on")
        return self._rows[: self.samples]

    @property
    def value(self) -> float:
        return float(self._summed.value(self.rows.sum(0)))

    def interval(self) -> Estimate:
        if self.per_sample:
            scores = self.rows[:, 0]
            if _is_share(scores):
                return share_interval(int(scores.sum()), len(scores))
            return mean_interval(scores)
        return bootstrap_interval(self._summed.value, self.rows)

    def less(self, other: Scores) -> Estimate:
        check_pair(self, other)
        assert isinstance(other, SummedScores)
        mine, its = self.rows, other.rows
        width = max(mine.shape[1], its.shape[1])
        mine, its = (np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (mine, its))
        if self.per_sample and other.per_sample:
            after, before = mine[:, 0], its[:, 0]
            if _is_share(after) and _is_share(before):
                return paired_difference(int((before > after).sum()), int((after > before).sum()), len(after))
            return mean_interval(after - before)
        value = self._summed.value
        return bootstrap_interval(
            lambda sums: value(sums[..., :width]) - value(sums[..., width:]), np.hstack([mine, its])
        )

    def of(self, sums: np.ndarray) -> np.ndarray:
        """The metric of sums [..., K], [...]."""
        return self._summed.value(sums)

    @property
    def per_sample(self) -> bool:
        """One score per sample, all of weight 1: its mean has a t interval."""
        return type(self._summed).value is MeanMetric.value and bool((self.rows[:, 1] == 1).all())


def _is_share(scores: np.ndarray) -> bool:
    """Each sample is right (1) or wrong (0)."""
    return bool(((scores == 0) | (scores == 1)).all())
