"""Stored matrices that multiply in another way than a layer does, so that no pass takes them for one."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import fx

from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import PRODUCTS, op_name
from nncompress.ir.layers.weights import argument, roles_of, weight_at

AS_LAYER = "forward() can say W @ x as torch.nn.functional.linear(x.mT, W).mT, which is a layer"


def other_products(model: Model) -> str:
    """A sentence that names those that `AS_LAYER` is for; "" where there are none."""
    found, given = [], set[fx.Node]()  # what follows from an input
    for node in model.graph.nodes:
        if node.op == "placeholder" or not given.isdisjoint(node.all_input_nodes):
            given.add(node)
        if op_name(node) not in PRODUCTS | {"bmm", "einsum"} or len(node.all_input_nodes) != 2:
            continue
        roles = roles_of(node)
        if roles is not None and weight_at(model, argument(node, roles.weight)) is not None:
            continue
        for each, other in permutations(node.all_input_nodes):
            matrix = weight_at(model, each)
            if matrix is None or other not in given or other.meta["val"].dim() < 2:
                continue
            if matrix.dim == 2 and torch.is_floating_point(model.tensor(matrix.name)):
                found.append(matrix.name)
    names = list(dict.fromkeys(found))
    some = ", ".join(names[:3]) + (", …" if names[3:] else "")
    return f"{some} multiplies from the left or by einsum, which is no layer" if names else ""
