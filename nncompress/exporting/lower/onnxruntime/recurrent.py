"""Fused recurrent layers that torch's exporter does not write: those without gates, and projected LSTMs.

ONNX has the former, the exporter takes them apart, step by step, which fixes how many there are. LSTMs with
projections it does not have: they become LSTMs without and a product behind each.

    h = W_hr (o · tanh c)        gates = W_ih x + W_hh h + b

Handing on r = o · tanh c instead of h = W_hr r, with W_hh W_hr in the place of W_hh, gives the same gates at
any length: W_hh h = (W_hh W_hr) r. A first state h₀ that is not zero becomes the r₀ of least norm that
projects to it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from operator import getitem
from typing import Any

import torch
from torch import fx

from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.formats.precision import MAKE_FLOAT32
from nncompress.ir.graph.ops import op_name
from nncompress.ir.graph.places import place
from nncompress.ir.layers.recurrent import recurrent_name
from nncompress.ir.layers.weights import argument

Call = Callable[..., fx.Node]
aten = torch.ops.aten
INEXACT = 1e-5  # of h₀: more is lost where it is no projection of anything


_PLAIN = {aten.rnn_tanh.input: "Tanh", aten.rnn_relu.input: "Relu"}


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For `torch.onnx.export`: the layers without gates."""
    return {op: partial(_plain, activation) for op, activation in _PLAIN.items()}


def in_steps(graph: fx.Graph) -> bool:
    """Some compute in double, for which ONNX Runtime has no RNN: the exporter is to take them apart.

    Raises:
        UnsupportedError: it would have to know how many steps there are.
    """
    in_double = False
    for node in graph.nodes:
        if node.target in _PLAIN and node.args[0].meta["val"].dtype == torch.float64:
            in_double = True
            if not isinstance(node.args[0].meta["val"].shape[1 if argument(node, 8) else 0], int):
                raise UnsupportedError(
                    "ONNX Runtime has no RNN of float64, and steps of a free number cannot be written out: "
                    + place(node),
                    remedy="give a graph that was exported with a number for that size; or make it float32: "
                    + MAKE_FLOAT32,
                )
    return in_double


def _plain(
    activation: str,
    x: Any,
    first: Any,
    params: Sequence[Any],
    has_biases: bool,
    num_layers: int,
    dropout: float,
    train: bool,
    bidirectional: bool,
    batch_first: bool,
) -> tuple[Any, Any]:
    from onnxscript import opset20

    op: Any = opset20  # whose stubs know no numbers in the place of constants
    sides, kinds = 2 if bidirectional else 1, 4 if has_biases else 2
    direction = "bidirectional" if bidirectional else "forward"
    x = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    last = []
    for layer in range(num_layers):
        first_side = layer * sides
        own = [params[kinds * side : kinds * (side + 1)] for side in range(first_side, first_side + sides)]
        stacked = [
            op.Concat(*(op.Unsqueeze(side[kind], [0]) for side in own), axis=0) for kind in range(kinds)
        ]
        bias = [op.Concat(*stacked[2:], axis=1)] if has_biases else [None]
        state = op.Slice(first, [first_side], [first_side + sides], [0])
        settings = {
            "direction": direction,
            "hidden_size": first.shape[2],
            "activations": [activation] * sides,
        }
        y, h = op.RNN(x, *stacked[:2], *bias, None, state, **settings)
        x = op.Reshape(op.Transpose(y, perm=[0, 2, 1, 3]), [0, 0, -1])
        last.append(h)
    x = op.Transpose(x, perm=[1, 0, 2]) if batch_first else x
    return x, op.Concat(*last, axis=0)


def without_projections(model: Model) -> Model:
    """A copy in which no LSTM has projections; `model` itself where none has.

    Raises:
        UnsupportedError: one starts from a state that its projection does not reach; the message names it.
    """
    if not any(map(_projects, model.graph.nodes)):
        return model
    plain = model.copy()
    for node in list(plain.graph.nodes):
        if _projects(node):
            _take_out(plain, node)
    plain.refresh()
    return plain


