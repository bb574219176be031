"""Weights as unsigned bytes on x86 processors without VNNI, where signed ones give wrong sums.

What overflows there, and why: `nncompress.runtimes.onnx_files.saturation`. Weights w with the zero point 0
are stored as w + 128 with the zero point 128: the same numbers, and right sums, by a slower kernel. Weights
of 7 bits cannot overflow and keep the faster one.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncompress.devices import processor
from nncompress.exporting.lower.onnxruntime.edit import array, insert, producer, store
from nncompress.runtimes.onnx_files.saturation import overflows


def lower_saturating(graph: ir.Graph) -> int:
    """Rewrite in place what could overflow on this machine; nothing on one whose products sum in 32 bits.

    It ties the file to such a machine: for a target that says so alone (`nncompress.targets`).

    Returns:
        the number of weights that are unsigned now.
    """
    if not processor().saturates:
        return 0
    unsigned: dict[ir.Value, ir.Value] = {}
    for node in list(graph):
        if node.op_type in ("Conv", "Gemm", "MatMul"):
            _dequantize_unsigned(graph, node, unsigned)
        elif node.op_type == "MatMulInteger":
            _multiply_unsigned(graph, node, 1, 3, unsigned)
        elif node.op_type == "DynamicQuantizeLSTM":
            _multiply_unsigned(graph, node, 1, 9, unsigned)
            _multiply_unsigned(graph, node, 2, 11, unsigned)
    return len(unsigned)


def _dequantize_unsigned(graph: ir.Graph, layer: ir.Node, unsigned: dict[ir.Value, ir.Value]) -> None:
    kernel = producer(layer.inputs[1], "DequantizeLinear")
    if kernel is None or producer(layer.inputs[0], "DequantizeLinear") is None:
        return
    made = _as_unsigned(graph, layer, kernel.inputs[0], unsigned)
    zero = _plus_128(graph, kernel.inputs[2] if len(kernel.inputs) > 2 else None)
    if made is not None and zero is not None:
        node = ir.node("DequantizeLinear", [made, kernel.inputs[1], zero], dict(kernel.attributes))
        layer.replace_input_with(1, insert(graph, layer, node, layer.inputs[1]))


def _multiply_unsigned(
    graph: ir.Graph, product: ir.Node, weight: int, zero: int, unsigned: dict[ir.Value, ir.Value]
) -> None:
    """`weight`, `zero`: which of its inputs these are."""
    made = _as_unsigned(graph, product, product.inputs[weight], unsigned)
    point = _plus_128(graph, product.inputs[zero] if len(product.inputs) > zero else None)
    if made is not None and point is not None:
        product.replace_input_with(weight, made)
        product.replace_input_with(zero, point)


def _as_unsigned(
    graph: ir.Graph, before: ir.Node, weight: ir.Value | None, unsigned: dict[ir.Value, ir.Value]
) -> ir.Value | None:
    """The unsigned form of a weight that is stored, or stored and turned when the file is opened."""
    turn = producer(weight, "Transpose")
    if turn is None:
        return _unsigned(graph, weight, unsigned)
    stored = _unsigned(graph, turn.inputs[0], unsigned)
    if stored is None:
        return None
    node = ir.node("Transpose", [stored], {"perm": turn.attributes["perm"].as_ints()})
    made = insert(graph, before, node, turn.outputs[0])
    made.type = ir.TensorType(ir.DataType.UINT8)
    return made


def _unsigned(
    graph: ir.Graph, weight: ir.Value | None, unsigned: dict[ir.Value, ir.Value]
) -> ir.Value | None:
    """`weight` (signed bytes) plus 128 as unsigned bytes; None where it need not be so."""
    stored = array(weight)
    if weight is None or stored is None or stored.dtype != np.int8 or not overflows(stored):
        return None
    if weight not in unsigned:
        shifted = _plus_128(graph, weight)
        assert shifted is not None
        unsigned[weight] = shifted
    return unsigned[weight]


def _plus_128(graph: ir.Graph, value: ir.Value | None) -> ir.Value | None:
    stored = array(value)
    if value is None or stored is None or stored.dtype != np.int8:
        return None
    return store(graph, f"{value.name}_unsigned", (stored.astype(np.int16) + 128).astype(np.uint8))
