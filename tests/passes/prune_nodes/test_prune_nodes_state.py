"""Models that change tensors of their own: state is pruned with what writes it, and stays state."""

from __future__ import annotations

import copy

import pytest
import torch
from records import Records
from torch import nn

from nncompress import pipeline
from nncompress.analysis.importance.sample_dims import SampleDims
from nncompress.ir import Model
from nncompress.passes import Context
from nncompress.passes.prune_nodes.options import PruneNodes


class Cache(nn.Module):
    """Keys and values of the last six calls, in buffers that every call shifts."""

    def __init__(self):
        super().__init__()
        self.q, self.k, self.v, self.o = (nn.Linear(8, 8) for _ in range(4))
        self.register_buffer("keys", torch.randn(1, 6, 8))
        self.register_buffer("values", torch.randn(1, 6, 8))

    def forward(self, x):  # [N, 1, 8]
        self.keys[:, 1:] = self.keys[:, :-1].clone()
        self.values[:, 1:] = self.values[:, :-1].clone()
        self.keys[:, :1] = self.k(x)[:1]
        self.values[:, :1] = self.v(x)[:1]
        return self.o((self.q(x) @ self.keys.mT).softmax(-1) @ self.values)


@pytest.mark.parametrize("criterion", ["reconstruction", "taylor", "fisher"])
def test_state_stays_state_and_is_narrowed_with_what_writes_it(criterion):
    torch.manual_seed(0)
    module = Cache().eval()
    given = Model.from_module(copy.deepcopy(module), (torch.randn(2, 1, 8),))
    data = Records((torch.randn(32, 1, 8),), torch.randn(32, 1, 8))
    options = PruneNodes(ratio=0.25, criterion=criterion, compensate=False, renormalize=False)
    result, (step,) = pipeline.run(given, [options], Context(data=data))
    assert result.tensor("values").shape == (1, 6, 6) == result.tensor("keys").shape
    removed = {c.where: c.numbers["removed"] for c in step.changes}
    with torch.no_grad():  # the original, with what read the removed units at zero
        module.q.weight[removed["q"]] = module.q.bias[removed["q"]] = 0
        module.o.weight[:, removed["v"]] = 0
        pruned = result.exported_program().module()
        for _ in range(8):
            x = torch.randn(3, 1, 8)
            torch.testing.assert_close(pruned(x.clone())[0], module(x), rtol=1e-4, atol=1e-5)


def test_sample_dims_are_those_that_grow_with_the_batch():
    given = Model.from_module(Cache().eval(), (torch.randn(2, 1, 8),))
    dims = SampleDims(given)
    nodes = {node.name: node for node in given.graph.nodes}
    q, scatter = (
        next(n for name, n in nodes.items() if name.startswith(s)) for s in ("linear", "slice_scatter")
    )
    assert (dims.of(q, 4), dims.of(scatter, 4)) == (0, None)
    value = torch.arange(4 * 1 * 8.0).reshape(4, 1, 8)
    torch.testing.assert_close(dims.total(q, value, 4), value.sum((1, 2))[:, None])
    torch.testing.assert_close(dims.total(q, value, 4, -1), value.sum(1))
    torch.testing.assert_close(dims.total(scatter, value, 4, -1), value.sum((0, 1))[None])


class Watched(nn.Module):
    """What it keeps from call to call reaches no output: a decay, and a mean of features of its own layer."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.watch = nn.Linear(8, 16), nn.Linear(16, 6), nn.Linear(8, 5)
        self.register_buffer("decay", torch.ones(8))
        self.register_buffer("seen", torch.zeros(5))

    def forward(self, x):  # [N, 3, 8]
        self.decay.mul_(0.9).add_(0.1)
        self.seen.copy_(self.seen * 0.9 + self.watch(x)[0, 0] * 0.1)
        return self.b(self.a(x).relu())


@pytest.mark.parametrize("criterion", ["reconstruction", "taylor", "fisher", "obd", "activation-variance"])
def test_nodes_are_ranked_beside_a_state_that_reaches_no_output(criterion):
    torch.manual_seed(0)
    given = Model.from_module(Watched().eval(), (torch.randn(2, 3, 8),))
    data = Records((torch.randn(32, 3, 8),), torch.randn(32, 3, 6))
    result, _ = pipeline.run(given, [PruneNodes(ratio=0.25, criterion=criterion)], Context(data=data))
    assert result.tensor("a.weight").shape == (12, 8)
