"""Orthogonal matrices that spread what lies in one channel over all, and leave the mean of the channels."""

from __future__ import annotations

import torch
from torch import Tensor


def orthogonal(width: int, seed: int) -> Tensor:
    """Q, float64 [width, width], with Q Qᵀ = 1 and Q 1 = 1: the mean of x Q is that of x.

    A Hadamard matrix with random signs, whose entries are all ±1/√width, as far as the width is a power of
    two; what is left of it, an odd number, is a random orthogonal matrix (Ashkboos et al. 2024, "QuaRot"). A
    reflection takes the mean back to where it was, so that a layer norm need not know.
    """
    generator = torch.Generator().manual_seed(seed)
    power = width & -width
    hadamard = torch.ones(1, 1, dtype=torch.float64)
    while len(hadamard) < power:
        hadamard = torch.kron(torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64), hadamard)
    odd = width // power
    rest, triangle = torch.linalg.qr(torch.randn(odd, odd, dtype=torch.float64, generator=generator))
    rest = (rest * triangle.diagonal().sign()).contiguous()  # without signs it is not uniform over all
    signs = 2 * torch.randint(0, 2, (width, 1), generator=generator).double() - 1
    turned = signs * torch.kron(rest, hadamard / power**0.5)
    mean = torch.full((width,), width**-0.5, dtype=torch.float64)
    across = turned @ mean - mean
    size = float(across.square().sum())
    return turned if size < 1e-12 else turned - torch.outer(across, across @ turned) * (2 / size)
