"""The casts that `torch.autocast` makes while a model runs, written into its graph.

An export keeps the region and its ops, not what the dispatcher does to their operands. So every op is run on
tensors without memory, within the region and outside, and the casts that only the first run makes are nodes
from then on.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode

from nncompress.errors import UnsupportedError
from nncompress.ir.graph.places import place

aten = torch.ops.aten


def write_casts(graph: fx.Graph, node: fx.Node, device: str, dtype: torch.dtype | None) -> None:
    """Give `node`, a call within the region, operands of the types that the region casts them to.

    Args:
        device, dtype: what the region casts on, and to; None: that device's own.

    Raises:
        UnsupportedError: the casts are made inside of an op.
    """
    if not isinstance(node.target, torch._ops.OpOverload) or node.target._schema.is_mutable:
        return
    region = torch.autocast(device, dtype=dtype, cache_enabled=False)
    with region:
        within = _Casts(node)
    own = _Casts(node)
    _cast(graph, node, {operand: to for operand, to in within.of.items() if own.of.get(operand) is not to})
    if _Casts(node).types != within.types and within.types[0].is_floating_point:
        # a composite, such as einsum, that moves its operands before a step of it is cast
        floats = [each for each in node.all_input_nodes if each.meta["val"].is_floating_point()]
        _cast(graph, node, dict.fromkeys(floats, within.types[0]))
    if _Casts(node).types != within.types:
        raise UnsupportedError(
            f"torch.autocast converts operands inside of {place(node)}, which a graph cannot say",
            remedy="leave torch.autocast out of forward(), or convert the operands there",
        )


def _cast(graph: fx.Graph, node: fx.Node, types: dict[fx.Node, torch.dtype]) -> None:
    for operand, to in types.items():
        with graph.inserting_before(node):
            cast = graph.call_function(aten.to.dtype, (operand, to))
        cast.meta["val"] = operand.meta["val"].to(to)
        node.replace_input_with(operand, cast)


class _Casts(TorchDispatchMode):
    """What a call casts.

    Attributes:
        of: the type that an operand is cast to, where it is.
        types: of the results.
    """

    def __init__(self, node: fx.Node) -> None:
        super().__init__()
        self.of: dict[fx.Node, torch.dtype] = {}
        self._operands = {id(each.meta["val"]): each for each in node.all_input_nodes}
        args, kwargs = fx.map_arg((node.args, node.kwargs), lambda each: each.meta["val"])
        with self, torch.no_grad():
            result: Any = node.target(*args, **kwargs)  # type: ignore[operator]
        leaves = torch.utils._pytree.tree_leaves(result)
        self.types = [leaf.dtype for leaf in leaves if isinstance(leaf, Tensor)]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._to_copy.default and id(args[0]) in self._operands:
            self.of[self._operands[id(args[0])]] = kwargs["dtype"]
        return func(*args, **kwargs)