def _projects(node: fx.Node) -> bool:
    if node.op != "call_function" or op_name(node) != "lstm" or not isinstance(node.args[1], list | tuple):
        return False
    hidden, cell = (state.meta["val"] for state in node.args[1])  # type: ignore[union-attr]
    return bool(hidden.shape[-1] != cell.shape[-1])


def _take_out(model: Model, node: fx.Node) -> None:
    given: list[Any] = [argument(node, i) for i in range(9)]
    x, (hidden, cell), params, biases, layers, _, _, both, batch_first = given
    directions, each = 2 if both else 1, 5 if biases else 3
    last: list[fx.Node] = []
    cells: list[fx.Node] = []
    with edit.inserting_before(node) as call:
        for layer in range(layers):
            sides = range(layer * directions, (layer + 1) * directions)
            weights, projections = [], []
            for side in sides:
                w_ih, w_hh, *b, w_hr = params[side * each : (side + 1) * each]
                weights += [w_ih, call(aten.mm.default, w_hh, w_hr), *b]
                projections.append(w_hr)
            own = [call(aten.slice.Tensor, state, 0, sides[0], sides[-1] + 1) for state in (hidden, cell)]
            own[0] = _reaching(model, node, own[0], own[1], projections)
            made = call(aten.lstm.input, x, own, weights, biases, 1, 0.0, False, both, batch_first)
            y, h, c = (call(getitem, made, i) for i in range(3))
            x = _projected(call, y, projections, -1)
            last.append(_projected(call, h, projections, 0))
            cells.append(c)
        results = [x, call(aten.cat.default, last, 0), call(aten.cat.default, cells, 0)]
    for user in list(node.users):
        edit.replace_node(user, results[user.args[1]])  # type: ignore[index]
    model.graph.erase_node(node)


def _projected(call: Call, value: fx.Node, projections: list[fx.Node], dim: int) -> fx.Node:
    """Every direction's part along `dim`, projected by its own matrix."""
    if len(projections) == 1:
        return call(aten.linear.default, value, projections[0])
    parts = call(aten.chunk.default, value, len(projections), dim)
    made = [call(aten.linear.default, call(getitem, parts, i), w) for i, w in enumerate(projections)]
    return call(aten.cat.default, made, dim)


def _reaching(
    model: Model, node: fx.Node, hidden: fx.Node, cell: fx.Node, projections: list[fx.Node]
) -> fx.Node:
    """A state of the cell's shape that projects to the first state given."""
    with edit.inserting_before(node) as call:
        if op_name(_source(hidden)) in ("zeros", "new_zeros", "zeros_like"):
            return call(aten.zeros_like.default, cell)
        made = []
        for side, projection in enumerate(projections):
            inverse = edit.read_tensor(model, _inverse(model, node, projection), node)
            made.append(call(aten.linear.default, call(aten.select.int, hidden, 0, side), inverse))
        return call(aten.stack.default, made, 0)


def _source(node: fx.Node) -> fx.Node:
    while op_name(node) in ("slice", "expand", "clone"):
        node = node.args[0]  # type: ignore[assignment]
    return node


def _inverse(model: Model, node: fx.Node, projection: fx.Node) -> str:
    """The name of a new tensor `[hidden, projected]` that makes of a projected state one of its sources."""
    matrix = torch.zeros(1, 1)  # of a projection that is computed nothing is known here
    if projection.op == "get_attr":
        matrix = model.tensor(str(projection.target)).detach().double()
    inverse = torch.linalg.pinv(matrix)
    if (matrix @ inverse - torch.eye(len(matrix))).norm() > INEXACT:
        raise UnsupportedError(
            f"ONNX has no LSTM with projections, and {recurrent_name(model, node)} cannot be written without",
            got="a first state that is given, and that its projection does not reach",
            remedy="start it from zeros, or keep the model as .pt2",
        )
    name = f"{recurrent_name(model, node)}.{str(projection.target).rpartition('.')[2]}_inverse"
    return edit.add_tensor(
        model, name, inverse.to(model.tensor(str(projection.target)).dtype), trainable=False
    )
