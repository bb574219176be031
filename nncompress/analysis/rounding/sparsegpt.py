"""An N:M pattern with compensation: which weights stay, and what the others' share in the output becomes.

A row w of weights gives w x. To take weight j away at the least error of the output, E[(δ x)²] = δ H δᵀ with
H = E[x xᵀ], the weights that are still free move by δ = −w_j / (H⁻¹)_jj · (H⁻¹)_j, at the cost
w_j² / (H⁻¹)_jj (Hassibi & Stork 1993, "Optimal Brain Surgeon"). Going through the columns once, from left to
right, with those left of j fixed, all rows need the same inverses: those are rows of the Cholesky factor of
H⁻¹ (Frantar & Alistarh 2023, "SparseGPT", §3, whose §3.4 chooses each group of M when its turn comes).
"""

from __future__ import annotations

import torch
from torch import Tensor

BLOCK = 128  # columns whose moves reach those to their right in one product


def pruned(weight: Tensor, second: Tensor, n: int, m: int) -> Tensor:
    """`weight` with n of every m neighbouring columns left in each row; the rest makes up for the others.

    Args:
        weight: [outputs, d], d a multiple of m.
        second: H = E[x xᵀ], positive definite (`with_ridge`), float64 [d, d].

    Returns: float64 [outputs, d]. What is zero in `weight` stays zero.
    """
    width = second.shape[0]
    # Row j of the upper factor U, H⁻¹ = Uᵀ U: (U_jj², U_jj U_j) are (H⁻¹)_jj and (H⁻¹)_j once what is left
    # of j is fixed.
    upper = torch.linalg.cholesky(torch.cholesky_inverse(torch.linalg.cholesky(second)), upper=True)
    # Transposed: what is a column of the weight lies together.
    left = weight.T.to(torch.float64, copy=True, memory_format=torch.contiguous_format)
    gone = left == 0
    step = max(m, BLOCK // m * m)
    for start in range(0, width, step):
        stop = min(start + step, width)
        amounts = left.new_zeros(stop - start, left.shape[1])
        for first in range(start, stop, m):
            group = slice(first, first + m)
            cost = (left[group] / upper.diagonal()[group, None]).square().masked_fill(gone[group], -1)
            going = largest(-cost.T, m - n).T | gone[group]
            for j in range(m):
                column = first + j
                amount = torch.where(going[j], left[column], 0) / upper[column, column]
                left[column + 1 : stop].addr_(upper[column, column + 1 : stop], amount, alpha=-1)
                left[column, going[j]] = 0
                amounts[column - start] = amount
        left[stop:].addmm_(upper[start:stop, stop:].T, amounts, alpha=-1)
    return left.T


def largest(values: Tensor, count: int) -> Tensor:
    """True for the `count` largest of the last dim, exactly; of equal ones, any."""
    chosen = torch.zeros_like(values, dtype=torch.bool)
    return chosen.scatter_(-1, values.topk(count, -1).indices, True)
