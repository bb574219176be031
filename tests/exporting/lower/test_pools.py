import pytest
import torch
from torch import nn

from nncompress.exporting import write_onnx
from nncompress.ir import Model
from tests.exporting.lower.int8.test_lower_int8 import quantized


class Pool(nn.Module):
    def __init__(self, pool: nn.Module, dims: int) -> None:
        super().__init__()
        conv = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
        self.a, self.pool, self.b = conv(4, 16, 3, padding=1), pool, conv(16, 5, 1)

    def forward(self, x):
        return self.b(self.pool(self.a(x)))


POOLS = {
    "ragged": nn.AvgPool2d(2, ceil_mode=True),
    "ragged, padded": nn.AvgPool2d(3, 2, 1, ceil_mode=True),
    "ragged, padding not counted": nn.AvgPool2d(3, 2, 1, ceil_mode=True, count_include_pad=False),
    "divisor": nn.AvgPool2d((3, 2), (2, 1), 1, divisor_override=5),
    "1-d": nn.AvgPool1d(3, 2, 1, ceil_mode=True),
    "3-d": nn.AvgPool3d(2, divisor_override=3),
}


@pytest.mark.parametrize("precision", ["float32", "int8"])
@pytest.mark.parametrize("name", POOLS)
def test_average_pools_divide_as_torch_does(name, precision, tmp_path):
    dims = int(name[0]) if name[0].isdigit() else 2
    torch.manual_seed(0)
    model = Model.from_module(Pool(POOLS[name], dims).eval(), (torch.randn(2, 4, *[11, 10, 7][:dims]),))
    if precision == "int8":
        model = quantized(model)
    report = write_onnx(model, tmp_path / "m.onnx")
    spread = float(model(*model.example_inputs(3)).abs().max())
    assert report.max_abs_diff < (1e-5 if precision == "float32" else 0.02) * spread
