"""Least squares from streamed moments: W x + b ≈ t, with W held near where it was where data say nothing.

How strongly it is held follows from the data: every fourth sample is held out at first, the pull with the
least error on those is taken, and then all samples are solved for. Few samples, or alike, ask for a strong
one: with fewer rows than inputs there are weights that fit all of them and are right about nothing else.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property

import torch
from torch import Tensor

from nncompress.analysis.observe.moments import HELD_OUT, RIDGES, downhill, solve_towards
from nncompress.analysis.products import add_products

PULL = 1e-3  # where there are too few samples to hold any out
TOLD = 64  # outputs of a group, spread evenly, that a pull is judged on


class _Sums:
    """Streamed sums of x, t and their products in groups, float64, less an origin: what differs little would
    be lost in the rounding of products of what does not.

    Args:
        x: origin of x, [groups, 1, d]; t: of t, [groups, 1, out].
    """

    def __init__(self, x: Tensor, t: Tensor) -> None:
        self.count, self._origin = 0, (x, t)
        groups, d, out = len(x), x.shape[2], t.shape[2]
        self.x, self.t, self.xx, self.tx = (
            torch.zeros(groups, *shape, dtype=torch.float64) for shape in ((d,), (out,), (d, d), (out, d))
        )

    def add(self, rows: Tensor, targets: Tensor) -> None:
        shifted = rows - self._origin[0]
        self.x += shifted.sum(1, dtype=torch.float64)
        add_products(self.xx, shifted)
        self.count += rows.shape[1]
        self.add_targets(shifted, targets)

    def add_targets(self, shifted: Tensor, targets: Tensor) -> None:
        """Of rows less their origin."""
        targets = targets - self._origin[1]
        self.t += targets.sum(1, dtype=torch.float64)
        self.tx += targets.transpose(1, 2) @ shifted

    def aim(self, examples: Iterable[tuple[Tensor, Tensor]]) -> None:
        """All rows again, with other targets."""
        self.t.zero_()
        self.tx.zero_()
        for rows, targets in examples:
            self.add_targets(rows - self._origin[0], targets)

    def join(self, other: _Sums) -> _Sums:
        """The sums of both, in `self`."""
        for name in ("x", "t", "xx", "tx"):
            getattr(self, name).add_(getattr(other, name))
        self.count += other.count
        return self

    @property
    def means(self) -> tuple[Tensor, Tensor]:
        """E[x], [groups, d], and E[t], [groups, out]."""
        x, t = (origin[:, 0].double() for origin in self._origin)
        return x + self.x / self.count, t + self.t / self.count

    def about(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor]:
        """E[(x − x₀)(x − x₀)ᵀ] and E[(t − t₀)(x − x₀)ᵀ]."""
        shifted, target_shifted = self.x / self.count, self.t / self.count
        mean, target_mean = self.means
        second = self.xx / self.count
        second.baddbmm_(shifted[:, :, None], shifted[:, None, :], alpha=-1)
        apart = mean - x
        second.baddbmm_(apart[:, :, None], apart[:, None, :])
        cross = self.tx / self.count
        cross.baddbmm_(target_shifted[:, :, None], shifted[:, None, :], alpha=-1)
        return second, cross.baddbmm_((target_mean - t)[:, :, None], apart[:, None, :])


class Regression:
    """Streamed moments of (x, t) in groups, and the weights that they ask for.

    Args:
        centred: moments are taken about the mean: there is a b.

    Attributes:
        count: rows seen.
        ridge: the pull that was taken, relative to the mean second moment; None before `solve`.
    """

    def __init__(self, *, centred: bool) -> None:
        self.count = 0
        self.ridge: float | None = None
        self._centred = centred
        self._fit: _Sums | None = None
        self._held: _Sums | None = None

    def add(self, rows: Tensor, targets: Tensor, samples: Tensor) -> None:
        """Take in rows [groups, n, d] and targets [groups, n, out]; products are made in their precision.

        Args:
            samples: the number of the sample that each row is of, int64 [n]; every fourth is held out.
        """
        self.count += rows.shape[1]
        held = samples % HELD_OUT == HELD_OUT - 1
        if self._fit is None or self._held is None:
            origin = rows.mean(1, keepdim=True), targets.mean(1, keepdim=True)
            self._fit, self._held = _Sums(*origin), _Sums(*origin)
        for sums, mine in ((self._fit, ~held), (self._held, held)):
            if mine.any():
                sums.add(*((rows, targets) if mine.all() else (rows[:, mine], targets[:, mine])))

    def aim(self, examples: Iterable[tuple[Tensor, Tensor]]) -> None:
        """All rows again, with other targets; products of rows stay."""
        self._all.aim(examples)
        del self._moments

    @cached_property
    def _all(self) -> _Sums:
        """Nothing can be added any more, and no pull be chosen."""
        assert self._fit is not None
        assert self._held is not None
        sums, self._fit, self._held = self._fit.join(self._held), None, None
        return sums

    @property
    def mean(self) -> Tensor:
        """E[x]: [groups, d]."""
        return self._all.means[0]

    @property
    def target_mean(self) -> Tensor:
        """E[t]: [groups, out]."""
        return self._all.means[1]

    @cached_property
    def _moments(self) -> tuple[Tensor, Tensor]:
        return self._all.about(*self._centre(self._all))

    @property
    def second(self) -> Tensor:
        """E[x xᵀ], about the mean if `centred`: [groups, d, d]."""
        return self._moments[0]

    def _centre(self, sums: _Sums) -> tuple[Tensor, Tensor]:
        if self._centred:
            return sums.means
        return torch.zeros_like(sums.x), torch.zeros_like(sums.t)

    def solve(
        self, start: Tensor, *, ridge: float | None = None, usual: float | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """W [groups, out, d] and b [groups, out], if `centred`.

        Args:
            start: W before, [groups, out, d]: the ridge pulls towards it.
            ridge: weight of that pull, relative to the mean second moment; None takes what is best on the
                samples held out.
            usual: where to look for that first: the pull of a layer like this one.
        """
        start = start.double()
        self.ridge = self._best(start, usual) if ridge is None else ridge
        weight = solve_towards(*self._moments, start, self.ridge)
        return weight, self.offset(weight)

    def offset(self, weight: Tensor) -> Tensor | None:
        """The best b [groups, out] beside W [groups, out, d], if `centred`."""
        if not self._centred:
            return None
        return self.target_mean - (weight @ self.mean[:, :, None])[:, :, 0]

    def _best(self, start: Tensor, usual: float | None) -> float:
        """The pull with the least error on the samples held out, of some outputs, as one pull serves all:
        solving for each costs as much as the factorization."""
        if not (self._fit and self._held and self._fit.count and self._held.count):
            return PULL
        centre = self._centre(self._fit)  # b is from the samples fitted to
        (second, cross), (unseen, wanted) = self._fit.about(*centre), self._held.about(*centre)
        told = torch.linspace(0, start.shape[1] - 1, min(start.shape[1], TOLD)).round().long()
        cross, wanted, start = cross[:, told], wanted[:, told], start[:, told]

        def error(ridge: float) -> float:
            weight = solve_towards(second, cross, start, ridge)
            return float(((weight @ unseen - 2 * wanted) * weight).sum())  # less E|t|²

        return downhill(error, usual if usual in RIDGES else RIDGES[0])
