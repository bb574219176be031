"""What a module gives in a run and would not give when it is traced.

`nn.TransformerEncoder` in evaluation without gradients packs samples whose padding lies at their end without
that padding, and gives zeros in its place; traced, it computes something there, as in training. What a
network makes of all positions, a mean, say, would be another one. It and `nn.TransformerDecoder` look whether
a mask is the causal one, to take a faster way to the same outputs: traced, they cannot see it. And of
dataclasses torch.export knows few: traced, a module gives dicts in their place.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial, wraps
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree


def trace_as_run(module: nn.Module) -> None:
    """Let `module` be traced with what a run of it gives; it is changed."""
    for part in module.modules():
        kind = type(part)
        steps = next((_STEPS[each] for each in _STEPS if kind.forward is each.forward), None)
        if steps is not None and "forward" not in vars(part):
            vars(part)["forward"] = partial(steps, part)
    forward = module.forward

    @wraps(forward)
    def returning_dicts(*args: Any, **kwargs: Any) -> Any:
        return in_dicts(forward(*args, **kwargs))

    vars(module)["forward"] = returning_dicts


def in_dicts(results: Any) -> Any:
    """What a forward returns, with dicts in the place of dataclasses."""

    def unpacked(leaf: Any) -> Any:
        if not dataclasses.is_dataclass(leaf) or isinstance(leaf, type):
            return leaf
        return {field.name: in_dicts(getattr(leaf, field.name)) for field in dataclasses.fields(leaf)}

    return pytree.tree_map(unpacked, results)


def _encode(
    encoder: nn.TransformerEncoder,
    src: Tensor,
    mask: Tensor | None = None,
    src_key_padding_mask: Tensor | None = None,
    is_causal: bool | None = None,
) -> Any:
    """As `nn.TransformerEncoder.forward`."""
    result = nn.TransformerEncoder.forward(encoder, src, mask, src_key_padding_mask, bool(is_causal))
    packs = getattr(encoder, "use_nested_tensor", False) and getattr(encoder, "mask_check", False)
    packs = packs and not encoder.layers[0].training and torch.backends.mha.get_fastpath_enabled()
    packed = packs and src.dim() == 3 and mask is None
    if src_key_padding_mask is None or not packed or not torch.compiler.is_compiling():
        return result
    padded = src_key_padding_mask != 0  # a mask of numbers has -inf there
    at_the_end = ~(padded[:, :-1] & ~padded[:, 1:]).any()
    zero = torch.zeros((), dtype=result.dtype)
    bias = getattr(encoder.norm, "bias", None)  # the norm is behind the zeros
    return torch.where((padded & at_the_end).unsqueeze(-1), zero if bias is None else bias, result)


def _decode(
    decoder: nn.TransformerDecoder,
    tgt: Tensor,
    memory: Tensor,
    tgt_mask: Tensor | None = None,
    memory_mask: Tensor | None = None,
    tgt_key_padding_mask: Tensor | None = None,
    memory_key_padding_mask: Tensor | None = None,
    tgt_is_causal: bool | None = None,
    memory_is_causal: bool = False,
) -> Any:
    """As `nn.TransformerDecoder.forward`."""
    masks = (tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask)
    causal = (bool(tgt_is_causal), memory_is_causal)
    return nn.TransformerDecoder.forward(decoder, tgt, memory, *masks, *causal)


_STEPS: dict[type[nn.Module], Callable[..., Any]] = {
    nn.TransformerEncoder: _encode,
    nn.TransformerDecoder: _decode,
}
