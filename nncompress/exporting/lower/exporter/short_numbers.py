"""Integers of 8 and 16 bits and truth values, computed in 32 bits and cut off: few kernels take them.

What is summed or multiplied overflows in the same way, since bits that are cut off never come back; what is
compared, ordered or chosen is the same. What only moves values has kernels for all types, and stays. Sums and
products that torch has in 64 bits are computed in 64; what is added to places of halves in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx
from torch.utils import _pytree as pytree

from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import argument

aten = torch.ops.aten
SHORT = (torch.int8, torch.int16, torch.uint8)
_NARROW = (*SHORT, torch.bool)
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LONG = frozenset({"sum", "nansum", "prod", "cumsum", "cumprod"})
_SCATTER = frozenset({"scatter_add", "scatter_reduce", "index_add", "index_reduce"})
_STAY = ("gcd", "lcm", "_to_copy", "to")  # the steps of Euclid's algorithm are fewer of short ones
_CHOOSE = {"where": (1, 2), "masked_fill": (0, 2)}  # truth values, too: the operands that are no mask
_WRAP = frozenset({"floor_divide", "remainder", "fmod", "div", "clamp", "clamp_min", "clamp_max"})
# not value by value; of truth values, too
_COMPUTE = frozenset(
    {"cummax", "cummin", "trace", "diagonal"}
    | _SCATTER
    | {"max", "min", "amax", "amin", "aminmax", "argmax", "argmin", "median", "nanmedian", "mode", "kthvalue"}
    | {"sort", "argsort", "topk"}
    | {"mm", "bmm", "matmul", "linear", "einsum", "dot", "vdot", "mv", "addmm", "addmv", "baddbmm", "addbmm"}
    | {"tensordot", "inner", "outer", "tril", "triu", "floor_divide", "convolution"}
    | {f"{kind}{dims}d" for kind in ("conv", "conv_transpose", "max_pool", "avg_pool") for dims in (1, 2, 3)}
)


def compute_in_32_bits(node: fx.Node) -> None:
    """Edit in place what this op computes of narrow numbers; the values stay."""
    op, name = node.target, op_name(node)
    if not isinstance(op, torch._ops.OpOverload) or op.namespace != "aten" or name in _STAY:
        return
    stated = _stated(node)
    if name in _LONG and stated in SHORT:  # bits that are cut off at the end are those cut off before
        node.kwargs = {**node.kwargs, "dtype": torch.int64}
        _compute_in(node, torch.int64, (*_NARROW, torch.int32, torch.int64, *_FLOATS))
    elif name in _LONG or stated is not None:
        long = (torch.int64,) if stated is not None and stated.is_floating_point else ()
        _compute_in(node, stated or torch.int64, (*_NARROW, torch.int32, *long))
    elif name in _COMPUTE or name in _CHOOSE:
        if "mean" not in node.args:  # of sums that overflow before they are divided
            _compute_in(node, torch.int32, _NARROW)
        if name in _SCATTER:
            _compute_in(node, torch.float32, (torch.float16,))
    elif torch.Tag.pointwise in op.tags:
        results = [each for each in pytree.tree_leaves(node.meta.get("val")) if isinstance(each, Tensor)]
        codes = results[0].dtype == torch.uint8 and "bitwise" in name  # that are unpacked
        if results[0].dtype in SHORT and not codes:
            _compute_in(node, torch.int32, SHORT)


def _stated(node: fx.Node) -> torch.dtype | None:
    """The type that a sum or a softmax is asked for in; the exporter would convert only afterwards."""
    name = op_name(node)
    if name.endswith("_like") or name.startswith("new_") or name == "view":  # which compute of no value
        return None
    schema = node.target._schema  # type: ignore[union-attr]
    places = [i for i, each in enumerate(schema.arguments) if each.name == "dtype"]
    found = argument(node, places[0]) if places else None
    return found if isinstance(found, torch.dtype) else None


def _compute_in(node: fx.Node, kind: torch.dtype, narrow: tuple[torch.dtype, ...]) -> None:
    chosen = [each for i, each in enumerate(node.args) if i in _CHOOSE.get(op_name(node), (i,))]
    operands: list[fx.Node] = []
    fx.map_arg(chosen, operands.append)
    operands = [x for x in dict.fromkeys(operands) if getattr(x.meta["val"], "dtype", None) in narrow]
    if not operands:
        return
    before, first = node.meta["val"], operands[0].meta["val"].dtype
    if op_name(node) in _WRAP and first in SHORT:  # torch makes a number beside a tensor one of its type
        node.args = tuple(
            int(torch.tensor(each).to(first)) if type(each) is int else each for each in node.args
        )
    wide = {x: _cast(x, kind, before=node) for x in operands}
    node.args = tuple(
        fx.map_arg(each, lambda x: wide.get(x, x)) if i in _CHOOSE.get(op_name(node), (i,)) else each
        for i, each in enumerate(node.args)
    )
    args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
    node.meta["val"] = node.target(*args, **kwargs)  # type: ignore[operator]
    if isinstance(before, Tensor):
        _cut_off(node, before.dtype)
        return
    for user in list(node.users):  # each reads one result by operator.getitem
        wanted, user.meta["val"] = user.meta["val"].dtype, node.meta["val"][user.args[1]]
        _cut_off(user, wanted)


def _cut_off(node: fx.Node, wanted: torch.dtype) -> None:
    if node.meta["val"].dtype == wanted:
        return
    cut = _cast(node, wanted, before=node.next)
    node.replace_all_uses_with(cut, delete_user_cb=lambda user: user is not cut)


def _cast(x: fx.Node, kind: torch.dtype, *, before: fx.Node) -> fx.Node:
    with before.graph.inserting_before(before):
        cast = before.graph.call_function(aten._to_copy.default, (x,), {"dtype": kind})
    cast.meta["val"] = x.meta["val"].to(kind)
    return cast
