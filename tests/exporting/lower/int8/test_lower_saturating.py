"""On processors whose 8-bit products saturate, an exported int8 model computes what the graph does."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import nncompress
from nncompress import pipeline
from nncompress.devices import Processor
from nncompress.errors import UnsupportedError
from nncompress.exporting import write_onnx
from nncompress.exporting.check.compare import Comparison
from nncompress.exporting.lower.onnxruntime.int8 import saturating as lower_saturating
from nncompress.exporting.lower.onnxruntime.int8 import tiles
from nncompress.exporting.write import onnx as writer
from nncompress.ir import Model
from nncompress.passes import Context, Quantize
from nncompress.runtimes import exact_copy, on_onnxruntime, open_artifact
from nncompress.runtimes.onnx_files.saturation import overflows, saturating_weights
from nncompress.targets import TARGETS
from tests.exporting.lower.int8.test_lower_int8 import quantized
from tests.passes.quantize.test_quantize import Records

OLD = Processor("without VNNI", 2, frozenset({"sse4_1", "avx2"}))


class Saturating(nn.Module):
    """Large weights of one sign side by side meet large activations: 16 bits do not hold two products."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.flat, self.linear = nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16 * 16, 10)
        with torch.no_grad():
            self.conv.weight.abs_()
            self.linear.weight.abs_()

    def forward(self, x):
        return self.linear(self.flat(torch.relu(self.conv(x))))


@pytest.mark.parametrize(
    ("options", "expected"), [({}, "UINT8"), ({"mode": "dynamic"}, "UINT8"), ({"weight_bits": 7}, "INT8")]
)
def test_weights_that_could_overflow_are_unsigned_and_sums_are_right(
    options, expected, tmp_path, monkeypatch
):
    monkeypatch.setattr(lower_saturating, "processor", lambda: OLD)
    torch.manual_seed(0)
    model = quantized(Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),)), **options)
    write_onnx(model, tmp_path / "m.onnx", target=TARGETS["ort-cpu"])
    stored = {t.name: t for t in onnx.load(tmp_path / "m.onnx").graph.initializer}
    weights = {n: t for n, t in stored.items() if n.startswith("linear.weight") and len(t.dims) == 2}
    assert {onnx.TensorProto.DataType.Name(t.data_type) for t in weights.values()} == {expected}
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    x = torch.rand(32, 8, 6, 6)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    wanted = model(x).detach().numpy()
    assert np.linalg.norm(got - wanted) < 5e-3 * np.linalg.norm(wanted)


def test_a_plain_file_with_integer_products_is_compared_by_a_copy_in_floats(tmp_path, monkeypatch):
    for module in (exact_copy, lower_saturating, writer):
        monkeypatch.setattr(module, "processor", lambda: OLD)
    torch.manual_seed(0)
    model = quantized(Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),)), mode="dynamic")
    plain, copy = tmp_path / "m.onnx", tmp_path / "copy.onnx"
    report = write_onnx(model, plain)
    assert "may overflow on processors without VNNI" in report.int8
    assert any(node.op_type == "MatMulInteger" for node in onnx.load(plain).graph.node)
    assert exact_copy.write_exact(plain, copy)
    assert not any(node.op_type == "MatMulInteger" for node in onnx.load(copy).graph.node)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(copy, options, providers=["CPUExecutionProvider"])
    x = torch.rand(32, 8, 6, 6)
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    wanted = model(x).detach().numpy()
    assert np.linalg.norm(got - wanted) < 5e-3 * np.linalg.norm(wanted)


@pytest.mark.parametrize(
    "flags", [{"sse4_1", "avx2", "avx512_vnni"}, {"sse4_1", "avx_vnni"}, {"asimd"}, set()]
)
def test_processors_that_sum_in_32_bits_do_not_saturate(flags):
    assert not Processor("a processor", 2, frozenset(flags)).saturates


def test_a_plain_file_is_the_same_whatever_processor_wrote_it_and_is_right_as_it_is_written(
    tmp_path, monkeypatch
):
    torch.manual_seed(0)
    model = quantized(Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),)))
    contents = []
    for flags in ({"sse4_1", "avx2"}, {"avx_vnni"}, {"avx512_vnni", "amx_int8"}):
        machine = Processor("a processor", 2, frozenset(flags))
        monkeypatch.setattr(tiles, "processor", lambda machine=machine: machine)
        monkeypatch.setattr(writer, "compare", lambda *_, **__: Comparison(0, 0, "", ()))
        with monkeypatch.context() as lowering:
            lowering.setattr(lower_saturating, "processor", lambda machine=machine: machine)
            assert write_onnx(model, tmp_path / "m.onnx").target == "any"
        contents.append(onnx.load(tmp_path / "m.onnx").graph.SerializeToString())
    assert contents[0] == contents[1] == contents[2]


