"""Low-rank decompositions of matrices, in float64, from the smaller of the two Gram matrices.

The left singular vectors U of M [a, b], a ≤ b, are the eigenvectors of its Gram matrix M Mᵀ [a, a]: cheaper
than an SVD where b ≫ a. The best approximation of rank r is the projection U_r U_rᵀ M: nothing is divided by
a singular value, so small ones do no harm.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

# A Gram matrix squares the condition number: with float64's 2e-16, σ is off by 1e-16 (σ₁/σ)², relatively.
# Values below this fraction of the largest come from a real SVD.
GRAM_LIMIT = 1e-5


@dataclass(frozen=True)
class Spectrum:
    """One matrix, ready to be cut at any rank.

    Attributes:
        matrix: float64 [a, b].
        values: singular values σ, float64 [min(a, b)], descending.
        basis: singular vectors of the smaller side, [a, min(a, b)] if a ≤ b, else [b, min(a, b)].
    """

    matrix: Tensor
    values: Tensor
    basis: Tensor

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """left [a, rank] and right [rank, b]: left @ right is the closest matrix of that rank (Eckart-Young).

        σ is split evenly between the two, so that neither has an extreme scale.
        """
        root = self.values[:rank].clamp_min(self.values[0] * 1e-12 + 1e-300).sqrt()
        basis = self.basis[:, :rank]
        rows, columns = self.matrix.shape
        if rows <= columns:
            return basis * root, (basis.T @ self.matrix) / root[:, None]
        return (self.matrix @ basis) / root, (basis * root).T


def decompose(matrix: Tensor) -> Spectrum:
    """The singular values and the smaller side's singular vectors of a matrix [a, b].

    Time: min(a, b)² · max(a, b) for the Gram matrix and min(a, b)³ for its eigenvectors.
    """
    matrix = matrix.detach().to(torch.float64)
    gram = _smaller_gram(matrix)
    eigenvalues, vectors = torch.linalg.eigh(gram)
    values, basis = eigenvalues.clamp_min(0).sqrt().flip(0), vectors.flip(1)
    return Spectrum(matrix, _repair_small(matrix, values), basis)


def singular_values(matrix: Tensor) -> Tensor:
    """Singular values of a matrix [a, b], float64 [min(a, b)], descending; no vectors are computed."""
    matrix = matrix.detach().to(torch.float64)
    values = torch.linalg.eigvalsh(_smaller_gram(matrix)).clamp_min(0).sqrt().flip(0)
    return _repair_small(matrix, values)


def _smaller_gram(matrix: Tensor) -> Tensor:
    return matrix @ matrix.T if matrix.shape[0] <= matrix.shape[1] else matrix.T @ matrix


def _repair_small(matrix: Tensor, values: Tensor) -> Tensor:
    """Where some σ are too small for a Gram matrix to tell, take all of them from an SVD."""
    if not len(values) or bool(values[-1] > GRAM_LIMIT * values[0]) or not bool(values[0] > 0):
        return values
    return torch.linalg.svdvals(matrix)
