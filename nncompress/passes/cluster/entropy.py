"""How often each value occurs in a weight, and what its indices cost at least."""

from __future__ import annotations

import torch
from torch import Tensor

_MOST = 2**20  # pairs that are counted where they are, which takes memory for those only
_PART = 2**20  # weights that are counted together


def counts_of(weight: Tensor, channels: Tensor) -> tuple[Tensor, Tensor]:
    """How often each value of each channel occurs: the channel of every such pair [n], and the counts [n]."""
    values, owners = torch.unique(weight), channels.flatten()
    pairs = torch.zeros(len(values) * (int(channels.max()) + 1), dtype=torch.int64)
    if len(pairs) > _MOST:
        index = torch.unique(weight.flatten(), return_inverse=True)[1]
        found, counts = torch.unique(owners * len(values) + index, return_counts=True)
        return found // len(values), counts
    for part, owner in zip(weight.flatten().split(_PART), owners.split(_PART)):
        pairs += torch.bincount(owner * len(values) + torch.searchsorted(values, part), minlength=len(pairs))
    found = pairs.nonzero()[:, 0]
    return found // len(values), pairs[found]


def entropy_bytes(weight: Tensor, channels: Tensor) -> float:
    """What no coding of the single indices can go below: the entropy of their distribution per codebook."""
    owner, counts = counts_of(weight, channels)
    total = torch.zeros(int(channels.max()) + 1, dtype=torch.float64)
    total.index_add_(0, owner, counts.double())
    return float((counts * (total[owner] / counts).log2()).sum() / 8)


def times(stored: int, least: float) -> str:
    return f" ({stored / least:.2f} times the entropy)" if least else ""
