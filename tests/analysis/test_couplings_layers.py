"""Layers whose units are tied in a way of their own: what may go, that it is proven, and what is left."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nncompress.analysis.cost import cost
from nncompress.analysis.couplings import find_couplings, prove, remove_units
from nncompress.ir import Model


def without(module: nn.Module, x: Tensor, units: dict[int, list[int]]) -> Model:
    """The model without these units of the groups of these sizes, all removed at once, proven and counted."""
    model = Model.from_module(module.eval(), (x,))
    couplings = find_couplings(model)
    removal = {group.name: units[group.size] for group in couplings.groups if group.size in units}
    assert len(removal) == len(units)
    pruned = model.copy()
    remove_units(pruned, removal)
    proof = prove(couplings, removal, pruned)
    assert proof.error < 1e-5
    assert proof.effect > 1e-3
    assert couplings.macs(removal) == cost(pruned).macs
    return pruned


@pytest.mark.parametrize(("size", "shape"), [(5, (2, 3, 6, 6)), (4, (2, 3, 6, 6)), (3, (2, 3, 9))])
def test_a_local_response_norm_is_over_the_surviving_channels(size, shape):
    torch.manual_seed(0)
    conv = nn.Conv2d if len(shape) == 4 else nn.Conv1d
    net = nn.Sequential(conv(3, 8, 3), nn.ReLU(), nn.LocalResponseNorm(size, alpha=0.5), conv(8, 4, 3))
    x, kept = torch.randn(shape), [1, 2, 4, 5, 7]
    pruned = without(net, x, {8: [0, 3, 6]})
    smaller = nn.Sequential(conv(3, 5, 3), nn.ReLU(), nn.LocalResponseNorm(size, alpha=0.5), conv(5, 4, 3))
    with torch.no_grad():
        smaller[0].weight.copy_(net[0].weight[kept])
        smaller[0].bias.copy_(net[0].bias[kept])
        smaller[3].weight.copy_(net[3].weight[:, kept])
        smaller[3].bias.copy_(net[3].bias)
    torch.testing.assert_close(pruned(x), smaller(x))


class GlobalResponseNorm(nn.Module):
    """As in ConvNeXt V2: per channel the norm over all places, relative to its mean over the channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(channels)), nn.Parameter(torch.randn(channels))

    def forward(self, x: Tensor) -> Tensor:  # [batch, height, width, channels]
        size = x.norm(p=2, dim=(1, 2), keepdim=True)
        return x + torch.addcmul(self.bias, self.weight, x * size / (size.mean(-1, keepdim=True) + 1e-6))


def test_a_global_response_norm_is_over_the_surviving_channels():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 8), nn.GELU(), GlobalResponseNorm(8), nn.Linear(8, 4))
    x, kept = torch.randn(2, 5, 5, 3), [0, 2, 3, 5, 6, 7]
    pruned = without(net, x, {8: [1, 4]})
    smaller = nn.Sequential(nn.Linear(3, 6), nn.GELU(), GlobalResponseNorm(6), nn.Linear(6, 4))
    rows = {"0.weight", "0.bias", "2.weight", "2.bias"}
    state = {
        k: v[kept] if k in rows else v[:, kept] if k == "3.weight" else v for k, v in net.state_dict().items()
    }
    smaller.load_state_dict(state)
    torch.testing.assert_close(pruned(x), smaller(x))


class Projected(nn.Module):
    def __init__(self, hidden: int, projection: int, both: bool, bias: bool) -> None:
        super().__init__()
        self.rnn = nn.LSTM(3, hidden, 2, bias, batch_first=True, bidirectional=both, proj_size=projection)
        self.out = nn.Linear(projection * (1 + both), 4)

    def forward(self, x: Tensor) -> Tensor:
        y, (h, c) = self.rnn(x)
        return self.out(y[:, -1]) + h.sum((0, 2))[:, None] * c.sum((0, 2))[:, None]


@pytest.mark.parametrize(("both", "bias"), [(False, True), (True, False)])
def test_an_lstm_with_projections_loses_hidden_units_and_projected_ones(both, bias):
    torch.manual_seed(0)
    net = Projected(8, 4, both, bias)
    x = torch.randn(2, 5, 3)
    pruned = without(net, x, {8: [1, 6], 4: [2]})
    units, rows = [0, 2, 3, 4, 5, 7], [0, 1, 3]
    gates = [8 * gate + unit for gate in range(4) for unit in units]
    outputs = [4 * side + row for side in range(1 + both) for row in rows]
    state = {}
    for name, value in net.state_dict().items():
        if "hr" in name:
            value = value[rows][:, units]
        elif name.startswith("rnn"):
            value = value[gates]
            value = (
                value if "bias" in name or "ih_l0" in name else value[:, rows if "hh" in name else outputs]
            )
        state[name] = value[:, outputs] if name == "out.weight" else value
    smaller = Projected(6, 3, both, bias)
    smaller.load_state_dict(state)
    torch.testing.assert_close(pruned(x), smaller(x))


class MultiQuery(nn.Module):
    """Four heads of queries, one of keys and values, out of one layer; attention in three spellings."""

    def __init__(self, spelling: str) -> None:
        super().__init__()
        self.spelling = spelling
        self.qkv, self.out = nn.Linear(6, 20 + 10), nn.Linear(20, 6)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).split([20, 5, 5], -1)
        q = q.unflatten(-1, (4, 5)).transpose(1, 2)
        k, v = k.unsqueeze(1), v.unsqueeze(1)
        if self.spelling == "expand":
            y = F.scaled_dot_product_attention(q, k.expand(-1, 4, -1, -1), v.expand(-1, 4, -1, -1))
        elif self.spelling == "grouped":
            y = F.scaled_dot_product_attention(q, k, v, enable_gqa=True)
        else:
            y = (q @ k.mT / 5**0.5).softmax(-1) @ v
        return self.out(y.transpose(1, 2).flatten(2))


@pytest.mark.parametrize("spelling", ["expand", "grouped", "matmul"])
def test_multi_query_attention_loses_whole_heads_of_queries(spelling):
    torch.manual_seed(0)
    net = MultiQuery(spelling)
    x = torch.randn(2, 7, 6)
    pruned = without(nn.Sequential(net, nn.Linear(6, 3)), x, {4: [1, 2]})
    assert pruned.tensor("0.qkv.weight").shape == (10 + 10, 6)
    assert pruned.tensor("0.out.weight").shape == (6, 10)
