"""LSTMs with projections, which ONNX does not have: written step by step, where the length is fixed."""

from __future__ import annotations

from typing import Any

from torch import fx

from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.ir.graph.decompose import take_apart
from nncompress.ir.graph.normalize import op_name
from nncompress.ir.layers.weights import recurrent_name


def unroll_projections(model: Model) -> Model:
    """A copy in which no LSTM has projections; `model` itself where none has.

    Raises:
        UnsupportedError: the length is not fixed; the message names the layer.
    """
    if not any(map(_projects, model.graph.nodes)):
        return model
    unrolled = model.copy()
    for node in list(unrolled.graph.nodes):
        name = recurrent_name(node) if _projects(node) else ""
        if name and not take_apart(unrolled.graph, node):
            raise UnsupportedError(
                f"ONNX has no LSTM with projections, and {name} cannot be written step by step",
                got="a length that is not fixed",
                remedy="fix the length of the input when the model is made, or keep it as .pt2",
            )
    unrolled.refresh()
    return unrolled


def _projects(node: fx.Node) -> bool:
    if node.op != "call_function" or op_name(node) != "lstm":
        return False
    hidden, cell = (state.meta["val"] for state in _states(node))
    return bool(hidden.shape[-1] != cell.shape[-1])


def _states(node: fx.Node) -> tuple[fx.Node, fx.Node]:
    states: Any = node.args[1]
    return states[0], states[1]
