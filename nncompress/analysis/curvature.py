"""The diagonal of the loss's curvature: what an error in each single weight costs the model's output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nncompress.analysis.batching import gradient_batch_size
from nncompress.analysis.importance.taps import curvature_loss
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.progress import NullProgress, Progress

BATCH = 16  # records per backward pass: each is one sample of the mean square


def fisher_diagonal(
    model: Model,
    names: Sequence[str],
    data: Dataset,
    *,
    limit: int | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[str, Tensor]:
    """E (∂L/∂w)² of stored weights, by name: float64, each of its weight's shape.

    Labels are drawn from the model's own predictions, so that this is the Fisher information and not the
    empirical one (Kunstner et al. 2019); records are then independent, so one backward pass serves a batch.
    """
    progress = progress or NullProgress()
    weights = {name: model.tensor(name) for name in names}
    before = {name: weight.requires_grad for name, weight in weights.items()}
    total = {name: torch.zeros(weight.shape, dtype=torch.float64) for name, weight in weights.items()}
    generator = torch.Generator().manual_seed(seed)
    seen, planned = 0, data.planned_records(limit)
    try:
        for weight in weights.values():
            weight.requires_grad_(True)
        for batch in data.batches(gradient_batch_size(model, BATCH), limit):
            progress.step("gradients of the loss", seen, planned)
            with torch.enable_grad():
                loss = curvature_loss(model.outputs_of(*batch.inputs), batch.labels, generator)
                found = torch.autograd.grad(loss, list(weights.values()), allow_unused=True)
            for name, gradient in zip(weights, found):
                if gradient is not None:
                    total[name] += gradient.double().square()
            seen += len(batch)
        progress.step("gradients of the loss", seen, planned)
    finally:
        for name, weight in weights.items():
            weight.requires_grad_(before[name])
    return {name: value / max(seen, 1) for name, value in total.items()}
