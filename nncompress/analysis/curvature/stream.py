"""Gradients of the random scalar whose mean square is the curvature of the loss, batch by batch."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, fx

from nncompress.analysis.answer import known_answer
from nncompress.analysis.curvature.autograd import finite
from nncompress.analysis.curvature.losses import curvature_loss
from nncompress.analysis.observe.gradient_hooks import GradientHooks
from nncompress.data import Batch, Dataset
from nncompress.ir.graph.model import Model
from nncompress.progress import Progress


def curvature_gradients(
    model: Model,
    values: Iterable[fx.Node],
    watched: Iterable[fx.Node],
    data: Dataset,
    *,
    limit: int | None,
    batch_size: int,
    draws: int,
    seed: int,
    progress: Progress,
    what: str,
) -> Iterator[tuple[GradientHooks, list[dict[fx.Node, Tensor]], Batch]]:
    """Per batch: the values at the nodes, the gradients at `values` of each of the `draws`, and the batch.

    Args:
        values: nodes whose result and gradient are wanted; watched: those whose result is.
        what: said of the progress.

    Raises:
        UnsupportedError: a gradient is not finite.
    """
    hooks = GradientHooks(model, {}, values, watched)
    generator = torch.Generator().manual_seed(seed)
    seen, planned = 0, data.planned_samples(limit)
    answer = known_answer(model)
    for batch in data.batches(batch_size, limit):
        progress.step(what, seen, planned)
        with torch.enable_grad():
            outputs = hooks.outputs(*batch.inputs)
            losses = [curvature_loss(outputs, batch, generator, answer) for _ in range(draws)]
        gradients = [hooks.gradients(loss, again=i + 1 < draws)[1] for i, loss in enumerate(losses)]
        del outputs, losses
        for each in gradients:
            for node, gradient in each.items():
                finite(gradient, node.name)
        with torch.no_grad():
            yield hooks, gradients, batch
        seen += len(batch)
    progress.step(what, seen, planned)
