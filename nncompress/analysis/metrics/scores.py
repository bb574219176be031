"""The scores of one model: sums per sample, or copies of an object that saw the samples at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.intervals import CONFIDENCE, bootstrap_interval, mean_interval
from nncompress.analysis.metrics.base import MeanMetric, Metric, Scores, SummedMetric
from nncompress.data import Batch
from nncompress.errors import DataError
from nncompress.results import Estimate

_BYTES = 1 << 28  # of sums; samples beyond are pooled with earlier ones
COPIES = 64  # that a spread is told from: to 9 %
NORMAL_95 = 1.959963984540054


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
        if self._per_sample:
            return mean_interval(self.rows[:, 0])
        return bootstrap_interval(self._summed.value, self.rows)

    def less(self, other: Scores) -> Estimate:
        check_pair(self, other)
        assert isinstance(other, SummedScores)
        mine, its = self.rows, other.rows
        width = max(mine.shape[1], its.shape[1])
        mine, its = (np.pad(x, ((0, 0), (0, width - x.shape[1]))) for x in (mine, its))
        if self._per_sample and other._per_sample:
            return mean_interval(mine[:, 0] - its[:, 0])
        value = self._summed.value
        return bootstrap_interval(
            lambda sums: value(sums[..., :width]) - value(sums[..., width:]), np.hstack([mine, its])
        )

    @property
    def _per_sample(self) -> bool:
        """One score per sample, all of weight 1: its mean has a t interval."""
        return type(self._summed).value is MeanMetric.value and bool((self.rows[:, 1] == 1).all())


class ResampledScores:
    """An object that is updated and computes, with `COPIES` more, each of which sees every sample as often as
    a Poisson number says: the Poisson bootstrap (Hanley & MacGibbon 2006). The numbers follow from the place
    of the sample in the data, so that two models' copies saw the same."""

    def __init__(self, metric: Metric, make: Callable[[], Any], number: Callable[[Any], float]) -> None:
        self.metric = metric
        self.samples = 0
        self._number = number
        self._whole, self._copies = make(), [make() for _ in range(COPIES)]

    def add(self, output: Tensor, batch: Batch, origin: str) -> None:
        times = np.random.default_rng([self.samples]).poisson(1.0, size=(COPIES, len(output)))
        self.samples += len(output)
        self._whole.update(output, batch)
        for copy, row in zip(self._copies, times):
            drawn = torch.from_numpy(np.repeat(np.arange(len(output)), row))
            if len(drawn):
                copy.update(output[drawn], batch.part(drawn))

    @property
    def value(self) -> float:
        return self._number(self._whole)

    def interval(self) -> Estimate:
        return _spread(self.value, self.drawn())

    def less(self, other: Scores) -> Estimate:
        check_pair(self, other)
        assert isinstance(other, ResampledScores)
        return _spread(self.value - other.value, self.drawn() - other.drawn())

    def drawn(self) -> np.ndarray:
        """The values of the copies."""
        return np.array([self._number(copy) for copy in self._copies])


def check_pair(one: Scores, other: Scores) -> None:
    """Refuse scores by different metrics, or on different samples.

    Raises:
        DataError: they are.
    """
    if one.metric.name != other.metric.name:
        raise DataError(
            "two models are measured by different metrics",
            got=f"{other.metric.name} and {one.metric.name}",
            remedy="name one: --metric",
        )
    if one.samples != other.samples:
        raise DataError(
            "two models were measured on different numbers of samples",
            got=f"{other.samples} and {one.samples}",
        )


def _spread(value: float, drawn: np.ndarray) -> Estimate:
    half = NORMAL_95 * float(np.std(drawn[np.isfinite(drawn)], ddof=1))
    return Estimate(value, value - half, value + half, CONFIDENCE)
