"""How many nodes of every group and which rank of every layer: one budget, the least loss per cost saved.

A step removes nodes of a group or lowers a layer's rank. What it saves depends on the others: a rank
multiplies with the nodes that the layer still reads and writes, a node with the ranks of its layers. So after
every step the savings of those that it touches are counted anew. What is lost is taken to add up, each loss
as a power of its estimate: that is made near the original, and leaves out the more the larger it is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil, inf, prod

import numpy as np

from nncompress.analysis.importance.choices import Choice
from nncompress.analysis.importance.costs import Costs
from nncompress.analysis.importance.ranking import Ranking
from nncompress.analysis.importance.selection import allowed
from nncompress.analysis.lowrank.ranks import Candidate
from nncompress.errors import UsageError
from nncompress.options import LossWeights
from nncompress.passes.reduce.curves import Curve

GROWTH = 1.4  # the power; chosen for ResNet-20 and -56 on training images that were held out
AHEAD = (*range(8), *range(8, 32, 4), *range(32, 256, 32))  # how far a group's next step looks


@dataclass(frozen=True)
class Plan:
    """What is left.

    Attributes:
        removed: choice -> units that go, for choices that lose any.
        factors: layer -> its candidate, for layers whose rank is lowered.
        losses: choice or layer -> what it loses, in the unit of the loss.
        cost: what is left, by its own count.
    """

    removed: Mapping[str, list[int]]
    factors: Mapping[str, Candidate]
    losses: Mapping[str, float]
    cost: float


@dataclass
class _Layer:
    """A layer whose rank may fall: its cost at every width.

    Attributes:
        inputs, outputs: choice -> share of the layer's inputs, outputs that each unit of it is.
        weight: by how much what it loses counts.
        now: the candidate; None while it is dense.
    """

    curve: Curve
    unit: str
    inputs: Mapping[str, float]
    outputs: Mapping[str, float]
    weight: float = 1.0
    now: Candidate | None = None
    _stages: dict[tuple[str, tuple[int, ...]], tuple[int, ...]] = field(default_factory=dict)

    def width(self, gone: Mapping[str, int]) -> tuple[float, float]:
        """The shares of the inputs and outputs that stay."""
        read, written = (
            1 - sum(each * gone.get(name, 0) for name, each in shares.items())
            for shares in (self.inputs, self.outputs)
        )
        return read, written

    def cost(self, candidate: Candidate | None, gone: Mapping[str, int]) -> float:
        """Never more than dense: then the factors are left out."""
        read, written = self.width(gone)
        dense = self.curve.dense * read * written
        if candidate is None:
            return dense
        first, *middle, last = self._costs(candidate)
        return min(dense, first * read + sum(middle) + last * written)

    def _costs(self, candidate: Candidate) -> tuple[int, ...]:
        key = candidate.form, candidate.ranks
        if key not in self._stages:
            stages = self.curve.forms[candidate.form].stages(candidate.ranks)
            self._stages[key] = tuple(s.macs if self.unit == "macs" else prod(s.shape) for s in stages)
        return self._stages[key]

    def saved(self, gone: Mapping[str, int]) -> float:
        """By its factors, at a width."""
        return self.cost(None, gone) - self.cost(self.now, gone) if self.now else 0.0

    def lost(self, candidate: Candidate | None) -> float:
        """As it counts."""
        return self.weight * max(candidate.error, 0.0) ** GROWTH if candidate else 0.0

    def step(self, gone: Mapping[str, int]) -> tuple[float, Candidate | None]:
        """The lower rank with the least loss per cost saved, and that ratio."""
        cost, lost = self.cost(self.now, gone), self.lost(self.now)
        best: tuple[float, Candidate | None] = (inf, None)
        for candidate in self.curve.candidates:
            saved = cost - self.cost(candidate, gone)
            if saved > 0 and self.lost(candidate) >= lost:
                ratio = (self.lost(candidate) - lost) / saved
                if ratio < best[0]:
                    best = ratio, candidate
        return best


class Budget:
    """The greedy choice.

    Args:
        unit: "macs" or "parameters".
        round_to: a multiple of this many nodes is left.
        weights: by how much what is lost in each layer counts.
    """

    def __init__(
        self,
        choices: Sequence[Choice],
        rankings: Mapping[str, Ranking],
        curves: Sequence[Curve],
        costs: Costs,
        unit: str,
        round_to: int,
        weights: LossWeights,
    ) -> None:
        self._choices = {c.name: c for c in choices}
        self._rankings, self._costs = rankings, costs
        self._counts = {c.name: allowed(c, rankings[c.name], round_to) for c in choices}
        self._kept = {c.name: c.size for c in choices}
        self._gone = dict.fromkeys(self._kept, 0)
        self._weights = {c.name: weights.of(c.names) for c in choices}
        self._layers = {c.name: _layer(c, unit, choices, weights.of([c.name])) for c in curves}
        self._of: dict[str, set[str]] = {name: set() for name in self._choices}
        for name, layer in self._layers.items():
            for choice in (*layer.inputs, *layer.outputs):
                self._of[choice].add(name)

    def plan(self, share: float, option: str) -> Plan:
        """What is left when no more than `share` of the cost may be.

        Raises:
            UsageError: out of reach; says what is in reach.
        """
        most = share * self._costs.total
        nodes = {name: self._next_count(name) for name in self._choices}
        ranks = {name: layer.step(self._gone) for name, layer in self._layers.items()}
        cost = self._costs.left(self._kept)
        while cost > most:
            node = min(nodes, key=lambda n: nodes[n][0], default=None)
            rank = min(ranks, key=lambda n: ranks[n][0], default=None)
            by_node = nodes[node][0] if node is not None else inf
            by_rank = ranks[rank][0] if rank is not None else inf
            if by_node == by_rank == inf:
                left = cost / self._costs.total
                raise UsageError(
                    f"reduce: {option} {share:g} cannot be reached",
                    got=f"{left:.3f} is left with one node per group and the lowest ranks",
                    remedy=f"{option} {ceil(left * 1000) / 1000:g}, or fewer --exclude patterns",
                )
            if node is not None and by_node <= by_rank:
                self._take(node, nodes[node][1])
                touched, near = self._of[node], self._costs.touching(node) | {node}
            else:
                assert rank is not None
                layer = self._layers[rank]
                layer.now = ranks[rank][1]
                touched, near = {rank}, {*layer.inputs, *layer.outputs}
            for name in touched:
                ranks[name] = self._layers[name].step(self._gone)
            near |= {c for name in touched for c in (*self._layers[name].inputs, *self._layers[name].outputs)}
            for name in near:
                nodes[name] = self._next_count(name)
            cost = self._cost()
        self._give_back(most)
        return self._made(self._cost())

    def _give_back(self, most: float) -> None:
        """The last steps may have gone too far: return what is worth most per cost and still fits."""
        while moves := [*self._steps_back(most - self._cost())]:
            max(moves, key=lambda move: move[0])[1]()

    def _steps_back(self, room: float) -> Iterator[tuple[float, Callable[[], None]]]:
        """What costs no more than `room` and loses less: the gain per cost, and what does it."""
        for name, counts in self._counts.items():
            more = min((count for count in counts if count > self._kept[name]), default=None)
            if more is not None:
                added, gain = -self._saving(name, more), -self._lost(name, more)
                if added <= room and gain > 0:
                    yield gain / max(added, 1e-9), partial(self._take, name, more)
        for layer in self._layers.values():
            if layer.now is None:
                continue
            cost = layer.cost(layer.now, self._gone)
            for candidate in (None, *layer.curve.candidates):
                added = layer.cost(candidate, self._gone) - cost
                gain = layer.lost(layer.now) - layer.lost(candidate)
                if added <= room and gain > 0:
                    yield gain / max(added, 1e-9), partial(setattr, layer, "now", candidate)

    def _cost(self) -> float:
        return self._costs.left(self._kept) - sum(layer.saved(self._gone) for layer in self._layers.values())

    def _take(self, name: str, count: int) -> None:
        self._kept[name] = count
        self._gone[name] = self._choices[name].size - count

    def _next_count(self, name: str) -> tuple[float, int]:
        """How many nodes to leave next for the least loss per cost saved, and that ratio."""
        now = self._kept[name]
        further = [count for count in self._counts[name] if count < now]
        best = (inf, now)
        for position in AHEAD:
            if position >= len(further):
                break
            count = further[position]
            saved = self._saving(name, count)
            if saved > 0:
                best = min(best, (max(self._lost(name, count), 0.0) / saved, count))
        return best

    def _lost(self, name: str, count: int) -> float:
        """What is lost more with so many nodes of a group left."""
        size, loss = self._choices[name].size, self._rankings[name].loss ** GROWTH
        return self._weights[name] * float(loss[size - count] - loss[size - self._kept[name]])

    def _saving(self, name: str, count: int) -> float:
        """What is saved more with so many nodes of a group left, given all ranks as they are."""
        then = {**self._gone, name: self._choices[name].size - count}
        layers = [self._layers[layer] for layer in self._of[name]]
        factored = sum(layer.saved(self._gone) - layer.saved(then) for layer in layers)
        return self._costs.saved(name, count, self._kept) - factored

    def _made(self, cost: float) -> Plan:
        removed = {name: self._rankings[name].removed(count) for name, count in self._gone.items() if count}
        factors = {
            name: layer.now
            for name, layer in self._layers.items()
            if layer.now and layer.saved(self._gone) > 0
        }
        losses = {name: float(self._rankings[name].loss[len(units)]) for name, units in removed.items()}
        losses |= {name: each.error for name, each in factors.items()}
        return Plan(removed, factors, losses, cost)


def _layer(curve: Curve, unit: str, choices: Sequence[Choice], weight: float) -> _Layer:
    layer = curve.target.layers[0]
    sides: tuple[dict[str, float], dict[str, float]] = ({}, {})
    for choice in choices:
        for member in choice.members:
            if member.tensor != layer.weight.name:
                continue
            for side, dim in zip(sides, (layer.roles.inputs, layer.roles.outputs)):
                if member.dim == dim:
                    owned = int((np.asarray(member.unit) >= 0).sum())
                    side[choice.name] = owned / choice.size / len(member.unit)
    return _Layer(curve, unit, *sides, weight)
