"""Round weights so that a layer's *output* errs least, instead of every weight by itself.

Nagel et al. 2020, "Up or Down? Adaptive Rounding for Post-Training Quantization": with Δ the rounding error
of one output's weights and x what they multiply, the output errs by E[(Δ x)²] = Δ E[x xᵀ] Δᵀ (their eq. 13,
20): a quadratic problem over two choices per weight. They relax it to gradient descent over batches; here the
second moment is gathered once, and coordinate descent lowers it until no single choice does.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf

import torch
from torch import Tensor

SWEEPS = 10
BLOCK = 128  # columns whose changes are told to the others together


def descend(
    target: Tensor,
    start: Tensor,
    second: Tensor,
    rounded: Callable[[Tensor, int], Tensor],
    *,
    least: float = 0.0,
) -> Tensor:
    """Allowed rows v with (v − w) H (v − w)ᵀ lowered from `start`, one column after the other.

    Groups of a grouped convolution are problems of their own, solved together: `…` is nothing, or [groups].

    Args:
        target: w, […, outputs, d].
        start: of allowed values, […, outputs, d].
        second: H = E[x xᵀ], […, d, d], all three in float64, or in float32.
        rounded: (values […, outputs], column) -> the nearest that are allowed there.
        least: a sweep that lowers the error by a smaller share is the last.

    Returns: […, outputs, d].
    """
    values = start.clone()
    diagonal = second.diagonal(dim1=-2, dim2=-1)[..., None, :]  # […, 1, d]
    diagonal = diagonal.maximum(1e-12 * diagonal.amax(-1, keepdim=True) + torch.finfo(second.dtype).tiny)
    slope = (values - target) @ second
    width = second.shape[-1]
    error = inf
    for _ in range(SWEEPS):
        before, error = error, float(((values - target) * slope).sum()) if least else inf
        if least and before - error < least * before < inf:
            break
        moved = False
        for first in range(0, width, BLOCK):
            block = slice(first, min(first + BLOCK, width))
            own = second[..., block, block]
            old = values[..., block].mT.contiguous()  # what is gone through lies together
            now, local = old.clone(), slope[..., block].mT.contiguous()
            for j in range(own.shape[-1]):
                step = local[..., j, :] / diagonal[..., first + j]
                now[..., j, :] = best = rounded(old[..., j, :] - step, first + j)
                _add_outer(local[..., j + 1 :, :], own[..., j, j + 1 :], best - old[..., j, :])
            change = now.sub(old)
            if change.any():
                moved = True
                slope += change.mT @ second[..., block, :]
                values[..., block] = now.mT
        if not moved:
            break
    return values


def _add_outer(into: Tensor, column: Tensor, row: Tensor) -> None:
    """Their outer product, in place, without a copy of it."""
    if into.dim() == 2:
        into.addr_(column, row)
    else:
        into.baddbmm_(column[..., None], row[..., None, :])


def round_adaptively(weight: Tensor, scales: Tensor, start: Tensor, second: Tensor, top: int) -> Tensor:
    """Int8 rows q, each weight one of its two neighbours, with (q s − w) H (q s − w)ᵀ lowered from `start`.

    Args:
        weight: […, outputs, d], as in `descend`.
        scales: […, outputs], the step of each row.
        start: int8 […, outputs, d], the nearest values.
        second: H = E[x xᵀ], float64 […, d, d].
        top: |q| is at most this.

    Returns: int8 […, outputs, d]. What is zero stays zero.
    """
    step = scales.to(torch.float64)[..., None]
    target = weight.to(torch.float64) / step  # everything in units of the row's step
    low, high = target.floor().clamp(-top, top), target.ceil().clamp(-top, top)

    def neighbour(values: Tensor, column: int) -> Tensor:
        return torch.minimum(torch.maximum(torch.round(values), low[..., column]), high[..., column])

    return descend(target, start.to(torch.float64), second, neighbour).to(torch.int8)
