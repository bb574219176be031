"""Float weights that ONNX Runtime would round by itself.

Where a layer's input is dequantized and its result quantized, the runtime rounds a float weight in between to
int8, with one scale for all of it, and says nothing. That would undo `--keep` and `--max-drop`, and round the
weights of transposed convolutions again, coarser. It leaves layers alone whose bias is no stored float,
so theirs is stored as 32-bit integers (off by 1e-9 of the largest at most).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from nncompress.exporting.lower.onnxruntime.edit import CLAMPS, array, insert, producer, store

LAYERS = ("Conv", "ConvTranspose", "Gemm")
TOP = 2**30


def protect_floats(graph: ir.Graph) -> None:
    """Give every such layer its bias in integers, in place."""
    for node in list(graph):
        if (
            node.op_type in LAYERS
            and _between_integers(node)
            and producer(node.inputs[1], "DequantizeLinear") is None
        ):
            _store_bias(graph, node)


def _between_integers(node: ir.Node) -> bool:
    if producer(node.inputs[0], "DequantizeLinear") is None:
        return False
    value = node.outputs[0]
    while True:
        users = [use.node for use in value.uses()]
        if len(users) != 1 or value.is_graph_output():
            return False
        if users[0].op_type not in CLAMPS:
            return users[0].op_type == "QuantizeLinear"
        value = users[0].outputs[0]


def _store_bias(graph: ir.Graph, node: ir.Node) -> None:
    given = node.inputs[2] if len(node.inputs) > 2 else None
    bias = array(given)
    outputs = node.outputs[0].shape
    if given is None and outputs is not None and isinstance(outputs[1], int):
        bias = np.zeros(outputs[1], np.float32)
    if bias is None or bias.ndim != 1:  # computed: no stored float
        return
    unit = max(float(np.abs(bias).max(initial=0)), float(np.finfo(np.float32).tiny) * TOP) / TOP
    name = f"{node.name}.bias"
    inputs = [
        store(graph, f"{name}_int32", np.rint(bias.astype(np.float64) / unit).astype(np.int32)),
        store(graph, f"{name}_unit", np.array(unit, np.float32)),
    ]
    value = insert(graph, node, ir.node("DequantizeLinear", inputs))
    node.resize_inputs(3)
    node.replace_input_with(2, value)
