"""Convolutions and pools."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import Value

_CONV = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_CONV_TRANSPOSE = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
_MAX_POOL = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE_POOL = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _pads(call: Call, x: Tensor, kernel: list[int], stride: list[int], dilation: list[int]) -> list[Any]:
    """[begin…, end…] of each spatial dim."""
    mode, spatial = call.get("auto_pad", "NOTSET"), len(kernel)
    if mode in ("NOTSET", ""):
        return call.get("pads", [0] * (2 * spatial))
    if mode == "VALID":
        return [0] * (2 * spatial)
    begin, end = [], []
    for size, k, s, d in zip(x.shape[2:], kernel, stride, dilation):
        out = -(-size // s)
        total = (out - 1) * s + (k - 1) * d + 1 - size
        total = max(total, 0) if isinstance(total, int) else torch.sym_max(total, 0)
        small = total // 2
        large = total - small
        begin.append(large if mode == "SAME_LOWER" else small)
        end.append(small if mode == "SAME_LOWER" else large)
    return begin + end


def _padded(x: Tensor, pads: list[Any], fill: float = 0.0) -> tuple[Tensor, list[int]]:
    """(input, symmetric padding left over for the op itself): unequal sides are padded first."""
    half = len(pads) // 2
    begin, end = pads[:half], pads[half:]
    if all(isinstance(a, int) and isinstance(b, int) and a == b and a >= 0 for a, b in zip(begin, end)):
        return x, begin
    return F.pad(x, _widths(pads), value=fill), [0] * half


def _widths(pads: list[Any]) -> list[Any]:
    """ONNX's [begin…, end…] as torch wants them: of the last dim first, both sides together."""
    half = len(pads) // 2
    return [side for pair in zip(reversed(pads[:half]), reversed(pads[half:])) for side in pair]


@rule("Conv", "com.microsoft.FusedConv")
def convolution(call: Call) -> Value:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    spatial = weight.dim() - 2
    if spatial not in _CONV or call.op == "FusedConv":
        raise call.refusal(f"over {spatial} dims" if spatial not in _CONV else "a fused convolution")
    _check_kernel(call, weight)
    stride, dilation = call.get("strides", [1] * spatial), call.get("dilations", [1] * spatial)
    pads = _pads(call, x, list(weight.shape[2:]), stride, dilation)
    x, padding = _padded(x, pads)
    return _CONV[spatial](x, weight, bias, stride, padding, dilation, call.get("group", 1))


def _check_kernel(call: Call, weight: Tensor) -> None:
    said, kernel = call.get("kernel_shape"), list(weight.shape[2:])
    if said is not None and said != kernel:
        raise call.refusal(f"with kernel_shape {said} and a weight whose kernel is {kernel}")


@rule("ConvTranspose")
def transposed_convolution(call: Call) -> Value:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    spatial = weight.dim() - 2
    _check_kernel(call, weight)
    stride, dilation = call.get("strides", [1] * spatial), call.get("dilations", [1] * spatial)
    extra, kernel = call.get("output_padding", [0] * spatial), list(weight.shape[2:])
    pads, wanted = call.get("pads", [0] * (2 * spatial)), call.get("output_shape")
    mode = call.get("auto_pad", "NOTSET")
    if wanted is not None or mode in ("SAME_UPPER", "SAME_LOWER"):
        begin, end = [], []
        for i in range(spatial):
            full = (x.shape[2 + i] - 1) * stride[i] + extra[i] + (kernel[i] - 1) * dilation[i] + 1
            total = full - (wanted[i] if wanted is not None else x.shape[2 + i] * stride[i])
            if not isinstance(total, int):
                raise call.refusal("its padding depends on the size of the input")
            small, large = total // 2, total - total // 2
            begin.append(small if mode == "SAME_UPPER" else large)
            end.append(large if mode == "SAME_UPPER" else small)
        pads = begin + end
    begin, end = pads[:spatial], pads[spatial:]
    function = _CONV_TRANSPOSE[spatial]
    group = call.get("group", 1)
    if begin == end and all(e == 0 or e < max(s, d) for e, s, d in zip(extra, stride, dilation)):
        return function(x, weight, bias, stride, begin, extra, group, dilation)
    result = function(x, weight, bias, stride, 0, 0, group, dilation)
    widths: list[int] = []
    for a, b, e in zip(reversed(begin), reversed(end), reversed(extra)):
        widths += [-a, e - b]
    return F.pad(result, widths)


# --- pools ------------------------------------------------------------------------------------------------


@rule("MaxPool")
def max_pool(call: Call) -> Value | list[Value]:
    x, kernel = call.tensor(0), call.get("kernel_shape")
    stride, dilation = call.get("strides", [1] * len(kernel)), call.get("dilations", [1] * len(kernel))
    ceil, pool, order = bool(call.get("ceil_mode", 0)), _MAX_POOL[len(kernel)], call.get("storage_order", 0)
    padded, padding = _padded(x, _pads(call, x, kernel, stride, dilation), -math.inf)
    wide = any(2 * p > k for p, k in zip(padding, kernel))
    if len([name for name in call.outputs if name]) > 1:
        if padded is not x or wide or order:
            raise call.refusal("its indices are asked for, and its padding or order is none of torch's")
        values, places = pool(x, kernel, stride, padding, dilation, ceil, return_indices=True)
        planes = torch.arange(x.shape[0] * x.shape[1], device=x.device)
        first = planes.reshape(*x.shape[:2], *[1] * len(kernel)) * math.prod(x.shape[2:])
        return [values, places + first]  # ONNX counts through all samples and channels
    if wide:
        padded = F.pad(padded, [p for p in reversed(padding) for _ in range(2)], value=-math.inf)
        padding = [0] * len(kernel)
    return pool(padded, kernel, stride, padding, dilation, ceil)


@rule("AveragePool")
def average_pool(call: Call) -> Value:
    x, kernel = call.tensor(0), call.get("kernel_shape")
    stride, dilation = call.get("strides", [1] * len(kernel)), call.get("dilations", [1] * len(kernel))
    if max(dilation) > 1:
        raise call.refusal("dilated")
    pads, counted = _pads(call, x, kernel, stride, dilation), bool(call.get("count_include_pad", 0))
    ceil, pool = bool(call.get("ceil_mode", 0)), _AVERAGE_POOL[len(kernel)]
    padded, padding = _padded(x, pads)
    if padded is x and all(2 * p <= k for p, k in zip(padding, kernel)):
        return pool(x, kernel, stride, padding, ceil, counted)
    padded = F.pad(x, _widths(pads))
    if counted:
        return pool(padded, kernel, stride, 0, ceil)
    share = pool(F.pad(torch.ones_like(x[:1, :1]), _widths(pads)), kernel, stride, 0, ceil)
    return pool(padded, kernel, stride, 0, ceil) / share


@rule("GlobalAveragePool", "GlobalMaxPool")
def global_pool(call: Call) -> Value:
    x = call.tensor(0)
    axes = list(range(2, x.dim()))
    return x.mean(axes, keepdim=True) if call.op == "GlobalAveragePool" else x.amax(axes, keepdim=True)
