"""Tables whose rows have a largest norm, bounded once instead of whenever a row is read.

`nn.Embedding(max_norm=…)` scales the rows that it reads, and keeps them so: a write to a parameter in every
call. Scaling them again changes nothing, so that all rows may be scaled when the model is made, where whoever
reads the table has scaled what it reads, and all by one norm. Others see rows that no call has scaled so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
_BOUNDS = (aten.embedding_renorm_.default, aten.embedding_renorm.default)
_HANDED_ON = (aten.detach.default, *_BOUNDS)
_LOOKUPS = (aten.embedding.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx)


def bound_rows(module: fx.GraphModule) -> None:
    """Store every such table with its rows scaled, in place; the table of the original stays as it is."""
    found: dict[Tensor, list[fx.Node]] = {}
    for node in module.graph.nodes:
        if node.target in _BOUNDS and (table := _table(node)).op == "get_attr":
            found.setdefault(_tensor(module, table), []).append(node)
    for stored, bounds in found.items():
        norm = bounds[0].args[2:]
        if any(node.args[2:] != norm for node in bounds) or not _is_read_bounded(module, stored):
            continue
        every = torch.arange(len(stored), device=stored.device)
        _replace(module, stored, aten.embedding_renorm.default(stored.detach(), every, *norm))
        for node in bounds:
            node.replace_all_uses_with(node.args[0])  # type: ignore[arg-type]
            module.graph.erase_node(node)


def _table(bound: fx.Node) -> fx.Node:
    node: Any = bound
    while node.target in _HANDED_ON:
        node = node.args[0]
    return node


def _tensor(module: fx.GraphModule, node: fx.Node) -> Tensor:
    prefix, _, leaf = str(node.target).rpartition(".")
    return getattr(module.get_submodule(prefix), leaf)


def _is_read_bounded(module: fx.GraphModule, table: Tensor) -> bool:
    """Every reading is a lookup of rows that have been scaled before it in the same call."""
    if table.is_meta:  # whose rows come later
        return False
    held: dict[fx.Node, set[Any]] = {}  # what hands the table on -> indices of its scaled rows
    written: set[Any] = set()
    for node in module.graph.nodes:
        source: Any = node.args[0] if node.args else None
        if node.op == "get_attr" and _tensor(module, node) is table:
            held[node] = written
        elif held.keys().isdisjoint(node.all_input_nodes):
            continue
        elif source not in held:
            return False
        elif node.target in _HANDED_ON:
            held[node] = held[source]
            if node.target is aten.embedding_renorm_.default:
                held[node].add(node.args[1])
            elif node.target is aten.embedding_renorm.default:
                held[node] = held[source] | {node.args[1]}
        elif node.target not in _LOOKUPS or node.args[1] not in held[source]:
            return False
    return True


def _replace(module: fx.GraphModule, old: Tensor, value: Tensor) -> None:
    """Under all of its names."""
    fresh = value
    if isinstance(old, torch.nn.Parameter):
        fresh = torch.nn.Parameter(value, requires_grad=old.requires_grad)
    for each in module.modules():
        held: tuple[dict[str, Any], ...] = (each._parameters, each._buffers)
        for tensors in held:
            tensors.update({name: fresh for name, tensor in tensors.items() if tensor is old})
