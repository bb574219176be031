"""The forms that a low-rank layer can take: their ranks, errors, costs, and how they go into the graph.

| form    | layer             | factors (per group)                                                   |
|---------|-------------------|-----------------------------------------------------------------------|
| linear  | linear, embedding | W [a, b] = left [a, r] · right [r, b]                                 |
| channel | convolution       | K×K to r channels, then 1×1 (transposed: 1×1 to r channels, then K×K) |
| spatial | K×K convolution   | K×1 to r channels, then 1×K (kernel composing)                        |
| tucker  | K×K convolution   | 1×1 to r₁ channels, K×K to r₂, 1×1                                    |
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import torch
from torch import Tensor, fx

from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.lowrank.decompose import decompose
from nncompress.analysis.lowrank.randomized import Wanted
from nncompress.analysis.lowrank.ranks import Candidate, tails
from nncompress.analysis.lowrank.spatial import SpatialDecomposition
from nncompress.analysis.lowrank.tucker import TuckerDecomposition
from nncompress.ir import Model
from nncompress.ir.edit.convolution import insert_convolution
from nncompress.ir.edit.nodes import inserting_before, read_tensor
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.geometry import Geometry
from nncompress.ir.layers.weights import Layer
from nncompress.passes.factorize.targets import Target

aten = torch.ops.aten
Ranks = tuple[int, ...]
Metrics = Callable[[], Sequence[Metric]]


@dataclass(frozen=True)
class Stage:
    """One of the layers that replace a layer: its weight's shape, and how often each weight multiplies."""

    shape: tuple[int, ...]
    positions: int

    @property
    def macs(self) -> int:
        return self.positions * prod(self.shape)


class Form(ABC):
    """One form for one target.

    Args:
        metrics: gives one per group, of the matrices that `target.matrices` says; None: the weight's error is
            minimised.
        wanted: which ranks are of interest; forms with one matrix need not know the errors of others.

    Attributes:
        keeps_parts: between the choice of a rank and the factors at it; or they are made a second time, with
            what the metrics then are asked for again.
    """

    name: str
    keeps_parts = True

    def __init__(
        self,
        target: Target,
        shapes: Shapes,
        metrics: Metrics | None = None,
        wanted: Wanted | None = None,
    ) -> None:
        self.target = target
        self.weight: Tensor = target.weight.value()
        self._shapes, self._metrics, self._wanted = shapes, metrics, wanted
        self._errors: dict[Ranks, float] = {}
        self._parts: list[Any] | None = None
        self._made: dict[Ranks, list[Tensor]] = {}

    @abstractmethod
    def stages(self, ranks: Ranks) -> list[Stage]:
        """Shapes and costs of the layers at these ranks, in graph order."""

    @abstractmethod
    def decompose_group(self, group: int, metric: Metric | None) -> Any:
        """The decomposition of one group's weights."""

    @abstractmethod
    def group_errors(self, part: Any) -> dict[Ranks, float]:
        """The squared error of every rank, of one decomposition."""

    @abstractmethod
    def assemble(self, parts: Sequence[Any], ranks: Ranks) -> list[Tensor]:
        """The stages' weights at these ranks, in graph order, from all groups' decompositions."""

    @abstractmethod
    def insert(self, model: Model, layer: Layer, names: Sequence[str], bias: fx.Node | None) -> fx.Node:
        """Put the stages, reading the weights `names`, before `layer`'s node; returns the last one."""

    @abstractmethod
    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        """The dense weight that these stages amount to, in the shape of the original, float64."""

    @property
    def groups(self) -> int:
        return self.target.groups

    def _decomposed(self) -> list[Any]:
        """One decomposition per group."""
        if self._parts is not None:
            return self._parts
        metrics: Sequence[Metric | None] = self._metrics() if self._metrics else [None] * self.groups
        parts = [self.decompose_group(g, metric) for g, metric in enumerate(metrics)]
        if self.keeps_parts:
            self._parts = parts
        return parts

    def squared_errors(self) -> dict[Ranks, float]:
        """What is lost at every rank: ‖W − W_r‖², or its cost under the metric; made once."""
        if not self._errors:
            groups = [self.group_errors(part) for part in self._decomposed()]
            self._errors = {ranks: sum(errors[ranks] for errors in groups) for ranks in groups[0]}
        return self._errors

    def weights(self, ranks: Ranks) -> list[Tensor]:
        """The stages' weights at these ranks that lose least; made once."""
        if ranks not in self._made:
            self._made[ranks] = [w.to(self.weight.dtype) for w in self.assemble(self._decomposed(), ranks)]
        return self._made[ranks]

    def cost(self, ranks: Ranks, unit: str) -> int:
        """MACs of one record, or parameters."""
        return sum(s.macs if unit == "macs" else prod(s.shape) for s in self.stages(ranks))

    def candidates(self, unit: str, round_to: int = 1) -> Iterator[Candidate]:
        """All ranks that are multiples of `round_to`."""
        for ranks, error in self.squared_errors().items():
            if all(r % round_to == 0 for r in ranks):
                yield Candidate(self.name, ranks, self.cost(ranks, unit), error)

    @property
    def full_ranks(self) -> Ranks:
        """The ranks at which nothing is lost."""
        return (min(self.target.matrices(self.weight).shape[1:]),)


