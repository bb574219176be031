"""Stored matrices that multiply in another way than a layer does, so that no pass takes them for one."""

from __future__ import annotations

from itertools import permutations

import torch
from torch import fx

from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import PRODUCTS, op_name
from nncompress.ir.layers.weights import argument, layers, roles_of, weight_at

_VIEWS = ["transpose", "permute", "expand", "reshape", "unsqueeze", "squeeze", "select", "alias"]
_MOVED = frozenset([*_VIEWS, "index", "index_select", "to"])
WORTH_SAYING = 0.05  # of all stored numbers
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


def stacks_left(model: Model) -> list[str]:
    """A line on stacks of matrices, of which rows choose theirs (experts) or every head has one, where a part
    of the stored numbers worth saying is in them: passes that take layers leave them as they are."""
    taken = {layer.weight.name for layer in layers(model)}
    stored = {str(node.target) for node in model.graph.nodes if node.op == "get_attr"}
    sizes: dict[str, int] = {}
    for node in model.graph.nodes:
        if op_name(node) not in PRODUCTS | {"bmm", "einsum"}:
            continue
        for each in node.all_input_nodes:
            while each.op == "call_function" and op_name(each) in _MOVED:
                each = each.all_input_nodes[0]
            if each.op == "get_attr" and each.target not in taken:
                tensor = model.tensor(str(each.target))
                if tensor.dim() > 2 and tensor.is_floating_point():
                    sizes[str(each.target)] = tensor.numel()
    everything = sum(model.tensor(name).numel() for name in stored)
    if not sizes or sum(sizes.values()) < WORTH_SAYING * everything:
        return []
    names = sorted(sizes, key=lambda name: -sizes[name])
    some = ", ".join(names[:3]) + (", …" if names[3:] else "")
    share = sum(sizes.values()) / everything
    return [
        f"{share:.0%} of the stored numbers are stacks of matrices, no layers, and stay as they are: {some}"
    ]
