"""Costs against values computed by hand from the layer's definition."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.analysis.cost import cost
from nncompress.ir import Model


def of(module: nn.Module, *inputs: torch.Tensor):
    return cost(Model.from_module(module.eval(), inputs))


IMAGE = torch.randn(2, 8, 12, 10)


@pytest.mark.parametrize(
    ("layer", "macs", "parameters"),
    [
        (nn.Conv2d(8, 16, 3, padding=1), 12 * 10 * 16 * 8 * 9, 16 * 8 * 9 + 16),
        (nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False), 6 * 5 * 16 * 8 * 9, 16 * 8 * 9),
        (nn.Conv2d(8, 16, 3, dilation=2), 8 * 6 * 16 * 8 * 9, 16 * 8 * 9 + 16),  # 12 - 4, 10 - 4
        (nn.Conv2d(8, 16, (1, 5), groups=4), 12 * 6 * 16 * 2 * 5, 16 * 2 * 5 + 16),
        (nn.Conv2d(8, 8, 3, groups=8), 10 * 8 * 8 * 9, 8 * 9 + 8),
        (nn.Conv2d(8, 16, 3, groups=8), 10 * 8 * 16 * 9, 16 * 9 + 16),
        (nn.ConvTranspose2d(8, 4, 3, stride=2), 12 * 10 * 8 * 4 * 9, 8 * 4 * 9 + 4),
        (nn.ConvTranspose2d(8, 4, 3, groups=2), 12 * 10 * 8 * 2 * 9, 8 * 2 * 9 + 4),
        (nn.Linear(10, 7), 8 * 12 * 10 * 7, 77),
        (nn.BatchNorm2d(8), 0, 32),
    ],
)
def test_cost_of_one_layer_is_that_of_its_formula(layer, macs, parameters):
    result = of(layer, IMAGE)
    assert (result.macs, result.parameters) == (macs, parameters)
    assert result.bytes == 4 * parameters
    assert len(result.layers) == 1


def test_convolutions_are_named_by_their_groups():
    assert of(nn.Conv2d(8, 8, 3, groups=8), IMAGE).layers[0].kind == "depthwise conv2d"
    assert of(nn.Conv2d(8, 16, 3, groups=4), IMAGE).layers[0].kind == "grouped conv2d"
    assert of(nn.Conv2d(8, 16, 3), IMAGE).layers[0].kind == "conv2d"


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96)
        self.out = nn.Linear(32, 32)

    def forward(self, x):  # (B, T, 32)
        q, k, v = (t.unflatten(-1, (4, 8)).transpose(1, 2) for t in self.qkv(x).chunk(3, -1))
        y = F.scaled_dot_product_attention(q, k, v)  # (B, 4, T, 8)
        return self.out(y.transpose(1, 2).flatten(2))


def test_products_of_attention_count_per_head():
    result = of(Attention(), torch.randn(2, 5, 32))
    projections = 5 * 32 * 96 + 5 * 32 * 32
    products = 4 * 5 * 5 * 8 * 2  # q·k and weights·v, per head
    assert result.macs == projections + products
    assert result.parameters == 32 * 96 + 96 + 32 * 32 + 32


class Products(nn.Module):
    def forward(self, a, b):  # (B, 3, 4), (B, 4, 5)
        return torch.bmm(a, b) + a @ b + torch.einsum("bij,bjk->bik", a, b)


def test_products_and_einsum_cost_the_same():
    assert of(Products(), torch.randn(2, 3, 4), torch.randn(2, 4, 5)).macs == 3 * (3 * 4 * 5)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 6)
        self.head = nn.Linear(6, 20, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        return self.head(self.embed(tokens))


def test_tied_parameters_are_counted_once():
    result = of(Tied(), torch.randint(0, 20, (2, 7)))
    assert result.parameters == 120
    assert [row.parameters for row in result.layers] == [120, 0]
    assert result.macs == 7 * 6 * 20


def test_an_lstm_counts_both_matrices_at_every_step():
    class Last(nn.Module):
        def __init__(self):
            super().__init__()
            self.lstm = nn.LSTM(5, 6, num_layers=2, batch_first=True)

        def forward(self, x):
            return self.lstm(x)[0]

    result = of(Last(), torch.randn(2, 9, 5))
    assert result.macs == 9 * (4 * 6 * 5 + 4 * 6 * 6 + 4 * 6 * 6 + 4 * 6 * 6)


def test_nonzero_counts_pruned_weights():
    layer = nn.Linear(4, 4, bias=False)
    with torch.no_grad():
        layer.weight[0] = 0
    result = of(layer, torch.randn(2, 4))
    assert (result.parameters, result.nonzero) == (16, 12)


def test_a_parameter_called_scale_is_a_parameter():
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)
            self.layer_scale = nn.Parameter(torch.ones(4))

        def forward(self, x):
            return self.fc(x) * self.layer_scale

    costs = cost(Model.from_module(Scaled().eval(), (torch.randn(2, 4),)))
    assert (costs.parameters, costs.bytes) == (24, 96)


def test_kernels_of_each_sample_are_a_group_per_sample():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernels = nn.Linear(4, 36)

        def forward(self, x):
            count = x.shape[0]
            kernels = self.kernels(x.mean((2, 3))).view(count * 4, 1, 3, 3)
            y = F.conv2d(x.reshape(1, -1, 6, 6), kernels, padding=1, groups=count * 4)
            return y.view(count, 4, 6, 6)

    rows = cost(Model.from_module(Net(), (torch.randn(2, 4, 6, 6),))).layers
    assert [(row.kind, row.macs) for row in rows] == [("linear", 144), ("depthwise conv2d", 4 * 36 * 9)]
