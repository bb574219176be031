"""Recurrent cells that are called step by step, spelled out: two linear layers and what lies between.

    lstm_cell(x, (h, c))   i, f, g, o = W x + U h;   c' = σ(f) c + σ(i) tanh(g);   h' = σ(o) tanh(c')
    gru_cell(x, h)         r, z = σ(W x + U h);   n = tanh(W x + r U h);   h' = n + z (h − n)
    rnn_tanh_cell(x, h)    tanh(W x + U h), or relu

(Hochreiter & Schmidhuber 1997; Cho et al. 2014; gates in the order of `torch.nn`.) A runtime has an integer
kernel for each product, and none for the cell.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import getitem
from typing import Any

import torch
from torch import fx

from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import argument

aten = torch.ops.aten
Call = Callable[..., fx.Node]


def spell_out_cells(model: Model) -> None:
    """Rewrite every cell, in place; calls `model.refresh()` if there was one."""
    changed = False
    for node in list(model.graph.nodes):
        write = CELLS.get(op_name(node)) if node.op == "call_function" else None
        if write is None:
            continue
        x, state, w, u, b, d = (argument(node, position) for position in range(6))
        first: Any = state[0] if isinstance(state, list | tuple) else state
        with edit.inserting_before(node) as call:
            results = write(
                call, call(aten.linear.default, x, w, b), call(aten.linear.default, first, u, d), state
            )
        if isinstance(results, tuple):
            for user in list(node.users):
                edit.replace_node(user, results[user.args[1]])
            node.graph.erase_node(node)
        else:
            edit.replace_node(node, results)
        changed = True
    if changed:
        model.refresh()


def _lstm(call: Call, given: fx.Node, remembered: fx.Node, state: Any) -> tuple[fx.Node, fx.Node]:
    gates = _parts(call, call(aten.add.Tensor, given, remembered), 4)
    i, f, o = (call(aten.sigmoid.default, gates[position]) for position in (0, 1, 3))
    new = call(aten.mul.Tensor, i, call(aten.tanh.default, gates[2]))
    cell = call(aten.add.Tensor, call(aten.mul.Tensor, f, state[1]), new)
    return call(aten.mul.Tensor, o, call(aten.tanh.default, cell)), cell


def _gru(call: Call, given: fx.Node, remembered: fx.Node, state: Any) -> fx.Node:
    left, right = _parts(call, given, 3), _parts(call, remembered, 3)
    r, z = (call(aten.sigmoid.default, call(aten.add.Tensor, left[k], right[k])) for k in (0, 1))
    new = call(aten.add.Tensor, left[2], call(aten.mul.Tensor, r, right[2]))
    new = call(aten.tanh.default, new)
    return call(aten.add.Tensor, new, call(aten.mul.Tensor, z, call(aten.sub.Tensor, state, new)))


def _rnn(activation: Any) -> Callable[[Call, fx.Node, fx.Node, Any], fx.Node]:
    def write(call: Call, given: fx.Node, remembered: fx.Node, state: Any) -> fx.Node:
        return call(activation, call(aten.add.Tensor, given, remembered))

    return write


def _parts(call: Call, value: fx.Node, count: int) -> list[fx.Node]:
    chunks = call(aten.chunk.default, value, count, -1)
    return [call(getitem, chunks, position) for position in range(count)]


CELLS: dict[str, Callable[[Call, fx.Node, fx.Node, Any], Any]] = {
    "lstm_cell": _lstm,
    "gru_cell": _gru,
    "rnn_tanh_cell": _rnn(aten.tanh.default),
    "rnn_relu_cell": _rnn(aten.relu.default),
}
