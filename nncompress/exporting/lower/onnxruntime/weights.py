"""Int8 weights of layers that compute in float: turned into floats once, when the model is loaded.

ONNX Runtime runs a DequantizeLinear of a stored weight in every call. It folds `Cast, Mul` when it opens the
file: the file stays small, and a call costs what it cost in float. A row of a table is looked up in 8 bits:

    Gather(DequantizeLinear(table, scales), rows) -> Gather(table, rows) · Gather(scales, rows)
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncompress.exporting.lower.onnxruntime.edit import array, insert, producer, replace, store

PRODUCTS = {"Conv", "Gemm", "MatMul"}  # those with int8 kernels
# between a stored weight and its layer
WEIGHT_OPS = {"DequantizeLinear", "Transpose", "Reshape", "Gather", "Slice", "Cast", "Mul"}
FLOAT = ir.TensorType(ir.DataType.FLOAT)


def lower_weights(graph: ir.Graph) -> None:
    """Rewrite every DequantizeLinear of a weight whose readers compute in float."""
    for node in list(graph):
        if node.op_type == "Gather":
            _gather_8_bit(graph, node)
    for node in list(graph):
        if node.op_type == "DequantizeLinear" and _of_weight(node) and not _read_in_int8(node):
            _multiply_out(graph, node)


def _of_weight(dequantize: ir.Node) -> bool:
    stored, scale = dequantize.inputs[0], array(dequantize.inputs[1])
    if stored is None or stored.dtype != ir.DataType.INT8 or scale is None or scale.ndim > 1:
        return False
    zero = dequantize.inputs[2] if len(dequantize.inputs) > 2 else None
    around_zero = zero is None or ((points := array(zero)) is not None and not points.any())
    return around_zero and _is_stored(stored)


def _is_stored(value: ir.Value) -> bool:
    """It is in the file, or computed of what is: no activation, which may be in signed 8 bits, too."""
    made = value.producer()
    if made is None:
        return value.const_value is not None
    return all(each is None or _is_stored(each) for each in made.inputs)


def _read_in_int8(dequantize: ir.Node) -> bool:
    """Some reader also gets an activation in 8 bits: the runtime may have an int8 kernel for the two."""
    readers = [use.node for use in dequantize.outputs[0].uses()]
    while readers:
        node = readers.pop()
        if node.op_type == "Transpose":
            readers += [use.node for use in node.outputs[0].uses()]
        elif node.op_type in PRODUCTS and producer(node.inputs[0], "DequantizeLinear") is not None:
            return True
    return False


def _multiply_out(graph: ir.Graph, dequantize: ir.Node) -> None:
    stored, result = dequantize.inputs[0], dequantize.outputs[0]
    scale = array(dequantize.inputs[1])
    if scale is None or stored is None or stored.shape is None:
        return
    if scale.ndim:
        axis, rank = dequantize.attributes["axis"].as_int(), len(stored.shape)
        scale = scale.reshape([-1 if d == axis % rank else 1 for d in range(rank)])
    cast = insert(graph, dequantize, ir.node("Cast", [stored], {"to": ir.DataType.FLOAT}))
    cast.type, cast.shape = FLOAT, stored.shape
    factor = store(graph, f"{dequantize.inputs[1].name}_of_each", np.ascontiguousarray(scale))  # type: ignore[union-attr]
    replace(result, insert(graph, dequantize, ir.node("Mul", [cast, factor]), result))
    graph.remove(dequantize, safe=True)


def _gather_8_bit(graph: ir.Graph, gather: ir.Node) -> None:
    source = producer(gather.inputs[0], "DequantizeLinear")
    if source is None or not _of_weight(source):
        return
    scale, stored = array(source.inputs[1]), source.inputs[0]
    axis = gather.attributes["axis"].as_int() if "axis" in gather.attributes else 0
    if stored is None or stored.shape is None or scale is None or scale.ndim != 1:
        return
    if axis != 0 or source.attributes["axis"].as_int() % len(stored.shape) != 0:
        return
    rows, result = gather.inputs[1], gather.outputs[0]
    name = f"{source.inputs[1].name}_column"  # type: ignore[union-attr]
    column = store(graph, name, scale.reshape(-1, *[1] * (len(stored.shape) - 1)))
    values = insert(graph, gather, ir.node("Gather", [stored, rows], {"axis": 0}))
    values.type, values.shape = stored.type, result.shape
    cast = insert(graph, gather, ir.node("Cast", [values], {"to": ir.DataType.FLOAT}), result)
    scales = insert(graph, gather, ir.node("Gather", [column, rows], {"axis": 0}))
    scales.type = FLOAT
    replace(result, insert(graph, gather, ir.node("Mul", [cast, scales]), result))
    graph.remove(gather, safe=True)
