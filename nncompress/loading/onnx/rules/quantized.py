"""Quantize and dequantize nodes: weights and ranges are kept as they are."""

from __future__ import annotations

import numpy as np
import torch
import torch.ao.quantization.fx._decomposed
from onnx import TensorProto

from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import DTYPES, Value, scalar

ops = torch.ops.quantized_decomposed


def _grid(call: Call) -> tuple[np.ndarray, np.ndarray | None]:
    """Scale and zero point, both known."""
    zero = call.array(2, "the zero point") if call.has(2) else None
    scale = call.array(1, "the scale")
    if scale.dtype != np.float32:  # the type of what it gives
        raise call.refusal(f"with scales in {scale.dtype}")
    return scale, zero


# `axis`: of a scale per channel, which is refused; `precision`: of a division; `saturate`: of float8
@rule("QuantizeLinear", ignores=["axis", "precision", "saturate"])
def quantize(call: Call) -> Value:
    x, (scale, zero) = call.tensor(0), _grid(call)
    stored = torch.uint8 if zero is None else torch.from_numpy(np.zeros(1, zero.dtype)).dtype
    if call.get("output_dtype"):
        stored = DTYPES.get(call.get("output_dtype"), torch.uint8)
    if stored not in (torch.uint8, torch.int8) or call.get("block_size", 0):
        raise call.refusal(f"to {stored}, or in blocks")
    low, high = torch.iinfo(stored).min, torch.iinfo(stored).max
    if scale.size == 1:
        point = 0 if zero is None else int(scalar(zero))
        return ops.quantize_per_tensor(x, float(scalar(scale)), point, low, high, stored)
    raise call.refusal("an activation with a scale per channel")


@rule("DequantizeLinear")
def dequantize(call: Call) -> Value:
    x, axis = call.tensor(0), call.get("axis", 1)
    if call.get("output_dtype", 0) not in (0, TensorProto.FLOAT):
        raise call.refusal("to another type than float32")
    if call.depends(1):  # on the range of a batch
        low, high = torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max
        if call.tensor(1).numel() != 1 or not call.has(2) or call.get("block_size", 0):
            raise call.refusal("with scales per channel, or without a zero point, that are computed")
        return ops.dequantize_per_tensor.tensor(x, call.tensor(1), call.tensor(2), low, high, x.dtype)
    scale, zero = _grid(call)
    if x.dtype == torch.int32:  # a bias
        factor = call.tensor(1)
        axis %= max(x.dim(), 1)
        shape = [-1 if i == axis and factor.numel() > 1 else 1 for i in range(x.dim())]
        return x.to(factor.dtype) * factor.reshape(shape)
    if x.dtype not in (torch.uint8, torch.int8) or call.get("block_size", 0):
        raise call.refusal(f"of {x.dtype}, or in blocks")
    low, high = torch.iinfo(x.dtype).min, torch.iinfo(x.dtype).max
    if scale.size == 1:
        point = 0 if zero is None else int(scalar(zero))
        return ops.dequantize_per_tensor(x, float(scalar(scale)), point, low, high, x.dtype)
    points = torch.tensor(zero.tolist()) if zero is not None and zero.any() else None  # as the IR has weights
    return ops.dequantize_per_channel(x, call.tensor(1), points, axis % x.dim(), low, high, x.dtype)
