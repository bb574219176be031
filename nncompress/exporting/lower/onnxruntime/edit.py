"""Small edits of an ONNX graph that every lowering needs."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

CLAMPS = ("Relu", "Clip")  # what the runtime takes for a part of the layer before, where rounding follows


def array(value: ir.Value | None) -> np.ndarray | None:
    """The content of an initializer, None for anything else."""
    return None if value is None or value.const_value is None else value.const_value.numpy()


def producer(value: ir.Value | None, op_type: str) -> ir.Node | None:
    """The node that computes `value`, if it is of this type."""
    node = None if value is None else value.producer()
    return node if node is not None and node.op_type == op_type else None


def store(graph: ir.Graph, name: str, content: np.ndarray) -> ir.Value:
    """A new initializer under a free name."""
    free, count = name, 1
    while free in graph.initializers:
        count += 1
        free = f"{name}_{count}"
    value = ir.Value(name=free, const_value=ir.tensor(content, name=free))
    value.shape, value.type = ir.Shape(content.shape), ir.TensorType(value.const_value.dtype)  # type: ignore[union-attr]
    graph.initializers[free] = value
    return value


def insert(graph: ir.Graph, before: ir.Node, node: ir.Node, like: ir.Value | None = None) -> ir.Value:
    """Put `node` in front of `before`; its output, with the type and shape of `like`."""
    (output,) = node.outputs
    output.name = f"{before.name}_{node.op_type}_{len(graph)}"
    if like is not None:
        output.type, output.shape = like.type, like.shape
    graph.insert_before(before, node)
    return output


def replace(old: ir.Value, new: ir.Value) -> None:
    """All readers of `old` read `new`, which takes over its name where it is an output of the graph."""
    if old.is_graph_output():
        new.name, old.name = old.name, f"{old.name}_replaced"
    old.replace_all_uses_with(new, replace_graph_outputs=True)


def turned(graph: ir.Graph, before: ir.Node, dequantize: ir.Node) -> ir.Value:
    """The transposed 8-bit matrix that `dequantize` reads, for a node after `before`."""
    weight = dequantize.inputs[0]
    assert weight is not None
    assert weight.shape is not None
    stored = array(weight)
    if stored is not None and len(list(dequantize.outputs[0].uses())) == 1:
        return store(graph, f"{weight.name}_transposed", np.ascontiguousarray(stored.T))
    # read elsewhere too (tied), or packed: the runtime turns it once, when it loads
    result = insert(graph, before, ir.node("Transpose", [weight], {"perm": [1, 0]}))
    result.type, result.shape = weight.type, ir.Shape([weight.shape[1], weight.shape[0]])
    return result
