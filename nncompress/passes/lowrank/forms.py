"""The forms that a low-rank layer can take, and how each goes into the graph.

| form    | layer             | factors (per group)                                                   |
|---------|-------------------|-----------------------------------------------------------------------|
| linear  | linear, embedding | W [a, b] = left [a, r] · right [r, b]                                 |
| channel | convolution       | K×K to r channels, then 1×1 (transposed: 1×1 to r channels, then K×K) |
| spatial | K×K convolution   | K×1 to r channels, then 1×K (kernel composing)                        |

Every form sees its weight as a matrix per group; the rank of group 0 is the rank of all.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, fx

from nncompress.analysis.decompose import Spectrum, decompose
from nncompress.analysis.ranks import Candidate, tails
from nncompress.ir import Model
from nncompress.ir.edit import inserting_before, read_tensor
from nncompress.ir.geometry import Geometry, geometry
from nncompress.ir.shapes import Shapes
from nncompress.ir.weights import Layer
from nncompress.passes.lowrank.targets import Target

aten = torch.ops.aten
Ranks = tuple[int, ...]


@dataclass(frozen=True)
class Stage:
    """One of the layers that replace a layer: its weight's shape, and how often each weight multiplies."""

    shape: tuple[int, ...]
    positions: int

    @property
    def macs(self) -> int:
        return self.positions * prod(self.shape)


class Form(ABC):
    """One form for one target."""

    name: str

    def __init__(self, target: Target, shapes: Shapes) -> None:
        self.target, self.shapes = target, shapes
        self.weight: Tensor = target.weight.value()
        self._spectra: list[Spectrum] | None = None

    @abstractmethod
    def matrices(self, weight: Tensor) -> list[Tensor]:
        """The weight as one matrix [a, b] per group."""

    @abstractmethod
    def assemble(self, lefts: list[Tensor], rights: list[Tensor]) -> list[Tensor]:
        """Factors left [a, r], right [r, b] per group -> the stages' weights, in graph order."""

    @abstractmethod
    def stages(self, ranks: Ranks) -> list[Stage]:
        """Shapes and costs of the layers at these ranks, in graph order."""

    @abstractmethod
    def insert(self, model: Model, layer: Layer, names: list[str], bias: fx.Node | None) -> fx.Node:
        """Put the stages, reading the weights `names`, before `layer`'s node; returns the last one."""

    def spectra(self) -> list[Spectrum]:
        """The decomposition, computed once."""
        if self._spectra is None:
            self._spectra = [decompose(m) for m in self.matrices(self.weight)]
        return self._spectra

    def largest_rank(self) -> int:
        return min(self.matrices(self.weight)[0].shape)

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """The stages' weights at these ranks: the closest to the original weight."""
        pairs = [s.factors(ranks[0]) for s in self.spectra()]
        return [w.to(self.weight.dtype) for w in self.assemble([p[0] for p in pairs], [p[1] for p in pairs])]

    def squared_errors(self) -> dict[Ranks, float]:
        """‖W − W_r‖² of every rank."""
        total = sum(tails(s.values) for s in self.spectra())
        assert isinstance(total, Tensor)
        return {(r,): float(total[r]) for r in range(1, len(total))}

    def cost(self, ranks: Ranks, unit: str) -> int:
        """MACs of one record, or parameters."""
        stages = self.stages(ranks)
        return sum(s.macs if unit == "macs" else prod(s.shape) for s in stages)

    def candidates(self, unit: str, round_to: int = 1) -> Iterable[Candidate]:
        """All ranks that are multiples of `round_to`."""
        for ranks, error in self.squared_errors().items():
            if all(r % round_to == 0 for r in ranks):
                yield Candidate(self.name, ranks, self.cost(ranks, unit), error)


class LinearForm(Form):
    """Any use of a weight matrix W [a, b] = left [a, r] · right [r, b]; tied uses share both factors."""

    name = "linear"

    def matrices(self, weight: Tensor) -> list[Tensor]:
        return [weight]

    def assemble(self, lefts: list[Tensor], rights: list[Tensor]) -> list[Tensor]:
        return [lefts[0], rights[0]]

    def stages(self, ranks: Ranks) -> list[Stage]:
        rows, columns = self.weight.shape
        left = right = 0
        for layer in self.target.layers:
            vectors = prod(self.shapes.of(layer.node)[:-1])
            left += 0 if layer.kind == "embedding" else vectors  # a row is looked up
            right += vectors
        return [Stage((rows, ranks[0]), left), Stage((ranks[0], columns), right)]

    def insert(self, model: Model, layer: Layer, names: list[str], bias: fx.Node | None) -> fx.Node:
        node, data = layer.node, layer.data
        left, right = (read_tensor(model, name, node) for name in names)
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


