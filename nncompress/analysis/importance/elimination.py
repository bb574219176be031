"""Greedy elimination with closed-form compensation: Optimal Brain Surgeon on groups of columns.

A layer computes W x. Without the columns G of one unit, and with the others at their best for the data,
its squared error grows by (Hassibi and Stork 1993, "Second Order Derivatives for Network Pruning", eq. 5, for
a group)

    tr( W_G (H⁻¹_GG)⁻¹ W_Gᵀ ),    H = E[x xᵀ] (centred: the bias compensates the mean)

after which W ← W − W_G (H⁻¹_GG)⁻¹ H⁻¹_G: and H⁻¹ loses G the same way. The rows of W are first turned by the
root of the output gradients' second moment, so that the error is measured as the network's loss feels it.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nncompress.analysis.importance.choices import Indices
from nncompress.analysis.observe.moments import cholesky, solved, with_ridge

PENDING = 256  # columns of steps that wait before the inverse is brought up to date


@dataclass
class Quadratic:
    """One consumer's error as a function of its weight matrix.

    Attributes:
        weight: `[out, in]`.
        second: `[in, in]` covariance of what it reads; or `[units, k, k]`, that of each unit's columns, where
            those of different units are taken as independent: then no other unit compensates.
        metric: `[out, out]` second moment of the gradient at its output.
        columns: `[units, k]` columns of each unit.
    """

    weight: Tensor
    second: Tensor
    metric: Tensor
    columns: Indices


def root(metric: Tensor) -> Tensor:
    """L with Lᵀ L = metric, made a little larger than singular; of nothing next to nothing."""
    return torch.linalg.cholesky(with_ridge(metric, 1e-3, of_nothing=1e-30), upper=True)


def _invertible(second: Tensor) -> Tensor:
    """A unit that reads nothing costs nothing, beside others and by itself."""
    return with_ridge(second, of_nothing=1e-12, together=second.dim() == 3)


class _Eliminator:
    """One consumer while its units go, those left in ascending order.

    The errors of all units need only the blocks H⁻¹_GG and W_Gᵀ W_G, which every step brings up to date. All
    of H⁻¹ is brought up to date once per `PENDING` columns: until then the steps wait as factors, H⁻¹ − L R,
    because one product of large matrices is several times faster than many thin ones. Of W only Wᵀ W counts:
    one of more rows than columns is replaced by its triangular factor.
    """

    def __init__(self, problem: Quadratic) -> None:
        self._columns = torch.from_numpy(problem.columns)  # [units, k]
        self._weight = root(problem.metric) @ problem.weight.double()
        if len(self._weight) > self._weight.shape[1]:
            self._weight = torch.linalg.qr(self._weight, mode="r").R
        parts = self._weight[:, self._columns]
        self._energy = torch.einsum("onk,onl->nkl", parts, parts)
        inverse = torch.cholesky_inverse(cholesky(_invertible(problem.second)))
        self._independent = inverse.dim() == 3
        if self._independent:
            self._blocks = inverse
            return
        self._inverse = inverse
        self._blocks = inverse[self._columns[:, :, None], self._columns[:, None, :]]
        self._start()

    def _start(self) -> None:
        """No step waits."""
        size, room = len(self._inverse), PENDING + self._columns.shape[1]
        self._left = torch.empty(size, room, dtype=torch.float64)
        self._right = torch.empty(room, size, dtype=torch.float64)
        self._waiting = 0

    def errors(self) -> Tensor:
        """What removing each unit that is left would cost, `[units]`."""
        single = self._columns.shape[1] == 1  # LAPACK is called for each block
        inverses = self._blocks.reciprocal() if single else torch.linalg.inv(self._blocks)
        return (self._energy * inverses).sum((1, 2))

    def remove(self, position: int) -> None:
        """Remove a unit, by its place among those that are left."""
        gone = self._columns[position]
        stay = torch.arange(len(self._columns)) != position
        self._columns, self._blocks, self._energy = (
            each[stay] for each in (self._columns, self._blocks, self._energy)
        )
        if self._independent:
            return
        left, right = self._left[:, : self._waiting], self._right[: self._waiting]
        rows = self._inverse[gone] - left[gone] @ right
        step = torch.linalg.solve(rows[:, gone], rows)  # (H⁻¹_GG)⁻¹ H⁻¹_G:
        own = self._weight[:, gone].clone()
        # (W − W_G S)ᵀ (W − W_G S) = WᵀW − Cᵀ S − Sᵀ C with C = W_Gᵀ W − ½ W_Gᵀ W_G S
        cross = own.T @ self._weight - (0.5 * own.T @ own) @ step
        change = torch.einsum("pnk,pnl->nkl", cross[:, self._columns], step[:, self._columns])
        self._energy -= change + change.mT
        self._blocks -= torch.einsum("pnk,pnl->nkl", rows[:, self._columns], step[:, self._columns])
        self._weight.addmm_(own, step, alpha=-1)
        end = self._waiting + len(gone)
        self._left[:, self._waiting : end], self._right[self._waiting : end] = rows.T, step
        self._waiting = end
        if self._waiting >= PENDING:
            self._catch_up()

    def _catch_up(self) -> None:
        """Do the steps that wait, and go on with the columns of the units that are left."""
        live = self._columns.flatten()
        left, right = self._left[live, : self._waiting], self._right[: self._waiting, live]
        self._inverse = self._inverse[live[:, None], live].addmm_(left, right, alpha=-1)
        self._weight = self._weight[:, live]
        self._columns = torch.arange(len(live)).reshape(self._columns.shape)
        self._start()


def eliminate(problems: Iterable[Quadratic], units: int) -> tuple[list[int], list[float]]:
    """The order in which units go, all but one, and the error after each step (their sum over problems).

    Args:
        problems: each looked at once; of a generator none is held.

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
    moment = _invertible(second)
    columns = torch.from_numpy(np.asarray(kept))
    fitted = torch.zeros_like(weight, dtype=torch.float64)
    target = weight.double() @ moment[:, columns]
    fitted[:, columns] = solved(moment[columns][:, columns], target.T).T
    return fitted
