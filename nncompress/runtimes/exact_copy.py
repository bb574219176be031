"""A copy of a file by which ONNX Runtime computes what it says, and nothing less: what it is compared by.

| in the file                                               | in the copy                               |
|-----------------------------------------------------------|-------------------------------------------|
| MatMulNBits, which rounds what it multiplies              | the same in floats                        |
| MatMulInteger, whose sums a processor without VNNI cuts   | a product of floats, exact below 2^24     |
| DynamicQuantizeLSTM, which rounds its state               | an LSTM of the same weights in floats     |
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper

from nncompress.devices import processor

IN_FLOATS = 1  # accuracy level of MatMulNBits
LSTM_INPUTS = 8  # X, W, R, B, lengths, first h, first c, peepholes; scales and zero points follow


def write_exact(path: Path, copy: Path) -> bool:
    """Write the file once more, in the same folder; False where `path` is its own exact copy already."""
    model = onnx.load(path, load_external_data=False)
    lstms = spell_dynamic_lstms(model.graph, str(path.resolve().parent))
    nodes = list(model.graph.node)
    levels = [
        a for n in nodes for a in n.attribute if n.op_type == "MatMulNBits" and a.name == "accuracy_level"
    ]
    for level in levels:
        level.i = IN_FLOATS
    cut_off = processor().saturates and any(node.op_type == "MatMulInteger" for node in nodes)
    if cut_off:
        del model.graph.node[:]
        for node in nodes:
            model.graph.node.extend(_in_floats(node) if node.op_type == "MatMulInteger" else [node])
    if levels or cut_off or lstms:
        onnx.save(model, copy)
    return bool(levels) or cut_off or lstms


def _in_floats(product: NodeProto) -> Iterator[NodeProto]:
    """(a − its zero) · (b − its zero), as integers again."""
    result = product.output[0]
    operands = []
    for side, number in enumerate(product.input[:2]):
        zero = product.input[2 + side] if len(product.input) > 2 + side else ""
        name = f"{result}_{side}_float"
        yield helper.make_node("Cast", [number], [name], to=TensorProto.FLOAT)
        if zero:
            yield helper.make_node("Cast", [zero], [f"{name}_zero"], to=TensorProto.FLOAT)
            yield helper.make_node("Sub", [name, f"{name}_zero"], [f"{name}_centred"])
            name = f"{name}_centred"
        operands.append(name)
    yield helper.make_node("MatMul", operands, [f"{result}_float"])
    yield helper.make_node("Cast", [f"{result}_float"], [result], to=TensorProto.INT32)


def spell_dynamic_lstms(graph: onnx.GraphProto, folder: str) -> bool:
    """Say every DynamicQuantizeLSTM with stored weights in standard operators, in place; was there one?

    X goes through DynamicQuantizeLinear and DequantizeLinear, the weights [directions, in, 4 hidden] are
    dequantized, turned and joined for an LSTM. The kernel rounds the state at every step, too, on the range
    that it has there. No operator says that: it is measured where a file is compared with its graph.

    Args:
        folder: where external data lies.
    """
    if not any(node.op_type == "DynamicQuantizeLSTM" for node in graph.node):
        return False
    stored = {tensor.name: tensor for tensor in graph.initializer}
    nodes: list[NodeProto] = []
    for node in graph.node:
        weights = (
            {node.input[i] for i in (1, 2, 8, 9, 10, 11)} if node.op_type == "DynamicQuantizeLSTM" else None
        )
        if weights is None or not stored.keys() >= weights - {""}:
            nodes.append(node)
        else:
            nodes += _lstm_in_floats(node, graph, stored, folder)
    del graph.node[:]
    graph.node.extend(nodes)
    return True


def _lstm_in_floats(
    node: NodeProto, graph: onnx.GraphProto, stored: Mapping[str, TensorProto], folder: str
) -> Iterator[NodeProto]:
    given, base = list(node.input), f"{next(filter(None, node.output))}_spelled"
    known = {name for each in graph.node for name in (*each.input, *each.output)} | {
        t.name for t in graph.initializer
    }
    while any(name.startswith(base) for name in known):
        base += "_"

    def store(name: str, content: np.ndarray) -> str:
        graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(content), f"{base}_{name}"))
        return f"{base}_{name}"

    x = [f"{base}_x_{part}" for part in ("codes", "scale", "zero", "rounded")]
    yield helper.make_node("DynamicQuantizeLinear", [given[0]], x[:3])
    yield helper.make_node("DequantizeLinear", x[:3], x[3:])
    given[0] = x[3]
    for position, scale, zero in ((1, 8, 9), (2, 10, 11)):
        codes, scales, zeros = (
            numpy_helper.to_array(stored[given[i]], folder) if given[i] else None
            for i in (position, scale, zero)
        )
        assert codes is not None
        assert scales is not None
        shape = store(f"{position}_shape", np.array([1, codes.shape[2], codes.shape[1]]))
        sides = []
        for side in range(len(codes)):  # of two directions, each with a scale per row or for all
            name = f"{position}_{side}"
            parts = [store(f"{name}_codes", codes[side].T), store(f"{name}_scales", scales[side])]
            if zeros is not None:
                parts.append(store(f"{name}_zeros", zeros[side]))
            dequantize = helper.make_node("DequantizeLinear", parts, [f"{base}_{name}"])
            if np.ndim(scales[side]):
                dequantize.attribute.append(helper.make_attribute("axis", 0))
            yield dequantize
            sides.append(f"{base}_{name}_stacked")
            yield helper.make_node("Reshape", [f"{base}_{name}", shape], sides[-1:])
        given[position] = f"{base}_{position}"
        yield helper.make_node("Concat", sides, [given[position]], axis=0)
    made = helper.make_node("LSTM", given[:LSTM_INPUTS], list(node.output), node.name)
    made.attribute.extend(node.attribute)
    yield made
