"""Products of two activations, which no weight is in: queries with keys, above all.

What a softmax weights (values, by attention) is none of them: its weights have a few large ones and many near
0, which a grid of 8 bits takes for 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, fx

from nncompress.ir.edit.computed import constants
from nncompress.ir.graph.model import Model
from nncompress.ir.graph.ops import DROPOUTS, MOVES, op_name

_NAMES = {"matmul", "bmm", "scaled_dot_product_attention"}
_SOFTMAX = {"softmax", "_softmax"}


@dataclass(frozen=True)
class Product:
    """An op that multiplies two activations.

    Attributes:
        node: the op; of an attention, its first product is meant.
        factors: what it multiplies: queries and keys.
    """

    node: fx.Node
    factors: tuple[fx.Node, fx.Node]

    @property
    def name(self) -> str:
        """As `inspect` lists it."""
        return self.node.name

    def of(self, first: Tensor, second: Tensor) -> Tensor:
        """What it makes of such factors; of an attention the scores, before they are scaled."""
        if op_name(self.node) != "scaled_dot_product_attention":
            return torch.matmul(first, second)
        if self.node.kwargs.get("enable_gqa"):
            second = second.repeat_interleave(first.shape[-3] // second.shape[-3], -3)
        return torch.matmul(first, second.mT)


def products(model: Model) -> Iterator[Product]:
    """Those of float32 matrices that they read as nothing else (values, a mask), in graph order."""
    stored = constants(model)
    for node in model.graph.nodes:
        if node.op != "call_function" or op_name(node) not in _NAMES:
            continue
        first, second = node.args[:2]
        if not all(isinstance(each, fx.Node) and _is_matrix(each) for each in (first, second)):
            continue
        if {first, second} & _other_operands(node):
            continue  # which would be rounded, too
        if first in stored or second in stored or any(map(_is_softmax, (first, second))):
            continue
        yield Product(node, (first, second))


def _other_operands(node: fx.Node) -> set[fx.Node]:
    others: list[fx.Node] = []
    fx.map_arg((node.args[2:], node.kwargs), others.append)
    return set(others)


def _is_matrix(node: fx.Node) -> bool:
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.dtype == torch.float32 and value.dim() >= 2


def _is_softmax(node: fx.Node) -> bool:
    while op_name(node) in MOVES | DROPOUTS and isinstance(node.args[0], fx.Node):
        node = node.args[0]
    return op_name(node) in _SOFTMAX
