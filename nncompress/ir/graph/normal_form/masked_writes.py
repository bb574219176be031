"""What is written where a mask says so, `h[mask] *= 2`, as a choice per element: `where(mask, h * 2, h)`.

torch gathers the elements that are masked, computes with them, and puts them back: how many there are depends
on the data, and whoever reads the graph sees a list of elements that has lost its dims. Where what is put is
computed element by element from what the same mask gathers, it is computed from all elements instead.

Those that are not masked must do no harm: a whole number divided by 0 stops the run, and a root of what is
below 0 makes the gradient nan, though nobody takes the value. They are replaced by 1, or by 1/2, which lies
in the domain of nearly every function.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, fx
from torch.fx.experimental.symbolic_shapes import free_unbacked_symbols

from nncompress.ir.graph.ops import COPIES, op_name

aten = torch.ops.aten
_UNTAGGED = COPIES | {"to", "_to_copy", "floor_divide", "relu6", "selu", "log_sigmoid"}  # by torch
_SAME_DEPTH = 8  # of a mask that is computed twice: `h[x > 0] = h[x > 0].sqrt()`


def write_where(node: fx.Node) -> bool:
    """Replace an `index_put` or `masked_scatter`, in place; False where it is another kind of write."""
    data, given, values, *accumulate = cast(list[Any], node.args)
    indices = list(given) if isinstance(given, list | tuple) else [given]
    masks = [each for each in indices if each is not None]
    if node.kwargs or len(masks) != 1 or not isinstance(values, fx.Node):
        return False
    h, where, number = (x.meta.get("val") if isinstance(x, fx.Node) else None for x in (data, *masks, values))
    if not (isinstance(h, Tensor) and isinstance(where, Tensor) and isinstance(number, Tensor)):
        return False
    if where.dtype != torch.bool or number.dtype != h.dtype:
        return False
    behind = h.dim() - indices.index(masks[0]) - where.dim()
    if node.target is aten.masked_scatter.default and (_sizes(where) != _sizes(h) or not _is_list(values)):
        return False  # which broadcasts its mask, and puts the first elements of what is no such list
    whole = _Whole(node, indices, _sizes(h), where.dim(), behind)
    if not whole.can(values):
        return False
    mask, before = masks[0], node.prev
    try:
        for _ in range(behind):
            mask = _call(node, aten.unsqueeze.default, mask, -1)
        chosen = whole.made(values, mask)
        if any(accumulate):
            chosen = _call(node, aten.add.Tensor, data, chosen)
        written = _call(node, aten.where.self, mask, chosen, data)
    except RuntimeError:  # some kernels of torch tell no shape where a size is free
        while node.prev is not before:
            node.graph.erase_node(node.prev)
        return False
    node.replace_all_uses_with(written)
    node.graph.erase_node(node)
    return True


class _Whole:
    """What is computed from lists of gathered elements, computed from all elements.

    Args:
        write: the op that puts the list back at `indices`, among which is one mask.
        sizes: of what it writes to.
        masked, behind: how many dims the mask has, and how many lie behind them.
    """

    def __init__(
        self, write: fx.Node, indices: list[Any], sizes: list[str], masked: int, behind: int
    ) -> None:
        self._write, self._indices, self._sizes = write, indices, sizes
        self._masked, self._behind = masked, behind

    def can(self, values: fx.Node) -> bool:
        """All of it is gathered by the same mask, computed by element, or the same for all elements."""
        seen: set[fx.Node] = set()
        found = [values]
        while found:
            node = found.pop()
            if node in seen or not isinstance(node.meta.get("val"), Tensor):
                continue
            seen.add(node)
            if not _is_list(node):
                if not self._is_for_all(node):
                    return False
            elif not self._is_gathered(node):
                if not _is_elementwise(node):
                    return False
                found += node.all_input_nodes
        return True

    def made(self, values: fx.Node, mask: fx.Node) -> fx.Node:
        """That of all elements, before the write; `mask` has the dims of what is written to."""
        steps, found = set(), [values]
        while found:
            node = found.pop()
            if node not in steps and isinstance(node.meta.get("val"), Tensor):
                steps.add(node)
                found += node.all_input_nodes if _is_list(node) and not self._is_gathered(node) else ()
        known: dict[fx.Node, fx.Node] = {}
        others = None
        for step in [node for node in self._write.graph.nodes if node in steps]:
            if not _is_list(step):
                known[step] = self._for_all(step)
            elif not self._is_gathered(step):
                args, kwargs = fx.map_arg((step.args, step.kwargs), lambda each: known.get(each, each))
                known[step] = _call(self._write, step.target, *args, **kwargs)
            elif step is values:  # it is chosen, and nothing computed with it
                known[step] = step.all_input_nodes[0]
            else:
                others = others or _call(self._write, aten.logical_not.default, mask)
                source, number = step.all_input_nodes[0], _harmless(step.meta["val"])
                known[step] = _call(self._write, aten.masked_fill.Scalar, source, others, number)
        return known[values]

    def _is_gathered(self, node: fx.Node) -> bool:
        if node.target not in (aten.index.Tensor, aten.masked_select.default):
            return False
        source, given = node.args
        indices = list(given) if isinstance(given, list | tuple) else [given]
        of_all = _sizes(source.meta["val"]) == self._sizes  # type: ignore[union-attr]
        return of_all and _is_same(indices, self._indices, _SAME_DEPTH)

    def _is_for_all(self, node: fx.Node) -> bool:
        """It has one element for all that are gathered, whatever else it has."""
        shape = node.meta["val"].shape
        return len(shape) <= self._behind or shape[-1 - self._behind] == 1

    def _for_all(self, node: fx.Node) -> fx.Node:
        if len(node.meta["val"].shape) > self._behind:  # one dim of the list, several of the mask
            for _ in range(self._masked - 1):
                node = _call(self._write, aten.unsqueeze.default, node, -1 - self._behind)
        return node


def _is_list(node: Any) -> bool:
    """Its size depends on the data."""
    return bool(free_unbacked_symbols(node.meta["val"]))


def _is_function(node: fx.Node) -> bool:
    """Of its arguments alone."""
    target = node.target
    op = isinstance(target, torch._ops.OpOverload) and not target._schema.is_mutable
    return op and torch.Tag.nondeterministic_seeded not in target.tags  # type: ignore[union-attr]


def _is_elementwise(node: fx.Node) -> bool:
    tagged = _is_function(node) and torch.Tag.pointwise in node.target.tags  # type: ignore[union-attr]
    return tagged or op_name(node) in _UNTAGGED


def _is_same(one: Any, other: Any, depth: int) -> bool:
    """They are one value, or computed alike from such."""
    if one is other:
        return True
    if isinstance(one, list | tuple):
        same_form = isinstance(other, list | tuple) and len(one) == len(other)
        return same_form and all(_is_same(a, b, depth) for a, b in zip(one, other))
    if not isinstance(one, fx.Node):
        return not isinstance(other, fx.Node) and type(one) is type(other) and one == other
    if (
        not isinstance(other, fx.Node)
        or not depth
        or one.target != other.target
        or one.kwargs != other.kwargs
    ):
        return False
    return _is_elementwise(one) and _is_same(one.args, other.args, depth - 1)


def _sizes(tensor: Tensor) -> list[str]:
    """By name: a comparison of free sizes would ask what they are."""
    return [str(size) for size in tensor.shape]


def _harmless(tensor: Tensor) -> float | int | bool:
    if tensor.dtype == torch.bool:
        return True
    return 0.5 if tensor.is_floating_point() or tensor.is_complex() else 1


def _call(before: fx.Node, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
    given = fx.map_arg((args, kwargs), lambda each: each.meta["val"])
    value = target(*given[0], **given[1])
    with before.graph.inserting_before(before):
        node = before.graph.call_function(target, args, kwargs)
    node.meta["val"] = value
    return node