def test_sums_that_overflow_here_are_told_of_where_a_plain_file_is_written_and_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "processor", lambda: OLD)
    monkeypatch.setattr(lower_saturating, "processor", lambda: OLD)
    monkeypatch.setattr("nncompress.api.compression.int8_speed", None)  # nothing is timed
    torch.manual_seed(0)
    model = quantized(Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),)))
    with pytest.warns(UserWarning, match=r"m\.onnx: 8-bit sums with 2 of its weights may overflow"):
        report = nncompress.export(model, tmp_path / "m.onnx")
    assert report.relative_error < 5e-3  # of kernels that are right here, also where this machine has none
    assert "8-bit sums with 2 of its weights may overflow" in report.int8
    assert "--target ort-cpu" in report.int8
    assert len(saturating_weights(tmp_path / "m.onnx")) == 2
    monkeypatch.setattr(on_onnxruntime, "processor", lambda: OLD)
    (note,) = on_onnxruntime.open_onnx(tmp_path / "m.onnx", 1).notes
    assert "2 of its weights" in note
    assert "nncompress export --target ort-cpu" in note
    monkeypatch.setattr(on_onnxruntime, "processor", lambda: Processor("ARM", 2, frozenset({"asimd"})))
    assert on_onnxruntime.open_onnx(tmp_path / "m.onnx", 1).notes == ()


def test_a_graph_that_is_written_for_here_too_is_converted_once(tmp_path, monkeypatch):
    monkeypatch.setattr(writer, "processor", lambda: OLD)
    monkeypatch.setattr(lower_saturating, "processor", lambda: OLD)
    conversions = []

    def counted(*given, **named):
        conversions.append(given)
        return convert(*given, **named)

    convert = writer.convert
    monkeypatch.setattr(writer, "convert", counted)
    torch.manual_seed(0)
    model = quantized(Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),)))
    report = write_onnx(model, tmp_path / "m.onnx")
    assert "may overflow" in report.int8
    assert len(conversions) == 1
    assert report.relative_error < 5e-3  # of the copy for here: sums of the plain one overflow
    assert len(saturating_weights(tmp_path / "m.onnx")) == 2


def test_openvino_runs_the_plain_file_in_int8_and_the_one_for_old_processors_in_float(tmp_path, monkeypatch):
    pytest.importorskip("openvino")
    monkeypatch.setattr(lower_saturating, "processor", lambda: OLD)
    torch.manual_seed(0)
    model = quantized(Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),)))
    found = {}
    for target in (None, TARGETS["ort-cpu"]):
        write_onnx(model, tmp_path / "m.onnx", target=target)
        layers = open_artifact(tmp_path / "m.onnx", runtime="openvino").layers(torch.rand(1, 8, 6, 6))
        heavy = {layer.precision for layer in layers if layer.kind in ("Convolution", "FullyConnected")}
        found[target and target.name] = heavy
    assert found[None] == {"int8"}
    assert "int8" not in found["ort-cpu"]


def test_a_target_that_takes_symmetric_activations_alone_gets_no_others(tmp_path):
    torch.manual_seed(0)
    model = Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),))
    assert write_onnx(model, tmp_path / "float.onnx", target=TARGETS["tensorrt"]).target == "tensorrt"
    with pytest.raises(UnsupportedError, match="zero point 0 alone") as caught:
        write_onnx(quantized(model), tmp_path / "m.onnx", target=TARGETS["tensorrt"])
    assert "--symmetric-activations" in caught.value.remedy
    assert not (tmp_path / "m.onnx").exists()


@pytest.mark.parametrize("said", ["option", "target"])
def test_symmetric_activations_are_signed_bytes_with_the_zero_0(tmp_path, said):
    torch.manual_seed(0)
    model = Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),))
    context = Context(data=Records(model, 32), target="tensorrt" if said == "target" else None)
    small, (step,) = pipeline.run(model, [Quantize(symmetric_activations=said == "option")], context)
    assert ("TensorRT takes no others" in " ".join(step.notes)) == (said == "target")
    write_onnx(small, tmp_path / "m.onnx", target=TARGETS["tensorrt"])  # compared with ours in floats
    graph = onnx.load(tmp_path / "m.onnx").graph
    stored = {each.name: onnx.numpy_helper.to_array(each) for each in graph.initializer}
    zeros = {
        (n.op_type, str(stored[n.input[2]].dtype), bool(stored[n.input[2]].any()))
        for n in graph.node
        if n.op_type in ("QuantizeLinear", "DequantizeLinear") and len(n.input) > 2
    }
    assert zeros >= {("QuantizeLinear", "int8", False), ("DequantizeLinear", "int8", False)}
    assert all(dtype in ("int8", "int32") and not some for _, dtype, some in zeros)
    x = torch.rand(4, 8, 6, 6)
    error = (small(x) - model(x)).norm() / model(x).norm()
    assert error < 0.05  # one bit less than unsigned ranges have behind a ReLU


def test_a_file_without_8_bit_numbers_is_not_parsed(tmp_path, monkeypatch):
    write_onnx(Model.from_module(Saturating().eval(), (torch.rand(2, 8, 6, 6),)), tmp_path / "m.onnx")
    monkeypatch.setattr(onnx, "load", None)
    assert saturating_weights(tmp_path / "m.onnx") == ()


def test_overflow_is_told_from_the_two_largest_weights_of_one_sign():
    assert overflows(np.array([[127, -127], [2, 0]], np.int8))
    assert not overflows(np.array([[127, -128], [1, 0]], np.int8))
    assert overflows(np.array([-100, -29], np.int8))
    assert not overflows(np.array([-100, -28], np.int8))
    assert not overflows(np.array([-64, -64, 63, 63], np.int8))
    assert not overflows(np.array([127], np.int8))
    rng = np.random.default_rng(0)
    for _ in range(50):
        w = rng.integers(-128, 128, 6).astype(np.int8)
        pairs = [255 * (int(a) + int(b)) for i, a in enumerate(w) for b in w[i + 1 :]]
        assert overflows(w) == (max(pairs) > 32767 or min(pairs) < -32768)
