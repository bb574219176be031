"""The diagonal of the loss's curvature: what an error in each single weight costs the model's output."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nncompress.analysis.answer import known_answer
from nncompress.analysis.curvature.autograd import differentiable_outputs
from nncompress.analysis.curvature.losses import curvature_loss
from nncompress.analysis.curvature.squared_gradients import mean_squared_gradients
from nncompress.data import Dataset
from nncompress.ir import Model
from nncompress.progress import NullProgress, Progress


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
    empirical one (Kunstner et al. 2019); samples are then independent, so one backward pass serves a batch.
    """
    answer = known_answer(model)
    generator = torch.Generator().manual_seed(seed)
    with differentiable_outputs(model):
        return mean_squared_gradients(
            model,
            {name: model.tensor(name) for name in names},
            data,
            lambda batch: curvature_loss(model.outputs_of(*batch.inputs), batch, generator, answer),
            limit=limit,
            progress=progress or NullProgress(),
            label="gradients of the loss",
        )
