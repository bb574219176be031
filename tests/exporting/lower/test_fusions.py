"""Fusions of ONNX Runtime: a SiLU of bytes is one operator, a residual sum stays apart."""

from collections import Counter

import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from nncompress.exporting import write_onnx
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.targets import TARGETS
from tests.exporting.lower.int8.test_lower_int8 import quantized


class Net(nn.Module):
    """A SiLU between int8 layers, one that an addition reads, too, and one of the input, in float."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 5, 1)

    def forward(self, x):
        x = nn.functional.silu(self.a(nn.functional.silu(x)))
        return self.c(x + nn.functional.silu(self.b(x)))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return quantized(Model.from_module(Net().eval(), (torch.randn(2, 4, 9, 9),)))


def kinds(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


def test_for_onnx_runtime_it_is_one_operator(model, tmp_path):
    report = write_onnx(model, tmp_path / "m.onnx", target=TARGETS["ort-cpu"], read_back=True)
    found = kinds(tmp_path / "m.onnx")
    assert (found["QuickGelu"], found["Sigmoid"]) == (2, 1)  # what comes from no bytes stays spelled out
    assert "2 SiLUs as QuickGelu" in report.int8
    assert not report.not_read
    x = torch.randn(3, 4, 9, 9)
    torch.testing.assert_close(load_model(tmp_path / "m.onnx")(x), model(x), atol=0.02, rtol=0.02)


def test_a_plain_file_has_standard_operators_alone(model, tmp_path):
    report = write_onnx(model, tmp_path / "m.onnx")
    found = kinds(tmp_path / "m.onnx")
    assert (found["QuickGelu"], found["Sigmoid"]) == (0, 3)
    assert {entry.domain for entry in onnx.load(tmp_path / "m.onnx").opset_import} == {""}
    assert "SiLUs as QuickGelu" in report.int8  # which is said to be had


class Blocks(nn.Module):
    """A sum that a norm alone reads, one that is read again, and a bias."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(8, 8), nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.norms = nn.ModuleList(nn.LayerNorm(8) for _ in range(3))
        self.shift = nn.Parameter(torch.randn(8))

    def forward(self, x):
        x = self.norms[0](x + self.a(x))
        x = x + self.b(x)
        return x + self.norms[2](self.c(self.norms[1](x)) + self.shift)


def ops_in_onnx_runtime(path, folder):
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


@pytest.mark.parametrize(("target", "sums"), [("ort-cpu", 1), (None, 0)])
def test_only_a_sum_that_would_be_fused_is_kept_from_it(target, sums, tmp_path):
    torch.manual_seed(0)
    model = Model.from_module(Blocks().eval(), (torch.randn(2, 5, 8),))
    write_onnx(model, tmp_path / "m.onnx", target=TARGETS[target] if target else None, read_back=True)
    written = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert written.count("Sum") == sums
    fused = ops_in_onnx_runtime(tmp_path / "m.onnx", tmp_path).count("SkipLayerNormalization")
    assert fused == 1 - sums
    x = torch.randn(3, 5, 8)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx")
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    torch.testing.assert_close(torch.from_numpy(got), model(x), atol=1e-5, rtol=1e-5)
