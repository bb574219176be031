"""Ranks in closed form: what an error threshold or a budget allows, from the singular values alone.

Everything follows from the tails of one decomposition: cutting a matrix at rank r loses Σ_{i>r} σ_i², exactly
(Eckart-Young). No matrix is ever rebuilt to measure an error.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


def tails(values: Tensor, beyond: float = 0.0) -> Tensor:
    """Squared error of every rank: [k] singular values -> [k + 1], tails[r] = Σ_{i ≥ r} σ_i².

    Args:
        beyond: the sum of the squares of singular values that are not among `values`.
    """
    squares = values.to(torch.float64).square()
    reverse = torch.cumsum(squares.flip(0), 0).flip(0)
    return torch.cat([reverse, reverse.new_zeros(1)]) + beyond


@dataclass(frozen=True)
class Candidate:
    """One way to store a layer.

    Attributes:
        form: which factors; "dense" leaves the layer as it is.
        ranks: one rank, or two for Tucker-2.
        cost: what is being saved: MACs, or parameters.
        error: what is lost, in one unit for all layers that are compared.
    """

    form: str
    ranks: tuple[int, ...]
    cost: int
    error: float


def cheapest(candidates: Sequence[Candidate], limit: float) -> Candidate | None:
    """The cheapest candidate with an error below `limit`, the more accurate of equals; None if none is."""
    allowed = [c for c in candidates if c.error < limit]
    return min(allowed, key=lambda c: (c.cost, c.error), default=None)


def hull(candidates: Sequence[Candidate]) -> list[Candidate]:
    """The lower convex hull of error over cost, from the most expensive candidate down.

    Along it every step saves cost at a marginal error no better than the step before.
    """
    frontier: list[Candidate] = []
    for c in sorted(candidates, key=lambda c: (-c.cost, c.error)):
        if frontier and c.cost == frontier[-1].cost:
            continue
        while frontier and c.error <= frontier[-1].error:  # cheaper and no worse
            frontier.pop()
        while len(frontier) > 1 and _slope(frontier[-2], c) <= _slope(frontier[-2], frontier[-1]):
            frontier.pop()
        frontier.append(c)
    return frontier


def _slope(dear: Candidate, cheap: Candidate) -> float:
    """Error added per cost saved."""
    return (cheap.error - dear.error) / (dear.cost - cheap.cost)


def allocate(layers: Sequence[Sequence[Candidate]], budget: int) -> list[Candidate]:
    """One candidate per layer, total cost at most `budget`, the total error as small as it gets.

    Greedy by marginal error per cost along each layer's hull, which is exact for every budget that a step
    hits. The last step may save too much; what is left over is spent where it reduces the error most.

    Args:
        layers: the candidates of each layer, the dense one included.

    Raises:
        ValueError: even the cheapest candidates cost more than `budget`.
    """
    hulls = [hull(candidates) for candidates in layers]
    if sum(h[-1].cost for h in hulls) > budget:
        raise ValueError(f"at least {sum(h[-1].cost for h in hulls)} is needed, got a budget of {budget}")
    at = [0] * len(hulls)
    total = sum(h[0].cost for h in hulls)
    steps = [(_slope(h[0], h[1]), i) for i, h in enumerate(hulls) if len(h) > 1]
    heapq.heapify(steps)
    while total > budget:
        _, i = heapq.heappop(steps)
        dear, cheap = hulls[i][at[i]], hulls[i][at[i] + 1]
        at[i] += 1
        total -= dear.cost - cheap.cost
        if at[i] + 1 < len(hulls[i]):
            heapq.heappush(steps, (_slope(hulls[i][at[i]], hulls[i][at[i] + 1]), i))
    return _spend([h[k] for h, k in zip(hulls, at)], layers, budget - total)


def _spend(chosen: list[Candidate], layers: Sequence[Sequence[Candidate]], left: int) -> list[Candidate]:
    """Improve one layer after the other, each time by the candidate within `left` that gains most."""
    while True:
        gain, place, best = 0.0, -1, None
        for i, (now, layer) in enumerate(zip(chosen, layers)):
            for c in layer:
                if 0 <= c.cost - now.cost <= left and now.error - c.error > gain:
                    gain, place, best = now.error - c.error, i, c
        if best is None:
            return chosen
        left -= best.cost - chosen[place].cost
        chosen[place] = best
