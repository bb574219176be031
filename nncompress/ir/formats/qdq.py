"""Int8 in the graph: int8 weights behind `dequantize`, activations through a quantize-dequantize pair.

    stored int8 [C, ...] -> dequantize_per_channel(scales [C]) -> conv2d
    x -> quantize_per_tensor(scale, zero point) -> uint8 -> dequantize_per_tensor -> conv2d
    x -> choose_qparams -> (scale, zero point), then the same: dynamic, each batch has its own range

The graph computes in float what an int8 kernel computes, value for value up to rounding in its accumulator;
a runtime replaces `dequantize, op, quantize` by its int8 kernel of that op. A bias is stored in floats that
are whole numbers of the accumulator's unit, since a kernel adds it there. Weights are symmetric, so that zero
stays zero; activations are unsigned, which is what x86 dot-product instructions and ONNX Runtime need.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from operator import getitem
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

import nncompress.ir.formats.qdq_kernels  # noqa: F401  declares the ops, with kernels of ours
from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.normal_form.normalize import remove_dead_code
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import Layer, layers, readers, reads

ops = torch.ops.quantized_decomposed
LEVELS = 255  # an unsigned 8-bit activation takes 0 ... 255
MIDDLE = 128  # which is 0 as a signed byte
FINEST = 2.0**-60  # scale of an activation whose range is fixed: times a weight's, it is no subnormal number
LEAST_SCALE = 1e-12  # of an activation with a range of its own, which may be all zeros
SHRINK = np.linspace(0.4, 1.0, 31)  # of a weight's range, tried where few bits make clipping worth it


@dataclass(frozen=True)
class QParams:
    """real = (stored − zero_point) · scale, stored in 0 ... 255."""

    scale: float
    zero_point: int

    @classmethod
    def covering(cls, low: float, high: float) -> QParams:
        """The finest grid over [low, high] (low <= 0 <= high) on which 0 is exact.

        The top of the grid never exceeds `high`, nor its bottom `low`, where the other end is 0: after
        relu6, a runtime may then drop the clip, because rounding to the grid clips too.
        """
        span = np.float32(high - low)
        if not span > 0:
            return cls(1.0 / LEVELS, 0)
        scale = np.float32(span / LEVELS)
        while np.float32(scale * np.float32(LEVELS)) > span:
            scale = np.nextafter(scale, np.float32(0))
        scale = max(scale, np.float32(FINEST))
        zero_point = int(np.clip(np.rint(-low / float(scale)), 0, LEVELS))
        return cls(float(scale), zero_point)

    @classmethod
    def symmetric(cls, low: float, high: float) -> QParams:
        """The finest grid over [low, high] with the zero in its middle: 0 as a signed byte.

        As in `covering`, its top never exceeds `high` where that is the farther end.
        """
        reach = np.float32(max(-low, high))
        if not reach > 0:
            return cls(1.0 / LEVELS, MIDDLE)
        most = np.float32(LEVELS - MIDDLE)
        scale = np.float32(reach / most)
        while np.float32(scale * most) > reach:
            scale = np.nextafter(scale, np.float32(0))
        return cls(max(float(scale), FINEST), MIDDLE)

    def rounded(self, x: Tensor) -> Tensor:
        """The values of the grid next to those of `x`."""
        return torch.fake_quantize_per_tensor_affine(x, self.scale, self.zero_point, 0, LEVELS)

    @classmethod
    def of(cls, node: fx.Node) -> QParams:
        """Read off a static `quantize_per_tensor` or `dequantize_per_tensor` node."""
        return cls(float(node.args[1]), int(node.args[2]) - int(node.args[3]))  # type: ignore[arg-type]


def is_dequantized(node: object) -> bool:
    """A static `dequantize_per_tensor` of an activation."""
    if not isinstance(node, fx.Node) or op_name(node) != "dequantize_per_tensor":
        return False
    source = node.args[0]
    return isinstance(source, fx.Node) and source.op != "get_attr" and not is_dynamic(node)


def is_quantized(node: fx.Node) -> bool:
    """Its value already goes through a static `quantize_per_tensor`."""
    return any(op_name(user) == "quantize_per_tensor" and not is_dynamic(user) for user in node.users)


def is_dynamic(node: fx.Node) -> bool:
    """A quantize or dequantize node whose scale is computed when it runs."""
    return op_name(node).endswith("quantize_per_tensor") and isinstance(node.args[1], fx.Node)


def make_signed(node: fx.Node) -> None:
    """Of a node that quantizes or dequantizes unsigned bytes: the same values as signed bytes."""
    if op_name(node) in ("quantize_per_tensor", "dequantize_per_tensor") and node.args[-1] == torch.uint8:
        source, scale, zero, low, high, _ = node.args
        zero = zero - MIDDLE if isinstance(zero, int) else zero  # else `choose_qparams` gives it, signed
        node.args = (source, scale, zero, low - MIDDLE, high - MIDDLE, torch.int8)  # type: ignore[operator]


def without_rounding(model: Model) -> Model:
    """A copy whose activations stay the floats that they are; weights as they are stored."""
    copied = model.copy()
    codes: set[fx.Node] = set()  # of activations; those of weights may be unpacked and moved, too
    rounding = []
    for node in copied.graph.nodes:
        reads_codes = not codes.isdisjoint(node.all_input_nodes)
        rounds = op_name(node) == "quantize_per_tensor"
        ends = reads_codes and op_name(node) == "dequantize_per_tensor"
        if rounds or (reads_codes and not ends):
            codes.add(node)
        if rounds or ends:
            rounding.append(node)
    for node in rounding:
        node.replace_all_uses_with(node.args[0])
    remove_dead_code(copied.graph_module)
    copied.graph_module.recompile()
    return copied


class StraightThrough(fx.Interpreter):
    """Runs a graph with the same values, but with gradients through its quantize-dequantize pairs.

    Rounding has none of its own; as in quantization-aware training it is taken for the identity within the
    grid's range, and for a constant outside (Bengio et al. 2013; Jacob et al. 2018).
    """

    def call_function(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if target in (ops.quantize_per_tensor.default, ops.quantize_per_tensor.tensor):
            return args[0]  # rounded below, where the pair ends
        if target is ops.dequantize_per_tensor.default and args[0].is_floating_point():
            return torch.fake_quantize_per_tensor_affine(*args[:5])
        if target is ops.dequantize_per_tensor.tensor and args[0].is_floating_point():
            scale, zero = args[1].detach().float(), args[2].detach().int()
            return torch.fake_quantize_per_tensor_affine(args[0], scale, zero, *args[3:5])
        return super().call_function(target, args, kwargs)


def insert_pair(
    node: fx.Node, qparams: QParams, readers: Collection[fx.Node], *, signed: bool = False
) -> None:
    """`readers` of `node` read it rounded to `qparams`; `signed`: stored as signed bytes."""
    behind = node.next
    while behind.op == "placeholder":
        behind = behind.next
    bounds = (qparams.scale, qparams.zero_point, 0, LEVELS, torch.uint8)
    with edit.inserting_before(behind) as call:
        quantized = call(ops.quantize_per_tensor.default, node, *bounds)
        dequantized = call(ops.dequantize_per_tensor.default, quantized, *bounds)
    if signed:
        make_signed(quantized)
        make_signed(dequantized)
    if "val" in node.meta:
        codes = torch.int8 if signed else torch.uint8
        quantized.meta["val"], dequantized.meta["val"] = node.meta["val"].to(codes), node.meta["val"]
    node.replace_all_uses_with(dequantized, delete_user_cb=lambda user: user in readers)


def insert_dynamic(node: fx.Node, readers: Collection[fx.Node]) -> None:
    """`readers` of `node` read it rounded to the grid over its own range, found anew in every call.

    The range is that of the whole batch, as `DynamicQuantizeLinear` of ONNX has it.
    """
    behind = node.next
    while behind.op == "placeholder":
        behind = behind.next
    with edit.inserting_before(behind) as call:
        chosen = call(ops.choose_qparams.tensor, node, 0, LEVELS, LEAST_SCALE, torch.uint8)
        bounds = (call(getitem, chosen, 0), call(getitem, chosen, 1), 0, LEVELS, torch.uint8)
        quantized = call(ops.quantize_per_tensor.tensor, node, *bounds)
        dequantized = call(ops.dequantize_per_tensor.tensor, quantized, *bounds)
    node.replace_all_uses_with(dequantized, delete_user_cb=lambda user: user in readers)


def round_weight(
    weight: Tensor, axis: int, bits: int = 8, least: Tensor | float = 0.0
) -> tuple[Tensor, Tensor]:
    """(int8 like `weight`, float32 scales [size of `axis`]), symmetric: stored in ±(2^(bits − 1) − 1).

    With 8 bits the scale covers the largest weight; with fewer, it is the one with the least squared error.

    Args:
        least: lower bound of the scales, a number or one per index of `axis`. Runtimes store a bias as int32
            in units of input scale × weight scale; a tiny or all-zero channel must not make it overflow.
    """
    top = 2 ** (bits - 1) - 1
    others = [d for d in range(weight.dim()) if d != axis]
    peak = weight.detach().abs().amax(others) if others else weight.detach().abs()
    scales = peak.double() / top
    if bits < 8:
        scales = _least_error(weight.detach().double(), scales, axis, top)
    usual = scales[scales > 0].min() if bool((scales > 0).any()) else 1.0 / top
    scales = torch.where(scales > 0, scales, usual)
    floor = torch.as_tensor(least, dtype=torch.float64).clamp(min=torch.finfo(torch.float32).tiny)
    scales = torch.maximum(scales, floor).float()
    shape = [-1 if d == axis else 1 for d in range(weight.dim())]
    stored = torch.round(weight.detach() / scales.reshape(shape)).clamp(-top, top).to(torch.int8)
    return stored, scales


def _least_error(weight: Tensor, full: Tensor, axis: int, top: int) -> Tensor:
    """Of the shares of the full scales [size of `axis`], per index the one with the least rounding error."""
    rows = weight.movedim(axis, 0).flatten(1)
    best, least = full, torch.full_like(full, torch.inf)
    for share in SHRINK:
        scale = (full * share).clamp_min(torch.finfo(torch.float32).tiny)[:, None]
        error = (torch.round(rows / scale).clamp(-top, top) * scale - rows).square().sum(1)
        best, least = torch.where(error < least, scale[:, 0], best), torch.minimum(error, least)
    return torch.where(full > 0, best, 0.0)


def store_int8(model: Model, name: str, stored: Tensor, scales: Tensor, axis: int, bits: int = 8) -> None:
    """Replace the float weight `name`, for all its readers, by `stored` with a scale per index of `axis`."""
    top = 2 ** (bits - 1) - 1
    nodes = readers(model, name)
    int8_name = edit.add_tensor(model, f"{name}_int8", stored, trainable=False)
    scale_name = edit.add_tensor(model, f"{name}_scale", scales, trainable=False)
    first = nodes[0]  # in graph order, so before every reader
    int8_node = edit.read_tensor(model, int8_name, first)
    scale_node = edit.read_tensor(model, scale_name, first)
    with edit.inserting_before(first) as call:
        value = call(
            ops.dequantize_per_channel.default, int8_node, scale_node, None, axis, -top, top, torch.int8
        )
    if "val" in first.meta:
        value.meta["val"] = first.meta["val"].detach()  # no parameter
    for node in nodes:
        edit.replace_node(node, value)
    for alias in edit.names_of(model, model.tensor(name)):  # now, not after all layers: it is the larger one
        edit.remove_tensor(model, alias)


def bias_units(model: Model) -> list[tuple[Layer, float, str]]:
    """(layer, scale of its input, name of its weight's scales) where a kernel adds integers, bias included.

    The product of both is the accumulator's unit, in which the kernel stores its bias. A bias that several
    layers read has no unit of its own and is left out.
    """
    found = []
    for layer in layers(model):
        source: Any = layer.weight.source
        if layer.bias is None or layer.bias.quantized or op_name(source) != "dequantize_per_channel":
            continue
        scales = str(source.args[1].target)
        fits = layer.bias.value().shape == model.tensor(scales).shape and is_dequantized(layer.data)
        if fits and reads(model, layer.bias.name) == 1:
            found.append((layer, QParams.of(layer.data).scale, scales))
    return found


def round_biases(model: Model) -> None:
    """Store every such bias as its kernel does."""
    for layer, scale, scales in bias_units(model):
        assert layer.bias is not None
        layer.bias.assign(in_units(layer.bias.value(), scale, model.tensor(scales)))


def in_units(bias: Tensor, scale: float, scales: Tensor) -> Tensor:
    """The nearest whole numbers of scale · scales."""
    unit = scale * scales.detach().double()
    return (torch.round(bias.double() / unit) * unit).to(bias.dtype)
