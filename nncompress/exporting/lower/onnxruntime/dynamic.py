"""Activations rounded to their own range: what torch computes in four nodes, ONNX has one operator for.

    choose_qparams, quantize_per_tensor        -> DynamicQuantizeLinear
    dequantize_per_tensor, product [, bias]    -> MatMulInteger, Cast, Mul [, Add]

ONNX Runtime fuses all of it to its int8 kernel `DynamicQuantizeMatMul`. Left as dequantize and product, a
product with a bias would become a float Gemm.
"""

# mypy: disable-error-code="no-untyped-def"
from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
import torch.ao.quantization.fx._decomposed

from nncompress.exporting.lower.onnxruntime.edit import array, insert, producer, replace, store, turned

ops = torch.ops.quantized_decomposed


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`: ops whose scale is computed, or per group; the exporter does not know them."""
    from onnxscript import opset20 as op

    def choose(x, low, high, least, dtype):
        _, scale, zero = op.DynamicQuantizeLinear(x)
        return scale, zero

    def quantize(x, scale, zero, low, high, dtype):
        return op.QuantizeLinear(x, scale, zero)

    def dequantize(x, scale, zero, low, high, dtype, *, out_dtype=-1):
        return op.DequantizeLinear(x, scale, zero)

    def dequantize_groups(codes, scales, zeros, low, high, dtype, size, output):
        return op.DequantizeLinear(codes, scales, zeros, axis=1)  # in blocks: `groups` says so

    return {
        ops.dequantize_per_channel_group.default: dequantize_groups,
        ops.choose_qparams.tensor: choose,
        ops.quantize_per_tensor.tensor: quantize,
        ops.dequantize_per_tensor.tensor: dequantize,
    }


def lower_dynamic(graph: ir.Graph) -> None:
    """Rewrite the table above in place."""
    for node in list(graph):
        if node.op_type == "DynamicQuantizeLinear":
            _take_rounding(graph, node)
    for node in list(graph):
        if node.op_type in ("Gemm", "MatMul"):
            _multiply_integers(graph, node)


def _take_rounding(graph: ir.Graph, node: ir.Node) -> None:
    rounded, scale, zero = node.outputs
    # the exporter took torch's types, which are float64 and int64 of one element
    for value, dtype in ((rounded, ir.DataType.UINT8), (scale, ir.DataType.FLOAT), (zero, ir.DataType.UINT8)):
        value.type = ir.TensorType(dtype)
    rounded.shape, scale.shape, zero.shape = node.inputs[0].shape, ir.Shape([]), ir.Shape([])  # type: ignore[union-attr]
    for user in [use.node for use in scale.uses()]:
        if user.op_type == "QuantizeLinear" and user.inputs[0] is node.inputs[0]:
            user.outputs[0].replace_all_uses_with(rounded)
            graph.remove(user, safe=True)


def _multiply_integers(graph: ir.Graph, product: ir.Node) -> None:
    data = producer(product.inputs[0], "DequantizeLinear")
    if data is None or producer(data.inputs[1], "DynamicQuantizeLinear") is None:
        return
    found = _weight(graph, product)
    if found is None:
        return
    weight, scales = found
    result = product.outputs[0]

    def add(op_type: str, *inputs: ir.Value | None, like: ir.Value = result, **attributes: Any) -> ir.Value:
        return insert(graph, product, ir.node(op_type, inputs, attributes), like)

    rounded, scale, zero = data.inputs[:3]
    zeros = store(graph, f"{weight.name}_zero", np.zeros(len(scales), np.int8))
    sums = add("MatMulInteger", rounded, weight, zero, zeros)
    sums.type = ir.TensorType(ir.DataType.INT32)
    factor = add("Mul", scale, store(graph, f"{weight.name}_scales", scales), like=data.outputs[0])
    factor.shape = ir.Shape(scales.shape)
    value = add("Mul", add("Cast", sums, to=ir.DataType.FLOAT), factor)
    if len(product.inputs) > 2 and product.inputs[2] is not None:
        value = add("Add", value, product.inputs[2])
    replace(result, value)
    graph.remove(product, safe=True)


def _weight(graph: ir.Graph, product: ir.Node) -> tuple[ir.Value, np.ndarray] | None:
    """The int8 weight [in, out] of a product and its scales [out]; None where it has no scale per output."""
    value = product.inputs[1]
    turn = "transB" in product.attributes and bool(product.attributes["transB"].as_int())
    transpose = producer(value, "Transpose")
    if transpose is not None:
        value, turn = transpose.inputs[0], not turn
    source = producer(value, "DequantizeLinear")
    if source is None or source.inputs[0] is None or "axis" not in source.attributes:
        return None
    stored, scales = source.inputs[0], array(source.inputs[1])
    if stored.shape is None or len(stored.shape) != 2 or scales is None or scales.ndim != 1:
        return None
    if source.attributes["axis"].as_int() % 2 != (0 if turn else 1):
        if np.ptp(scales):
            return None
        scales = np.full(int(stored.shape[0 if turn else 1]), scales[0])  # type: ignore[arg-type]
    return (turned(graph, product, source) if turn else stored), scales
