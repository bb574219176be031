"""Two matrices in the place of one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.ir import Model
from nncompress.ir.edit.nodes import inserting_before, read_tensor
from nncompress.ir.layers.weights import Layer
from nncompress.passes.factors.forms.base import MatrixForm, Ranks, Stage

aten = torch.ops.aten


class LinearForm(MatrixForm):
    """Any use of a weight matrix W [a, b] = left [a, r] · right [r, b]; tied uses share both factors."""

    name = "linear"

    def assemble(self, parts: Sequence[Any], ranks: Ranks) -> list[Tensor]:
        out, into = parts[0].factors(ranks[0])
        return [into, out] if self.target.outputs_first else [into.T, out.T]

    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        left, right = (w.to(torch.float64) for w in self._left_right(weights))
        return left @ right

    def _left_right(self, stages: Sequence[Any]) -> tuple[Any, Any]:
        """W = left · right; a linear layer multiplies with the right one first, a product with the left."""
        return (stages[1], stages[0]) if self.target.outputs_first else (stages[0], stages[1])

    @cached_property
    def _vectors(self) -> tuple[int, int]:
        """How many vectors of one sample the left and the right factor multiply."""
        each = [(prod(self._shapes.of(layer.node)[:-1]), layer.kind) for layer in self.target.layers]
        return sum(n for n, kind in each if kind != "embedding"), sum(n for n, _ in each)

    def stages(self, ranks: Ranks) -> list[Stage]:
        rows, columns = self.weight.shape
        left, right = self._vectors
        factors = [Stage((rows, ranks[0]), left), Stage((ranks[0], columns), right)]
        return list(self._left_right(factors))

    def insert(self, model: Model, layer: Layer, names: Sequence[str], bias: fx.Node | None) -> fx.Node:
        node, data = layer.node, layer.data
        left, right = self._left_right([read_tensor(model, name, node) for name in names])
        with inserting_before(node) as call:
            if layer.kind == "linear":
                return call(aten.linear.default, call(aten.linear.default, data, right), left, bias)
            if layer.kind == "embedding":
                rows = call(aten.embedding.default, left, *node.args[1:], **node.kwargs)
                return call(aten.matmul.default, rows, right)
            inner = call(aten.matmul.default, data, left)
            if bias is not None:
                return call(aten.addmm.default, bias, inner, right)
            return call(aten.matmul.default, inner, right)
