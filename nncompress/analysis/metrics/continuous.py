"""Numbers: distances of answers from targets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.labels import target_like
from nncompress.analysis.metrics.summed import MeanMetric
from nncompress.data import Batch


class _Distance(MeanMetric):
    share = False
    higher_is_better = False

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        if batch.labels is None or output.is_complex():
            return False
        one_each = output.numel() == batch.labels.numel() == len(batch)
        return one_each or output.shape == batch.labels.shape

    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        off = output.double() - target_like(output, batch.labels, origin, "regression")
        return _per_sample(self.distance(off))

    def distance(self, off: Tensor) -> Tensor:
        return off.square()


class Rmse(_Distance):
    """Root of the mean squared error over all targets."""

    name, title = "rmse", "RMSE"

    def value(self, sums: np.ndarray) -> np.ndarray:
        return np.sqrt(super().value(sums))


class Mae(_Distance):
    """Mean absolute error over all targets."""

    name, title = "mae", "MAE"

    def distance(self, off: Tensor) -> Tensor:
        return off.abs()


class Mse(_Distance):
    """Mean squared error of the first input's reconstruction."""

    name, title = "mse", "MSE"
    needs_labels = False

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        return output.is_floating_point() and output.shape == batch.samples_first()[0].shape

    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        target = target_like(output, batch.samples_first()[0], origin, "reconstruction")
        return _per_sample((output.double() - target).square())


class Cosine(MeanMetric):
    """Mean over samples of the cosine between answer and target: embeddings."""

    name, title = "cosine", "cosine"
    share = False

    def fits(self, output: Tensor, batch: Batch, classes: int | None) -> bool:
        labels = batch.labels
        if labels is None or not labels.is_floating_point() or not output.is_floating_point():
            return False
        return output.shape == labels.shape and output.dim() > 1

    def sums(self, output: Tensor, batch: Batch, origin: str, first_sample: int) -> np.ndarray:
        target = target_like(output, batch.labels, origin, "regression")
        cosine = torch.nn.functional.cosine_similarity(
            output.double().flatten(1), target.flatten(1), dim=1, eps=1e-300
        )
        return np.stack([cosine.numpy(), np.ones(len(output))], axis=1)


def _per_sample(errors: Tensor) -> np.ndarray:
    """Errors [N, ...] → [sum, count] per sample."""
    each = errors.reshape(len(errors), -1)
    return np.stack([each.sum(1).numpy(), np.full(len(each), float(each.shape[1]))], axis=1)
