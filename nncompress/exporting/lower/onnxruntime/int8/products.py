"""Products of more than a matrix with a stored one, plus a bias: said as Gemm over rows.

    MatMul(x [..., in], W), Add(bias)   ->   Reshape(8-bit x), Gemm(x [rows, in], W, bias in 32 bits), Reshape

Where all sizes are known, ONNX Runtime makes a Gemm of the two by itself, keeps the bias in float, and then
has no int8 kernel for it: a transformer of fixed batch would run in float, 6 to 12 times as slow. Where one
is not known, adding the bias inside the kernel saves a pass over the result.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncompress.exporting.lower.onnxruntime.edit import array, insert, producer, replace, store


def is_over_rows(matmul: ir.Node) -> bool:
    """Whether `gemm_over_rows` would rewrite it."""
    return _parts(matmul) is not None


def gemm_over_rows(graph: ir.Graph, matmul: ir.Node) -> ir.Node | None:
    """Rewrite the product and the addition behind it in place; the Gemm, whose bias is still in float."""
    parts = _parts(matmul)
    if parts is None:
        return None
    data, add, bias, (inputs, outputs) = parts
    value, result = matmul.inputs[0], matmul.outputs[0]
    assert value is not None
    assert value.shape is not None
    rows = _sizes(graph, f"{bias.name}_rows", [-1, inputs])
    flat = insert(graph, add, ir.node("Reshape", [data.inputs[0], rows]), data.inputs[0])
    floats = insert(graph, add, ir.node("DequantizeLinear", [flat, *data.inputs[1:]]), value)
    gemm = ir.node("Gemm", [floats, matmul.inputs[1], bias], name=matmul.name)
    sums = insert(graph, add, gemm, result)
    flat.shape = floats.shape = ir.Shape([None, inputs])
    sums.shape = ir.Shape([None, outputs])
    known = [size if isinstance(size, int) else -1 for size in value.shape[:-1]]
    if known.count(-1) < 2:
        shape = _sizes(graph, f"{bias.name}_shape", [*known, outputs])
    else:
        first = insert(graph, add, ir.node("Shape", [value], {"start": 0, "end": len(known)}))
        last = _sizes(graph, f"{bias.name}_width", [outputs])
        shape = insert(graph, add, ir.node("Concat", [first, last], {"axis": 0}))
    replace(add.outputs[0], insert(graph, add, ir.node("Reshape", [sums, shape]), add.outputs[0]))
    graph.remove([add, matmul], safe=True)
    return gemm


def _parts(matmul: ir.Node) -> tuple[ir.Node, ir.Node, ir.Value, tuple[int, int]] | None:
    """What dequantizes the 8-bit value, the addition, the bias, (inputs, outputs)."""
    data, weight = (producer(value, "DequantizeLinear") for value in matmul.inputs)
    value, result = matmul.inputs[0], matmul.outputs[0]
    users = [use.node for use in result.uses()]
    if data is None or weight is None or len(users) != 1 or users[0].op_type != "Add":
        return None
    add, stored, scale = users[0], weight.inputs[0], array(data.inputs[1])
    bias = next((other for other in add.inputs if other is not result), None)
    content = array(bias)
    if value is None or value.shape is None or len(value.shape) < 3 or scale is None or scale.ndim:
        return None
    if stored is None or stored.shape is None or len(stored.shape) != 2 or result.is_graph_output():
        return None
    inputs, outputs = (int(size) for size in stored.shape)  # type: ignore[arg-type]
    if bias is None or content is None or content.shape != (outputs,):
        return None
    return data, add, bias, (inputs, outputs)


def _sizes(graph: ir.Graph, name: str, sizes: list[int]) -> ir.Value:
    return store(graph, name, np.array(sizes, np.int64))
