"""Squares of a loss's gradients at stored weights, averaged over samples."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from nncompress.analysis.curvature.autograd import finite, gradient_batch_size, gradients_wanted
from nncompress.data import Batch, Dataset
from nncompress.ir import Model
from nncompress.progress import Progress

BATCH = 16  # samples per backward pass, at most: each pass is one sample of the square


def mean_squared_gradients(
    model: Model,
    weights: Mapping[str, Tensor],
    data: Dataset,
    loss: Callable[[Batch], Tensor],
    *,
    limit: int | None,
    batch_size: int = BATCH,
    progress: Progress,
    label: str,
) -> dict[str, Tensor]:
    """Σ (∂L/∂w)² over batches, divided by the samples: float64, each of its weight's shape.

    Where the cross terms between the samples of a batch vanish in expectation, this is E (∂L_n/∂w)².

    Args:
        weights: of the model, by name.
        loss: of a batch, summed over its samples.
        label: what the progress is called.

    Raises:
        UnsupportedError: a gradient is not finite.
    """
    total = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in weights.items()}
    seen, planned = 0, data.planned_samples(limit)
    with gradients_wanted(weights.values()):
        for batch in data.batches(gradient_batch_size(model, min(batch_size, BATCH)), limit):
            progress.step(label, seen, planned)
            with torch.enable_grad():
                found = torch.autograd.grad(loss(batch), list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, found):
                if gradient is not None:
                    total[name] += finite(gradient, name).double().square()
            seen += len(batch)
        progress.step(label, seen, planned)
    return {name: value / max(seen, 1) for name, value in total.items()}
