"""How many units each group gets.

Every way of saying it gives a group as many units as its need says, relative to the mean need: "16" adds 16
to each on average. A group that a norm runs over is copied whole: it gets a multiple of its size, or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

from nncompress.analysis.couplings import Couplings, Group
from nncompress.analysis.importance.choices import group_choices
from nncompress.analysis.importance.costs import Costs
from nncompress.ir import Model

HALVINGS = 30
CLOSE = 0.9  # to the budget: here the quick estimate of MACs does not do
Fits = Callable[[Mapping[str, int]], bool]
MOST = 64.0  # a budget is looked for up to so many times the size of every group


@dataclass(frozen=True)
class Amount:
    """How much each group grows; exactly one of the first three, or none where a budget alone decides.

    Attributes:
        by: units per group.
        factor: the size of every group is multiplied by this.
        quarter_of: a quarter of this many units per group, and never more than this many in all.
        round_to: new units come in multiples of this.
        scale: so many times all of that.
    """

    by: int | None = None
    factor: float | None = None
    quarter_of: int | None = None
    round_to: int = 1
    scale: float = 1.0

    def of(self, size: int, share: float) -> int:
        """New units of a group of that size, with `share` times the mean need."""
        share *= self.scale
        if self.quarter_of is not None:
            return min(self._rounded(self.quarter_of / 4 * share), max(0, self.quarter_of - size))
        if self.factor is not None:
            return self._rounded(size * (self.factor - 1) * share)
        return self._rounded((self.by or 0) * share)

    def _rounded(self, units: float) -> int:
        return round(units / self.round_to) * self.round_to


@dataclass(frozen=True)
class Budget:
    """Bounds on the whole model's cost, in its own units; None where there is none."""

    macs: float | None = None
    params: float | None = None


def new_units(
    model: Model,
    couplings: Couplings,
    scores: Mapping[str, float],
    amount: Amount,
    budget: Budget,
    *,
    whole: Collection[str] = (),
) -> dict[str, int]:
    """Group name -> how many units it gets; groups that get none are absent.

    Without a number in `amount` the groups grow as far as the budget goes; with one, by that, or less where
    the budget ends before.

    Args:
        scores: the need of each group that may grow.
        whole: groups that take whole multiples of their size only.
    """
    groups = [g for g in couplings.groups if g.name in scores]
    mean = sum(scores.values()) / len(scores) if scores else 1.0
    shares = {g.name: scores[g.name] / mean if mean > 0 else 1.0 for g in groups}
    fits = _within(model, couplings, budget)

    def counts(scale: float, amount: Amount) -> dict[str, int]:
        found = {}
        for g in groups:
            units = amount.of(g.size, shares[g.name] * scale)
            found[g.name] = units // g.size * g.size if g.name in whole else units
        return found

    open_ended = (amount.by, amount.factor, amount.quarter_of) == (None, None, None)
    if open_ended:
        amount = Amount(factor=2.0, round_to=amount.round_to)
    wanted = counts(MOST if open_ended else 1.0, amount)
    if not fits(wanted):
        low, high = 0.0, MOST if open_ended else 1.0
        for _ in range(HALVINGS):
            middle = (low + high) / 2
            low, high = (middle, high) if fits(counts(middle, amount)) else (low, middle)
        wanted = _filled(counts(low, amount), counts(high, amount), groups, shares, fits)
    return {name: units for name, units in wanted.items() if units}


def _within(model: Model, couplings: Couplings, budget: Budget) -> Fits:
    """Whether a growth, group name -> new units, keeps within the budget, by the exact count."""
    sizes = {g.name: g.size for g in couplings.groups}
    macs = Costs(model, group_choices(model, couplings), "macs")

    def fits(wanted: Mapping[str, int]) -> bool:
        if budget.params is not None and _parameters(couplings, wanted) > budget.params:
            return False
        if budget.macs is None:
            return True
        about = macs.left({name: sizes[name] + units for name, units in wanted.items()})
        if not CLOSE < about / budget.macs < 1 / CLOSE:
            return about <= budget.macs
        return couplings.grown_macs({n: [sizes[n] - 1] * u for n, u in wanted.items()}) <= budget.macs

    return fits


def _parameters(couplings: Couplings, wanted: Mapping[str, int]) -> int:
    """Stored values after a growth, norms' statistics included as in `analysis.cost`."""
    extra: dict[tuple[str, int], int] = {}
    for group in couplings.groups:
        for member in group.members:
            per_unit = len(member.indices) // group.size
            key = (member.tensor, member.dim)
            extra[key] = extra.get(key, 0) + wanted.get(group.name, 0) * per_unit
    return sum(
        math.prod(size + extra.get((name, dim), 0) for dim, size in enumerate(value.shape))
        for name, value in couplings.trace.tensors.items()
    )


def _filled(
    low: dict[str, int],
    high: dict[str, int],
    groups: Sequence[Group],
    shares: Mapping[str, float],
    fits: Fits,
) -> dict[str, int]:
    """The last counts that fit, and of the first that do not, group by group, what still fits."""
    for group in sorted(groups, key=lambda g: -shares[g.name]):
        tried = {**low, group.name: high[group.name]}
        if fits(tried):
            low = tried
    return low


def behind(group: Group, units: int, *, split: bool) -> list[int]:
    """The unit that each new unit is placed beside: the last one, or for copies every one in turn."""
    if not split:
        return [group.size - 1] * units
    return [
        math.floor(i * group.size / units) if units < group.size else i % group.size for i in range(units)
    ]
