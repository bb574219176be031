"""Least squares in front of a ReLU: where the original's value is negative, any negative value is right.

    Σ (y − ŷ)²  where y > 0,  max(ŷ, 0)²  where not

is convex, and never less than the error behind the ReLU. The squared distance from y, or from min(ŷ₀, 0)
where y is not positive, is nowhere less than that and touches it at ŷ₀: so solving again, for these targets
and with the same second moments, never loses (Zhang et al. 2016, "Accelerating Very Deep Convolutional
Networks for Classification and Detection", §3.2, solve a relaxation of the same problem).
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from nncompress.ir.graph.ops import op_name

ROUNDS = 2  # solutions after the first; further ones gain next to nothing


def rectified(node: fx.Node) -> bool:
    """Nothing but ReLUs reads it."""
    return bool(node.users) and all(op_name(user) == "relu" for user in node.users)


def as_good(wanted: Tensor, now: Tensor) -> Tensor:
    """Of the values that are as good as `wanted` behind a ReLU, those nearest to `now`."""
    return torch.where(wanted > 0, wanted, now.clamp(max=0))
