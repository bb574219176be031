"""Weights that the graph computes from weights: normed, standardised, orthogonalised, in loops."""

from __future__ import annotations

import pytest
import torch
from records import Records
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize

from nncompress import pipeline
from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings, prove, remove_units
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.prune_nodes.options import PruneNodes


class Standardised(nn.Conv2d):
    def forward(self, x):
        w = self.weight
        w = (w - w.mean((1, 2, 3), keepdim=True)) / (w.std((1, 2, 3), keepdim=True) + 1e-5)
        return F.conv2d(x, w, self.bias)


class NewtonSchulz(nn.Module):
    """Reads its argument three times a step: 3^20 ways through the graph."""

    def forward(self, w):
        w = w / w.norm()
        for _ in range(20):
            w = 1.5 * w - 0.5 * w @ w.mT @ w
        return w


class Computed(nn.Module):
    def __init__(self, kind: str) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 12), nn.Linear(12, 10), nn.Linear(10, 3)
        for layer in (self.a, self.b):
            if kind == "loop":
                parametrize.register_parametrization(layer, "weight", NewtonSchulz())
            else:
                getattr(parametrizations, kind)(layer)

    def forward(self, x):
        return self.c(torch.tanh(self.b(torch.tanh(self.a(x)))))


@pytest.mark.parametrize("kind", ["weight_norm", "spectral_norm", "orthogonal", "loop"])
def test_a_weight_computed_from_weights_is_cut_like_a_stored_one(kind):
    torch.manual_seed(0)
    model = Model.from_module(Computed(kind).eval(), (torch.randn(2, 6),))
    couplings = find_couplings(model)
    assert {g.name: g.size for g in couplings.groups} == {"a": 12, "b": 10}
    assert cost(model).macs == 6 * 12 + 12 * 10 + 10 * 3  # what makes a weight is not done per record
    removal = {"a": [0, 5, 11], "b": [2]}
    pruned = model.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    assert proof.error < 1e-5 < 1e-3 < proof.effect
    assert {n: tuple(pruned.tensor(n).shape) for n in ("a.weight", "b.weight")} == {
        "a.weight": (9, 6),
        "b.weight": (9, 9),
    }
    assert couplings.macs(removal) == cost(pruned).macs


def test_a_cell_that_computes_its_weight_every_step_keeps_one():
    class Cell(nn.Module):
        def __init__(self):
            super().__init__()
            self.i = parametrizations.weight_norm(nn.Linear(6, 8))
            self.h = parametrizations.weight_norm(nn.Linear(8, 8))
            self.out = nn.Linear(8, 3)

        def forward(self, x):
            h = x.new_zeros(x.shape[0], 8)
            for t in range(4):
                h = torch.tanh(self.i(x[:, t]) + self.h(h))
            return self.out(h)

    torch.manual_seed(0)
    module = Cell().eval()
    model = Model.from_module(module, (torch.randn(2, 4, 6),))
    x = torch.randn(5, 4, 6)
    torch.testing.assert_close(model(x), module(x))
    couplings = find_couplings(model)
    pruned = model.copy()
    removal = {"i": [1, 2]}
    remove_units(pruned, removal)
    assert prove(couplings, removal, pruned).error < 1e-5
    assert sum(p.numel() for p in pruned.graph_module.parameters()) == 6 * (6 + 1 + 6 + 1) + 3 * (6 + 1)


@pytest.mark.parametrize("with_data", [False, True])
@pytest.mark.parametrize("budget", ["macs", "params"])
def test_budgets_count_computed_weights(budget, with_data):
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = parametrizations.weight_norm(nn.Conv2d(3, 24, 3)), Standardised(24, 32, 3)
            self.head = nn.Linear(32, 10)

        def forward(self, x):
            return self.head(torch.relu(self.b(torch.relu(self.a(x)))).mean((2, 3)))

    torch.manual_seed(0)
    model = Model.from_module(Net().eval(), (torch.randn(2, 3, 8, 8),))
    data = Records((torch.randn(64, 3, 8, 8),)) if with_data else None
    result, _ = pipeline.run(model, [PruneNodes(**{budget: 0.5})], Context(data=data))  # type: ignore[arg-type]
    name = "macs" if budget == "macs" else "parameters"
    folded = getattr(cost(model), name)
    if budget == "params":  # two tensors that make one weight count as that one
        folded -= 24
    assert 0.46 <= getattr(cost(result), name) / folded <= 0.51
