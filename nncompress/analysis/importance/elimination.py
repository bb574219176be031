"""Greedy elimination with closed-form compensation: Optimal Brain Surgeon on groups of columns.

A layer computes W x. Without the columns G of one unit, and with the others at their best for the data,
its squared error grows by (Hassibi and Stork 1993, "Second Order Derivatives for Network Pruning", eq. 5, for
a group)

    tr( W_G (H⁻¹_GG)⁻¹ W_Gᵀ ),    H = E[x xᵀ] (centred: the bias compensates the mean)

after which W ← W − W_G (H⁻¹_GG)⁻¹ H⁻¹_G: and H⁻¹ loses G the same way. The rows of W are first turned by the
root of the output gradients' second moment, so that the error is measured as the network's loss feels it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.importance.choices import Indices

RIDGE = 1e-4  # of the mean second moment, so that inverses exist
PENDING = 256  # columns of steps that wait before the inverse is brought up to date
LARGEST = 6144  # columns of a layer; beyond that, columns are taken as independent of other units'


@dataclass
class Quadratic:
    """One consumer's error as a function of its weight matrix.

    Attributes:
        weight: `[out, in]`.
        second: `[in, in]` covariance of what it reads.
        metric: `[out, out]` second moment of the gradient at its output.
        columns: `[units, k]` columns of each unit.
    """

    weight: Tensor
    second: Tensor
    metric: Tensor
    columns: Indices


def root(metric: Tensor) -> Tensor:
    """L with Lᵀ L = metric, made a little larger than singular."""
    size = len(metric)
    lifted = metric + 1e-3 * metric.diagonal().mean() * torch.eye(size, dtype=metric.dtype)
    values, vectors = torch.linalg.eigh(lifted)
    return vectors.T * values.clamp(min=0).sqrt()[:, None]


def damped(second: Tensor, ridge: float = RIDGE) -> Tensor:
    """Plus `ridge` times its mean diagonal."""
    lift = max(float(second.diagonal().mean()) * ridge, 1e-12)
    return second + lift * torch.eye(len(second), dtype=second.dtype)


class _Eliminator:
    """One consumer while its units go, those left in ascending order.

    H⁻¹ is not brought up to date at every step: the steps wait as factors, H⁻¹ − L R, until there are
    `PENDING` columns of them, because one product of large matrices is several times faster than many thin
    ones. What the errors need, the blocks H⁻¹_GG, is always up to date.
    """

    def __init__(self, problem: Quadratic) -> None:
        self._columns = torch.from_numpy(problem.columns)  # [units, k]
        self._weight = root(problem.metric) @ problem.weight.double()
        inverse = damped(problem.second)
        self._independent = len(inverse) > LARGEST  # block diagonal: no other unit compensates
        if not self._independent:
            inverse = torch.linalg.inv(inverse)
        self._blocks = inverse[self._columns[:, :, None], self._columns[:, None, :]]
        self._inverse = torch.empty(0) if self._independent else inverse
        self._forget()

    def _forget(self) -> None:
        """No step waits."""
        size = len(self._inverse)
        self._left = torch.empty(size, 0, dtype=torch.float64)
        self._right = torch.empty(0, size, dtype=torch.float64)

    def errors(self) -> Tensor:
        """What removing each unit that is left would cost, `[units]`."""
        inner = self._blocks if self._independent else torch.linalg.inv(self._blocks)
        weight = self._weight[:, self._columns]  # [out, units, k]
        return torch.einsum("onk,nkl,onl->n", weight, inner, weight)

    def remove(self, position: int) -> None:
        """Remove a unit, by its place among those that are left."""
        gone = self._columns[position]
        stay = [i for i in range(len(self._columns)) if i != position]
        self._columns, self._blocks = self._columns[stay], self._blocks[stay]
        if not self._independent:
            rows = self._inverse[gone] - self._left[gone] @ self._right
            step = torch.linalg.solve(rows[:, gone], rows)  # (H⁻¹_GG)⁻¹ H⁻¹_G:
            self._weight.addmm_(self._weight[:, gone], step, alpha=-1)
            self._blocks -= torch.einsum("puk,pul->ukl", rows[:, self._columns], step[:, self._columns])
            self._left = torch.cat([self._left, rows.T], 1)
            self._right = torch.cat([self._right, step])
            if len(self._right) >= PENDING:
                self._catch_up()

    def _catch_up(self) -> None:
        """Do the steps that wait, and go on with the columns of the units that are left alone."""
        self._inverse.addmm_(self._left, self._right, alpha=-1)
        live = self._columns.flatten()
        self._inverse, self._weight = self._inverse[live][:, live], self._weight[:, live]
        self._columns = torch.arange(len(live)).reshape(self._columns.shape)
        self._forget()


def eliminate(problems: Sequence[Quadratic], units: int) -> tuple[list[int], list[float]]:
    """The order in which units go, all but one, and the error after each step (their sum over problems).

    Returns: order `[units - 1]`, error `[units]` from 0.
    """
    eliminators = [_Eliminator(p) for p in problems]
    alive = list(range(units))
    order: list[int] = []
    error = [0.0]
    while len(alive) > 1:
        errors = sum(e.errors() for e in eliminators)
        assert isinstance(errors, Tensor)
        cheapest = int(errors.argmin())
        error.append(error[-1] + max(float(errors[cheapest]), 0.0))
        order.append(alive.pop(cheapest))
        for e in eliminators:
            e.remove(cheapest)
    return order, error


def refit(weight: Tensor, second: Tensor, kept: Indices) -> Tensor:
    """The best `[out, in]` weight that is zero outside the `kept` columns (centred data)."""
    moment = damped(second)
    columns = torch.from_numpy(np.asarray(kept))
    fitted = torch.zeros_like(weight, dtype=torch.float64)
    target = weight.double() @ moment[:, columns]
    fitted[:, columns] = torch.linalg.solve(moment[columns][:, columns], target.T).T
    return fitted
