"""Quantized weights of recurrent layers that a file keeps in an order of its own: stored as torch has them.

ONNX has the gates of an LSTM in another order than torch, and one tensor for all directions. What moves the
numbers of a weight moves its int8 codes as well, and their scales:

    codes, scales -> dequantize -> select, slice, cat -> lstm
    codes', scales' -> dequantize -> lstm
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from nncompress.ir.edit import nodes as edit
from nncompress.ir.edit.computed import behind, constants, value_of
from nncompress.ir.formats.qdq import store_int8
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import MOVES, RECURRENT, op_name
from nncompress.ir.layers.recurrent import recurrent_name, recurrent_parameters
from nncompress.ir.layers.weights import DEQUANTIZE, argument, weight_at

MOVING = MOVES | {"cat", "stack", "split", "chunk", "getitem", "to"}
TOP = 127  # the largest code of a symmetric weight


def store_moved_codes(model: Model) -> list[str]:
    """Store them, in place, and return the weights' names; calls `model.refresh()` if there was one."""
    constant = constants(model)
    stored = []
    for node in list(model.graph.nodes):
        if node.op != "call_function" or op_name(node) not in RECURRENT:
            continue
        base = recurrent_name(model, node)
        for leaf, source in recurrent_parameters(node).items():
            if source in constant and weight_at(model, source) is None:
                found = _moved(model, source)
                if found is not None:
                    name = edit.add_tensor(model, f"{base}.{leaf}", found[0].float())
                    edit.replace_node(source, edit.read_tensor(model, name, source))
                    store_int8(model, name, *found, axis=0)
                    stored.append(name)
    if stored:
        model.refresh()
    return stored


def _moved(model: Model, source: fx.Node) -> tuple[Tensor, Tensor] | None:
    """(codes [rows, columns], scales [rows]) of such a weight; None where it is none."""
    found = [node for node in behind(source) if op_name(node) in DEQUANTIZE[:2]]
    inside = {each for node in found for each in behind(node)}
    moved_only = all(op_name(node) in MOVING for node in behind(source) - inside)
    if not found or not moved_only:  # what computes with the numbers is no move
        return None
    codes: dict[fx.Node, Tensor] = {}
    scales: dict[fx.Node, Tensor] = {}
    for node in found:
        codes[node], scales[node] = _grid(model, node)
    moved, every = value_of(model, source, dict(codes)), value_of(model, source, dict(scales))
    row = every[:, :1] if every.dim() == 2 else every
    if moved.dim() != 2 or not torch.equal(every, row.expand_as(every)) or moved.abs().max() > TOP:
        return None
    return moved.to(torch.int8), row[:, 0].contiguous()


def _grid(model: Model, node: fx.Node) -> tuple[Tensor, Tensor]:
    """Of a dequantize node: what it multiplies, both as floats of its shape."""
    stored, scale, zero = (_operand(model, node, position) for position in range(3))
    axis = argument(node, 3) if scale.dim() else 0
    shape = [-1 if scale.dim() and dim == axis else 1 for dim in range(stored.dim())]
    codes = stored.float() - zero.float().reshape(shape if zero.dim() else [])
    return codes, scale.float().reshape(shape).expand(stored.shape)


def _operand(model: Model, node: fx.Node, position: int) -> Tensor:
    given = argument(node, position)
    found = value_of(model, given, {}) if isinstance(given, fx.Node) else given
    return torch.as_tensor(0.0 if found is None else found)
