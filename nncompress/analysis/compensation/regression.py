"""Least squares from streamed moments: W x + b ≈ t, with W held near where it was where data say nothing."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.importance.choices import Indices


class Regression:
    """Streamed moments of (x, t) in groups, and the weights that they ask for."""

    def __init__(self) -> None:
        self.count = 0
        self._products = self._cross = torch.zeros(0)

    def add(self, rows: Tensor, targets: Tensor) -> None:
        """Take in rows [groups, n, d] and targets [groups, n, out]."""
        ones = rows.new_ones(*rows.shape[:2], 1)
        extended = torch.cat([rows, ones], 2)
        products = (extended.transpose(1, 2) @ extended).double()
        cross = (targets.transpose(1, 2) @ extended).double()
        if self.count == 0:
            self._products, self._cross = products, cross
        else:
            self._products += products
            self._cross += cross
        self.count += rows.shape[1]

    @property
    def mean(self) -> Tensor:
        """E[x]: [groups, d]."""
        return self._products[:, :-1, -1] / self.count

    @property
    def target_mean(self) -> Tensor:
        """E[t]: [groups, out]."""
        return self._cross[:, :, -1] / self.count

    def second(self, centred: bool) -> Tensor:
        """E[x xᵀ], about the mean or not: [groups, d, d]."""
        second = self._products[:, :-1, :-1] / self.count
        return second - self.mean[:, :, None] * self.mean[:, None, :] if centred else second

    def cross(self, centred: bool) -> Tensor:
        """E[t xᵀ]: [groups, out, d]."""
        cross = self._cross[:, :, :-1] / self.count
        return cross - self.target_mean[:, :, None] * self.mean[:, None, :] if centred else cross

    def solve(
        self, start: Tensor, kept: Indices, *, intercept: bool, ridge: float
    ) -> tuple[Tensor, Tensor | None]:
        """W [groups, out, d], zero outside the columns `kept`, and b [groups, out].

        Args:
            start: W before, [groups, out, d]: the ridge pulls towards it.
            ridge: weight of that pull, relative to the mean second moment.
        """
        columns = torch.from_numpy(np.asarray(kept))
        second = self.second(intercept)[:, columns][:, :, columns]
        lift = (ridge * second.diagonal(dim1=1, dim2=2).mean(1)).clamp(min=1e-10)
        pull = lift[:, None, None] * torch.eye(len(columns), dtype=second.dtype)
        wanted = self.cross(intercept)[:, :, columns] + start.double()[:, :, columns] * lift[:, None, None]
        weight = torch.zeros_like(start, dtype=torch.float64)
        solved = torch.linalg.solve(second + pull, wanted.transpose(1, 2))
        weight[:, :, columns] = solved.transpose(1, 2)
        if not intercept:
            return weight, None
        return weight, self.target_mean - (weight @ self.mean[:, :, None])[:, :, 0]
