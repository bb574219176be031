import pytest
import torch
from torch import nn

from nncompress.ir import Model
from nncompress.ir.edit.recurrent.cells import spell_out_cells
from nncompress.ir.layers.weights import layers


class Unrolled(nn.Module):
    """[batch, 3, 4] step by step through two cells of the same kind; returns the last states."""

    def __init__(self, make, **options) -> None:
        super().__init__()
        self.low, self.high = make(4, 6, **options), make(6, 5, **options)

    def forward(self, x):
        pair = isinstance(self.low, nn.LSTMCell)
        first, second = None, None
        for step in range(3):
            first = self.low(x[:, step], first)
            second = self.high(first[0] if pair else first, second)
        return second


CELLS = [
    (nn.LSTMCell, {}), (nn.LSTMCell, {"bias": False}), (nn.GRUCell, {}), (nn.RNNCell, {}),
    (nn.RNNCell, {"nonlinearity": "relu"}),
]  # fmt: skip


@pytest.mark.parametrize(("make", "options"), CELLS)
def test_a_cell_is_two_linear_layers_per_step(make, options):
    torch.manual_seed(5)
    model = Model.from_module(Unrolled(make, **options), (torch.randn(2, 3, 4),))
    assert list(layers(model)) == []
    inputs = model.example_inputs(3, seed=1)
    expected = model.outputs_of(*inputs)
    spell_out_cells(model)
    found = list(layers(model))
    assert len(found) == 12
    assert all(layer.kind == "linear" for layer in found)
    assert len({layer.weight.name for layer in found}) == 4
    for a, b in zip(model.outputs_of(*inputs), expected, strict=True):
        torch.testing.assert_close(a, b)
