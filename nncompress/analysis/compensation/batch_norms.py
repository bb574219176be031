"""Batch-norm statistics of a compressed network: measured anew, and kept only as far as that helps.

Re-estimation repairs large damage and costs accuracy where the damage is small, because a few hundred
samples know the statistics less well than the training did. So the new ones are blended into the old, and
the blend is chosen by the error on samples that were held out; nothing is the default.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.layerwise import LayerwiseRunner
from nncompress.analysis.observe.statistics import ChannelStatistics
from nncompress.analysis.observe.walk import Inputs
from nncompress.ir import Model
from nncompress.ir.edit.fold import is_affine

BLENDS = (0.25, 0.5, 1.0)  # share of the new statistics


def batch_norms(model: Model) -> list[fx.Node]:
    """Batch norms with running statistics, each statistic once."""
    found: dict[str, fx.Node] = {}
    for node in model.graph.nodes:
        if is_affine(model, node):
            found.setdefault(str(node.args[3].target), node)
    return list(found.values())


def reestimate(
    model: Model, batches: Sequence[Inputs], error: Callable[[], float], before: float | None = None
) -> tuple[float, float, float]:
    """Blend new statistics in, as far as `error` falls; the model is edited in place.

    Each norm is measured with the ones before it already renewed.

    Args:
        error: of the model as it is now, on held-out samples; before: what it gives, where that is known.

    Returns: the share of the new statistics that was kept (0: unchanged), the error before and after.
    """
    norms = batch_norms(model)
    pairs = [(model.tensor(str(n.args[3].target)), model.tensor(str(n.args[4].target))) for n in norms]  # type: ignore[union-attr]
    old = [(mean.clone(), variance.clone()) for mean, variance in pairs]
    before = error() if before is None else before
    if not norms:
        return 0.0, before, before
    run = LayerwiseRunner(model, batches)
    for node, (mean, variance) in zip(norms, pairs):
        data = node.args[0]
        assert isinstance(data, fx.Node)
        seen = ChannelStatistics(dim=1)
        for (value,) in run.values(data):
            seen.add(value)
        mean.copy_(seen.mean)
        variance.copy_(seen.variance * (seen.count / max(seen.count - 1, 1)))
    new = [(mean.clone(), variance.clone()) for mean, variance in pairs]
    best, least = 0.0, before
    for share in BLENDS:
        _blend(pairs, old, new, share)
        if (now := error()) < least:
            best, least = share, now
    _blend(pairs, old, new, best)
    return best, before, least


Statistics = Sequence[tuple[Tensor, Tensor]]


def _blend(into: Statistics, old: Statistics, new: Statistics, share: float) -> None:
    with torch.no_grad():
        for target, a, b in zip(into, old, new):
            for t, x, y in zip(target, a, b):
                t.copy_(x if share == 0 else y if share == 1 else torch.lerp(x, y, share))
