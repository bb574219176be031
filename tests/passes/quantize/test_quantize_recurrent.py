"""Fused LSTM and GRU layers in int8: in the graph, in plain `.onnx`, and on ONNX Runtime's int8 kernel."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from records import Records
from torch import nn

from nncompress.analysis.cost import cost
from nncompress.analysis.distance.contributions import contributions
from nncompress.errors import UnsupportedError, UsageError
from nncompress.exporting import write, write_onnx
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.ir import Model
from nncompress.ir.layers.recurrent import recurrent_layers
from nncompress.loading import load_model, load_module
from nncompress.passes import Context
from nncompress.passes.quantize.recurrent import one_layer_each
from nncompress.pipeline import run
from nncompress.recipe import parse_pass
from nncompress.runtimes.onnx_files.saturation import saturating_weights
from nncompress.targets import TARGETS


class Sequence(nn.Module):
    def __init__(self, kind="LSTM", layers=2, both=True):
        super().__init__()
        self.rnn = getattr(nn, kind)(6, 12, layers, bidirectional=both, batch_first=True)
        self.head = nn.Linear(12 * (1 + both), 3)

    def forward(self, x):
        y, _ = self.rnn(x)
        return self.head(torch.tanh(y))


def made(**options):
    torch.manual_seed(0)
    module = Sequence(**options).eval()
    return module, Model.from_module(module, (torch.randn(2, 9, 6),))


def quantized(model, settings=""):
    found, steps = run(model, [parse_pass(f"quantize:mode=dynamic{settings}")], Context())
    return found, {change.where: change.what for change in steps[0].changes}


def with_rounded_weights(module, top=127):
    """The same with every matrix of the recurrent layer on a grid per row; the head is left as it is."""
    with torch.no_grad():
        for name, weight in module.rnn.named_parameters():
            if name.startswith("weight"):
                scale = weight.abs().amax(1, keepdim=True) / top
                weight.copy_((weight / scale).round() * scale)
    return module


def away(a, b):
    return float(((a - b).norm() / b.norm()).detach())


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_matrices_are_rounded_per_row_and_come_back_from_plain_onnx(tmp_path, kind):
    module, model = made(kind=kind)
    rounded, _ = run(model, [parse_pass("quantize:mode=weights,keep=head")], Context())
    x = torch.randn(3, 9, 6)
    expected = with_rounded_weights(module)(x)
    assert away(rounded.outputs_of(x)[0], expected) < 1e-5
    report = write_onnx(rounded, tmp_path / "m.onnx", read_back=True)
    assert report.not_read == ""
    file = onnx.load(tmp_path / "m.onnx")
    assert {n.domain for n in file.graph.node} == {""}
    stored = [t.dims for t in file.graph.initializer if t.data_type == onnx.TensorProto.INT8]
    assert len(stored) == 8  # two layers, two directions, W and R
    assert all(len(dims) == 3 for dims in stored) or kind == "RNN"  # which is written step by step
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert away(torch.from_numpy(got), expected) < 1e-5
    read = load_model(tmp_path / "m.onnx")
    if kind != "RNN":
        assert all(each.quantized for layer in recurrent_layers(read) for each in layer.matrices)
    assert away(read.outputs_of(x)[0], expected) < 1e-5


def test_an_lstm_is_written_for_the_int8_kernel_and_agrees_with_torch(tmp_path):
    module, model = made()
    rounded, said = quantized(model)
    what = "int8 weights, inputs on the range of each call"
    assert {said["rnn"], said["rnn#2"]} == {what}
    report = write_onnx(rounded, tmp_path / "m.onnx", target=TARGETS["ort-cpu"], read_back=True)
    assert report.int8.startswith("3 of 3 in int8")
    assert report.not_read == ""
    ops = Counter(node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node)
    assert (ops["DynamicQuantizeLSTM"], ops["LSTM"], ops["DequantizeLinear"]) == (2, 0, 0)
    x = torch.randn(4, 9, 6)
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    assert away(torch.from_numpy(got), module(x)) < 0.03
    read = load_model(tmp_path / "m.onnx")
    assert away(read.outputs_of(x)[0], rounded.outputs_of(x)[0]) < 1e-5


def test_a_gru_has_no_int8_kernel_and_keeps_its_inputs():
    _, model = made(kind="GRU")
    rounded, said = quantized(model)
    assert said["rnn"] == "int8 weights, float arithmetic"
    assert next(recurrent_layers(rounded)).data.op == "placeholder"


def test_what_onnx_runtime_itself_quantizes_is_read(tmp_path):
    torch.manual_seed(1)
    lstm, x = nn.LSTM(5, 8), torch.randn(7, 2, 5)
    torch.onnx.export(lstm, (x,), tmp_path / "f.onnx", dynamo=False, opset_version=17, input_names=["x"])
    quantize_dynamic(tmp_path / "f.onnx", tmp_path / "q.onnx", weight_type=QuantType.QInt8)
    read = load_model(tmp_path / "q.onnx")
    (layer,) = recurrent_layers(read)
    assert all(each.quantized for each in layer.matrices)
    file = onnx.load(tmp_path / "q.onnx").graph
    (node,) = (n for n in file.node if n.op_type == "DynamicQuantizeLSTM")
    arrays = {t.name: numpy_helper.to_array(t) for t in file.initializer}
    with torch.no_grad():
        for position, parameter in ((1, lstm.weight_ih_l0), (2, lstm.weight_hh_l0)):
            codes, scale = arrays[node.input[position]][0], arrays[node.input[6 + 2 * position]]
            i, o, f, c = np.split(codes.T.astype(np.float32) * scale.reshape(-1)[0], 4)
            parameter.copy_(torch.from_numpy(np.concatenate([i, f, c, o])))
    scale = (max(float(x.max()), 0) - min(float(x.min()), 0)) / 255
    zero = round(-min(float(x.min()), 0) / scale)
    rounded = ((x / scale).round() + zero).clamp(0, 255).sub(zero) * scale
    assert away(read.outputs_of(x)[0], lstm(rounded)[0]) < 1e-4


def test_weights_of_eight_signed_bits_are_known_to_overflow_without_vnni(tmp_path):
    _, model = made()
    write_onnx(quantized(model)[0], tmp_path / "m.onnx", target=TARGETS["ort-cpu"])
    file = onnx.load(tmp_path / "m.onnx")
    for tensor in file.graph.initializer:
        if tensor.data_type == onnx.TensorProto.UINT8 and len(tensor.dims) > 1:  # as this machine may need it
            signed = (numpy_helper.to_array(tensor).astype(np.int16) - 128).astype(np.int8)
            tensor.CopyFrom(numpy_helper.from_array(signed, tensor.name))
    onnx.save(file, tmp_path / "s.onnx")
    assert sum("weight_hh" in name for name in saturating_weights(tmp_path / "s.onnx")) == 2


def test_a_recurrent_layer_that_hurts_most_stays_in_float():
    _, model = made(layers=1)
    rounded, said = quantized(model, ",weight_bits=2,max_drift=0.02,keep=head")
    assert said["rnn"] == "left in float by --max-drift"
    assert not any(each.quantized for layer in recurrent_layers(rounded) for each in layer.matrices)
    _, said = quantized(model, ",keep=rnn")
    assert said["rnn"] == "left in float by --keep"


def test_a_layer_of_a_module_is_kept_with_all_of_it():
    _, model = made()
    kept, said = quantized(model, ",keep=rnn")
    assert said["rnn"] == "left in float by --keep"
    assert len(list(recurrent_layers(kept))) == 1  # one node, as it was


def test_layers_in_one_node_are_the_same_taken_apart():
    module, model = made(layers=3)
    one_layer_each(model, ())
    assert len(list(recurrent_layers(model))) == 3
    x = torch.randn(2, 9, 6)
    assert away(model.outputs_of(x)[0], module(x)) < 1e-6


class CalledTwice(nn.Module):
    def __init__(self, **settings):
        super().__init__()
        self.rnn, self.head = nn.LSTM(6, 16, batch_first=True, **settings), nn.Linear(16, 2)

    def forward(self, x):
        return self.head(self.rnn(x)[0] + self.rnn(2 * x)[0])


@pytest.mark.parametrize("mode", ["dynamic", "weights"])
def test_several_calls_of_a_layer_store_its_codes_once(tmp_path, mode):
    model = load_module(CalledTwice().eval(), input_shapes="1x9x6")
    rounded, _ = run(model, [parse_pass(f"quantize:mode={mode},keep=head,max_drift=0.9")], Context())
    write_onnx(rounded, tmp_path / "m.onnx", target=TARGETS["ort-cpu"], read_back=True)
    file = onnx.load(tmp_path / "m.onnx").graph
    codes = [t for t in file.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) == 3]
    assert len(codes) == 2  # W and R


def test_a_projected_lstm_is_told_by_its_name(tmp_path):
    class Projected(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn = nn.LSTM(6, 16, batch_first=True, proj_size=4)

        def forward(self, x):
            return self.rnn(x)[0]

    model = load_module(Projected().eval(), input_shapes="1x9x6")
    rounded, _ = run(model, [parse_pass("quantize:mode=weights")], Context())
    write_onnx(rounded, tmp_path / "m.onnx")
    found = int8_coverage(tmp_path / "m.onnx")
    assert [op for op, _ in found.float] == ["LSTM", "MatMul"]  # the layer and its projection, no weights
    assert found.float[0][1] == "rnn.weight_ih_l0"
    assert found.reasons["rnn.weight_ih_l0"].startswith("its weights are int8")


def test_blame_finds_the_recurrent_layer():
    _, model = made(layers=1)
    rounded, _ = quantized(model, ",weight_bits=3")
    x = (torch.randn(4, 9, 6),)
    found = contributions(model, rounded, ["rnn", "head"], x)
    assert set(found) == {"rnn", "head"}
    assert found["rnn"] > 0


def test_a_model_of_recurrent_layers_alone_is_quantized():
    torch.manual_seed(0)
    model = Model.from_module(nn.LSTM(6, 12, batch_first=True).eval(), (torch.randn(2, 9, 6),))
    for settings in ("", ",correct_bias=true", ",max_drift=0.5"):
        data = Records((torch.randn(8, 9, 6),)) if "bias" in settings else None
        found, _ = run(model, [parse_pass(f"quantize:mode=dynamic{settings}")], Context(data=data))
        assert all(each.quantized for layer in recurrent_layers(found) for each in layer.matrices)


def test_a_budget_of_bytes_counts_what_recurrent_layers_save():
    _, model = made(layers=1)
    data = Records((torch.randn(16, 9, 6),))
    for settings in ("size=0.6", "size=0.5,keep=head"):
        found, _ = run(model, [parse_pass(f"quantize:mode=weights,{settings}")], Context(data=data))
        assert cost(found).bytes <= float(settings[5:8]) * cost(model).bytes
        assert all(each.quantized for layer in recurrent_layers(found) for each in layer.matrices)


@pytest.mark.parametrize("kind", ["LSTM", "GRU", "RNN"])
def test_openvino_reads_int8_weights_between_layers_that_round_their_inputs(tmp_path, kind):
    pytest.importorskip("openvino")
    _, model = made(kind=kind, layers=1, both=False)
    context = Context(data=Records((torch.randn(16, 9, 6),)), target="openvino")
    rounded, (step,) = run(model, [parse_pass("quantize:every-layer=true")], context)
    assert all(change.applied for change in step.changes)
    report = write(rounded, tmp_path / "m.xml")  # which compares it
    assert "in int8" in report.int8  # the linear layer behind it


def test_a_mobile_file_has_the_weights_as_floats(tmp_path):
    pytest.importorskip("executorch")
    torch.manual_seed(0)
    model = Model.from_module(Sequence(layers=1, both=False).eval(), (torch.randn(2, 2, 6),))
    write(quantized(model)[0], tmp_path / "m.pte")  # which compares it


def test_layers_are_kept_by_the_names_that_the_report_gives_them():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.rnn, self.head = nn.LSTM(6, 6, batch_first=True), nn.Linear(6, 2)

        def forward(self, x):
            return self.head(self.rnn(self.rnn(x)[0])[0])

    _, model = made()
    said = quantized(model, ",keep=rnn#2")[1]
    assert [said[name] for name in ("rnn", "rnn#2")][1] == "left in float by --keep"
    assert said["rnn"].startswith("int8")
    twice = Model.from_module(Twice().eval(), (torch.randn(2, 9, 6),))
    rounded, said = quantized(twice, ",keep=rnn#2")  # which reads what the other reads
    assert {said["rnn"], said["rnn#2"]} == {"left in float by --keep"}
    assert not any(each.quantized for layer in recurrent_layers(rounded) for each in layer.matrices)


def test_inputs_are_rounded_for_the_kernel_alone():
    torch.manual_seed(0)
    projected = nn.LSTM(6, 12, proj_size=4, batch_first=True).eval()
    said = quantized(Model.from_module(projected, (torch.randn(2, 9, 6),)))[1]
    assert list(said.values()) == ["int8 weights, float arithmetic"]
    _, model = made()
    assert quantized(model, ",weight_bits=4")[1]["rnn"] == "weights of 4 bits, float arithmetic"
    steps = run(model, [parse_pass("quantize:mode=dynamic")], Context(target="openvino"))[1]
    assert [c.what for c in steps[0].changes if c.where == "rnn"] == ["int8 weights, float arithmetic"]


def test_weights_that_a_file_computes_of_codes_are_what_they_come_to(tmp_path):
    """And names that are taken already are let be."""
    torch.manual_seed(1)
    rng, names = np.random.default_rng(0), ["X", "W", "R"]
    codes = rng.integers(-60, 60, (1, 20, 3)).astype(np.int8)
    stored = {"codes": codes, "s": np.float32(0.01), "f": np.float32(1.5)}
    stored["R"] = rng.normal(size=(1, 20, 5)).astype(np.float32)
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "s"], ["w"]),
        helper.make_node("Mul", ["w", "f"], ["W"]),
        helper.make_node("LSTM", names, ["Y"], hidden_size=5),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("X", onnx.TensorProto.FLOAT, [7, 2, 3])],
        [value("Y", onnx.TensorProto.FLOAT, None)],
        [numpy_helper.from_array(each, name) for name, each in stored.items()],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9),
        tmp_path / "m.onnx",
    )
    read, x = load_model(tmp_path / "m.onnx"), torch.randn(7, 2, 3)
    expected = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"X": x.numpy()})[0]
    assert away(read.outputs_of(x)[0], torch.from_numpy(expected)) < 1e-5


def test_names_of_a_file_that_a_copy_of_it_would_use_are_let_be(tmp_path):
    class Stacked(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.LSTM(5, 8), nn.LSTM(8, 8)

        def forward(self, x):
            return self.second(self.first(x)[0])[0]

    x = torch.randn(7, 2, 5)
    torch.onnx.export(Stacked().eval(), (x,), tmp_path / "f.onnx", dynamo=False, opset_version=17)
    quantize_dynamic(tmp_path / "f.onnx", tmp_path / "q.onnx", weight_type=QuantType.QInt8)
    file = onnx.load(tmp_path / "q.onnx")
    first, second = (node for node in file.graph.node if node.op_type == "DynamicQuantizeLSTM")
    old = second.output[0]
    for node in file.graph.node:
        for names in (node.input, node.output):
            for position, name in enumerate(names):
                names[position] = f"{first.output[0]}_spelled_1" if name == old else name
    onnx.save(file, tmp_path / "q.onnx")
    assert len(list(recurrent_layers(load_model(tmp_path / "q.onnx")))) == 2


def test_other_floats_and_broken_weights_are_refused_by_name():
    module, _ = made()
    double = Model.from_module(module.double(), (torch.randn(2, 9, 6, dtype=torch.float64),))
    with pytest.raises(UnsupportedError, match="rnn is float64"):
        quantized(double, ",keep=head")
    module, model = made()
    model.tensor("rnn.weight_hh_l0").data[0, 0] = float("nan")
    with pytest.raises(UnsupportedError, match="rnn has NaN"):
        parse_pass("quantize:mode=weights").requires(model, Context())
    with pytest.raises(UsageError, match="names no layer"):
        quantized(made()[1], ",keep=rnnx")
