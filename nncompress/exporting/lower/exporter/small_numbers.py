"""Numbers near 0 and 1 that onnxscript's optimizer would take for these, kept.

It drops `x + c` where |c| is below 1e-8, and `x * c` where c is within 1e-5 of 1. So the 1e-10 of
`log(x + 1e-10)`, which is there for x = 0, would be gone from the file. It looks at scalars only: a list of
one number is the same to the operator.
"""

from __future__ import annotations

from math import isclose
from typing import Any

import numpy as np
import onnx_ir as ir

from nncompress.exporting.lower.onnxruntime.edit import replace

DROPPED = {"Add": 0.0, "Sub": 0.0, "Mul": 1.0, "Div": 1.0}
_CASTS = ("Cast", "CastLike", "Identity")


def keep_small_numbers(model: ir.Model) -> None:
    """Edit in place, before the optimizer; the model computes the same."""
    for graph in model.graphs():
        for node in list(graph):
            result = node.outputs[0]
            if node.op_type not in DROPPED or result.shape is None:
                continue
            for position, value in enumerate(node.inputs):
                if _is_mistaken(_number(value), DROPPED[node.op_type]):
                    node.replace_input_with(position, _listed(node, value))
                    if len(result.shape) == 0:  # which the list has changed
                        _without_dims(node, result)
                    break


def _is_mistaken(number: float | None, neutral: float) -> bool:
    return number is not None and number != neutral and isclose(number, neutral, rel_tol=1e-5, abs_tol=1e-8)


def _number(value: ir.Value | None) -> float | None:
    """A stored scalar, as it is or cast."""
    made: Any = None if value is None else value.producer()
    while made is not None and made.op_type in _CASTS:
        value = made.inputs[0]
        made = None if value is None else value.producer()
    stored = None if value is None else ir.convenience.get_const_tensor(value)
    if stored is None or stored.size != 1 or len(stored.shape):
        return None
    number = stored.numpy().item()
    return float(number) if isinstance(number, float | int) else None


def _without_dims(node: ir.Node, result: ir.Value) -> None:
    assert node.graph is not None
    shape = ir.node("Constant", [], attributes={"value": ir.tensor(np.array([], np.int64))})
    made = ir.node("Reshape", [result, shape.outputs[0]])
    made.outputs[0].type, made.outputs[0].shape = result.type, ir.Shape([])
    replace(result, made.outputs[0])
    made.replace_input_with(0, result)
    result.shape = ir.Shape([1])
    node.graph.insert_after(node, [shape, made])


def _listed(before: ir.Node, value: ir.Value | None) -> ir.Value:
    assert before.graph is not None
    assert value is not None
    shape = ir.node("Constant", [], attributes={"value": ir.tensor(np.array([1], np.int64))})
    made = ir.node("Reshape", [value, shape.outputs[0]])
    made.outputs[0].type, made.outputs[0].shape = value.type, ir.Shape([1])
    before.graph.insert_before(before, [shape, made])
    return made.outputs[0]
