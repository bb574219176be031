"""Chains of convolutions in the place of one; of these, a K×K and a 1×1 one."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.lowrank.randomized import Wanted
from nncompress.analysis.weight_targets import Target
from nncompress.ir import Model
from nncompress.ir.edit.convolution import insert_convolution
from nncompress.ir.edit.nodes import read_tensor
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.geometry import Geometry
from nncompress.ir.layers.weights import Layer
from nncompress.passes.factors.forms.base import Form, MatrixForm, Metrics, Ranks, Stage


class ConvolutionForm(Form):
    """What the forms of a convolution share: a chain of convolutions, the last one with the bias."""

    def __init__(
        self,
        target: Target,
        shapes: Shapes,
        place: Geometry,
        metrics: Metrics | None = None,
        wanted: Wanted | None = None,
    ) -> None:
        super().__init__(target, shapes, metrics, wanted)
        self.place = place

    @abstractmethod
    def chain(self) -> list[Geometry]:
        """The geometry of each stage."""

    def group_weight(self, group: int) -> Tensor:
        """[o/g, i/g, K…] (transposed: [i/g, o/g, K…])."""
        return self.weight.unflatten(0, (self.groups, -1))[group]

    def insert(self, model: Model, layer: Layer, names: Sequence[str], bias: fx.Node | None) -> fx.Node:
        value, chain = layer.data, self.chain()
        for place, name in zip(chain, names):
            own = bias if place is chain[-1] else None
            value = insert_convolution(place, layer.node, value, read_tensor(model, name, layer.node), own)
        return value

    @cached_property
    def _sizes(self) -> list[tuple[tuple[int, ...], tuple[int, ...]]]:
        """Spatial size of the input and of the output of each of the target's layers."""
        of, dims = self._shapes.of, self.place.dims
        return [(of(layer.data)[-dims:], of(layer.node)[-dims:]) for layer in self.target.layers]

    def positions(self, *sides: str) -> int:
        """Pixels of all layers, each spatial dim counted at the layer's "in" or "out" put."""
        return sum(
            prod(i if side == "in" else o for i, o, side in zip(*size, sides * self.place.dims))
            for size in self._sizes
        )

    def ones(self, matrix: Tensor) -> Tensor:
        """[a, b] as the weight of a 1×1 convolution."""
        return matrix.reshape(*matrix.shape, *(1,) * self.place.dims)


class ChannelForm(ConvolutionForm, MatrixForm):
    """W [o, i/g, K…] per group as a matrix [o/g, i/g · K…]: K×K to r channels, then 1×1."""

    name = "channel"

    def assemble(self, parts: Sequence[Any], ranks: Ranks) -> list[Tensor]:
        lefts, rights = zip(*(part.factors(ranks[0]) for part in parts))
        return [torch.cat(rights).unflatten(1, self.weight.shape[1:]), self.ones(torch.cat(lefts))]

    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        first, second = (w.to(torch.float64).flatten(1).unflatten(0, (self.groups, -1)) for w in weights)
        return (second @ first).reshape(self.weight.shape)

    def chain(self) -> list[Geometry]:
        return [self.place, self.place.one_by_one()]

    def stages(self, ranks: Ranks) -> list[Stage]:
        pixels, ones = self.positions("out"), (1,) * self.place.dims
        return [
            Stage((self.groups * ranks[0], *self.weight.shape[1:]), pixels),
            Stage((self.weight.shape[0], ranks[0], *ones), pixels),
        ]


class TransposedForm(ConvolutionForm, MatrixForm):
    """Transposed: W [i, o/g, K…] per group as [o/g · K…, i/g]: 1×1 to r channels, then K×K."""

    name = "channel"

    def assemble(self, parts: Sequence[Any], ranks: Ranks) -> list[Tensor]:
        lefts, rights = zip(*(part.factors(ranks[0]) for part in parts))
        second = torch.cat([left.T for left in lefts])
        return [self.ones(torch.cat(rights)), second.unflatten(1, self.weight.shape[1:])]

    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        first, second = (w.to(torch.float64).flatten(1).unflatten(0, (self.groups, -1)) for w in weights)
        return (first.transpose(1, 2) @ second).reshape(self.weight.shape)

    def chain(self) -> list[Geometry]:
        return [self.place.one_by_one(), self.place]

    def stages(self, ranks: Ranks) -> list[Stage]:
        pixels, ones = self.positions("in"), (1,) * self.place.dims
        return [
            Stage((self.groups * ranks[0], self.weight.shape[0] // self.groups, *ones), pixels),
            Stage((self.groups * ranks[0], *self.weight.shape[1:]), pixels),
        ]
