"""Tensors without dims and without numbers, which runtimes take otherwise than torch does.

What torch does along a dim of a single number, which has none, is done along the one of a row of one. What is
computed of nothing is known: a sum is 0, a product 1, a mean NaN.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import argument

aten = torch.ops.aten
_GIVE_ONE = frozenset({"unsqueeze", "expand", "squeeze", "size", "sym_size", "permute"})  # or ask of none


def give_a_dim(node: fx.Node) -> None:
    """Edit an op in place; the program computes the same."""
    target = node.target
    if not isinstance(target, torch._ops.OpOverload) or op_name(node) in _GIVE_ONE or not node.args:
        return
    places = [i for i, each in enumerate(target._schema.arguments) if each.name in ("dim", "dims")]
    if not places or not _is_number(node.args[0]):
        return
    before, dims = node.meta["val"], argument(node, places[0])
    parts = before if isinstance(before, tuple | list) else (before,)
    if not all(isinstance(part, Tensor) and set(part.shape) <= {1} for part in parts):
        return
    arguments = target._schema.arguments
    filled = [node.args[i] for i, each in enumerate(arguments[: len(node.args)]) if each.name == "value"]
    given = [x for x in node.all_input_nodes if _is_number(x) and x not in filled]
    args, kwargs = list(node.args), dict(node.kwargs)
    if isinstance(dims, int | list | tuple):
        only = 0 if isinstance(dims, int) else [0]
        if places[0] < len(args):
            args[places[0]] = only
        else:
            kwargs[arguments[places[0]].name] = only

    def value(x: fx.Node) -> Any:
        return x.meta["val"].reshape([1]) if x in given else x.meta["val"]

    try:
        found = target(*fx.map_arg(args, value), **fx.map_arg(kwargs, value))
    except (RuntimeError, IndexError):  # it is not for a row
        return
    if any(a.numel() != b.numel() for a, b in zip(parts, [found] if isinstance(found, Tensor) else found)):
        return
    rows = {x: _reshaped(x, [1], before=node) for x in given}
    node.args, node.kwargs = fx.map_arg((tuple(args), kwargs), lambda x: rows.get(x, x))
    node.meta["val"] = found
    if isinstance(before, Tensor):
        _as_before(node, before)
        return
    for user in list(node.users):  # each reads one result by operator.getitem
        wanted, user.meta["val"] = user.meta["val"], node.meta["val"][user.args[1]]
        _as_before(user, wanted)


def _is_number(x: object) -> bool:
    return isinstance(x, fx.Node) and isinstance(x.meta.get("val"), Tensor) and not x.meta["val"].dim()


def _as_before(node: fx.Node, wanted: Tensor) -> None:
    if node.meta["val"].shape == wanted.shape:
        return
    laid = _reshaped(node, list(wanted.shape), before=node.next)
    node.replace_all_uses_with(laid, delete_user_cb=lambda user: user is not laid)


def _reshaped(x: fx.Node, shape: list[int], *, before: fx.Node) -> fx.Node:
    with before.graph.inserting_before(before):
        laid = before.graph.call_function(aten.reshape.default, (x, shape))
    laid.meta["val"] = x.meta["val"].reshape(shape)
    return laid


def say_what_nothing_gives(node: fx.Node) -> bool:
    """Write the result of an op in its place, where it or all operands are empty; False where neither is."""
    result, target = node.meta.get("val"), node.target
    operands = [x.meta.get("val") for x in node.all_input_nodes]
    tensors = [x for x in operands if isinstance(x, Tensor)]
    if not isinstance(target, torch._ops.OpOverload) or not isinstance(result, Tensor) or not tensors:
        return False
    if _is_empty(result):
        values = torch.zeros(1, dtype=result.dtype)
    elif all(map(_is_empty, tensors)) and len(tensors) == len(operands):  # no free number is asked for
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda x: _smallest(x.meta["val"]))
        values = target(*args, **kwargs).flatten()
    else:
        return False
    sizes = [_size(node, size) for size in result.shape]
    if None in sizes or not torch.equal(values.nan_to_num(), values[:1].expand_as(values).nan_to_num()):
        return False
    number = values[0].item()
    with node.graph.inserting_before(node):
        known = node.graph.call_function(aten.full.default, (sizes, number), {"dtype": result.dtype})
    known.meta["val"] = result
    node.replace_all_uses_with(known)
    node.graph.erase_node(node)
    return True


def _is_empty(x: Tensor) -> bool:
    return any(isinstance(size, int) and size == 0 for size in x.shape)


def _smallest(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.zeros([_smallest(size) for size in value.shape], dtype=value.dtype)
    return 1 if isinstance(value, torch.SymInt) else value


def _size(node: fx.Node, size: int | torch.SymInt) -> Any:
    """A size of the result; a free one is read of an operand that has it."""
    if isinstance(size, int):
        return size
    for x in node.all_input_nodes:
        for dim, found in enumerate(getattr(x.meta["val"], "shape", ())):
            if str(found) == str(size):
                with node.graph.inserting_before(node):
                    read = node.graph.call_function(aten.sym_size.int, (x, dim))
                read.meta["val"] = found
                return read
    return None
