"""Modules in memory whose attributes hold tensors with the graph of a gradient, which torch does not copy."""

from __future__ import annotations

import pytest
import torch
import torch.nn.utils.prune
from torch import nn

import nncompress


class Remembering(nn.Module):
    """Keeps what it last computed, for a look at it."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 8), nn.Linear(8, 3)
        self.seen: dict[str, list] = {"hidden": []}

    def forward(self, x):
        hidden = self.a(x).relu()
        self.seen["hidden"] = [hidden]
        return self.b(hidden)


def pruned() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    torch.nn.utils.prune.l1_unstructured(net[0], "weight", 0.5)
    return net


def normed() -> nn.Module:
    return nn.Sequential(nn.utils.weight_norm(nn.Linear(6, 8)), nn.ReLU(), nn.Linear(8, 3))


@pytest.mark.parametrize("made", [pruned, normed, Remembering])
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_it_is_taken_and_stays_as_it_is(made):
    net, x = made(), torch.randn(4, 6)
    expected = net(x)
    before = {name: value.clone() for name, value in net.state_dict().items()}
    taken = nncompress.load(net, input=torch.randn(2, 6)).to_module()
    torch.testing.assert_close(taken(x), expected.detach())
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    net(x).sum().backward()  # its own graph is whole
    assert all(each.grad is not None for each in net.parameters())
