"""Rounding a layer's weights so that its output changes least.

Rounding every weight to its nearest value ignores that errors of one output add up over correlated inputs.
Here the inputs are gone through one by one; the error that rounding input j leaves in every output is made up
for, as far as the inputs' correlation allows, by the weights of the inputs that are still to be rounded
(optimal brain surgery, Hassibi and Stork 1993; by a Cholesky factor: Frantar et al. 2023, "GPTQ", alg. 1).
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

BLOCK = 128  # inputs whose updates are gathered before they reach the rest of the matrix


def round_compensated(matrix: Tensor, moment: Tensor, rounded: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`matrix` [out, in] rounded so that tr(Δ S Δᵀ) is small, float64.

    Args:
        moment: S = E[x xᵀ] of the inputs, positive definite, float64 [in, in].
        rounded: (values [out], index of the input) -> the values [out] that are allowed in their place.
    """
    return round_in_order(matrix, *elimination(moment), rounded)


def elimination(moment: Tensor) -> tuple[Tensor, Tensor]:
    """In which order inputs are rounded, and how the others make up for each: the upper Cholesky factor of
    S⁻¹ in that order, float64 [in, in]. No more than three matrices of that size are held at a time."""
    order = moment.diagonal().argsort(descending=True)  # what matters most is rounded while all can make up
    lower = torch.linalg.cholesky(moment[order][:, order])
    inverse = torch.cholesky_inverse(lower)
    del lower
    return order, torch.linalg.cholesky(inverse, upper=True)


def round_in_order(
    matrix: Tensor, order: Tensor, factor: Tensor, rounded: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """As `round_compensated`, which it does to some rows of a matrix as to all."""
    work = matrix.to(torch.float64)[:, order]
    result = torch.empty_like(work)
    count = work.shape[1]
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        errors = torch.empty(len(work), stop - start, dtype=torch.float64)
        for j in range(start, stop):
            result[:, j] = rounded(work[:, j], order[j])
            errors[:, j - start] = (work[:, j] - result[:, j]) / factor[j, j]
            work[:, j:stop] -= errors[:, j - start, None] * factor[j, j:stop]
        work[:, stop:] -= errors @ factor[start:stop, stop:]
    return torch.empty_like(result).index_copy_(1, order, result)
