"""The leading eigenpairs of a large Gram matrix, by randomized subspace iteration (Halko et al. 2011, §4.5).

A full decomposition of [d, d] costs d³, whatever the rank that is wanted. Here a random block of k ≪ d
vectors is multiplied by the matrix a few times; then its Ritz values θ are the leading eigenvalues λ.

What is returned has been checked. The Ritz residuals ρ bound the errors by min(ρ, ρ² / gap) (Parlett 1998,
§11.7), the trace says what is beyond the block, and whoever asks for the lowest sufficient rank gets it only
if the bounds leave no doubt. Otherwise there is no answer, and the caller decomposes in full.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGE = 1024  # smaller sides are decomposed in full
MOST = 8  # blocks of more than 1/8 of the side cost about as much as decomposing in full
FIRST = 32  # vectors in the first block
SPARE = 2  # vectors per eigenpair that is wanted: the iteration converges by the ratio across them
STEPS = 3  # multiplications between two checks
CHECKS = 5  # of one block, before giving up
PRECISION = 1e-6  # relative, of each eigenvalue


@dataclass(frozen=True)
class Wanted:
    """How much of a spectrum is needed; both None: all of it.

    Attributes:
        leading: this many singular values.
        enough: as many as it takes for the squares of all others to sum to less than this.
        multiple: rounded up to a multiple of this.
    """

    leading: int | None = None
    enough: float | None = None
    multiple: int = 1

    @property
    def everything(self) -> bool:
        return self.leading is None and self.enough is None

    def count(self, theta: Tensor, trace: float) -> int:
        """How many eigenpairs that is, going by Ritz values [k]; if more than k, at least how many."""
        if self.leading is not None:
            count = self.leading
        else:
            assert self.enough is not None
            left = trace - theta.cumsum(0)
            count = int((left >= self.enough).sum()) + 1
            if count > len(theta):  # those that follow are not larger than the last
                count += int((float(left[-1]) - self.enough) / max(float(theta[-1]), 1e-300))
        return -(-count // self.multiple) * self.multiple

    def certain(self, theta: Tensor, bounds: Tensor, trace: float) -> bool:
        """Even if the eigenvalues are larger by `bounds`, a lower rank is not enough."""
        if self.enough is None:
            return True
        lowest = int((trace - theta.cumsum(0) >= self.enough).sum())  # this rank is not sufficient
        return trace - float((theta + bounds)[:lowest].sum()) >= self.enough


def leading_pairs(a: Tensor, b: Tensor, wanted: Wanted, seed: int = 0) -> tuple[Tensor, Tensor] | None:
    """Leading eigenvalues [r], descending, and eigenvectors [d, r] of the positive semi-definite a · bᵀ.

    The vectors are iterated in float32; values, bounds and vectors that are returned come from float64.

    Args:
        a, b: float64 [d, m].

    Returns: None where the bounds are not met within the block sizes that pay.
    """
    size = len(a)
    trace = float((a * b).sum())
    if not trace > 0:
        return None
    scale = trace**-0.5  # float32 has the digits, but not always the range
    quick_a, quick_b = (a * scale).float(), (b * scale).float()
    generator = torch.Generator().manual_seed(seed)
    block = max(FIRST, SPARE * (wanted.leading or 0))
    basis, checks = torch.empty(size, 0), 0
    while block <= size // MOST and checks < CHECKS:
        if basis.shape[1] < block:
            basis = torch.cat([basis, torch.randn(size, block - basis.shape[1], generator=generator)], 1)
            checks = 0
        for _ in range(STEPS):
            basis = torch.linalg.qr(quick_a @ (quick_b.T @ basis))[0]
        theta, vectors, residuals = _ritz(a, b, basis.double())
        basis = vectors.float()
        checks += 1
        count = wanted.count(theta, trace)
        if SPARE * count > block:
            block = max(2 * block, SPARE * count)
            continue
        gaps = (theta - theta[-1]).clamp_min(1e-300)
        bounds = torch.minimum(residuals, residuals**2 / gaps)
        if bool((bounds[:count] <= PRECISION * theta[:count]).all()):
            sure = wanted.certain(theta, bounds, trace)
            return (theta[:count], vectors[:, :count]) if sure else None
    return None


def _ritz(a: Tensor, b: Tensor, basis: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Ritz values [k], descending, their vectors [d, k] and the norms of their residuals [k]."""
    basis = torch.linalg.qr(basis)[0]
    image = a @ (b.T @ basis)
    small = basis.T @ image
    theta, turn = torch.linalg.eigh((small + small.T) / 2)
    theta, turn = theta.flip(0), turn.flip(1)
    vectors = basis @ turn
    return theta, vectors, (image @ turn - vectors * theta).norm(dim=0)
