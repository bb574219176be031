"""A layer's weight as the matrix that its inputs are multiplied with, for every kind of layer."""

import pytest
import torch
from torch import nn

from nncompress.ir import Model
from nncompress.ir.layers.weights import layers


class Product(nn.Module):
    def __init__(self, op):
        super().__init__()
        self.op, self.weight, self.bias = op, nn.Parameter(torch.randn(5, 7)), nn.Parameter(torch.randn(7))

    def forward(self, x):
        return torch.addmm(self.bias, x, self.weight) if self.op == "addmm" else x @ self.weight


KINDS = {
    "linear": (nn.Linear(5, 7), (2, 5)),
    "addmm": (Product("addmm"), (2, 5)),
    "matmul": (Product("matmul"), (2, 3, 5)),
    "1d": (nn.Conv1d(4, 6, 3, groups=2), (2, 4, 9)),
    "2d": (nn.Conv2d(4, 6, (3, 2), groups=2), (2, 4, 5, 4)),
    "transposed": (nn.ConvTranspose2d(4, 6, (3, 2)), (2, 4, 3, 3)),
    "transposed, grouped": (nn.ConvTranspose2d(6, 4, 3, groups=2), (2, 6, 3, 3)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_rows_of_the_matrix_are_outputs_and_it_becomes_the_weight_again(kind):
    module, shape = KINDS[kind]
    (layer,) = layers(Model.from_module(module.eval(), (torch.randn(shape),)))
    weight = layer.weight.value()
    matrix = layer.matrix()
    outputs = weight.shape[layer.roles.outputs] * (layer.groups if "transpose" in layer.kind else 1)
    assert matrix.shape == (outputs, weight.numel() // outputs)
    assert torch.equal(layer.from_matrix(matrix), weight)
    # one row at zero silences one output, whatever comes in
    matrix[1] = 0
    layer.weight.assign(layer.from_matrix(matrix))
    x = torch.randn(shape)
    (y,) = layer.weight.model.outputs_of(x)
    bias = 0 if layer.bias is None else layer.bias.value()[1]
    silent = y.movedim(layer.channel_dim, 0)[1]
    assert torch.allclose(silent, torch.zeros_like(silent) + bias, atol=1e-6)
