"""The float32 graph that an int8 graph is measured beside: the same ops, the rounding taken out."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper


def float_twin(model: ir.Model) -> bytes:
    """The file of an exported model, not yet lowered, with its rounding taken out: float32 throughout."""
    ranks = {v.name: len(v.shape) for n in model.graph for v in n.inputs if v is not None and v.shape}
    proto = ir.serde.serialize_model(model)
    graph = proto.graph
    del graph.value_info[:]
    rounded = {node.output[0] for node in graph.node if node.op_type == "QuantizeLinear"}
    scales = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        quantize = node.op_type == "QuantizeLinear"
        if quantize or (node.op_type == "DequantizeLinear" and node.input[0] in rounded):
            nodes.append(helper.make_node("Identity", [node.input[0]], [node.output[0]]))
        elif node.op_type == "DequantizeLinear" and node.input[1] in scales:
            scale = onnx.numpy_helper.to_array(scales[node.input[1]])
            if scale.ndim == 2:  # weights by groups
                graph.initializer.append(_computed(node, scale, scales))
            else:
                nodes += _multiplied(graph, node, scale, ranks.get(node.input[0], 1))
        elif node.op_type != "DynamicQuantizeLinear":  # nobody reads its scale any more
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)
    return proto.SerializeToString()


def _computed(
    node: onnx.NodeProto, scale: np.ndarray, stored: dict[str, onnx.TensorProto]
) -> onnx.TensorProto:
    """A weight by groups in floats."""
    codes, *zeros = (onnx.numpy_helper.to_array(stored[each]) for each in (node.input[0], *node.input[2:]))
    rows = codes.reshape(*scale.shape, -1).astype(np.float32)
    if zeros:
        rows = rows - zeros[0][..., None]
    return onnx.numpy_helper.from_array((rows * scale[..., None]).reshape(codes.shape), node.output[0])


def _multiplied(
    graph: onnx.GraphProto, node: onnx.NodeProto, scale: np.ndarray, rank: int
) -> tuple[onnx.NodeProto, onnx.NodeProto]:
    """A weight's `Cast, Mul`, which ONNX Runtime computes when it loads the file."""
    (result,) = node.output
    if scale.ndim:
        axis = next((a.i for a in node.attribute if a.name == "axis"), 1) % rank
        scale = scale.reshape([-1 if d == axis else 1 for d in range(rank)])
    graph.initializer.append(onnx.numpy_helper.from_array(np.ascontiguousarray(scale), f"{result}_factor"))
    return (
        helper.make_node("Cast", [node.input[0]], [f"{result}_cast"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", [f"{result}_cast", f"{result}_factor"], [result]),
    )
