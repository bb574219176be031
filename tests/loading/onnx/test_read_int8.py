"""Quantized files come back as the function that they say, whatever this processor's kernels make of it."""

from __future__ import annotations

import networks
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from records import Records
from torch import nn

from nncompress.analysis.distance.precision import precision_of
from nncompress.errors import UnsupportedError
from nncompress.export import write
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.loading.onnx.interpreter import RULES
from nncompress.passes import Context
from nncompress.pipeline import run
from nncompress.recipe import parse_pass
from nncompress.runtimes.saturation import saturating_weights


def agree(read, model, inputs, tolerance=1e-5):
    for ours, theirs in zip(read.outputs_of(*inputs), model.outputs_of(*inputs), strict=True):
        assert (ours - theirs).norm() <= tolerance * theirs.norm()


def test_sums_that_this_processor_may_cut_off_are_read_as_they_are_written(tmp_path):
    data = Records(networks.inputs("tied", 32, seed=5))
    model, _ = run(networks.model("tied"), [parse_pass("quantize")], Context(data=data))
    write(model, tmp_path / "m.onnx")
    assert saturating_weights(tmp_path / "m.onnx")
    agree(load_model(tmp_path / "m.onnx"), model, networks.inputs("tied", 5, seed=9))


def test_ranges_that_are_found_when_it_runs_are_found_again(tmp_path):
    """Also of a product whose weights are a table, too."""
    model, _ = run(networks.model("tied"), [parse_pass("quantize:mode=dynamic")], Context())
    report = write(model, tmp_path / "m.onnx")
    assert report.not_read == ""
    read = load_model(tmp_path / "m.onnx")
    assert precision_of(read) == "int8"
    agree(read, model, networks.inputs("tied", 3, seed=9))


def product(tmp_path, *, scaled=True):
    """What `onnxruntime.quantization.quantize_dynamic` writes of a product: one scale, operands turned."""
    rng = np.random.default_rng(0)
    weight = rng.integers(0, 255, (6, 4)).astype(np.uint8)
    stored = {"w": weight, "w_zero": np.array(120, np.uint8), "w_scale": np.array(0.02, np.float32)}
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"]),
        helper.make_node("MatMulInteger", ["q", "w", "z", "w_zero"], ["sums"]),
        helper.make_node("Cast", ["sums"], ["floats"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["w_scale", "s"] if scaled else ["s", "s"], ["factor"]),
        helper.make_node("Mul", ["factor", "floats"], ["y"]),
    ]
    sides = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, ["batch", size])
        for n, size in (("x", 6), ("y", 4))
    ]
    initializers = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(nodes, "g", sides[:1], sides[1:], initializers)
    opset = [helper.make_opsetid("", 17)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=9), tmp_path / "m.onnx")
    return (weight.astype(np.float64) - 120) * 0.02


def test_a_product_that_another_tool_rounded_is_read(tmp_path):
    weight, x = product(tmp_path), torch.randn(5, 6, dtype=torch.float64)
    read = load_model(tmp_path / "m.onnx")
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    scale = (high - low) / 255  # by hand, as the standard has it
    zero = round(-low / scale)
    rounded = ((x / scale).round() + zero).clamp(0, 255) - zero
    expected = rounded * scale @ torch.from_numpy(weight)
    (got,) = read.outputs_of(x.float())
    assert (got - expected).norm() < 1e-5 * expected.norm()


def test_integers_in_another_form_are_refused_by_name(tmp_path):
    product(tmp_path, scaled=False)
    with pytest.raises(UnsupportedError, match="MatMulInteger is not read"):
        load_model(tmp_path / "m.onnx")


def test_an_export_says_where_it_could_not_be_read_again(tmp_path, monkeypatch):
    model = Model.from_module(nn.Sequential(nn.Linear(4, 4), nn.Hardsigmoid()).eval(), (torch.randn(2, 4),))
    assert write(model, tmp_path / "m.onnx").not_read == ""
    monkeypatch.delitem(RULES, "HardSigmoid")
    report = write(model, tmp_path / "m.onnx")
    assert "HardSigmoid (1)" in report.not_read
    assert str(tmp_path) not in report.not_read
