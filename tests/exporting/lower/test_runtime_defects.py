"""Graphs that ONNX Runtime's optimiser computes wrongly unless they are written another way."""

import numpy as np
import onnxruntime
import torch
from torch import nn
from torch.nn import functional as F

from nncompress.exporting import write_onnx
from nncompress.ir import Model


class PadThenPool(nn.Module):
    """Zeros beside negative values, windows that stick out, pads as large as the kernel; constants but 0."""

    def forward(self, x):
        x = x - 5
        return [
            F.max_pool2d(F.pad(x, (1, 0, 2, 1)), 3, 2),
            F.max_pool2d(F.pad(x, (1, 1, 1, 1)), 2, 2, ceil_mode=True),
            F.max_pool2d(F.pad(x, (1, 0, 2, 1)), 2, 1, 1, 2),
            F.max_pool2d(F.pad(x, (1, 1, 1, 1), value=1.0), 3, 2, 1),
            F.max_pool1d(F.pad(x[:, :, 0], (1, 1)), 3),
            F.avg_pool2d(F.pad(x, (1, 0, 2, 1)), 2, 1),
            F.avg_pool2d(F.pad(x, (1, 1, 1, 1)), 2, 2, ceil_mode=True, count_include_pad=False),
            F.avg_pool2d(F.pad(x, (1, 0, 2, 1)), 3, 2, 1, count_include_pad=True),
            F.avg_pool1d(F.pad(x[:, :, 0], (1, 1), value=2.0), 2),
        ]


class NormalizesIntegers(nn.Module):
    def forward(self, x):
        x = x.float()
        x = x - x.mean(-1, keepdim=True)
        return x / torch.sqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * torch.linspace(1, 2, 8) + 0.5


def test_a_norm_of_integers_is_not_fused(tmp_path):
    module = NormalizesIntegers()
    write_onnx(Model.from_module(module.eval(), (torch.randint(0, 9, (2, 8)),)), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randint(0, 9, (3, 8))
    np.testing.assert_allclose(session.run(None, {"x": x.numpy()})[0], module(x).numpy(), atol=1e-5)


def test_the_optimised_file_computes_the_same(tmp_path):
    module = PadThenPool()
    write_onnx(Model.from_module(module.eval(), (torch.randn(2, 3, 10, 9),)), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.randn(3, 3, 10, 9)
    for number, (got, expected) in enumerate(
        zip(session.run(None, {"x": x.numpy()}), module(x), strict=True)
    ):
        np.testing.assert_allclose(got, expected.numpy(), atol=1e-5, err_msg=str(number))


class ClampsInfinities(nn.Module):
    def forward(self, x):
        x = x.masked_fill(x > 1, float("inf")).masked_fill(x < -1, float("-inf"))
        return x.clamp(max=0.5), x.clamp(min=-0.5), x.clamp(min=0), x.clamp(-0.5, 0.5)


def test_an_infinity_beyond_one_bound_stays_one(tmp_path):
    module, x = ClampsInfinities(), torch.linspace(-2, 2, 24).reshape(3, 8)
    for dtype in (torch.float32, torch.float16):
        write_onnx(Model.from_module(module.eval(), (x[:2].to(dtype),)), tmp_path / "m.onnx")
        session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
        for got, expected in zip(
            session.run(None, {"x": x.to(dtype).numpy()}), module(x.to(dtype)), strict=True
        ):
            np.testing.assert_array_equal(got, expected.numpy())