class _MatrixForm(Form):
    """What the forms with one rank and one matrix per group share."""

    def decompose_group(self, group: int, metric: Metric | None) -> Any:
        wanted = self._wanted if self.groups == 1 else None  # what is wanted holds for all groups together
        return decompose(self.target.matrices(self.weight)[group], metric, wanted)

    def group_errors(self, part: Any) -> dict[Ranks, float]:
        return {(rank,): float(e) for rank, e in enumerate(tails(part.values, part.beyond)) if rank}


class LinearForm(_MatrixForm):
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
        """How many vectors of one record the left and the right factor multiply."""
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


class ChannelForm(ConvolutionForm, _MatrixForm):
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


class TransposedForm(ConvolutionForm, _MatrixForm):
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


class SpatialForm(ConvolutionForm):
    """W [o, i/g, K, L] per group: K×1 to r channels, then 1×L."""

    name = "spatial"

    def decompose_group(self, group: int, metric: Metric | None) -> Any:
        unit = self.cost((1,), "macs") or self.cost((1,), "parameters")
        pays = (self.target.macs or self.weight.numel()) // unit
        return SpatialDecomposition(self.group_weight(group), metric, max(1, pays))

    def group_errors(self, part: Any) -> dict[Ranks, float]:
        return {(rank,): float(e) for rank, e in enumerate(part.errors(), 1)}

    def assemble(self, parts: Sequence[Any], ranks: Ranks) -> list[Tensor]:
        verticals, horizontals = zip(*(part.factors(ranks[0]) for part in parts))
        return [torch.cat(verticals).unsqueeze(3), torch.cat(horizontals).unsqueeze(2)]

    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        first, second = (w.to(torch.float64).unflatten(0, (self.groups, -1)) for w in weights)
        return torch.einsum("grikm,gornl->goikl", first, second).reshape(self.weight.shape)

    def chain(self) -> list[Geometry]:
        return [self.place.along(0), self.place.along(1)]

    def stages(self, ranks: Ranks) -> list[Stage]:
        outputs, inputs, height, width = self.weight.shape
        return [
            Stage((self.groups * ranks[0], inputs, height, 1), self.positions("out", "in")),
            Stage((outputs, ranks[0], 1, width), self.positions("out", "out")),
        ]

    @property
    def full_ranks(self) -> Ranks:
        outputs, inputs, height, width = self.weight.shape
        return (min(inputs * height, outputs // self.groups * width),)


class TuckerForm(ConvolutionForm):
    """W [o, i/g, K…] per group: 1×1 to r₁ channels, K×K to r₂ channels, 1×1."""

    name = "tucker"

    def decompose_group(self, group: int, metric: Metric | None) -> Any:
        return TuckerDecomposition(self.group_weight(group), metric)

    def group_errors(self, part: Any) -> dict[Ranks, float]:
        return part.errors()

    def assemble(self, parts: Sequence[Any], ranks: Ranks) -> list[Tensor]:
        first, core, last = (torch.cat(t) for t in zip(*(part.factors(ranks) for part in parts)))
        return [self.ones(first), core, self.ones(last)]

    def compose(self, weights: Sequence[Tensor]) -> Tensor:
        p, c, q = (w.to(torch.float64).flatten(2).unflatten(0, (self.groups, -1)) for w in weights)
        return torch.einsum("gai,gbak,gob->goik", p[..., 0], c, q[..., 0]).reshape(self.weight.shape)

    def chain(self) -> list[Geometry]:
        return [self.place.one_by_one(), self.place, self.place.one_by_one()]

    def stages(self, ranks: Ranks) -> list[Stage]:
        outputs, inputs, *kernel = self.weight.shape
        (first, second), ones = ranks, (1,) * self.place.dims
        return [
            Stage((self.groups * first, inputs, *ones), self.positions("in")),
            Stage((self.groups * second, first, *kernel), self.positions("out")),
            Stage((outputs, second, *ones), self.positions("out")),
        ]

    @property
    def full_ranks(self) -> Ranks:
        return (self.weight.shape[1], self.weight.shape[0] // self.groups)


def forms_of(
    target: Target,
    shapes: Shapes,
    name: str = "auto",
    metrics: Metrics | None = None,
    wanted: Wanted | None = None,
) -> list[Form]:
    """Every form that fits a target; of the convolution forms only that of this name, unless it is "auto".

    A layer that has no such form (a 1×1 convolution has no spatial one) gets its only one.
    """
    place = target.geometry
    if place is None:
        return [LinearForm(target, shapes, metrics, wanted)]
    if place.transposed:
        return [TransposedForm(target, shapes, place, metrics, wanted)]
    classes: list[type[ConvolutionForm]] = [ChannelForm]
    if not place.pointwise:
        if place.dims == 2 and min(place.kernel) > 1:
            classes.append(SpatialForm)
        classes.append(TuckerForm)
    chosen = [c for c in classes if c.name == name] or classes[:1]
    return [c(target, shapes, place, metrics, wanted) for c in (classes if name == "auto" else chosen)]
