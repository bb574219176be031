"""What is kept between exports changes none of them, and torch is as it was afterwards."""

from __future__ import annotations

import onnx
import torch
from torch import nn
from torch.onnx._internal.exporter._registration import ONNXRegistry

from nncompress.exporting.write import exporter_cost
from nncompress.exporting.write.onnx import write_onnx
from nncompress.ir import Model


def test_a_translation_added_in_one_export_is_not_in_the_next():
    own = vars(ONNXRegistry)["from_torchlib"]
    with exporter_cost.kept():
        first = ONNXRegistry.from_torchlib(opset_version=18)
        known = len(first.get_decomps(torch.ops.aten.relu.default))
        first.register_op(torch.ops.aten.relu.default, lambda x: x)
        assert len(first.get_decomps(torch.ops.aten.relu.default)) == known + 1
        second = ONNXRegistry.from_torchlib(opset_version=18)
    assert len(second.get_decomps(torch.ops.aten.relu.default)) == known
    assert second.opset_version == 18
    assert second.functions.keys() == ONNXRegistry.from_torchlib(opset_version=18).functions.keys()
    assert vars(ONNXRegistry)["from_torchlib"] is own


def test_a_second_export_is_the_same_file_and_names_no_source_lines(tmp_path):
    torch.manual_seed(0)
    model = Model.from_module(nn.Sequential(nn.Linear(4, 6), nn.ReLU()).eval(), (torch.randn(2, 4),))
    for name in "ab":
        write_onnx(model, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert not any(
        "stack_trace" in entry.key
        for node in onnx.load(tmp_path / "a").graph.node
        for entry in node.metadata_props
    )
