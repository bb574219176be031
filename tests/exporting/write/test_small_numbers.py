"""Numbers near 0 and 1 are in the file as they are in the graph."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from nncompress.exporting import write_onnx
from nncompress.ir import Model


class Small(nn.Module):
    """Each result is finite for zeros because of a number that hardly changes the others."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("floor", torch.tensor(3e-9))
        self.norm = nn.RMSNorm(6, eps=1e-9)
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        floored = x.relu()
        return (
            (floored + 1e-10).log(),
            (self.floor + floored).log(),
            torch.rsqrt(1e-9 - -floored),
            floored / (floored.std(1, keepdim=True) + 1e-8),
            self.norm(floored),
            x * 1.000008,
            x / 0.999995,
            floored[0] / (floored[0].norm() + 1e-10),
            x / (1e-9 + floored[0].sum()).sqrt().log(),
        )


@pytest.mark.parametrize("storage", ["plain", "packed"])
def test_small_numbers_count_in_the_file_as_in_torch(tmp_path, storage: str) -> None:
    net, x = Small().eval(), torch.randn(3, 5, 6)
    x[0] = 0
    write_onnx(Model.from_module(net, (torch.randn(2, 5, 6),)), tmp_path / "m.onnx", storage=storage)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = [each.numpy() for each in net(x)]
    for found, right in zip(session.run(None, {"x": x.numpy()}), expected, strict=True):
        np.testing.assert_allclose(found, right, rtol=2e-6, atol=1e-6)


class Passes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)
        with torch.no_grad():  # of four values, which are packed
            self.mix.weight.copy_(torch.randint(0, 4, (6, 6)) * 0.5)

    def forward(self, x: Tensor, mask: Tensor) -> tuple[Tensor, ...]:
        return self.mix(x) + 1e-9, mask, x


@pytest.mark.parametrize("storage", ["plain", "packed"])
def test_an_input_that_is_an_output_too_keeps_its_name(tmp_path, storage: str) -> None:
    given = (torch.randn(2, 6), torch.randn(2, 3))
    write_onnx(Model.from_module(Passes().eval(), given), tmp_path / "m.onnx", storage=storage)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    assert [each.name for each in session.get_inputs()] == ["x", "mask"]
    found = session.run(None, {"x": given[0].numpy(), "mask": given[1].numpy()})
    for value, right in zip(found[1:], (given[1], given[0]), strict=True):
        np.testing.assert_array_equal(value, right.numpy())


class Logarithms(nn.Module):
    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return nn.functional.logsigmoid(x), torch.logaddexp(x, x.flip(1)), torch.logcumsumexp(x, 1)


@pytest.mark.parametrize("scale", [1.0, 1e3])
def test_logarithms_of_sums_of_exponentials_stay_finite(tmp_path, scale: float) -> None:
    write_onnx(Model.from_module(Logarithms().eval(), (torch.randn(2, 5),)), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(4, 5) * scale
    x[0, 0] = x[0, 4] = -torch.inf
    for found, right in zip(session.run(None, {"x": x.numpy()}), Logarithms()(x), strict=True):
        np.testing.assert_allclose(found, right.numpy(), rtol=1e-5, atol=1e-5)
