"""Recurrent layers and cells written out, step by step.

ExecuTorch takes them apart itself, but only after `slice_parts`: gates of a step would then be several parts
taken at once, behind which no other batch than the example's runs.
"""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import fx

from nncompress.ir import Model
from nncompress.ir.edit import nodes as edit
from nncompress.ir.edit.recurrent.cells import CELLS, spell_out_cells
from nncompress.ir.edit.recurrent.inputs import one_node_each
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.recurrent import op_arguments, recurrent_layers, recurrent_parameters

aten = torch.ops.aten


def write_steps(model: Model) -> None:
    """Rewrite every cell, and every fused layer whose number of steps is fixed, in place; calls
    `model.refresh()` if there was one."""
    spell_out_cells(model)
    one_node_each(model, [layer for layer in recurrent_layers(model) if _steps(layer.node)])
    fused = [(layer.node, steps) for layer in recurrent_layers(model) if (steps := _steps(layer.node))]
    for node, steps in fused:
        _write(node, range(steps))
    if fused:
        model.refresh()


def _steps(node: fx.Node) -> int:
    """How many a layer takes; 0 where that is not known, or its sequences are packed."""
    given = op_arguments(node)
    if "input" not in given:
        return 0
    length = given["input"].meta["val"].shape[1 if given["batch_first"] else 0]
    return length if isinstance(length, int) else 0


def _write(node: fx.Node, steps: range) -> None:
    given, weights = op_arguments(node), recurrent_parameters(node)
    kind, time = op_name(node), 1 if given["batch_first"] else 0
    several = kind == "lstm"  # which has two states
    sequences, ends = [], []
    with edit.inserting_before(node) as call:
        for direction, side in enumerate(("", "_reverse")[: 2 if given["bidirectional"] else 1]):
            w, u, b, d, projection = (
                weights.get(f"{name}_l0{side}")
                for name in ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "weight_hr")
            )
            gates = call(aten.linear.default, given["input"], w, b)
            state: list[Any] = [
                call(aten.select.int, each, 0, direction)
                for each in (given["hx"] if several else [given["hx"]])
            ]
            outputs = {}
            for step in reversed(steps) if side else steps:
                now = call(aten.select.int, gates, time, step)
                remembered = call(aten.linear.default, state[0], u, d)
                made = CELLS[f"{kind}_cell"](call, now, remembered, state if several else state[0])
                state = list(made) if several else [made]
                if projection is not None:
                    state[0] = call(aten.linear.default, state[0], projection, None)
                outputs[step] = state[0]
            sequences.append(call(aten.stack.default, [outputs[step] for step in steps], time))
            ends.append(state)
        whole = sequences[0] if len(sequences) == 1 else call(aten.cat.default, sequences, -1)
        results = [whole, *(call(aten.stack.default, list(parts), 0) for parts in zip(*ends))]
    for user in list(node.users):
        assert user.target is getitem
        edit.replace_node(user, results[user.args[1]])  # type: ignore[index]
    node.graph.erase_node(node)
