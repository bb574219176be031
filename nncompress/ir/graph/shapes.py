"""Concrete shapes of graph values: the symbolic dims that `torch.export` left, put to numbers."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir.graph.model import Model
from nncompress.ir.graph.state import changed_tensors


def fed_by_inputs(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on an input or on state (which changes); the rest computes weights."""
    fed: set[fx.Node] = set()
    state = set(changed_tensors(graph))
    for node in graph.nodes:
        given = node.op == "placeholder" or (node.op == "get_attr" and node.target in state)
        if given or not fed.isdisjoint(node.all_input_nodes):
            fed.add(node)
    return fed


class Shapes:
    """Shapes of all values for one choice of the dynamic dims.

    Args:
        batch: the size of the dim named "batch"; other dynamic dims get the size their example has.
        unknown: the size of dims that only running the model can tell (how many tokens an expert gets).

    Attributes:
        fed: the nodes that depend on an input.
    """

    def __init__(self, model: Model, batch: int = 1, unknown: int = 1) -> None:
        self.fed = fed_by_inputs(model.graph)
        self._unknown = unknown
        self._symbols: dict[Any, int] = {}
        self._known: dict[Any, int] = {}
        placeholders = [n for n in model.graph.nodes if n.op == "placeholder"]
        for node, spec in zip(placeholders, model.inputs, strict=True):
            for size, number in zip(node.meta["val"].shape, model.concrete_shape(spec, batch)):
                if isinstance(size, torch.SymInt):
                    self._solve(size.node.expr, number)

    def _solve(self, expression: Any, number: int) -> None:
        """Put the symbol of `expression` to the value that makes it `number` (a dim may be 8 * s)."""
        unknown = [s for s in expression.free_symbols if s not in self._symbols]
        if len(unknown) == 1:
            fits = (n for n in range(number, 0, -1) if expression.subs(unknown[0], n) == number)
            self._symbols[unknown[0]] = number if expression.is_Symbol else next(fits, number)

    def of(self, node: Any) -> tuple[int, ...]:
        """The shape of a node's tensor, e.g. (1, 64, 56, 56). A node without a tensor has shape ()."""
        value = node.meta.get("val") if isinstance(node, fx.Node) else None
        return tuple(self.size(s) for s in value.shape) if isinstance(value, Tensor) else ()

    def size(self, size: Any) -> int:
        """One size as a number."""
        if not isinstance(size, torch.SymInt):
            return int(size)
        expression = size.node.expr
        if expression not in self._known:
            known = expression.subs(self._symbols)
            self._known[expression] = int(known.subs(dict.fromkeys(known.free_symbols, self._unknown)))
        return self._known[expression]
