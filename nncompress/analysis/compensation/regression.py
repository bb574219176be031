"""Least squares from streamed moments: W x + b ≈ t, with W held near where it was where data say nothing."""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.importance.choices import Indices


class Regression:
    """Streamed moments of (x, t) in groups, and the weights that they ask for.

    Args:
        centred: moments are taken about the mean: there is a b.
    """

    def __init__(self, *, centred: bool) -> None:
        self.count = 0
        self._centred = centred
        self._products = self._cross = torch.zeros(0)
        self._total = self._target_total = torch.zeros(0)

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Take in rows [groups, n, d] and targets [groups, n, out]."""
        if self.count == 0:
            groups, _, d = rows.shape
            self._total, self._target_total, self._products, self._cross = (
                torch.zeros(groups, *shape, dtype=torch.float64)
                for shape in ((d,), (targets.shape[2],), (d, d), (targets.shape[2], d))
            )
        self._total += rows.sum(1, dtype=torch.float64)
        self._target_total += targets.sum(1, dtype=torch.float64)
        self._products += rows.transpose(1, 2) @ rows
        self._cross += targets.transpose(1, 2) @ rows
        self.count += rows.shape[1]

    @property
    def mean(self) -> Tensor:
        """E[x]: [groups, d]."""
        return self._total / self.count

    @property
    def target_mean(self) -> Tensor:
        """E[t]: [groups, out]."""
        return self._target_total / self.count

    @cached_property
    def second(self) -> Tensor:
        """E[x xᵀ], about the mean if `centred`: [groups, d, d]. Nothing can be added any more."""
        second = self._products.div_(self.count)
        mean = self.mean
        return second.baddbmm_(mean[:, :, None], mean[:, None, :], alpha=-1) if self._centred else second

    @cached_property
    def cross(self) -> Tensor:
        """E[t xᵀ], about the means if `centred`: [groups, out, d]."""
        cross = self._cross.div_(self.count)
        if self._centred:
            cross.baddbmm_(self.target_mean[:, :, None], self.mean[:, None, :], alpha=-1)
        return cross

    def solve(self, start: Tensor, kept: Indices, *, ridge: float) -> tuple[Tensor, Tensor | None]:
        """W [groups, out, d], zero outside the columns `kept`, and b [groups, out], if `centred`.

        Args:
            start: W before, [groups, out, d]: the ridge pulls towards it.
            ridge: weight of that pull, relative to the mean second moment.
        """
        columns = torch.from_numpy(np.asarray(kept))
        system = self.second[:, columns[:, None], columns]
        diagonal = system.diagonal(dim1=1, dim2=2)
        lift = (ridge * diagonal.mean(1)).clamp(min=1e-10)
        diagonal += lift[:, None]
        wanted = self.cross[:, :, columns] + start.double()[:, :, columns] * lift[:, None, None]
        weight = torch.zeros_like(start, dtype=torch.float64)
        weight[:, :, columns] = torch.linalg.solve(system, wanted.transpose(1, 2)).transpose(1, 2)
        if not self._centred:
            return weight, None
        return weight, self.target_mean - (weight @ self.mean[:, :, None])[:, :, 0]
