"""Values and gradients at chosen places of a graph, one batch at a time.

What a layer *reads* gets an alias of its own, so that its gradient counts the way through that layer only: a
value of a residual stream is read by every later block.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.observe.walk import Env, Walk
from nncompress.ir.formats.qdq import StraightThrough
from nncompress.ir.graph.model import Model


def _has_gradient(value: Tensor) -> bool:
    return value.is_floating_point() or value.is_complex()


def loss_products(value: Tensor, gradient: Tensor) -> Tensor:
    """value × gradient, element by element in float64: what the loss owes to each, to first order.

    Of complex numbers, whose gradient torch gives for the conjugate, the real part of the product.
    """
    product = value.detach() * gradient.conj()
    return (product.real if product.is_complex() else product).double()


class GradientHooks(Walk):
    """Runs a model and keeps chosen values with their gradients.

    Args:
        reads: nodes whose `data` operand is wanted as they read it: node -> operand.
        values: nodes whose result is wanted, with its gradient.
        watched: nodes whose result is wanted without.

    Attributes (after `outputs`):
        read: node -> what it read; value: node -> its result.
    """

    def __init__(
        self,
        model: Model,
        reads: dict[fx.Node, fx.Node],
        values: Iterable[fx.Node],
        watched: Iterable[fx.Node] = (),
    ) -> None:
        super().__init__(StraightThrough(model.graph_module, garbage_collect_values=False))
        self._reads, self._values = reads, set(values)
        self._watched = set(watched) - self._values
        self.read: dict[fx.Node, Tensor] = {}
        self.value: dict[fx.Node, Tensor] = {}

    def start(self, *inputs: Tensor) -> Env:
        self.read, self.value = {}, {}
        return {node: self._kept(node, value) for node, value in super().start(*inputs).items()}

    def outputs(self, *inputs: Tensor) -> tuple[Any, ...]:
        """Walk to the end, and to what is wanted beside the way there: what only a next call reads."""
        end = next(reversed(self._order))
        return self.run(self.start(*inputs), [end, *self._values, *self._watched, *self._reads])[end]

    def compute(self, node: fx.Node, env: Env) -> Any:
        operand = self._reads.get(node)
        if operand is not None and isinstance(env[operand], Tensor):
            whole = env[operand]
            alias = whole.clone() if whole.requires_grad else whole.detach().clone().requires_grad_()
            self.read[node] = alias
            env = {**env, operand: alias}
        result = super().compute(node, env)
        if node.op == "get_attr" and isinstance(result, Tensor):
            result = result.detach()  # gradients of all weights would cost as much again
        return self._kept(node, result)

    def _kept(self, node: fx.Node, result: Any) -> Any:
        if node in self._values and isinstance(result, Tensor) and _has_gradient(result):
            if not result.requires_grad:
                result = result.detach().requires_grad_()
            self.value[node] = result
        elif node in self._watched:
            self.value[node] = result
        return result

    def gradients(self, loss: Tensor, *, again: bool = False) -> tuple[dict[fx.Node, Tensor], ...]:
        """The gradients of `loss` at (reads, values); zero where it does not depend on them."""
        values = {node: value for node, value in self.value.items() if node in self._values}
        wanted = [*self.read.values(), *values.values()]
        found = torch.autograd.grad(loss, wanted, allow_unused=True, retain_graph=again)
        filled = [torch.zeros_like(w) if g is None else g for g, w in zip(found, wanted)]
        split = len(self.read)
        return dict(zip(self.read, filled[:split])), dict(zip(values, filled[split:]))
