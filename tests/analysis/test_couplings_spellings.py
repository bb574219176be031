"""One operation has many names: whichever a model uses, the same units can be removed, and it is proven."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nncompress.analysis.couplings import find_couplings, prove, remove_units
from nncompress.analysis.couplings.rules.table import RULES
from nncompress.ir import Model
from nncompress.ir.graph.normal_form.decompose import WHOLE


class Between(nn.Module):
    """A layer of 16 units, `function` of its output and of a weight [4, 16], and a layer that reads that."""

    def __init__(self, function, width: int) -> None:
        super().__init__()
        self.function = function
        self.first, self.last = nn.Linear(8, 16), nn.Linear(width, 5)
        self.w = nn.Parameter(torch.randn(4, 16))

    def forward(self, x: Tensor) -> Tensor:  # [batch, 6, 8]
        return self.last(self.function(self.first(x), self.w))


def _filled(h: Tensor, w: Tensor) -> Tensor:
    h = h.clone()
    h[h < 0] = 0.1
    return h


def _doubled(h: Tensor, w: Tensor) -> Tensor:
    h = h.clone()
    h[h < 0] *= 2
    h[:, torch.arange(6) > 2] += w[:1]  # whole rows
    return h


# name -> (function of h [batch, 6, 16] and w [4, 16], width of its result)
SPELLINGS = {
    "write where": (_filled, 16),
    "write a function where": (_doubled, 16),
    "masked-scatter": (lambda h, w: h.masked_scatter(h < 0, h.masked_select(h < 0) * 2), 16),
    "write at indices as an op": (lambda h, w: h.index_put((h < 0,), h[h < 0].tanh(), accumulate=True), 16),
    "renorm": (lambda h, w: torch.renorm(h, 2, -1, 0.5), 16),
    "outer": (lambda h, w: h * torch.outer(torch.arange(6.0), w[0]), 16),
    "hstack": (lambda h, w: torch.hstack([h, -h]), 16),
    "column_stack": (lambda h, w: torch.column_stack([h, -h]), 16),
    "dstack": (lambda h, w: torch.dstack([h, h * w[0]]), 32),
    "vstack": (lambda h, w: h + torch.vstack([w, w[:2]]), 16),
    "concatenate": (lambda h, w: torch.concatenate([h, h], -1), 32),
    "inner": (lambda h, w: torch.inner(h, w), 4),
    "tensordot": (lambda h, w: torch.tensordot(h, w, ([2], [1])), 4),
    "vecdot": (lambda h, w: torch.stack([torch.linalg.vecdot(h, row) for row in w], -1), 4),
    "linalg-multi-dot": (lambda h, w: h @ torch.linalg.multi_dot([w.T, w, w.T]), 4),
    "chain-matmul": (lambda h, w: h @ torch.chain_matmul(w.T, w, w.T), 4),
    "einsum": (lambda h, w: torch.einsum("btc,oc->bto", h, w), 4),
    "einsum of one": (lambda h, w: h * torch.einsum("btc,d->bt", h, w[0])[..., None], 16),
    "a scalar transposed": (lambda h, w: h * w.mean().transpose(0, -1).t().swapdims(0, 0), 16),
    "a vector's t": (lambda h, w: h * w[0].t(), 16),
    "prelu by a scalar": (lambda h, w: F.prelu(h, w.mean()), 16),
    "linear of a vector": (lambda h, w: h * F.linear(h, w[0], w.mean())[..., None], 16),
    "linear of vectors": (lambda h, w: h * F.linear(w[1], w[0], w.mean()), 16),
    "nothing joined": (lambda h, w: h + torch.cat([h.new_zeros(0), h.new_zeros(0)]).sum(), 16),
    "cosine-similarity": (lambda h, w: F.cosine_similarity(h[..., None, :], w, dim=-1), 4),
    "cdist": (lambda h, w: torch.cdist(h, w), 4),
    "pairwise-distance": (lambda h, w: F.pairwise_distance(h[..., None, :], w, eps=0.0), 4),
    "take-along-dim": (lambda h, w: torch.take_along_dim(h, torch.tensor([[[2], [0], [1]]]), 1), 16),
    "broadcast-tensors": (lambda h, w: torch.mul(*torch.broadcast_tensors(h, w[0])), 16),
    "atleast": (lambda h, w: torch.atleast_3d(h) * torch.atleast_2d(w[0]), 16),
    "rot90": (lambda h, w: torch.rot90(h, 1, (1, 2)).transpose(1, 2), 16),
    "kron": (lambda h, w: h @ torch.kron(w[:1], torch.ones(3, 1)).T, 3),
    "block-diag": (lambda h, w: torch.cat([h, h], -1) @ torch.block_diag(w.T, w.T), 8),
    "permuted by a list": (lambda h, w: h[..., [7, 2, 9, 4, 11, 0, 15, 1, 3, 5, 6, 8, 10, 12, 13, 14]], 16),
    "some picked twice": (lambda h, w: h[..., [3, 5, 3, -1, 0, 5]], 6),
    "index-select": (lambda h, w: h.index_select(2, torch.arange(15, -1, -1)), 16),
    "a weight picked from": (lambda h, w: h @ w[:, torch.arange(15, -1, -1)].T, 4),
    "roll twice": (lambda h, w: h.roll((1, 9, 12), (2, 1, -1)), 16),
    "roll": (lambda h, w: h.roll((3, 1), (2, 1)) + h.roll(-13, -1), 16),
    "swapaxes": (lambda h, w: h.swapaxes(1, 2).swapdims(1, 2), 16),
    "moveaxis": (lambda h, w: h.movedim(2, 0).moveaxis(0, -1), 16),
    "ravel": (lambda h, w: h * w[0].ravel(), 16),
    "transposed": (lambda h, w: h @ w.mT + h @ w.H, 4),
    "meshgrid": (lambda h, w: h * torch.meshgrid(torch.arange(6.0), w[0], indexing="ij")[1], 16),
    "expand-as": (lambda h, w: h * w[0].expand_as(h).view_as(h), 16),
    "hsplit": (lambda h, w: torch.cat([part * 2 for part in h.dsplit(2)], -1), 16),
    "normalize": (lambda h, w: F.normalize(h, dim=-1), 16),
    "fftn": (lambda h, w: torch.fft.fftn(h, dim=(1,)).real, 16),
    "diagonal": (
        lambda h, w: (h[:, :, None] * torch.eye(6)[..., None]).diagonal(dim1=1, dim2=2).mT + w[0],
        16,
    ),
    "complex": (lambda h, w: torch.complex(h, h * w[0]).abs(), 16),
    "polar": (lambda h, w: torch.polar(h.abs() + 1, h).conj().imag, 16),
    "frexp": (lambda h, w: torch.frexp(h)[0], 16),
    "fake-quantize": (lambda h, w: torch.fake_quantize_per_tensor_affine(h, 0.1, 0, -128, 127), 16),
    "quantile": (lambda h, w: h - torch.quantile(h, 0.5, 1, keepdim=True), 16),
    "kthvalue": (lambda h, w: h - h.kthvalue(2, 1, keepdim=True)[0], 16),
    "nanmedian": (lambda h, w: h - h.nanmedian(1, keepdim=True)[0], 16),
    "index-fill": (lambda h, w: h.index_fill(1, torch.tensor([0, 1]), 0.5), 16),
    "index-reduce": (lambda h, w: h.index_reduce(1, torch.tensor([0, 0, 1, 1, 2, 2]), h * 2, "amax"), 16),
    "repeat-interleave": (
        lambda h, w: h.repeat_interleave(torch.tensor([1, 0, 2, 1, 1, 1]), 1, output_size=6) + w[0],
        16,
    ),
    "mean-of-products": (lambda h, w: (h[..., None, :] * w).mean(-1), 4),
    "mean-and-max": (lambda h, w: h * (h.mean(-1, True) + h.amax(-1, True)).sigmoid(), 16),
    "minimum": (lambda h, w: h * h.min(-1, keepdim=True).values.sigmoid(), 16),
    "deviation": (lambda h, w: h * torch.std_mean(h, -1, keepdim=True)[0].sigmoid(), 16),
    "logsumexp": (lambda h, w: h * h.logsumexp(-1, keepdim=True).sigmoid(), 16),
    "mean-of-all": (lambda h, w: h * h.mean().sigmoid(), 16),
    "scaled-by-largest": (lambda h, w: h / (h.abs().amax(-1, keepdim=True) + 1e-3), 16),
    "embedding-bag": (lambda h, w: h * F.embedding_bag(torch.tensor([[0, 1, 3]]), w, mode="sum"), 16),
    "slice-scatter": (lambda h, w: h.slice_scatter(h[:, :2] * w[0], 1, 2, 4), 16),
    "slice-scatter-channels": (lambda h, w: h.slice_scatter(h[..., :4] * 2, 2, 8, 12), 16),
    "select-scatter": (lambda h, w: h.select_scatter(h[:, 0] * w[0], 1, 3), 16),
    "index-put": (lambda h, w: h.index_put((torch.arange(3)[:, None], torch.tensor([1, 2])), w[0]), 16),
    "addr": (lambda h, w: h * torch.addr(w, torch.ones(4), w[1])[3], 16),
    "addbmm": (lambda h, w: h + torch.addbmm(h[0], torch.ones(2, 6, 3), w[:3].expand(2, -1, -1)), 16),
    "rms-norm": (lambda h, w: F.rms_norm(h, (16,), w[0]), 16),
    "rms-by-rsqrt": (lambda h, w: w[0] * (h * torch.rsqrt(h.pow(2).mean(-1, keepdim=True) + 1e-6)), 16),
    "rms-by-sqrt": (lambda h, w: h / torch.sqrt((h * h).mean(-1, True) + 1e-6) * w[0], 16),
    "rms-by-square": (lambda h, w: h * (torch.square(h).mean(-1, True) + 1e-6).rsqrt() * w[0], 16),
    "rms-by-power": (lambda h, w: h * (torch.mean(h**2, -1, True) + 1e-6) ** -0.5 * w[0], 16),
    "rms-by-norm": (lambda h, w: h * (h.norm(dim=-1, keepdim=True).pow(2) + 1e-6).rsqrt() * w[0], 16),
    "rms-by-sum": (lambda h, w: h / (h.square().sum(-1, True) / 16 + 1e-6).sqrt() * w[0], 16),
    "rms-in-double": (
        lambda h, w: w[0] * (h.double() * torch.rsqrt(h.double().pow(2).mean(-1, True) + 1e-6)).to(h.dtype),
        16,
    ),
    "rms-by-reciprocal": (lambda h, w: h * torch.reciprocal((h * h).mean(-1, True).sqrt() + 1e-6), 16),
    "linear systems": (lambda h, w: torch.linalg.solve(torch.eye(6) * 2 + torch.ones(6, 6), h), 16),
    "systems from the right": (
        lambda h, w: torch.linalg.solve(torch.eye(6) * 2 + torch.ones(6, 6), h.mT, left=False).mT,
        16,
    ),
    "triangular systems": (
        lambda h, w: torch.linalg.solve_triangular(torch.eye(6).tril(), h, upper=False),
        16,
    ),
    "cholesky-solve": (lambda h, w: torch.cholesky_solve(h, torch.eye(6)), 16),
    "dist": (lambda h, w: h * torch.dist(h, h.roll(1, 1)).tanh(), 16),
    "max-unpool": (
        lambda h, w: (
            (lambda p: F.max_unpool2d(p[0], p[1], 2))(
                F.max_pool2d(
                    h.transpose(1, 2).reshape(-1, 16, 2, 3).repeat(1, 1, 1, 2), 2, return_indices=True
                )
            )
            .flatten(2)[:, :, :6]
            .transpose(1, 2)
        ),
        16,
    ),
    "gate-interleaved": (lambda h, w: h[..., ::2] * h[..., 1::2].sigmoid(), 8),
    "gate-every-fourth": (lambda h, w: h[..., ::4] + h[..., 1::4] * h[..., 3::4] - h[..., 2::4], 4),
    "layer-norm-by-variance": (
        lambda h, w: (h - h.mean(-1, True)) * (h.var(-1, keepdim=True, unbiased=False) + 1e-6).rsqrt(),
        16,
    ),
    "layer-norm-by-square": (
        lambda h, w: (h - h.mean(-1, True)) / ((h - h.mean(-1, True)).pow(2).mean(-1, True) + 1e-6).sqrt(),
        16,
    ),
}


@pytest.mark.parametrize("name", SPELLINGS)
def test_all_units_are_prunable_whatever_the_name(name):
    function, width = SPELLINGS[name]
    torch.manual_seed(0)
    module, x = Between(function, width).eval(), torch.randn(3, 6, 8)
    given = Model.from_module(module, (x,))
    torch.testing.assert_close(given(x), module(x), rtol=0, atol=0)
    couplings = find_couplings(given)
    groups = [g for g in couplings.groups if any(m.tensor == "first.weight" for m in g.members)]
    assert sum(g.size for g in groups) >= 4, couplings.pinned
    free = sum(m.indices.size for g in groups for m in g.members if (m.tensor, m.dim) == ("first.weight", 0))
    assert free == 16, couplings.pinned
    removal = {g.name: np.arange(g.size)[: max(1, g.size // 3)] for g in groups}
    pruned = given.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    assert proof.error < 1e-5
    assert proof.effect > 1e-3


def test_composites_that_stay_whole_have_a_rule():
    """All others are taken apart (`normal_form.decompose`); sizes and numbers carry no labels."""
    no_tensors = {"sym_size", "sym_stride", "size", "item"}
    assert {name for name in WHOLE - no_tensors if name not in RULES} == {"stft", "istft"}
