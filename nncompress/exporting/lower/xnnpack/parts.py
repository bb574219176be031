"""Parts of a tensor, each taken by a slice of its own.

An op that gives several parts at once ends the delegate's program, and what it reads there keeps the size
that it was compiled with: no other batch would run. A slice does the same for one part.
"""

from __future__ import annotations

from operator import getitem
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.edit import nodes as edit
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import argument

aten = torch.ops.aten
DIM = {  # op -> the position of the dim among its arguments
    **dict.fromkeys(
        ("chunk", "unsafe_chunk", "split", "unsafe_split", "split_with_sizes", "tensor_split"), 2
    ),
    "unbind": 1,
}


def slice_parts(graph: fx.Graph) -> None:
    """Replace the parts of every such op, in place, where their sizes are known."""
    for node in list(graph.nodes):
        if op_name(node) in DIM:
            _slice(node)


def _slice(node: fx.Node) -> None:
    source, parts = argument(node, 0), node.meta.get("val")
    if not isinstance(source, fx.Node) or not isinstance(parts, list | tuple):
        return
    dim: Any = argument(node, DIM[op_name(node)]) or 0
    single = op_name(node) == "unbind"
    sizes = [1 if single else part.shape[dim] for part in parts if isinstance(part, Tensor)]
    if not all(isinstance(size, int) for size in sizes):
        return
    for reader in list(node.users):
        position: Any = reader.args[1] if reader.target is getitem else None
        if position is None:
            continue
        position %= len(sizes)
        start = sum(sizes[:position])
        with edit.inserting_before(reader) as call:
            if single:
                part = call(aten.select.int, source, dim, position)
            else:
                part = call(aten.slice.Tensor, source, dim, start, start + sizes[position])
        edit.replace_node(reader, part)
    if not node.users:
        node.graph.erase_node(node)
