"""What every form of a low-rank layer says of itself."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import Tensor, fx

from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.lowrank.decompose import decompose
from nncompress.analysis.lowrank.randomized import Wanted
from nncompress.analysis.lowrank.ranks import Candidate, tails
from nncompress.analysis.weight_targets import Target
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import Layer

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
        """MACs of one sample, or parameters."""
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


class MatrixForm(Form):
    """What the forms with one rank and one matrix per group share."""

    def decompose_group(self, group: int, metric: Metric | None) -> Any:
        wanted = self._wanted if self.groups == 1 else None  # what is wanted holds for all groups together
        return decompose(self.target.matrices(self.weight)[group], metric, wanted)

    def group_errors(self, part: Any) -> dict[Ranks, float]:
        return {(rank,): float(e) for rank, e in enumerate(tails(part.values, part.beyond)) if rank}
