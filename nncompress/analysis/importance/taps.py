"""Values and gradients at chosen places of a graph, one batch at a time.

What a layer *reads* gets an alias of its own, so that its gradient counts the way through that layer only: a
value of a residual stream is read by every later block.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir import Model
from nncompress.ir.formats.qdq import StraightThrough


class Taps(StraightThrough):
    """Runs a model and keeps chosen values with their gradients.

    Args:
        reads: nodes whose `data` operand is wanted as they read it: node -> operand.
        values: nodes whose result is wanted, with its gradient.
        watched: nodes whose result is wanted without.

    Attributes (after `run`):
        read: node -> what it read; value: node -> its result.
    """

    def __init__(
        self,
        model: Model,
        reads: dict[fx.Node, fx.Node],
        values: Iterable[fx.Node],
        watched: Iterable[fx.Node] = (),
    ) -> None:
        super().__init__(model.graph_module)
        self._reads, self._values = reads, set(values)
        self._watched = set(watched) - self._values
        self.read: dict[fx.Node, Tensor] = {}
        self.value: dict[fx.Node, Tensor] = {}

    def run_node(self, n: fx.Node) -> Any:
        if n.op == "get_attr":
            found = super().run_node(n)
            return found.detach() if isinstance(found, Tensor) else found
        operand = self._reads.get(n)
        whole = self.env.get(operand) if operand is not None else None
        if operand is not None and isinstance(whole, Tensor):
            alias = whole.clone() if whole.requires_grad else whole.detach().clone().requires_grad_()
            self.read[n] = self.env[operand] = alias
        result = super().run_node(n)
        if operand is not None and operand in self.env:
            self.env[operand] = whole
        if n in self._values and isinstance(result, Tensor) and result.is_floating_point():
            if not result.requires_grad:
                result.requires_grad_()
            self.value[n] = result
        elif n in self._watched:
            self.value[n] = result
        return result

    def gradients(self, loss: Tensor, *, again: bool = False) -> tuple[dict[fx.Node, Tensor], ...]:
        """The gradients of `loss` at (reads, values); zero where it does not depend on them."""
        values = {node: value for node, value in self.value.items() if node in self._values}
        wanted = [*self.read.values(), *values.values()]
        found = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=again)
        filled = [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted)]
        split = len(self.read)
        return dict(zip(self.read, filled[:split])), dict(zip(values, filled[split:]))
