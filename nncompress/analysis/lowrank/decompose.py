"""Low-rank decompositions of matrices, in float64, from the smaller of the two Gram matrices.

The left singular vectors U of M [a, b], a ≤ b, are the eigenvectors of M Mᵀ [a, a]: far cheaper than an SVD
where b ≫ a. The best approximation of rank r is the projection U_r U_rᵀ M: nothing is divided by a singular
value, so small ones do no harm. Under a metric (`nncompress.analysis.curvature.metric`) the same is done to
the whitened matrix Qᵀ M R, with G = Q Qᵀ and S = R Rᵀ; if a ≤ b its Gram matrix Qᵀ M S Mᵀ Q needs no root of
S, so rank-deficient statistics of the inputs do no harm either.

Of large matrices only as much is decomposed as is asked for, where that is little (`analysis.randomized`).
"""

from __future__ import annotations

from functools import cached_property

import torch
from torch import Tensor

from nncompress.analysis.curvature.metric import Metric, roots
from nncompress.analysis.lowrank.randomized import LARGE, Wanted, leading_pairs

# A Gram matrix squares the condition number: with float64's 2e-16, σ is off by 1e-16 (σ₁/σ)², relatively,
# times a factor that grows with the size. Values below this fraction of the largest come from a real SVD.
GRAM_LIMIT = 1e-4


class Spectrum:
    """One matrix [a, b], ready to be cut at any rank: `before · basis_r · basis_rᵀ · after`.

    Args:
        one, other: [d, m]: one · otherᵀ is the (whitened) matrix times its transpose, on the smaller side.
        before, after: what stands left [a, d] and right [d, b] of the projection; None is 1.
        count: how many singular values there are, min(a, b).
        wanted: how much of it will be asked for.
    """

    def __init__(
        self,
        one: Tensor,
        other: Tensor,
        before: Tensor | None,
        after: Tensor | None,
        count: int,
        wanted: Wanted | None = None,
    ) -> None:
        self._one, self._other, self._before, self._after = one, other, before, after
        self._count, self._wanted = count, wanted or Wanted()

    @cached_property
    def _leading(self) -> tuple[Tensor, Tensor] | None:
        """Eigenvalues and vectors of the Gram matrix, as many as are wanted; None: decompose in full."""
        if len(self._one) < LARGE or self._wanted.everything:
            return None
        return leading_pairs(self._one, self._other, self._wanted)

    @cached_property
    def _gram(self) -> Tensor:
        gram = self._one @ self._other.T
        self._one = self._other = gram[:0]  # not needed any more, and as large as the weight
        return (gram + gram.T) / 2

    @cached_property
    def values(self) -> Tensor:
        """Singular values, float64 [min(a, b)] or as many as were wanted, descending.

        Below 1e-4 of the first they are not precise (`singular_values`).
        """
        if self._leading is not None:
            return self._leading[0].sqrt()
        eigenvalues = torch.linalg.eigvalsh(self._gram)  # a third of the time that the vectors would take
        return eigenvalues.clamp_min(0).sqrt().flip(0)[: self._count]

    @cached_property
    def beyond(self) -> float:
        """The sum of the squares of those that are not among `values`."""
        if self._leading is None:
            return 0.0
        return float((self._one * self._other).sum() - self._leading[0].sum())

    @cached_property
    def basis(self) -> Tensor:
        """Singular vectors on the side that was decomposed, float64 [d, as many as `values`]."""
        if self._leading is not None:
            return self._leading[1]
        return torch.linalg.eigh(self._gram)[1].flip(1)[:, : self._count]

    def _vectors(self, rank: int) -> Tensor:
        """The first `rank` of `basis`; of a large matrix, few of them without computing all."""
        if self._leading is None and "basis" not in vars(self) and len(self._gram) >= LARGE:
            identity = torch.eye(len(self._gram), dtype=torch.float64)
            leading = leading_pairs(self._gram, identity, Wanted(leading=rank))
            if leading is not None:
                return leading[1]
        return self.basis[:, :rank]

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """left [a, rank] and right [rank, b]: left @ right loses Σ_{i ≥ rank} σ_i², the least possible.

        The scale is split evenly between the two, so that neither has extreme values.
        """
        left = right = self._vectors(rank)
        left = left if self._before is None else self._before @ left
        right = right.T if self._after is None else right.T @ self._after
        sizes = left.norm(dim=0), right.norm(dim=1)
        scale = torch.where((sizes[0] > 0) & (sizes[1] > 0), (sizes[1] / sizes[0]).sqrt(), 1.0)
        return left * scale, right / scale[:, None]


def decompose(matrix: Tensor, metric: Metric | None = None, wanted: Wanted | None = None) -> Spectrum:
    """A matrix [a, b], by the Gram matrix of its smaller side; nothing is decomposed until it is asked for.

    Time: min(a, b)² · max(a, b) for the Gram matrix and min(a, b)³ for its eigenvalues or -vectors.

    Args:
        metric: what is minimised by a cut; S and G must be positive definite (`with_ridge`).
        wanted: how much of the spectrum is of interest; of a large matrix no more is computed. None: all.
    """
    matrix = matrix.detach().to(torch.float64)
    rows, columns = matrix.shape
    count = min(rows, columns)
    if metric is None or (metric.inputs is None and metric.outputs is None):
        left, right = (None, matrix) if rows <= columns else (matrix, None)
        side = matrix if rows <= columns else matrix.T
        return Spectrum(side, side, left, right, count, wanted)
    diagonal = metric.inputs is not None and metric.inputs.dim() == 1
    if rows <= columns or diagonal:
        root, inverse = roots(metric.outputs)
        whitened, seen = (each if root is None else root.T @ each for each in (matrix, metric.seen(matrix)))
        before = None if inverse is None else inverse.T
        return Spectrum(seen, whitened, before, whitened, count, wanted)
    root, inverse = roots(metric.inputs)
    whitened = matrix if root is None else matrix @ root
    return Spectrum(whitened.T, metric.times_outputs(whitened).T, whitened, inverse, count, wanted)


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of a matrix [a, b], float64 [min(a, b)], descending, all of them precise to 1e-5."""
    matrix = matrix.detach().to(torch.float64)
    values = decompose(matrix).values
    if not len(values) or bool(values[-1] > GRAM_LIMIT * values[0]) or not bool(values[0] > 0):
        return values
    return torch.linalg.svdvals(matrix)
