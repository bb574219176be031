"""What makes a moment safe to invert, and how much of it: a ridge, in shares of the moment's mean eigenvalue.

Moments of few samples, or of samples that are alike, claim correlations that others do not show. A ridge
takes them back; how much follows from samples that are held out, where there are some.
"""

from __future__ import annotations

import torch
from torch import Tensor

# So that inverses exist. As a constant in the metrics of `factorize`, where weights are cut by rank, it is as
# good as any (benchmarks/ridges.py): a ResNet-20's outputs move by 11.24 % with 32 images and 9.70 % with
# 512, with 1e-6 as with 1e-4, and farther with 1e-2 and more.
RIDGE = 1e-4
FEW = 1e-2  # where no sample could be held out
RIDGES = (1e-4, 1e-3, 1e-2, 1e-1, 1.0, 10.0, 100.0)  # weakest first; the last leaves nothing of correlations
HELD_OUT = 4  # every fourth sample decides
TOLD = 256  # inputs, spread evenly, that a ridge is judged on


def with_ridge(
    moment: Tensor, ridge: float = RIDGE, *, of_nothing: float = 1.0, together: bool = False
) -> Tensor:
    """A second moment [..., d, d] (or its diagonal, 1-dim) made safe to invert.

    Args:
        of_nothing: what is added to one that is all zero.
        together: moments [n, d, d] that are held against each other have their mean eigenvalue in common, so
            that one that is small stays so.
    """
    lifted = moment.clone()
    diagonal = lifted if moment.dim() == 1 else lifted.diagonal(dim1=-2, dim2=-1)
    diagonal += _lift(diagonal, ridge, of_nothing, together=together)
    return lifted


def _lift(diagonal: Tensor, ridge: float, of_nothing: float = 1.0, *, together: bool = False) -> Tensor:
    mean = diagonal.mean() if together else diagonal.mean(-1, keepdim=True)
    return torch.where(mean > 0, ridge * mean, torch.full_like(mean, of_nothing))


def solve_towards(second: Tensor, cross: Tensor, start: Tensor, ridge: float) -> Tensor:
    """W [..., out, d] that minimises tr(W S Wᵀ) − 2 tr(W Cᵀ) + λ|W − start|², λ the ridge.

    Args:
        second: S, float64 [..., d, d].
        cross: C, [..., out, d].
    """
    lift = _lift(second.diagonal(dim1=-2, dim2=-1), ridge)[..., None]
    return torch.linalg.solve(with_ridge(second, ridge), (cross + start * lift).mT).mT


def held_out_ridge(fitted: Tensor, held: Tensor) -> float:
    """The ridge with which inputs make up best for each other, on samples that were held out.

    With P = (S + λ)⁻¹, the others tell an input to within (P x)_j / P_jj, which is what an output loses with
    it (Hassibi and Stork 1993): on samples of moment H, (P H P)_jj / P_jj² in the mean of squares.

    Args:
        fitted: S, second moments of samples, float64 [..., d, d].
        held: H, of other samples.
    """
    width = fitted.shape[-1]
    inputs = torch.linspace(0, width - 1, min(width, TOLD)).round().long()
    wanted = torch.eye(width, dtype=fitted.dtype)[:, inputs].expand(*fitted.shape[:-1], -1).contiguous()
    best, least = RIDGES[-1], float("inf")
    for ridge in RIDGES:
        columns = torch.cholesky_solve(wanted, torch.linalg.cholesky(with_ridge(fitted, ridge)))  # P_:j
        left = (columns * (held @ columns)).sum(-2) / (columns * wanted).sum(-2).square()
        error = float(left.sum())
        if error >= least:
            break
        best, least = ridge, error
    return best
