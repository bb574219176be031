"""Modules that a model gives back."""

import pytest
import torch

from nncompress.ir import Model


class Counting(torch.nn.Module):
    """Whole numbers that are computed with: cast to what the weights are, as files of ONNX say it."""

    def __init__(self):
        super().__init__()
        self.out = torch.nn.Linear(4, 3)

    def forward(self, x):
        steps = torch.arange(4).to(torch.float32)
        return self.out(x * steps + torch.linspace(0, 1, 4, dtype=torch.float32)).softmax(
            -1, dtype=torch.float32
        )


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_casts_follow_the_precision_of_the_weights(dtype):
    source = Counting().eval()
    module = Model.from_module(source, (torch.randn(2, 4),)).to_module().to(dtype)
    x = torch.randn(5, 4)
    got = module(x.to(dtype))
    assert got.dtype == dtype
    torch.testing.assert_close(got.float(), source(x), rtol=0.05, atol=0.05)
    again = module.float()
    torch.testing.assert_close(again(x), source(x), rtol=0.05, atol=0.05)
