"""What is written for no target suits every runtime: standard ops, channels as the model has them."""

import onnx
import torch
from torch import nn

from nncompress.exporting import write_onnx
from nncompress.ir import Model
from nncompress.targets import TARGETS
from tests.exporting.lower.int8.test_lower_int8 import quantized


def test_a_plain_file_has_nothing_that_only_one_runtime_likes(tmp_path):
    torch.manual_seed(0)
    stem, pool, odd = nn.Conv2d(3, 20, 3, 2, 1), nn.AvgPool2d(2), nn.Conv2d(20, 10, 3, padding=1)
    net = nn.Sequential(stem, nn.ReLU(), pool, odd, nn.ReLU(), nn.Conv2d(10, 8, 3))
    model = quantized(Model.from_module(net.eval(), (torch.randn(2, 3, 32, 32),)))
    plain = write_onnx(model, tmp_path / "plain.onnx")
    written = onnx.load(tmp_path / "plain.onnx")
    kinds = [node.op_type for node in written.graph.node]
    assert kinds.count("Conv") == 3
    assert kinds.count("AveragePool") == 1
    assert "SpaceToDepth" not in kinds
    assert {node.domain for node in written.graph.node} <= {"", "ai.onnx"}
    shapes = sorted(tuple(each.dims) for each in written.graph.initializer if len(each.dims) == 4)
    assert shapes == [(8, 10, 3, 3), (10, 20, 3, 3), (20, 3, 3, 3)]
    assert "ort-cpu would write 1 convolutions over blocks of pixels, 1 pools as convolutions" in plain.int8
    chosen = write_onnx(model, tmp_path / "ort.onnx", target=TARGETS["ort-cpu"])
    assert "would write" not in chosen.int8
    assert "1 pools as convolutions" in chosen.int8
