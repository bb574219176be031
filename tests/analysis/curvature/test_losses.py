"""The random scalar whose derivative tells the curvature, where scores are no numbers."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import nncompress
from nncompress.analysis.curvature.losses import curvature_loss
from nncompress.data import Batch


def loss(scores: torch.Tensor) -> torch.Tensor:
    batch = Batch((torch.zeros(len(scores), 1),), torch.zeros(len(scores), dtype=torch.long))
    return curvature_loss((scores,), batch, torch.Generator().manual_seed(0), 0)


def test_samples_without_a_prediction_do_not_count():
    scores = torch.randn(6, 4)
    scores[1], scores[4, 2] = -torch.inf, torch.nan
    scores[3, 1] = -torch.inf  # one masked class is no obstacle
    scores.requires_grad_(True)
    loss(scores).backward()
    usable = [0, 2, 3, 5]
    rest = scores.detach()[usable].requires_grad_(True)
    loss(rest).backward()  # the same draws
    assert torch.equal(scores.grad[usable], rest.grad)
    assert not scores.grad[[1, 4]].any()


class Gated(nn.Module):
    """Scores below zero are masked: of some samples all are."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(12, 24), nn.Linear(24, 3)

    def forward(self, x):
        y = self.b(self.a(x).relu())
        return torch.where(y > 0, y, -torch.inf)


class Logarithms(Gated):
    def forward(self, x):
        return super().forward(x).log()


@pytest.mark.parametrize("step", ["prune-nodes:ratio=0.3", "reduce:macs=0.7"])
@pytest.mark.parametrize("kind", [Gated, Logarithms])
def test_passes_with_labels_go_on(kind, step):
    torch.manual_seed(0)
    net, x = kind(), torch.randn(64, 12)
    net.b.bias.data -= 0.5
    assert net(x).softmax(1).isnan().any()
    small = nncompress.compress(net, step, data=(x, torch.arange(64) % 3), notice=lambda said: None)
    assert nncompress.inspect(small).totals()["macs"] < nncompress.inspect(net, input=x).totals()["macs"]
