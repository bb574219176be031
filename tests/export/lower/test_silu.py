"""SiLU between int8 layers: one operator for ONNX Runtime, spelled out for all others."""

from collections import Counter

import onnx
import pytest
import torch
from torch import nn

from nncompress.export import write_onnx
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.targets import TARGETS
from tests.export.lower.test_lower_int8 import quantized


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
