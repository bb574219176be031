"""A region of torch.autocast computes in the graph what it computes in the module."""

import pytest
import torch
from torch import nn

import nncompress
from nncompress.errors import UnsupportedError


class Mixed(nn.Module):
    def __init__(self, **region):
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(8, 16), nn.LayerNorm(16), nn.Linear(16, 4)
        self.region = region

    def forward(self, x):
        with torch.autocast("cpu", **self.region):
            h = self.norm(self.up(x).relu())
            with torch.autocast("cpu", enabled=False):
                h = h.float() @ h.float().mT @ h.float()
            y = self.down(h) + torch.einsum("btc,dc->btd", h, self.down.weight)
        return y.softmax(-1)


@pytest.mark.parametrize("region", [{"dtype": torch.bfloat16}, {"dtype": torch.float16}, {"enabled": False}])
def test_a_region_is_loaded_with_its_casts(region):
    torch.manual_seed(0)
    net, x = Mixed(**region).eval(), torch.randn(3, 5, 8)
    model = nncompress.load(net, input="1x5x8")
    with torch.no_grad():
        expected = net(x)
        torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
    assert expected.dtype == region.get("dtype", torch.float32)


class Foreach(nn.Linear):
    def forward(self, x):
        return torch._foreach_tanh([super().forward(x)])[0]


def test_an_op_that_a_file_may_not_hold_is_named_before_it_is_written(tmp_path):
    model = nncompress.load(Foreach(8, 4).eval(), input="1x8")
    with pytest.raises(UnsupportedError, match="foreach tanh"):
        nncompress.export(model, tmp_path / "a.pt2")
    assert not list(tmp_path.iterdir())
