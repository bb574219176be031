"""The one weight that serves several layers best, in closed form.

Layer k computes W_k x, with inputs of second moment S_k = E[x xᵀ]. All of them shall compute D_k W E_k x with
one W; D_k (per output) and E_k (per input) are diagonal, and absorbed by the batch norms around the layer.
With scales D_k and E_k set from the norms of W_k's rows and columns, W minimises

    Σ_k tr (D_k⁻¹ W_k − W E_k) S_k (D_k⁻¹ W_k − W E_k)ᵀ,   W = (Σ_k D_k⁻¹ W_k S_k E_k)(Σ_k E_k S_k E_k)⁻¹

and then each D_k the error of its own layer. Without data S_k = 1; without scales, too, W is the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nncompress.analysis.metric import with_ridge


@dataclass(frozen=True)
class Problem:
    """One layer. All tensors float64, [groups, out, in], in = channels · kernel size.

    Attributes:
        weight: W_k, [groups, out, in].
        kernel: elements of the kernel: input columns are scaled channel by channel.
        moment: S_k, [groups, in, in], or None for 1.
        outputs, inputs: may its outputs, its inputs be scaled?
    """

    weight: Tensor
    kernel: int
    moment: Tensor | None
    outputs: bool
    inputs: bool

    def norms(self, delta: Tensor) -> Tensor:
        """Per row the mean square of delta x: [groups, out]."""
        return ((delta if self.moment is None else delta @ self.moment) * delta).sum(2)


@dataclass(frozen=True)
class Fit:
    """A shared weight.

    Attributes:
        weight: W, [groups, out, in].
        outputs: D_k per layer, [groups, out]; inputs: E_k, [groups, channels]; ones where nothing is scaled.
        errors: per layer, the error of its output as a share of its output's mean square.
    """

    weight: Tensor
    outputs: list[Tensor]
    inputs: list[Tensor]
    errors: list[float]


def fit(problems: Sequence[Problem]) -> Fit:
    """The best weight for all of `problems` (equal shapes)."""
    outputs = _relative([p.norms(p.weight).sqrt() for p in problems], [p.outputs for p in problems])
    leveled = [p.weight / d[:, :, None] for p, d in zip(problems, outputs)]
    columns = [w.unflatten(2, (-1, p.kernel)).square().sum((1, 3)).sqrt() for w, p in zip(leveled, problems)]
    inputs = _relative(columns, [p.inputs for p in problems])
    wide = [e.repeat_interleave(p.kernel, 1) for p, e in zip(problems, inputs)]
    weight = _solve(problems, leveled, wide)
    errors = []
    for k, (problem, e) in enumerate(zip(problems, wide)):
        own = weight * e[:, None, :]
        if problem.outputs:
            outputs[k] = _scale(problem, own)
        error = problem.norms(problem.weight - outputs[k][:, :, None] * own).sum()
        errors.append(float(error / problem.norms(problem.weight).sum().clamp_min(1e-300)))
    return Fit(weight, outputs, inputs, errors)


def _solve(problems: Sequence[Problem], leveled: Sequence[Tensor], wide: Sequence[Tensor]) -> Tensor:
    if all(problem.moment is None for problem in problems):
        numerator = sum(w * e[:, None, :] for w, e in zip(leveled, wide))
        return numerator / sum(e.square() for e in wide)[:, None, :]  # type: ignore[union-attr]
    left = right = torch.zeros(())
    for problem, w, e in zip(problems, leveled, wide):
        assert problem.moment is not None
        scaled = problem.moment * e[:, None, :]
        left = left + w @ scaled
        right = right + e[:, :, None] * scaled
    return torch.linalg.solve(with_ridge(right, 1e-6), left.transpose(1, 2)).transpose(1, 2)


def _relative(norms: Sequence[Tensor], scaled: Sequence[bool]) -> list[Tensor]:
    """Scales from norms: relative to their mean over the layers, within two decades; 1 where not scaled."""
    mean = torch.stack(list(norms)).mean(0)
    ratio = [torch.where(mean > 0, n / mean.clamp_min(1e-300), 1.0).clamp(0.1, 10) for n in norms]
    return [r if yes else torch.ones_like(r) for r, yes in zip(ratio, scaled)]


def _scale(problem: Problem, own: Tensor) -> Tensor:
    """Per output the factor that makes `own` fit the layer's weight best; never quite 0: [groups, out]."""
    seen = own if problem.moment is None else own @ problem.moment
    energy = (seen * own).sum(2)
    best = (seen * problem.weight).sum(2) / energy.clamp_min(1e-300)
    return torch.where((energy > 0) & (best.abs() > SMALLEST), best, SMALLEST)


SMALLEST = 1e-3  # of a scale: a batch norm divides its running statistics by it
