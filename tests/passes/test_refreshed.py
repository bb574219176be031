"""Deriving shapes is exporting the model: of what a pass leaves it is not done twice."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from nncompress import pipeline
from nncompress.data import open_data
from nncompress.ir import Model
from nncompress.passes import Context, Grow, Prune, PruneNodes, Reduce


@pytest.mark.parametrize(
    "each",
    [
        PruneNodes(ratio=0.5, criterion="l2"),
        PruneNodes(macs=0.5),
        Reduce(macs=0.5),
        Prune(sparsity=0.6, remove_dead=True),
        Grow(params=1.5),
    ],
    ids=["prune-nodes without data", "prune-nodes", "reduce", "prune", "grow"],
)
def test_shapes_that_a_pass_derived_are_not_derived_again(each, monkeypatch):
    net = nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 5)).eval()
    with torch.no_grad():
        net[0].weight[:3] = 0  # dead nodes
        net[0].bias[:3] = 0
    model = Model.from_module(net, (torch.randn(2, 12),))
    data = None
    if not isinstance(each, Prune) and getattr(each, "criterion", None) != "l2":
        data = open_data((torch.randn(64, 12),), model.inputs)
    derived, plain = [], Model.refresh

    def noted(self):
        derived.append(self.has_shapes)
        plain(self)

    monkeypatch.setattr(Model, "refresh", noted)
    result, _ = pipeline.run(model, [each], Context(data=data))
    assert result is not model
    assert derived[-1]  # the pipeline asks last
