"""Tables whose rows have a largest norm, bounded once instead of whenever a row is read.

`nn.Embedding(max_norm=…)` scales the rows that it reads, and keeps them so: a write to a parameter in every
call. Scaling them again changes nothing, so that all rows may be scaled when the model is made, unless others
read the table as well: they see rows that no call has scaled so far.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

aten = torch.ops.aten
_BOUNDS = (aten.embedding_renorm_.default, aten.embedding_renorm.default)
_LOOKUPS = (aten.embedding.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx)


def bound_rows(module: fx.GraphModule) -> None:
    """Store every such table with its rows scaled, in place; the table of the original stays as it is."""
    for node in list(module.graph.nodes):
        if node.target not in _BOUNDS:
            continue
        table: Any = node.args[0]
        while table.target is aten.detach.default:
            table = table.args[0]
        if table.op != "get_attr":
            continue
        stored = _tensor(module, table)
        if stored.is_meta or not _only_looked_up(module, stored):  # whose rows come later
            continue
        every = torch.arange(len(stored), device=stored.device)
        _replace(module, stored, aten.embedding_renorm.default(stored.detach(), every, *node.args[2:]))
        node.replace_all_uses_with(table)
        module.graph.erase_node(node)


def _tensor(module: fx.GraphModule, node: fx.Node) -> Tensor:
    prefix, _, leaf = str(node.target).rpartition(".")
    return getattr(module.get_submodule(prefix), leaf)


def _only_looked_up(module: fx.GraphModule, table: Tensor) -> bool:
    reads = [n for n in module.graph.nodes if n.op == "get_attr" and _tensor(module, n) is table]
    for node in reads:  # which grow by what only hands the table on
        reads += [user for user in node.users if user.target in (aten.detach.default, *_BOUNDS)]
    return all(user in reads or user.target in _LOOKUPS for node in reads for user in node.users)


def _replace(module: fx.GraphModule, old: Tensor, value: Tensor) -> None:
    """Under all of its names."""
    fresh = value
    if isinstance(old, torch.nn.Parameter):
        fresh = torch.nn.Parameter(value, requires_grad=old.requires_grad)
    for each in module.modules():
        held: tuple[dict[str, Any], ...] = (each._parameters, each._buffers)
        for tensors in held:
            tensors.update({name: fresh for name, tensor in tensors.items() if tensor is old})
