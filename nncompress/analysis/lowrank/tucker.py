"""Tucker-2: 1×1 to r₁ channels, K×K to r₂ channels, 1×1 to all (Kim et al. 2016), best for a metric.

    W[o, i, k] = Σ Q[o, b] · C[b, a, k] · P[a, i]

The ranks' errors come from one higher-order SVD: its core's squared entries, summed from the corner. At the
chosen ranks, P is refined by one sweep of orthogonal iteration (HOOI), and Q and C then are the closed-form
optimum for the inputs that P lets through.
"""

from __future__ import annotations

import torch
from torch import Tensor

from nncompress.analysis.curvature.metric import Metric, roots
from nncompress.analysis.lowrank.decompose import decompose
from nncompress.analysis.observe.moments import with_ridge

GRID = 32  # ranks that are tried per side


class TuckerDecomposition:
    """A weight [o, i, K…] that can be cut at any pair of ranks.

    Args:
        metric: of the weight as a matrix [o, i · K…].
    """

    def __init__(self, weight: Tensor, metric: Metric | None = None) -> None:
        self.shape = weight.shape
        self.weight = weight.detach().to(torch.float64).flatten(2)  # [o, i, k]
        self.metric = metric or Metric()
        channels = None
        if self.metric.inputs is not None:  # of the channels, averaged over the kernel
            _, inputs, kernel = self.weight.shape
            grid = self.metric.inputs.reshape(inputs, kernel, inputs, kernel)
            channels = with_ridge(torch.einsum("akbk->ab", grid) / kernel)
        root_in, self._inverse = roots(channels)
        root_out, _ = roots(self.metric.outputs)
        white = self.weight
        white = white if root_in is None else torch.einsum("oik,ia->oak", white, root_in)
        self._white = white if root_out is None else torch.einsum("bo,bik->oik", root_out, white)
        self._in, self._out = _basis(self._white, 1), _basis(self._white, 0)

    def errors(self) -> dict[tuple[int, int], float]:
        """An upper estimate of tr(G Δ S Δᵀ) for a grid of (r₁, r₂), where K… · r₁ inputs make r₂ outputs."""
        core = torch.einsum("ob,oik,ia->bak", self._out, self._white, self._in)
        kept = core.square().sum(2).cumsum(0).cumsum(1)  # [r₂, r₁]
        total = self.metric.energy(self.weight.flatten(1))
        lost = (1 - kept / kept[-1, -1].clamp_min(1e-300)).clamp_min(0) * total
        return {
            (a, b): float(lost[b - 1, a - 1])
            for a in _steps(self._in.shape[1])
            for b in _steps(self._out.shape[1])
            if b <= a * self.weight.shape[2]
        }

    def factors(self, ranks: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """P [r₁, i], C [r₂, r₁, K…] and Q [o, r₂]."""
        first, second = ranks
        seen = torch.einsum("ob,oik->bik", self._out[:, :second], self._white)
        basis = _basis(seen, 1)[:, :first]
        project = basis.T if self._inverse is None else basis.T @ self._inverse  # P
        through, gram = self._let_through(project)
        solved = torch.linalg.solve(gram, through @ self.weight.flatten(1).T).T  # [o, r₁ k]
        left, right = decompose(solved, Metric(gram, self.metric.outputs)).factors(second)
        return project, right.reshape(second, first, *self.shape[2:]), left

    def _let_through(self, project: Tensor) -> tuple[Tensor, Tensor]:
        """F S [(r₁, k), (i, k)] and F S Fᵀ, safe to invert, of what the core multiplies: F is P in each place
        of the kernel, 0 across places, which is not multiplied."""
        _, inputs, kernel = self.weight.shape
        second = self.metric.inputs
        if second is None:
            second = torch.eye(inputs * kernel, dtype=torch.float64)
        through = (project @ second.reshape(inputs, -1)).reshape(-1, inputs * kernel)
        gram = torch.einsum("nik,ai->nak", through.unflatten(1, (inputs, kernel)), project).flatten(1)
        return through, with_ridge(gram, 1e-9)


def _basis(tensor: Tensor, dim: int) -> Tensor:
    """Orthonormal basis of a tensor's fibres along `dim`, the most energetic first."""
    unfolded = tensor.movedim(dim, 0).flatten(1)
    return torch.linalg.eigh(unfolded @ unfolded.T)[1].flip(1)


def _steps(size: int) -> range:
    step = max(1, size // GRID)
    return range(step, size + 1, step)
