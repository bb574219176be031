"""What an error of a weight costs: in the weight itself, in the layer's output, or in the model's output.

A layer computes y = M x. An error Δ of M changes y by Δx, and costs on average

    E[(Δx)ᵀ G (Δx)] = tr(G Δ S Δᵀ)         S = E[x xᵀ]  [in, in],   G [out, out]

with G = 1 for the layer's own output, and for the model's output the second moment of its gradient at y
(Gauss-Newton; with the sum split as here, K-FAC: Martens and Grosse 2015). With S = G = 1 it is ‖Δ‖².
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class Metric:
    """tr(G Δ S Δᵀ) for errors Δ [out, in] of a matrix.

    Attributes:
        inputs: S, float64 [in, in], or its diagonal [in], or None for 1.
        outputs: G, float64 [out, out], or None for 1.
    """

    inputs: Tensor | None = None
    outputs: Tensor | None = None
    _known: list[tuple[Tensor, Tensor]] = field(default_factory=list, init=False, repr=False, compare=False)

    def energy(self, delta: Tensor) -> float:
        """The cost of an error [out, in]; of the matrix itself, what there is to lose."""
        delta = delta.to(torch.float64)
        return float((self.times_outputs(delta) * self.seen(delta)).sum())

    def seen(self, matrix: Tensor) -> Tensor:
        """matrix [out, in] · S, kept until another is asked for or `forget`: all forms of a weight ask for
        its own, and it takes out · in² multiplications."""
        for known, product in self._known:
            if known.shape == matrix.shape and torch.equal(known, matrix):
                return product
        self.forget()
        product = self.times_inputs(matrix)
        if product is not matrix:
            self._known.append((matrix.clone(), product))
        return product

    def forget(self) -> None:
        """Keep nothing beside the metric."""
        self._known.clear()

    def times_inputs(self, matrix: Tensor) -> Tensor:
        """matrix [out, in] · S."""
        if self.inputs is None:
            return matrix
        return matrix * self.inputs if self.inputs.dim() == 1 else matrix @ self.inputs

    def times_outputs(self, matrix: Tensor) -> Tensor:
        """G · matrix [out, in]."""
        return matrix if self.outputs is None else self.outputs @ matrix


def roots(moment: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """R and R⁻¹ of a positive definite M [d, d] = R Rᵀ; None stands for 1.

    R is triangular, a tenth of the operations of the symmetric root, for an M that is nearly singular.
    """
    if moment is None:
        return None, None
    lower, failed = torch.linalg.cholesky_ex(moment)
    pivots = lower.diagonal().square()
    if not failed and pivots.min() > 1e-12 * pivots.max():
        return lower, torch.linalg.solve_triangular(lower, torch.eye(len(lower)).to(lower), upper=False)
    values, vectors = torch.linalg.eigh(moment)
    root = values.clamp_min(values[-1] * 1e-14).sqrt()
    return (vectors * root) @ vectors.T, (vectors / root) @ vectors.T
