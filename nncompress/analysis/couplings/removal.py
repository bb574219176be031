"""Finding the couplings of a model, and taking units out of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import fx

from nncompress.analysis.couplings.groups import Couplings, Removal
from nncompress.analysis.couplings.trace import Trace, constants_to_fold, folded_name
from nncompress.ir import Model
from nncompress.ir.edit.nodes import add_tensor, read_tensor, replace_node
from nncompress.ir.edit.resize import Survivors, resize


def find_couplings(model: Model) -> Couplings:
    """Which indices must be removed together. Reads the graph and shapes only; runs nothing."""
    return Couplings(model, Trace(model))


def remove_units(model: Model, removal: Removal, couplings: Couplings | None = None) -> None:
    """Remove units: index-select the stored tensors, derive every literal anew, refresh.

    Args:
        removal: group name -> units to remove.
        couplings: of this very model, if they are known already. They describe the model before; afterwards
            find them again.

    Raises:
        UsageError: an unknown group or unit, or a group that would be empty.
        UnsupportedError: the result cannot be traced.
    """
    couplings = couplings or find_couplings(model)
    survivors = couplings.survivors(removal)
    if fold_weights(model):
        folded = find_couplings(model)
        survivors = folded.survivors(_in_groups_of(folded, survivors))
    resize(model, survivors)


def _in_groups_of(couplings: Couplings, survivors: Survivors) -> Removal:
    """The same removal where groups have other names, and units another order: as weights are folded."""
    removal = {}
    for group in couplings.groups:
        gone = [
            member.unit[(member.unit >= 0) & ~survivors.tensors[member.tensor][member.dim]]
            for member in group.members
            if member.dim in survivors.tensors.get(member.tensor, {})
        ]
        if gone:
            removal[group.name] = np.unique(np.concatenate(gone))
    return removal


def fold_weights(model: Model) -> list[str]:
    """Store weights that are computed from weights (weight standardisation, weight norm) as what they are.

    Returns:
        The names of the new tensors; empty if there is nothing to fold.
    """
    nodes, _ = constants_to_fold(model)
    needed = set(nodes)
    for node in reversed(model.graph.nodes):
        if node in needed:
            needed.update(node.all_input_nodes)
    made, values = [], dict[fx.Node, Any]()
    for node in list(model.graph.nodes):
        if node not in needed:
            continue
        with torch.no_grad():
            values[node] = _evaluate(model, node, values)
        if node in nodes:
            name = add_tensor(model, folded_name(node), values[node])
            reader = read_tensor(model, name, node)
            values[reader] = values[node]
            replace_node(node, reader)
            made.append(name)
    if made:
        model.refresh()
    return made


def _evaluate(model: Model, node: fx.Node, values: Mapping[fx.Node, Any]) -> Any:
    """The value of a constant node, given those of the nodes before it."""
    if node.op == "get_attr":
        return model.tensor(str(node.target))
    assert callable(node.target)
    args: Any = fx.map_arg(node.args, values.__getitem__)
    kwargs: Any = fx.map_arg(node.kwargs, values.__getitem__)
    return node.target(*args, **kwargs)
