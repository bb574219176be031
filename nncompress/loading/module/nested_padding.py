"""What `nn.TransformerEncoder` gives at masked positions, which it computes otherwise when it is traced.

In evaluation without gradients it packs samples whose padding lies at their end without that padding, and
gives zeros in its place; traced, it computes something there, as in training. What a network makes of all
positions, a mean, say, would be another one.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn


def trace_as_run(module: nn.Module) -> None:
    """Let every encoder inside `module` be traced with the zeros that a run of it gives."""
    for encoder in module.modules():
        packs = getattr(encoder, "use_nested_tensor", False) and getattr(encoder, "mask_check", False)
        plain = type(encoder).forward is nn.TransformerEncoder.forward and "forward" not in vars(encoder)
        if isinstance(encoder, nn.TransformerEncoder) and packs and plain:
            vars(encoder)["forward"] = partial(_forward, encoder)


def _forward(
    encoder: nn.TransformerEncoder,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Any:
    """As `nn.TransformerEncoder.forward`."""
    result = nn.TransformerEncoder.forward(encoder, src, mask, src_key_padding_mask, is_causal)
    packed = torch.backends.mha.get_fastpath_enabled() and src.dim() == 3 and mask is None
    if src_key_padding_mask is None or not packed or not torch.compiler.is_compiling():
        return result
    padded = src_key_padding_mask != 0  # a mask of numbers has -inf there
    at_the_end = ~(padded[:, :-1] & ~padded[:, 1:]).any()
    zero = torch.zeros((), dtype=result.dtype)
    bias = getattr(encoder.norm, "bias", None)  # the norm is behind the zeros
    return torch.where((padded & at_the_end).unsqueeze(-1), zero if bias is None else bias, result)
