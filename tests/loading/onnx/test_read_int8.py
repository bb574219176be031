"""Quantized files come back as the function that they say, whatever this processor's kernels make of it."""

from __future__ import annotations

from pathlib import Path

import networks
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from onnxruntime import quantization
from records import Records
from torch import nn

from nncompress.analysis.distance.precision import TOLERANCE, precision_of
from nncompress.errors import UnsupportedError, VerificationError
from nncompress.exporting import write
from nncompress.ir import Model
from nncompress.ir.formats.qdq import without_rounding
from nncompress.ir.layers.weights import layers
from nncompress.loading import load_model
from nncompress.loading.onnx import read
from nncompress.loading.onnx.compare import compare
from nncompress.loading.onnx.interpreter import RULES
from nncompress.loading.onnx.sizes import Input
from nncompress.passes import Context
from nncompress.pipeline import run
from nncompress.recipe import parse_pass
from nncompress.runtimes.onnx_files.saturation import saturating_weights


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


def as_written(path, x):
    """ONNX Runtime without the int8 kernels, which differ from processor to processor."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(path, options)
    return session.run(None, {session.get_inputs()[0].name: x})[0]


def quantized_by_onnxruntime(folder, form, *, per_channel, activations):
    """A float file and what ONNX Runtime's own quantizer made of it; its rows of data."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(2, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)]
    write(Model.from_module(nn.Sequential(*layers).eval(), (torch.randn(2, 2, 5, 5),)), folder / "float.onnx")
    x = np.random.default_rng(0).normal(size=(8, 2, 5, 5)).astype(np.float32)
    (name,) = (value.name for value in onnx.load(folder / "float.onnx").graph.input)

    class Reader(quantization.CalibrationDataReader):
        def __init__(self):
            self.batches = iter([{name: x}])

        def get_next(self):
            return next(self.batches, None)

    quantization.quantize_static(
        folder / "float.onnx",
        folder / "int8.onnx",
        Reader(),
        quant_format=form,
        per_channel=per_channel,
        activation_type=activations,
        weight_type=quantization.QuantType.QInt8,
    )
    return x


@pytest.mark.parametrize(("per_channel", "activations"), [(False, "QInt8"), (True, "QUInt8")])
def test_what_the_quantizer_of_onnxruntime_wrote_goes_through_as_it_is(tmp_path, per_channel, activations):
    """Signed activations around a zero point of their own up to an output: no weight of a layer."""
    kind = getattr(quantization.QuantType, activations)
    form = quantization.QuantFormat.QDQ
    x = quantized_by_onnxruntime(tmp_path, form, per_channel=per_channel, activations=kind)
    model = load_model(tmp_path / "int8.onnx")
    assert precision_of(model) == "int8"
    write(model, tmp_path / "again.onnx")
    first, second = (as_written(tmp_path / f"{name}.onnx", x) for name in ("int8", "again"))
    step = np.diff(np.unique(first)).min()  # answers lie on a grid: none falls to another place of it
    assert np.abs(first - second).max() < step / 2


def test_layers_that_are_one_integer_op_are_refused_by_name(tmp_path):
    form, kind = quantization.QuantFormat.QOperator, quantization.QuantType.QUInt8
    quantized_by_onnxruntime(tmp_path, form, per_channel=False, activations=kind)
    with pytest.raises(UnsupportedError, match=r"QLinearConv \(1\)"):
        load_model(tmp_path / "int8.onnx")


STORED = ["cluster:codebook=4", "prune:sparsity=0.9", "quantize:mode=weights", "quantize:weight-bits=4"]


@pytest.mark.parametrize("step", STORED)
def test_weights_that_our_file_has_in_a_smaller_form_are_layers_again(step, tmp_path):
    """Looked up in a codebook, behind a bitmap, as integers times factors, and with ranges of activations."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 40, 3), nn.ReLU(), nn.Flatten(), nn.Linear(160, 30))
    given = Model.from_module(net.eval(), (torch.randn(2, 2, 4, 4),))
    model, _ = run(given, [parse_pass(step)], Context(data=Records((torch.randn(32, 2, 4, 4),))))
    write(model, tmp_path / "m.onnx")
    read = load_model(tmp_path / "m.onnx")
    assert len(list(layers(model))) == 2
    for ours, theirs in zip(layers(model), layers(read), strict=True):
        assert torch.equal(ours.weight.value(), theirs.weight.value())
        assert (ours.name, ours.weight.quantized) == (theirs.name, theirs.weight.quantized)
    agree(read, model, [torch.randn(3, 2, 4, 4)])


def rounded_layer():
    """Of inputs of any batch and length."""
    torch.manual_seed(0)
    model = Model.from_module(nn.Linear(8, 16).eval(), (torch.randn(2, 5, 8),))
    model, _ = run(model, [parse_pass("quantize")], Context(data=Records((torch.randn(64, 5, 8),))))
    return model


@pytest.mark.parametrize(("wrong_from", "proven"), [(0, True), (0, False), (3, True), (3, False)])
def test_what_rounding_takes_apart_at_one_of_the_sizes_is_right_if_it_is_without_rounding(wrong_from, proven):
    """As far from the graph as this is from float, at every size or at the other one alone."""
    model, noise = rounded_layer(), torch.Generator().manual_seed(0)
    floats = without_rounding(model)
    unlike = "" if proven else "it has other steps"

    def file(x):
        got, exact = model(x), floats(x)
        other = torch.randn(got.shape, generator=noise)
        far = 1.3 * (got - exact).norm() * other / other.norm()
        return [(exact + far if len(x) >= wrong_from else got).detach().numpy()]

    def found():
        given = [Input("x", torch.float32, ("batch", 5, 8))]
        return compare(model, file, "it", given, {"batch": 2}, Path("m.onnx"), lambda: unlike)

    with pytest.MonkeyPatch.context() as patched:
        patched.setitem(TOLERANCE, "int8", 1e-4)
        if proven:
            assert "from float, where the graph is" in found().rounding
        elif wrong_from:
            assert found() is None
        else:
            with pytest.raises(VerificationError, match="differs from it"):
                found()


@pytest.mark.parametrize("of", ["nothing", "an activation"])
def test_the_proof_without_rounding_is_of_the_file_that_is_read(of, tmp_path, monkeypatch):
    proofs = []

    def compared(*given):
        proofs.extend(given[6:])
        return compare(*given)

    monkeypatch.setattr(read, "compare", compared)
    path = tmp_path / "m.onnx"
    write(rounded_layer(), path)
    proofs.clear()  # of reading it back
    load_model(path)
    if of == "an activation":  # has another step in the file than in the graph
        file = onnx.load(path)
        name = next(node for node in file.graph.node if node.op_type == "QuantizeLinear").input[1]
        scale = next(each for each in file.graph.initializer if each.name == name)
        scale.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(scale) * np.float32(1.05), name))
        onnx.save(file, path)
    assert proofs[0]() == ("" if of == "nothing" else "it rounds activations by other steps than the graph")
