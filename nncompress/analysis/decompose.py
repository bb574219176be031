"""Low-rank decompositions of matrices, in float64, from the smaller of the two Gram matrices.

The left singular vectors U of M [a, b], a ≤ b, are the eigenvectors of M Mᵀ [a, a]: far cheaper than an SVD
where b ≫ a. The best approximation of rank r is the projection U_r U_rᵀ M: nothing is divided by a singular
value, so small ones do no harm. Under a metric (`nncompress.analysis.metric`) the same is done to the
whitened matrix G^(1/2) M S^(1/2); if a ≤ b its Gram matrix G^(1/2) M S Mᵀ G^(1/2) needs no root of S, so
rank-deficient statistics of the inputs do no harm either.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.analysis.metric import Metric, roots

# A Gram matrix squares the condition number: with float64's 2e-16, σ is off by 1e-16 (σ₁/σ)², relatively.
# Values below this fraction of the largest come from a real SVD.
GRAM_LIMIT = 1e-5


@dataclass(frozen=True)
class Spectrum:
    """One matrix [a, b], ready to be cut at any rank: `before · basis_r · basis_rᵀ · after`.

    Attributes:
        values: singular values of the (whitened) matrix, float64 [min(a, b)], descending.
        basis: its singular vectors on the side that was decomposed, float64 [d, min(a, b)].
        before, after: what stands left [a, d] and right [d, b] of the projection; None is 1.
    """

    values: Tensor
    basis: Tensor
    before: Tensor | None
    after: Tensor | None

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """left [a, rank] and right [rank, b]: left @ right loses Σ_{i ≥ rank} σ_i², the least possible.

        The scale is split evenly between the two, so that neither has extreme values.
        """
        left = right = self.basis[:, :rank]
        left = left if self.before is None else self.before @ left
        right = right.T if self.after is None else right.T @ self.after
        sizes = left.norm(dim=0), right.norm(dim=1)
        scale = torch.where((sizes[0] > 0) & (sizes[1] > 0), (sizes[1] / sizes[0]).sqrt(), 1.0)
        return left * scale, right / scale[:, None]


def decompose(matrix: Tensor, metric: Metric | None = None) -> Spectrum:
    """The singular values and the smaller side's singular vectors of a matrix [a, b].

    Time: min(a, b)² · max(a, b) for the Gram matrix and min(a, b)³ for its eigenvectors.

    Args:
        metric: what is minimised by a cut; S and G must be positive definite (`with_ridge`).
    """
    matrix = matrix.detach().to(torch.float64)
    rows, columns = matrix.shape
    if metric is None or (metric.inputs is None and metric.outputs is None):
        values, basis = _eigen(_smaller_gram(matrix))
        values = _repair_small(matrix, values)
        return Spectrum(values, basis, *((None, matrix) if rows <= columns else (matrix, None)))
    diagonal = metric.inputs is not None and metric.inputs.dim() == 1
    if rows <= columns or diagonal:
        root, inverse = roots(metric.outputs)
        whitened = matrix if root is None else root @ matrix
        values, basis = _eigen(metric.times_inputs(whitened) @ whitened.T)
        return Spectrum(values[:columns], basis[:, :columns], inverse, whitened)
    root, inverse = roots(metric.inputs)
    whitened = matrix if root is None else matrix @ root
    values, basis = _eigen(whitened.T @ metric.times_outputs(whitened))
    return Spectrum(values, basis, whitened, inverse)


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of a matrix [a, b], float64 [min(a, b)], descending; no vectors are computed."""
    matrix = matrix.detach().to(torch.float64)
    values = torch.linalg.eigvalsh(_smaller_gram(matrix)).clamp_min(0).sqrt().flip(0)
    return _repair_small(matrix, values)


def _eigen(gram: Tensor) -> tuple[Tensor, Tensor]:
    """Roots of the eigenvalues, descending, and the eigenvectors in that order."""
    eigenvalues, vectors = torch.linalg.eigh((gram + gram.T) / 2)
    return eigenvalues.clamp_min(0).sqrt().flip(0), vectors.flip(1)


def _smaller_gram(matrix: Tensor) -> Tensor:
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _repair_small(matrix: Tensor, values: Tensor) -> Tensor:
    """Where some σ are too small for a Gram matrix to tell, take all of them from an SVD."""
    if not len(values) or bool(values[-1] > GRAM_LIMIT * values[0]) or not bool(values[0] > 0):
        return values
    return torch.linalg.svdvals(matrix)