class ConvolutionForm(Form):
    """What the forms of a convolution share: a chain of convolutions, the last one with the bias."""

    def __init__(self, target: Target, shapes: Shapes, place: Geometry) -> None:
        super().__init__(target, shapes)
        self.place = place

    @property
    def groups(self) -> int:
        return self.place.groups

    @abstractmethod
    def chain(self) -> list[Geometry]:
        """The geometry of each stage."""

    def insert(self, model: Model, layer: Layer, names: list[str], bias: fx.Node | None) -> fx.Node:
        value = layer.data
        places = self.chain()
        for place, name in zip(places, names):
            last = place is places[-1]
            value = place.insert(
                layer.node, value, read_tensor(model, name, layer.node), bias if last else None
            )
        return value

    def positions(self, sides: tuple[str, ...]) -> int:
        """Pixels of all layers, each spatial dim counted at the layer's "in" or "out" put."""
        total = 0
        for layer in self.target.layers:
            inputs = self.shapes.of(layer.data)[-self.place.dims :]
            outputs = self.shapes.of(layer.node)[-self.place.dims :]
            total += prod(i if side == "in" else o for i, o, side in zip(inputs, outputs, sides))
        return total


class ChannelForm(ConvolutionForm):
    """W [o, i/g, K…] per group as a matrix [o/g, i/g · K…]: K×K to r channels, then 1×1."""

    name = "channel"

    def matrices(self, weight: Tensor) -> list[Tensor]:
        return list(weight.reshape(self.groups, weight.shape[0] // self.groups, -1))

    def assemble(self, lefts: list[Tensor], rights: list[Tensor]) -> list[Tensor]:
        ones = (1,) * self.place.dims
        first = torch.cat([r.reshape(-1, *self.weight.shape[1:]) for r in rights])
        second = torch.cat(lefts)
        return [first, second.reshape(*second.shape, *ones)]

    def chain(self) -> list[Geometry]:
        return [self.place, self.place.one_by_one()]

    def stages(self, ranks: Ranks) -> list[Stage]:
        pixels = self.positions(("out",) * self.place.dims)
        ones = (1,) * self.place.dims
        return [
            Stage((self.groups * ranks[0], *self.weight.shape[1:]), pixels),
            Stage((self.weight.shape[0], ranks[0], *ones), pixels),
        ]


class TransposedForm(ConvolutionForm):
    """Transposed: W [i, o/g, K…] per group as [i/g, o/g · K…]: 1×1 to r channels, then K×K."""

    name = "channel"

    def matrices(self, weight: Tensor) -> list[Tensor]:
        return list(weight.reshape(self.groups, weight.shape[0] // self.groups, -1))

    def assemble(self, lefts: list[Tensor], rights: list[Tensor]) -> list[Tensor]:
        ones = (1,) * self.place.dims
        first = torch.cat([left.T for left in lefts])
        second = torch.cat([r.reshape(-1, *self.weight.shape[1:]) for r in rights])
        return [first.reshape(*first.shape, *ones), second]

    def chain(self) -> list[Geometry]:
        return [self.place.one_by_one(), self.place]

    def stages(self, ranks: Ranks) -> list[Stage]:
        pixels = self.positions(("in",) * self.place.dims)
        ones = (1,) * self.place.dims
        return [
            Stage((self.groups * ranks[0], self.weight.shape[0] // self.groups, *ones), pixels),
            Stage((self.groups * ranks[0], *self.weight.shape[1:]), pixels),
        ]


class SpatialForm(ConvolutionForm):
    """W [o, i/g, K, L] per group as a matrix [i/g · K, o/g · L]: K×1 to r channels, then 1×L."""

    name = "spatial"

    def matrices(self, weight: Tensor) -> list[Tensor]:
        outputs, inputs, height, width = weight.shape
        grid = weight.reshape(self.groups, outputs // self.groups, inputs, height, width)
        return list(grid.permute(0, 2, 3, 1, 4).reshape(self.groups, inputs * height, -1))

    def assemble(self, lefts: list[Tensor], rights: list[Tensor]) -> list[Tensor]:
        outputs, inputs, height, width = self.weight.shape
        rank = lefts[0].shape[1]
        first = [left.T.reshape(rank, inputs, height, 1) for left in lefts]
        second = [r.reshape(rank, outputs // self.groups, width).permute(1, 0, 2) for r in rights]
        return [torch.cat(first), torch.cat(second).unsqueeze(2)]

    def chain(self) -> list[Geometry]:
        return [self.place.along(0), self.place.along(1)]

    def stages(self, ranks: Ranks) -> list[Stage]:
        outputs, inputs, height, width = self.weight.shape
        rank = ranks[0]
        return [
            Stage((self.groups * rank, inputs, height, 1), self.positions(("out", "in"))),
            Stage((outputs, rank, 1, width), self.positions(("out", "out"))),
        ]


def forms_of(target: Target, shapes: Shapes, wanted: str = "auto") -> list[Form]:
    """Every form that fits a target; of the convolution forms only `wanted`, unless that is "auto".

    A layer that has no such form (a 1×1 convolution has no spatial one) gets its only one.
    """
    if target.is_matrix:
        return [LinearForm(target, shapes)]
    places = {geometry(layer) for layer in target.layers}
    place = places.pop()
    if place is None or places:
        return []
    if place.transposed:
        return [TransposedForm(target, shapes, place)]
    found: list[Form] = [ChannelForm(target, shapes, place)]
    if place.dims == 2 and min(place.kernel) > 1:
        found.append(SpatialForm(target, shapes, place))
    return [f for f in found if f.name == wanted] or found[:1] if wanted != "auto" else found
