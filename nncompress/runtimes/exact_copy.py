"""A copy of a file by which ONNX Runtime computes what it says, and nothing less: what it is compared by.

| in the file                                               | in the copy                               |
|-----------------------------------------------------------|-------------------------------------------|
| MatMulNBits, which rounds what it multiplies              | the same in floats                        |
| MatMulInteger, whose sums a processor without VNNI cuts   | a product of floats, exact below 2^24     |
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import onnx
from onnx import NodeProto, TensorProto, helper

from nncompress.devices import processor

IN_FLOATS = 1  # accuracy level of MatMulNBits


def write_exact(path: Path, copy: Path) -> bool:
    """Write the file once more, in the same folder; False where `path` is its own exact copy already."""
    model = onnx.load(path, load_external_data=False)
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
    if levels or cut_off:
        onnx.save(model, copy)
    return bool(levels) or cut_off


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
