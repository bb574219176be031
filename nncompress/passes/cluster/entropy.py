"""How often each value occurs in a weight, and what its indices cost at least."""

from __future__ import annotations

import torch
from torch import Tensor


def counts_of(weight: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """How often each value of each channel occurs: the channel of every such pair [n], and the counts [n]."""
    values, index = torch.unique(weight.flatten(), return_inverse=True)
    pairs, counts = torch.unique(channels.flatten() * len(values) + index, return_counts=True)
    return pairs // len(values), counts


def entropy_bytes(weight: Tensor, channels: Tensor) -> float:
    """What no coding of the single indices can go below: the entropy of their distribution per codebook."""
    owner, counts = counts_of(weight, channels)
    total = torch.zeros(int(channels.max()) + 1, dtype=torch.float64)
    total.index_add_(0, owner, counts.double())
    return float((counts * (total[owner] / counts).log2()).sum() / 8)


def times(stored: int, least: float) -> str:
    return f" ({stored / least:.2f} times the entropy)" if least else ""
