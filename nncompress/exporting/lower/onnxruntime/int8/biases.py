"""Biases of int8 products that are not the same for all units.

OpenVINO 2026.4 makes one kernel of a chain of linear layers over the rows of a matrix. Where a layer inside
it has no bias, or the same for all its units, as zeros are, that kernel reads memory that is nobody's, and
gives another result in every run. A bias of which one entry is 1e-30 changes nothing, and is read rightly.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncompress.exporting.lower.onnxruntime.edit import array, insert, producer, replace, store

LEAST = np.float32(1e-30)


def lower_biases(graph: ir.Graph) -> int:
    """Write them in place; how many there were."""
    return sum(_tell_units_apart(graph, node) for node in list(graph) if _is_over_rows(node))


def _is_over_rows(node: ir.Node) -> bool:
    """It multiplies a matrix of bytes by a stored one."""
    if node.op_type not in ("Gemm", "MatMul"):
        return False
    data, weight = (producer(value, "DequantizeLinear") for value in node.inputs[:2])
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    stored = array(weight.inputs[0]) if weight is not None else None
    rows = node.op_type == "Gemm" or (shape is not None and len(shape) == 2)
    return rows and data is not None and stored is not None and stored.ndim == 2


def _tell_units_apart(graph: ir.Graph, product: ir.Node) -> bool:
    weight = array(producer(product.inputs[1], "DequantizeLinear").inputs[0])  # type: ignore[union-attr]
    assert weight is not None
    turned = "transB" in product.attributes and bool(product.attributes["transB"].as_int())
    given = product.inputs[2] if len(product.inputs) > 2 else None
    bias = np.zeros(weight.shape[0 if turned else 1], np.float32) if given is None else _value(given)
    if bias is None or bias.ndim != 1 or len(bias) < 2 or np.ptp(bias):
        return False
    bias = bias.copy()
    bias[0] = np.nextafter(bias[0], np.float32(0)) if bias[0] else LEAST
    inputs = [*product.inputs[:2], store(graph, f"{product.outputs[0].name}_bias", bias)]
    result = product.outputs[0]
    replace(result, insert(graph, product, ir.node("Gemm", inputs, product.attributes), result))
    graph.remove(product, safe=True)
    return True


def _value(bias: ir.Value) -> np.ndarray | None:
    """What a stored bias is, in floats or rounded."""
    rounded = producer(bias, "DequantizeLinear")
    if rounded is None:
        return array(bias)
    codes, scale = (array(value) for value in rounded.inputs[:2])
    return None if codes is None or scale is None else (codes * scale).astype(np.float32)
