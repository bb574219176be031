"""Convolutions, products, pools, norms, attention and resizing."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from nncompress.loading.onnx.interpreter import Call, rule
from nncompress.loading.onnx.values import Value, items

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
    stride, dilation = call.get("strides", [1] * spatial), call.get("dilations", [1] * spatial)
    pads = _pads(call, x, list(weight.shape[2:]), stride, dilation)
    x, padding = _padded(x, pads)
    return _CONV[spatial](x, weight, bias, stride, padding, dilation, call.get("group", 1))


@rule("ConvTranspose")
def transposed_convolution(call: Call) -> Value:
    x, weight, bias = call.tensor(0), call.tensor(1), call.optional(2)
    spatial = weight.dim() - 2
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


@rule("Gemm")
def gemm(call: Call) -> Value:
    a, b, c = call.tensor(0), call.tensor(1), call.optional(2)
    alpha, beta = call.get("alpha", 1.0), call.get("beta", 1.0)
    a = a.transpose(0, 1) if call.get("transA", 0) else a
    plain = alpha == 1 and (c is None or (beta == 1 and c.dim() == 1 and a.is_floating_point()))
    if plain and call.get("transB", 0):
        return F.linear(a, b, c)
    b = b.transpose(0, 1) if call.get("transB", 0) else b
    if plain and c is not None:
        return torch.addmm(c, a, b)
    result = torch.matmul(a, b)
    result = result if alpha == 1 else alpha * result
    return result if c is None else result + (c if beta == 1 else beta * c)


@rule("MatMul")
def matmul(call: Call) -> Value:
    return torch.matmul(call.tensor(0), call.tensor(1))


@rule("com.microsoft.FusedMatMul")
def fused_matmul(call: Call) -> Value:
    a, b = call.tensor(0), call.tensor(1)
    if call.get("transBatchA", 0) or call.get("transBatchB", 0):
        raise call.refusal("transposed batches")
    a = a.transpose(-1, -2) if call.get("transA", 0) else a
    b = b.transpose(-1, -2) if call.get("transB", 0) else b
    result, alpha = torch.matmul(a, b), call.get("alpha", 1.0)
    return result if alpha == 1 else alpha * result


@rule("Einsum")
def einsum(call: Call) -> Value:
    return torch.einsum(call.get("equation"), *(call.tensor(i) for i in range(len(call))))


# --- pools ------------------------------------------------------------------------------------------------


@rule("MaxPool")
def max_pool(call: Call) -> Value:
    x, kernel = call.tensor(0), call.get("kernel_shape")
    if len([name for name in call.outputs if name]) > 1:
        raise call.refusal("its indices are asked for")
    stride, dilation = call.get("strides", [1] * len(kernel)), call.get("dilations", [1] * len(kernel))
    x, padding = _padded(x, _pads(call, x, kernel, stride, dilation), -math.inf)
    if any(2 * p > k for p, k in zip(padding, kernel)):
        x = F.pad(x, [p for p in reversed(padding) for _ in range(2)], value=-math.inf)
        padding = [0] * len(kernel)
    return _MAX_POOL[len(kernel)](x, kernel, stride, padding, dilation, bool(call.get("ceil_mode", 0)))


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


# --- norms ------------------------------------------------------------------------------------------------


@rule("BatchNormalization")
def batch_norm(call: Call) -> Value:
    if call.get("training_mode", 0):
        raise call.refusal("it is in training mode")
    x, scale, bias, mean, variance = (call.tensor(i) for i in range(5))
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, call.get("epsilon", 1e-5))


@rule("InstanceNormalization")
def instance_norm(call: Call) -> Value:
    x, scale, bias = (call.tensor(i) for i in range(3))
    return F.instance_norm(x, weight=scale, bias=bias, eps=call.get("epsilon", 1e-5))


@rule("LayerNormalization")
def layer_norm(call: Call) -> Value:
    x, scale, bias = call.tensor(0), call.tensor(1), call.optional(2)
    if len([name for name in call.outputs if name]) > 1:
        raise call.refusal("its mean and deviation are asked for")
    axis = call.get("axis", -1) % x.dim()
    shape = list(x.shape[axis:])
    fits = list(scale.shape) == shape and (bias is None or list(bias.shape) == shape)
    if fits:
        return F.layer_norm(x, shape, scale, bias, call.get("epsilon", 1e-5))
    result = F.layer_norm(x, shape, None, None, call.get("epsilon", 1e-5)) * scale
    return result if bias is None else result + bias


@rule("com.microsoft.SkipLayerNormalization")
def skip_layer_norm(call: Call) -> list[Value | None]:
    total = call.tensor(0) + call.tensor(1)
    total = total + call.tensor(4) if call.has(4) else total
    if any(call.outputs[1:3]):
        raise call.refusal("its mean and deviation are asked for")
    result = F.layer_norm(
        total, [total.shape[-1]], call.tensor(2), call.optional(3), call.get("epsilon", 1e-12)
    )
    return [result, None, None, total]


@rule("RMSNormalization", "SimplifiedLayerNormalization", "com.microsoft.SimplifiedLayerNormalization")
def rms_norm(call: Call) -> Value:
    x, scale = call.tensor(0), call.tensor(1)
    axis = call.get("axis", -1) % x.dim()
    return F.rms_norm(x, list(x.shape[axis:]), scale, call.get("epsilon", 1e-5))


@rule("GroupNormalization")
def group_norm(call: Call) -> Value:
    x, scale, bias = (call.tensor(i) for i in range(3))
    groups, channels = call.get("num_groups"), x.shape[1]
    if call.opset < 21 and scale.shape[0] != channels:  # of each group
        scale, bias = (v.repeat_interleave(channels // groups) for v in (scale, bias))
    return F.group_norm(x, groups, scale, bias, call.get("epsilon", 1e-5))


@rule("LRN")
def local_response(call: Call) -> Value:
    x = call.tensor(0)
    return F.local_response_norm(
        x, call.get("size"), call.get("alpha", 1e-4), call.get("beta", 0.75), call.get("bias", 1.0)
    )


# --- attention and resizing -------------------------------------------------------------------------------


@rule("Attention")
def attention(call: Call) -> Value:
    if any(call.outputs[1:]) or any(call.has(i) for i in (4, 5, 6)):
        raise call.refusal("with past keys and values, or more than one output")
    if call.get("softcap", 0.0) or call.get("qk_matmul_output_mode", 0):
        raise call.refusal("with a soft cap")
    q, k, v = (call.tensor(i) for i in range(3))
    flat = q.dim() == 3
    if flat:
        heads, kv_heads = call.get("q_num_heads"), call.get("kv_num_heads")
        q, k, v = (
            t.reshape(t.shape[0], t.shape[1], n, -1).transpose(1, 2)
            for t, n in ((q, heads), (k, kv_heads), (v, kv_heads))
        )
    grouped, mask, causal = q.shape[1] != k.shape[1], call.optional(3), bool(call.get("is_causal", 0))
    if mask is not None and causal:
        seen = torch.ones(q.shape[-2], k.shape[-2], dtype=torch.bool).tril()
        mask = mask & seen if mask.dtype == torch.bool else mask.masked_fill(~seen, -math.inf)
        causal = False
    y = F.scaled_dot_product_attention(
        q, k, v, mask, 0.0, causal, scale=call.get("scale"), enable_gqa=grouped
    )
    return y.transpose(1, 2).flatten(2) if flat else y


_MODES = {"nearest": "nearest", "linear": "linear", "cubic": "bicubic"}


@rule("Resize", "Upsample")
def resize(call: Call) -> Value:
    x = call.tensor(0)
    first = 1 if call.op == "Upsample" or call.opset < 11 else 2
    scales = call.get("scales")
    if first == 2 and call.has(1):
        call.value(1)  # the region of one coordinate transformation, which is not read
    if scales is None and call.has(first):
        scales = items(call.array(first, "the scales")) or None
    wanted = items(call.array(3, "the sizes")) if call.has(3) and call.op == "Resize" else None
    axes = [a % x.dim() for a in call.get("axes", range(x.dim()))]
    policy = call.get(
        "keep_aspect_ratio_policy", "stretch"
    )  # of sizes alone; exporters write it beside scales
    if wanted is not None and policy != "stretch":
        raise call.refusal("sizes that keep the aspect ratio")
    factors = dict(zip(axes, scales)) if scales is not None else {}
    targets = dict(zip(axes, wanted)) if wanted is not None else {}
    for axis in (0, 1):
        factor = factors.get(axis, 1.0)
        scaled = isinstance(factor, int | float) and factor != 1.0
        if scaled or (axis in targets and _differs(targets[axis], x.shape[axis])):
            raise call.refusal("over the batch or the channels")
    spatial = list(range(2, x.dim()))
    if targets:
        sizes = [targets.get(axis, x.shape[axis]) for axis in spatial]
    else:
        sizes = [_scaled(x.shape[axis], factors.get(axis, 1.0)) for axis in spatial]
    known = [f if isinstance(f, int | float) else None for f in map(factors.get, spatial)]
    return _interpolated(call, x, sizes, known)


def _differs(a: Any, b: Any) -> bool:
    return isinstance(a, int) and isinstance(b, int) and a != b


def _scaled(size: Any, factor: Any) -> Any:
    if isinstance(factor, torch.SymFloat):
        return torch.sym_int(size * factor)
    if isinstance(size, int):
        return math.floor(size * factor)
    whole = round(factor)
    return size * whole if abs(factor - whole) < 1e-9 else torch.sym_int(size * factor)


def _interpolated(call: Call, x: Tensor, sizes: list[Any], factors: list[float | None]) -> Tensor:
    mode = call.get("mode", "nearest")
    default = "half_pixel" if call.op == "Resize" and call.opset >= 11 else "asymmetric"
    transform = call.get("coordinate_transformation_mode", default)
    if call.get("antialias", 0) or call.get("exclude_outside", 0):
        raise call.refusal("with antialiasing")
    if mode == "nearest":
        rounding = call.get("nearest_mode", "round_prefer_floor" if call.opset >= 11 else "floor")
        return _nearest(call, x, sizes, factors, transform, rounding)
    for size, to, factor in zip(x.shape[2:], sizes, factors):
        if factor is not None and isinstance(size, int) and abs(size * factor - to) > 1e-6:
            raise call.refusal(f"by {factor:g}, which {size} is not divided by")
        if transform == "pytorch_half_pixel" and isinstance(to, int) and to == 1 and size != 1:
            raise call.refusal("to a single pixel")
    names = {
        ("linear", 1): "linear",
        ("linear", 2): "bilinear",
        ("linear", 3): "trilinear",
        ("cubic", 2): "bicubic",
    }
    name = names.get((mode, len(sizes)))
    if name is None or transform not in ("half_pixel", "pytorch_half_pixel", "align_corners"):
        raise call.refusal(f"{mode}, {transform}, over {len(sizes)} dims")
    if name == "bicubic" and abs(call.get("cubic_coeff_a", -0.75) + 0.75) > 1e-6:
        raise call.refusal(f"the coefficient {call.get('cubic_coeff_a')}")
    return F.interpolate(x, sizes, mode=name, align_corners=transform == "align_corners")


def _nearest(
    call: Call, x: Tensor, sizes: list[Any], factors: list[float | None], transform: str, rounding: str
) -> Tensor:
    have = list(x.shape[2:])
    whole = all(f is not None and abs(f - round(f)) < 1e-9 for f in factors)
    if whole and (
        (transform == "asymmetric" and rounding == "floor")
        or (transform in ("half_pixel", "pytorch_half_pixel") and rounding.startswith("round"))
    ):
        return F.interpolate(x, sizes, mode="nearest")
    if not all(isinstance(n, int) for n in (*have, *sizes)):
        raise call.refusal(f"nearest, {transform}, {rounding}, of a size that is free")
    if (transform, rounding) == ("asymmetric", "floor") and all(to % n == 0 for to, n in zip(sizes, have)):
        return F.interpolate(x, sizes, mode="nearest")
    for axis, (size, to, factor) in enumerate(zip(have, sizes, factors)):
        index = _picked(call, size, to, to / size if factor is None else factor, transform, rounding)
        x = torch.index_select(x, axis + 2, torch.tensor(index))
    return x


def _picked(call: Call, size: int, to: int, factor: float, transform: str, rounding: str) -> list[int]:
    """Which of `size` values each of `to` is, as the operator's definition says it."""
    out = np.arange(to)
    places = {
        "half_pixel": (out + 0.5) / factor - 0.5,
        "pytorch_half_pixel": (out + 0.5) / factor - 0.5 if to > 1 else np.zeros(to),
        "asymmetric": out / factor,
        "align_corners": out * (size - 1) / (to - 1) if to > 1 else np.zeros(to),
    }
    place = places.get(transform)
    roundings: dict[str, Any] = {
        "floor": np.floor,
        "ceil": np.ceil,
        "round_prefer_floor": lambda v: np.ceil(v - 0.5),
        "round_prefer_ceil": lambda v: np.floor(v + 0.5),
    }
    rounded = roundings.get(rounding)
    if place is None or rounded is None:
        raise call.refusal(f"nearest, {transform}, {rounding}")
    return [int(i) for i in np.clip(rounded(place), 0, size - 1)]


@rule("GridSample")
def grid_sample(call: Call) -> Value:
    mode = {"linear": "bilinear", "bilinear": "bilinear", "nearest": "nearest", "cubic": "bicubic"}
    return F.grid_sample(
        call.tensor(0),
        call.tensor(1),
        mode[call.get("mode", "linear")],
        call.get("padding_mode", "zeros"),
        bool(call.get("align_corners", 0)),
    )


@rule("RotaryEmbedding")
def rotary(call: Call) -> Value:
    x, cos, sin = call.tensor(0), call.tensor(1), call.tensor(2)
    if call.has(3) or call.get("interleaved", 0) or call.get("rotary_embedding_dim", 0) or x.dim() != 4:
        raise call.refusal("with positions, interleaved, partial, or of 3 dims")
    a, b = x.chunk(2, -1)
    cos, sin = cos.unsqueeze(1), sin.unsqueeze(1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], -1)
