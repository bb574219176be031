"""K×L filters as K×1 filters followed by 1×L filters (kernel composing), best for a metric.

    W[o, i, k, l] = Σ_r H[o, r, l] · V[r, i, k]

Without a metric this is the SVD of W as a matrix [(i, k), (o, l)] (Jaderberg et al. 2014, scheme 2; Zhang et
al. 2016 §3.5). With one, tr(G Δ S Δᵀ) does not separate into a left and a right side, so:
1. the vertical filters V come from the SVD under the nearest metric that does separate;
2. the horizontal ones follow by least squares, for all ranks at once: with the features of rank r nested in
   those of rank r + 1, one Cholesky factorization gives the exact error of every rank;
3. at the chosen rank, V (conjugate gradients) and H (closed form) are solved for in turns.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nncompress.analysis.conjugate_gradients import conjugate_gradients
from nncompress.analysis.curvature.metric import Metric
from nncompress.analysis.lowrank.decompose import decompose
from nncompress.analysis.lowrank.ranks import tails
from nncompress.analysis.observe.moments import with_ridge

SWEEPS = 3  # turns of step 3: the first takes most of what there is
STEPS = 12  # conjugate gradients per turn
# Features beyond the rank of the weight itself are linearly dependent: their Gram matrix stays invertible.
JITTER = 1e-9


class SpatialDecomposition:
    """A weight [o, i, K, L] that can be cut at any rank.

    Args:
        metric: of the weight as a matrix [o, i · K · L].
        largest: the highest rank of interest.
    """

    def __init__(self, weight: Tensor, metric: Metric | None = None, largest: int | None = None) -> None:
        self.weight = weight.detach().to(torch.float64)
        outputs, inputs, height, width = self.weight.shape
        self.metric = metric
        grid = self.weight.permute(1, 2, 0, 3).reshape(inputs * height, outputs * width)
        self._spectrum = decompose(grid.T, self._separated())  # [(o, l), (i, k)]
        self.largest = min(len(self._spectrum.values), largest or len(self._spectrum.values))

    def errors(self) -> Tensor:
        """tr(G Δ S Δᵀ) of the ranks 1 … largest before the turns of step 3, float64 [largest]."""
        if self.metric is None:
            return tails(self._spectrum.values)[1 : self.largest + 1]
        target = self.weight.flatten(1)
        cross, gram = self._normal_equations(self._start(self.largest))
        solved = torch.linalg.solve_triangular(torch.linalg.cholesky(gram), cross, upper=False)
        explained = (solved * self.metric.times_outputs(solved.T).T).sum(1).reshape(self.largest, -1).sum(1)
        return (self.metric.energy(target) - explained.cumsum(0)).clamp_min(0)

    def factors(self, rank: int) -> tuple[Tensor, Tensor]:
        """V [rank, i, K] and H [o, rank, L]."""
        outputs, inputs, height, width = self.weight.shape
        if self.metric is None:
            left, right = self._spectrum.factors(rank)
            return right.reshape(rank, inputs, height), left.reshape(outputs, width, rank).transpose(1, 2)
        vertical = self._start(rank)
        horizontal = self._solve_horizontal(vertical)
        for _ in range(SWEEPS):
            vertical, horizontal = _balanced(vertical, horizontal)
            vertical = self._improve_vertical(vertical, horizontal)
            horizontal = self._solve_horizontal(vertical)
        self.metric.forget()
        return _balanced(vertical, horizontal)

    def _separated(self) -> Metric | None:
        """The metric averaged over what the other side sees: S over l for V, G and S over k for H."""
        if self.metric is None:
            return None
        outputs, inputs, height, width = self.weight.shape
        side = across = None
        if self.metric.inputs is not None:
            shape = (inputs, height, width, inputs, height, width)
            moment = self.metric.inputs.reshape(shape)
            size = inputs * height
            side = torch.einsum("aklbml->akbm", moment).reshape(size, size) / width
            across = torch.einsum("aklakm->lm", moment)
            across = across / across.diagonal().mean()
        ones = torch.eye(outputs, dtype=torch.float64) if self.metric.outputs is None else self.metric.outputs
        row = torch.eye(width, dtype=torch.float64) if across is None else across
        return Metric(side, torch.kron(ones, row))

    def _start(self, rank: int) -> Tensor:
        _, inputs, height, _ = self.weight.shape
        vertical = self._spectrum.factors(rank)[1]
        return (vertical / vertical.norm(dim=1, keepdim=True).clamp_min(1e-300)).reshape(rank, inputs, height)

    def _normal_equations(self, vertical: Tensor) -> tuple[Tensor, Tensor]:
        """F S Wᵀ [(r, l), o] and F S Fᵀ, safe to invert, of what H multiplies: F [(r, l), (i, k, l')] is V
        where l = l', 0 elsewhere, which is not multiplied, and of the symmetric one half is."""
        assert self.metric is not None
        width, rows = self.weight.shape[3], vertical.flatten(1)  # [r, (i, k)]
        rank, size = rows.shape
        second = self.metric.inputs
        if second is None or second.dim() == 1:
            second = torch.eye(size * width, dtype=torch.float64) if second is None else second.diag()
        second = second.reshape(size, width, size, width)
        gram = rows.new_empty(rank, width, rank, width)
        for first in range(width):
            for other in range(first + 1):
                block = rows @ second[:, first, :, other] @ rows.T
                gram[:, first, :, other], gram[:, other, :, first] = block, block.T
        cross = rows @ self.metric.seen(self.weight.flatten(1)).T.reshape(size, -1)  # [r, (l, o)]
        gram = gram.reshape(rank * width, rank * width)
        return cross.reshape(rank * width, -1), with_ridge(gram, JITTER)

    def _solve_horizontal(self, vertical: Tensor) -> Tensor:
        """The H with the least error for V: normal equations, in which G cancels."""
        cross, gram = self._normal_equations(vertical)
        solved = torch.cholesky_solve(cross, torch.linalg.cholesky(gram))
        return solved.T.reshape(len(self.weight), len(vertical), -1)

    def _improve_vertical(self, vertical: Tensor, horizontal: Tensor) -> Tensor:
        """Conjugate gradients on V for fixed H, a linear least-squares problem too large to write down."""

        def compose(v: Tensor) -> Tensor:
            return torch.einsum("orl,rik->oikl", horizontal, v)

        def pull_back(delta: Tensor) -> Tensor:
            assert self.metric is not None
            gradient = self.metric.times_outputs(self.metric.times_inputs(delta.flatten(1)))
            return torch.einsum("orl,oikl->rik", horizontal, gradient.reshape(delta.shape))

        residual = pull_back(self.weight - compose(vertical))
        return conjugate_gradients(lambda v: pull_back(compose(v)), residual, vertical, STEPS)


def _balanced(vertical: Tensor, horizontal: Tensor) -> tuple[Tensor, Tensor]:
    """The same product, every pair of filters with equal norms."""
    v, h = vertical.flatten(1).norm(dim=1), horizontal.transpose(0, 1).flatten(1).norm(dim=1)
    scale = torch.where((v > 0) & (h > 0), (h / v).sqrt(), 1.0)
    return vertical * scale[:, None, None], horizontal / scale[None, :, None]
