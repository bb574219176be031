import numpy as np
import torch
from torch import nn

from nncompress.analysis.curvature.diagonal import fisher_diagonal
from nncompress.data import open_data
from nncompress.ir import Model


def test_fisher_diagonal_of_a_softmax_regression_in_closed_form(tmp_path):
    """E (∂L/∂w_ci)² = mean of x_i² p_c (1 - p_c), labels drawn from p."""
    torch.manual_seed(0)
    layer = nn.Linear(6, 3)
    model = Model.from_module(layer, (torch.randn(2, 6),))
    x = torch.randn(4000, 6) * torch.tensor([0.1, 1, 2, 1, 1, 3])
    np.savez(tmp_path / "data.npz", x=x.numpy(), y=np.zeros(4000, dtype=np.int64))
    data = open_data(str(tmp_path / "data.npz"), model.inputs)
    found = fisher_diagonal(model, ["weight"], data, seed=3)["weight"]
    p = layer(x).detach().softmax(1).double()
    expected = (p * (1 - p)).T @ x.double().square() / len(x)
    torch.testing.assert_close(found, expected, rtol=0.6, atol=0)
    ratio = found / expected
    assert 0.85 < float(ratio.mean()) < 1.15
    assert all(parameter.requires_grad for parameter in layer.parameters())
