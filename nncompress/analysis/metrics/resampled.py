"""The scores of one model by a metric that is no sum: copies of an object that saw the samples at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.intervals import CONFIDENCE
from nncompress.analysis.metrics.base import Metric, Scores, check_pair
from nncompress.data import Batch
from nncompress.errors import DataError
from nncompress.results import Estimate

COPIES = 64  # that a spread is told from: to 9 %
NORMAL_95 = 1.959963984540054


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
        return self._spread(self.value, self.drawn())

    def less(self, other: Scores) -> Estimate:
        check_pair(self, other)
        assert isinstance(other, ResampledScores)
        return self._spread(self.value - other.value, self.drawn() - other.drawn())

    def drawn(self) -> np.ndarray:
        """The values of the copies."""
        return np.array([self._number(copy) for copy in self._copies])

    def _spread(self, value: float, drawn: np.ndarray) -> Estimate:
        """A copy may have seen no sample of a class, say, and give no number; most have to."""
        finite = drawn[np.isfinite(drawn)]
        if not np.isfinite(value) or 2 * len(finite) < len(drawn):
            raise DataError(
                f"--metric {self.metric.name} gives NaN or infinity",
                got=f"{value:g}; of {len(drawn)} random draws of the samples, {len(finite)} give a number",
                remedy="more samples, or a number where there is none to compute",
            )
        half = NORMAL_95 * float(np.std(finite, ddof=1))
        return Estimate(value, value - half, value + half, CONFIDENCE)
