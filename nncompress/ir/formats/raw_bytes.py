"""The bytes of a tensor."""

from __future__ import annotations

import torch
from torch import Tensor


def raw_bytes(tensor: Tensor) -> Tensor:
    """The memory of the elements in order, uint8 [bytes], on the CPU.

    It is copied first: a tensor with dims of size 1 counts as contiguous with any stride there, and torch
    cannot view such a one as bytes.
    """
    dense = torch.empty(tensor.numel(), dtype=tensor.dtype)
    return dense.copy_(tensor.detach().reshape(-1)).view(torch.uint8)
