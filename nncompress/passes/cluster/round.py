"""A weight's numbers to the nearest allowed ones, alone or so that those not yet rounded make up for it."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from nncompress.analysis.rounding.gptq import round_compensated
from nncompress.ir.formats.packed import distinct_values
from nncompress.passes.cluster.codebooks import Codebooks
from nncompress.passes.cluster.options import SIZES
from nncompress.passes.cluster.positions import Positions

_PART = 2**20  # weights that are rounded together


def importance_of(weight: Tensor, moments: Tensor, positions: Positions) -> Tensor:
    """What the square of each number's error costs in the layer's output, float64 as the weight.

    Args:
        moments: of the layer's inputs, [groups, in, in], or [groups, in] where only the diagonal is known.
    """
    diagonal = moments if moments.dim() == 2 else moments.diagonal(dim1=1, dim2=2)
    importance = torch.empty(weight.numel(), dtype=torch.float64)
    importance[positions.index] = diagonal[:, None, :].expand(positions.index.shape)
    return importance.reshape(weight.shape)


def smallest_books(
    share_lost: float, weight: Tensor, channels: Tensor, importance: Tensor | None
) -> Codebooks | str:
    """The smallest codebooks that lose no more of the weight's squares; or why there are none."""
    present = distinct_values(weight)
    most = SIZES[-1] if present is None else len(present) - 1
    energy, lost = float(weight.double().square().sum()), float("inf")
    for size in (size for size in SIZES if size <= most):
        books = Codebooks.fit(weight, channels, size, importance)
        error = (books.nearest(weight, channels) - weight.double()).masked_fill(weight == 0, 0)
        lost = float(error.square().sum()) / (energy or 1.0)
        if lost <= share_lost:
            return books
    if present is not None:
        return f"it has only {len(present)} values"
    return f"{SIZES[-1]} values would lose {lost:.2%} of its squares"


def round_weight(
    weight: Tensor, nearest: Callable[[Tensor, Tensor], Tensor], made_up: tuple[Positions, Tensor] | None
) -> Tensor:
    """The weight with allowed values only, in its own dtype. Pruned connections (zeros) stay zero.

    Args:
        nearest: the allowed values for values at these flat positions.
        made_up: where the weight stands in its layer's matrices, and the second moments [groups, in, in] of
            what they multiply: errors are made up for by numbers that are not yet rounded.
    """
    before = weight.flatten()

    def allowed(values: Tensor, at: Tensor) -> Tensor:
        return torch.where(before[at] == 0, 0.0, nearest(values, at))

    if made_up is None:
        rounded = torch.empty_like(before)
        for start in range(0, weight.numel(), _PART):
            at = torch.arange(start, min(start + _PART, weight.numel()))
            rounded[at] = allowed(before[at], at).to(weight.dtype)
        return rounded.reshape(weight.shape)
    flat = before.to(torch.float64)
    positions, moments = made_up
    for index, moment in zip(positions.index, moments):
        flat[index] = round_compensated(before[index], moment, partial(_at_columns, allowed, index))
    return flat.reshape(weight.shape).to(weight.dtype)


def _at_columns(
    allowed: Callable[[Tensor, Tensor], Tensor], index: Tensor, values: Tensor, j: Tensor
) -> Tensor:
    """What is allowed for values of one column of a matrix whose numbers stand at `index` [out, in]."""
    return allowed(values, index[:, j])
