"""The one weight that serves several layers best.

Layer k computes W_k x, with inputs of second moment S_k = E[x xᵀ]. All of them shall compute D_k W E_k x with
one W; D_k (per output) or E_k (per input) is diagonal, and absorbed by a batch norm next to the layer. With
tr_S(Δ) = tr(Δ S Δᵀ), the mean square of Δx, minimised is the sum of the layers' relative errors

    Σ_k tr_{S_k}(W_k − D_k W E_k) / tr_{S_k}(W_k)

by turns: W, the D_k and the E_k are each the solution of a linear least-squares problem given the others.
Without scales there is one turn. Without data W is the mean, and errors are those of the weights (S_k = 1).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from nncompress.analysis.conjugate_gradients import conjugate_gradients
from nncompress.analysis.observe.moments import with_ridge

TURNS = 5
STEPS = 50  # of conjugate gradients, in every turn
SMALLEST = 1e-3  # scale: a batch norm divides its running statistics by it


@dataclass(frozen=True)
class Problem:
    """One layer.

    Attributes:
        weight: W_k, float64 [groups, out, in], in = channels · kernel size.
        kernel: elements of the kernel: inputs are scaled channel by channel.
        moment: gives S_k, float64 [groups, in, in]; None without data.
        scaled: with data, whose scale is free: that of its "outputs" or "inputs", or of neither ("").
    """

    weight: Tensor
    kernel: int
    moment: Callable[[], Tensor] | None = None
    scaled: Literal["outputs", "inputs", ""] = ""

    def seen(self, delta: Tensor) -> Tensor:
        """Δ S, [groups, out, in]."""
        return delta if self.moment is None else delta @ self.moment()

    def power(self, delta: Tensor) -> float:
        """The mean square of Δx."""
        return float((self.seen(delta) * delta).sum())


@dataclass
class Fit:
    """A shared weight.

    Attributes:
        weight: W, [groups, out, in].
        outputs: D_k per layer, [groups, out, 1]; inputs: E_k, [groups, 1, in]; ones where nothing is scaled.
        errors: per layer, the error of its output as a share of its output's mean square.
    """

    weight: Tensor
    outputs: list[Tensor]
    inputs: list[Tensor]
    errors: list[float]

    def weight_of(self, k: int) -> Tensor:
        """D_k W E_k."""
        return self.outputs[k] * self.weight * self.inputs[k]


def fit(problems: Sequence[Problem], turns: int = TURNS) -> Fit:
    """The best weight for all of `problems` (equal shapes; all with data or none)."""
    outputs = _first_output_scales(problems)
    inputs = [torch.ones_like(p.weight[:, :1]) for p in problems]
    mean = torch.stack([p.weight for p in problems]).mean(0)
    found = Fit(mean, outputs, inputs, [])
    powers = [max(p.power(p.weight), 1e-300) for p in problems]
    if all(p.moment is not None for p in problems):
        parts = [1 / power for power in powers]
        for _ in range(turns if any(p.scaled for p in problems) else 1):
            found.weight = _weight(problems, found, parts)
            for k, problem in enumerate(problems):
                if problem.scaled == "outputs":
                    found.outputs[k] = _output_scale(problem, found.weight)
                elif problem.scaled == "inputs":
                    found.inputs[k] = _input_scale(problem, found.weight, found.inputs[k])
    found.errors = [
        p.power(p.weight - found.weight_of(k)) / power for k, (p, power) in enumerate(zip(problems, powers))
    ]
    return found


def _weight(problems: Sequence[Problem], now: Fit, parts: Sequence[float]) -> Tensor:
    """W given the scales."""
    scales = list(zip(problems, parts, now.outputs, now.inputs))
    wanted = sum((c * d * p.seen(p.weight) * e for p, c, d, e in scales), torch.zeros(()))

    def normal(weight: Tensor) -> Tensor:
        return sum((c * d * p.seen(d * weight * e) * e for p, c, d, e in scales), torch.zeros(()))

    enough = 1e-16 * float(wanted.square().sum())
    return conjugate_gradients(normal, wanted - normal(now.weight), now.weight, STEPS, enough)


def _first_output_scales(problems: Sequence[Problem]) -> list[Tensor]:
    """From the outputs' powers, relative to their mean over the layers: [groups, out, 1]."""
    powers = [(p.seen(p.weight) * p.weight).sum(2, keepdim=True).clamp_min(0).sqrt() for p in problems]
    mean = torch.stack(powers).mean(0)
    return [
        torch.where(mean > 0, power / mean, 1.0).clamp(0.1, 10)
        if problem.scaled == "outputs"
        else torch.ones_like(power)
        for problem, power in zip(problems, powers)
    ]


def _output_scale(problem: Problem, weight: Tensor) -> Tensor:
    """D_k given W, never quite 0: [groups, out, 1]."""
    seen = problem.seen(weight)
    energy = (seen * weight).sum(2, keepdim=True)
    best = (seen * problem.weight).sum(2, keepdim=True) / energy.clamp_min(1e-300)
    return torch.where((energy > 0) & (best.abs() > SMALLEST), best, SMALLEST)


def _input_scale(problem: Problem, weight: Tensor, now: Tensor) -> Tensor:
    """E_k given W, above 0 because a ReLU lies before it; kept as it was where that is no better."""
    assert problem.moment is not None
    gram = weight.transpose(1, 2) @ weight * problem.moment()
    cross = weight.transpose(1, 2) @ problem.seen(problem.weight)
    blocks = gram.unflatten(2, (-1, problem.kernel)).unflatten(1, (-1, problem.kernel)).sum((2, 4))
    sums = cross.diagonal(dim1=1, dim2=2).unflatten(1, (-1, problem.kernel)).sum(2)
    best = torch.linalg.solve(with_ridge(blocks, 1e-6), sums).clamp_min(SMALLEST)
    best = best.repeat_interleave(problem.kernel, 1)[:, None, :]
    before, after = (problem.power(problem.weight - weight * e) for e in (now, best))
    return best if after < before else now
