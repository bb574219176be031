"""Stored matrices that multiply in another way than a layer does, so that no pass takes them for one."""

from __future__ import annotations

import torch

from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import PRODUCTS, op_name
from nncompress.ir.layers.weights import argument, roles_of, weight_at

AS_LAYER = "forward() can say W @ x as torch.nn.functional.linear(x.mT, W).mT, which is a layer"


def other_products(model: Model) -> str:
    """A sentence that names those that `AS_LAYER` is for; "" where there are none."""
    found = []
    for node in model.graph.nodes:
        if op_name(node) not in PRODUCTS | {"bmm", "einsum"}:
            continue
        roles = roles_of(node)
        if roles is not None and weight_at(model, argument(node, roles.weight)) is not None:
            continue
        stored = [weight_at(model, each) for each in node.all_input_nodes]
        ranks = [len(each.meta["val"].shape) for each in node.all_input_nodes]
        if len(stored) != 2 or min(ranks) < 2 or (stored[0] is None) == (stored[1] is None):
            continue  # of stored ones alone, or of a vector
        (matrix,) = (each for each in stored if each is not None)
        if matrix.dim == 2 and torch.is_floating_point(model.tensor(matrix.name)):
            found.append(matrix.name)
    names = list(dict.fromkeys(found))
    some = ", ".join(names[:3]) + (", …" if names[3:] else "")
    return f"{some} multiplies from the left or by einsum, which is no layer" if names else ""
