"""The weight of low rank that is nearest to a given one, in what the layer computes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.lowrank.decompose import decompose
from nncompress.analysis.lowrank.spatial import SpatialDecomposition
from nncompress.analysis.lowrank.tucker import TuckerDecomposition


def nearest(
    form: str, ranks: tuple[int, ...], weight: Tensor, kernel: Sequence[int], metric: Metric
) -> Tensor:
    """Of all weights of these ranks, the one that costs least.

    Args:
        form: "linear", "channel" (one matrix), "spatial" or "tucker"; ranks that a smaller weight does not
            have are as good as full.
        weight: [out, in · K…]; kernel: K….

    Returns: float64, of the shape of `weight`.
    """
    filters = weight.reshape(len(weight), -1, *kernel)
    if form == "spatial":
        rank = min(ranks[0], filters.shape[1] * kernel[0], len(weight) * kernel[1])
        vertical, horizontal = SpatialDecomposition(filters, metric, rank).factors(rank)
        return torch.einsum("rik,orl->oikl", vertical, horizontal).reshape(weight.shape)
    if form == "tucker":
        first, second = min(ranks[0], filters.shape[1]), min(ranks[1], len(weight))
        into, core, out = TuckerDecomposition(filters, metric).factors((first, second))
        return torch.einsum("ai,bak,ob->oik", into, core.flatten(2), out).reshape(weight.shape)
    left, right = decompose(weight, metric).factors(min(ranks[0], *weight.shape))
    return left @ right
