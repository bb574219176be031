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
    def __init__(self, problem: Quadratic) -> None:
        self.columns = torch.from_numpy(problem.columns)
        self.weight = root(problem.metric) @ problem.weight.double()
        second = damped(problem.second)
        if len(second) > LARGEST:  # block diagonal: no other unit compensates
            self.inverse = None
            self.blocks = second[self.columns[:, :, None], self.columns[:, None, :]]
        else:
            self.inverse = torch.linalg.inv(second)

    def errors(self, alive: Tensor) -> Tensor:
        columns = self.columns[alive]  # [n, k]
        inner = self._inner(alive, columns)
        weight = self.weight[:, columns]  # [out, n, k]
        return torch.einsum("onk,nkl,onl->n", weight, inner, weight)

    def _inner(self, alive: Tensor, columns: Tensor) -> Tensor:
        if self.inverse is None:
            return self.blocks[alive]
        return torch.linalg.inv(self.inverse[columns[:, :, None], columns[:, None, :]])

    def remove(self, unit: int) -> None:
        columns = self.columns[unit]
        if self.inverse is not None:
            rows = self.inverse[columns]
            step = torch.linalg.solve(rows[:, columns], rows)  # (H⁻¹_GG)⁻¹ H⁻¹_G:
            self.weight -= self.weight[:, columns] @ step
            self.inverse -= self.inverse[:, columns] @ step
        self.weight[:, columns] = 0


def eliminate(problems: Sequence[Quadratic], units: int) -> tuple[list[int], list[float]]:
    """The order in which units go, all but one, and the error after each step (their sum over problems).

    Returns: order `[units - 1]`, error `[units]` from 0.
    """
    eliminators = [_Eliminator(p) for p in problems]
    alive = list(range(units))
    order: list[int] = []
    error = [0.0]
    while len(alive) > 1:
        errors = sum(e.errors(torch.tensor(alive)) for e in eliminators)
        assert isinstance(errors, Tensor)
        cheapest = int(errors.argmin())
        error.append(error[-1] + max(float(errors[cheapest]), 0.0))
        order.append(alive.pop(cheapest))
        for e in eliminators:
            e.remove(order[-1])
    return order, error


def refit(weight: Tensor, second: Tensor, kept: Indices) -> Tensor:
    """The best `[out, in]` weight that is zero outside the `kept` columns (centred data)."""
    moment = damped(second)
    columns = torch.from_numpy(np.asarray(kept))
    fitted = torch.zeros_like(weight, dtype=torch.float64)
    target = weight.double() @ moment[:, columns]
    fitted[:, columns] = torch.linalg.solve(moment[columns][:, columns], target.T).T
    return fitted
