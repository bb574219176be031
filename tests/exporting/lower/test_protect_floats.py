"""What is left in float stays in float, between int8 layers too."""

from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from nncompress import exporting
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.ir import Model
from nncompress.targets import TARGETS
from tests.exporting.lower.int8.test_lower_int8 import quantized

# For this machine's kernels, whatever it is.
write_onnx = partial(exporting.write_onnx, target=TARGETS["ort-cpu"])


class Between(nn.Module):
    """A layer whose output channels differ in range by 1e4, between two others."""

    def __init__(self, layer: nn.Module, clamp: nn.Module) -> None:
        super().__init__()
        self.first, self.layer, self.clamp, self.last = nn.Conv2d(3, 8, 3), layer, clamp, nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            factors = torch.logspace(-2, 2, 8)
            outputs = 1 if isinstance(layer, nn.ConvTranspose2d) else 0
            layer.weight.mul_(factors.reshape([-1 if d == outputs else 1 for d in range(4)]))
            self.last.weight.div_(factors.reshape(1, -1, 1, 1))

    def forward(self, x):
        return self.last(self.clamp(self.layer(torch.relu(self.first(x)))))


LAYERS = {
    "conv": lambda: nn.Conv2d(8, 8, 3),
    "no bias": lambda: nn.Conv2d(8, 8, 3, bias=False),
    "transposed": lambda: nn.ConvTranspose2d(8, 8, 2, stride=2),
}


@pytest.mark.parametrize("clamp", [nn.Identity(), nn.ReLU(), nn.ReLU6()])
@pytest.mark.parametrize("kind", LAYERS)
def test_the_runtime_does_not_round_what_is_left_in_float(kind, clamp, tmp_path):
    torch.manual_seed(0)
    model = Model.from_module(Between(LAYERS[kind](), clamp).eval(), (torch.randn(2, 3, 12, 12),))
    model = quantized(model, **({} if kind == "transposed" else {"keep": ("layer",)}))
    write_onnx(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(16, 3, 12, 12)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    expected = model(x).detach().numpy()
    step = np.diff(np.unique(expected)).min()
    away = np.abs(got - expected) / step
    assert (away < 0.5).mean() > 0.999  # rounding to the other side, where a value lies on a boundary
    assert away.max() < 1.5
    assert [name for _, name in int8_coverage(tmp_path / "m.onnx").float] == ["layer"]
