"""One number per sample that tells two classes apart: a logit, or a probability.

Class 1 is above 0 for a logit and above 0.5 for a probability. Which of the two it is, no graph says for
sure: numbers that all lie in 0 … 1, over the whole data, are probabilities. What was taken is stated with the
result, and is settled by the original for what is held against it.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.labels import is_one_number, two_class_labels
from nncompress.analysis.metrics.summed import SummedMetric, SummedScores

if TYPE_CHECKING:
    from nncompress.data import Batch

LOGIT, PROBABILITY = 0.0, 0.5  # above which it is class 1


class ClassScores(SummedScores):
    """The sums of a metric of classes; of one number per sample by either threshold, until all are seen."""

    def __init__(self, metric: SummedMetric) -> None:
        super().__init__(metric)
        self._of_probabilities: SummedScores | None = None
        self._within = True  # 0 … 1
        self._settled: float | None = None

    def add(self, output: Tensor, batch: Batch, origin: str) -> None:
        if not is_one_number(output):
            super().add(output, batch, origin)
            return
        numbers = output.reshape(-1)
        labels = two_class_labels(batch.labels, origin, self.samples)
        given = replace(batch, labels=labels)
        self._within &= bool(((numbers >= 0) & (numbers <= 1)).all())
        self._of_probabilities = self._of_probabilities or SummedScores(self._summed)
        self._of_probabilities.add(_scores(numbers, PROBABILITY), given, origin)
        super().add(_scores(numbers, LOGIT), given, origin)

    @property
    def threshold(self) -> float | None:
        if self._of_probabilities is None or self._settled is not None:
            return self._settled
        return PROBABILITY if self._within else LOGIT

    def settle(self, threshold: float | None) -> None:
        """Take one number per sample by this threshold, that of the model to compare with."""
        if self._of_probabilities is not None:
            self._settled = threshold

    @property
    def rows(self) -> np.ndarray:
        if self._of_probabilities is not None and self.threshold == PROBABILITY:
            return self._of_probabilities.rows
        return super().rows


def _scores(numbers: Tensor, threshold: float) -> Tensor:
    """[N] → [N, 2], of which the second is the greater one above `threshold`."""
    above = (numbers > threshold).float()
    return torch.stack([1 - above, above], dim=1)


def assumption(threshold: float | None) -> str | None:
    """What `EvalResult.threshold` says was taken for what, as a user reads it; None: nothing was assumed."""
    if threshold is None:
        return None
    kind, lie = ("logit", "do not all lie") if threshold == LOGIT else ("probability", "all lie")
    return (
        f"labels are 0 and 1, and the output is one number per sample: class 1 above {threshold:g}, "
        f"as of a {kind}, since they {lie} between 0 and 1; --metric rmse takes labels as amounts"
    )
