"""Rounding a layer's weights so that its output changes least.

Rounding every weight to its nearest value ignores that errors of one output add up over correlated inputs.
Here the inputs are gone through one by one; the error that rounding input j leaves in every output is made up
for, as far as the inputs' correlation allows, by the weights of the inputs that are still to be rounded
(optimal brain surgery, Hassibi and Stork 1993; Frantar et al. 2023, "GPTQ").

With S = A Aᵀ, A upper triangular, the output errs by |Δ A|², whose k-th entry knows no error of an input
after k. So input k is rounded from w_k − Σ_{i<k} Δ_i A_ik / A_kk, with Δ the errors against the *original*
weights (Babai's nearest plane). Algorithm 1 of GPTQ has the same numbers from factors of S⁻¹, at four times
the work.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nncompress.analysis.observe.moments import cholesky

BLOCK = 128  # inputs whose updates are gathered before they reach the rest of the matrix


def round_compensated(matrix: Tensor, moment: Tensor, rounded: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """`matrix` [out, in] rounded so that tr(Δ S Δᵀ) is small, float64.

    Args:
        moment: S = E[x xᵀ] of the inputs, positive definite, float64 [in, in].
        rounded: (values [out], index of the input) -> the values [out] that are allowed in their place.
    """
    return round_in_order(matrix.double(), *elimination(moment), rounded)


def elimination(moment: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
    """In which order inputs are rounded, and how the later make up for each: A_ik / A_kk in that order,
    `dtype` [in, in]. Two and a half float64 matrices of that size are held at most, the moment among them."""
    order = moment.diagonal().argsort(descending=True)  # what matters most is rounded while all can make up
    last = order.flip(0)
    lower = cholesky(moment[last[:, None], last])
    lower /= lower.diagonal().clone()
    lower = lower.to(dtype)
    return order, lower.flip(0, 1)


def round_in_order(
    matrix: Tensor, order: Tensor, factor: Tensor, rounded: Callable[[Tensor, Tensor], Tensor]
) -> Tensor:
    """As `round_compensated`, which it does to some rows of a matrix as to all, in the matrix's dtype.

    Args:
        factor: in the same dtype.
    """
    wanted = matrix.T[order]  # an input's weights lie together
    result, shift = torch.empty_like(wanted), torch.zeros_like(wanted)
    count = len(wanted)
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        for j in range(start, stop):
            result[j] = rounded(wanted[j] - shift[j], order[j])
            shift[j + 1 : stop].addr_(factor[j, j + 1 : stop], result[j] - wanted[j])
        shift[stop:].addmm_(factor[start:stop, stop:].T, result[start:stop] - wanted[start:stop])
    return torch.empty_like(matrix).index_copy_(1, order, result.T)
