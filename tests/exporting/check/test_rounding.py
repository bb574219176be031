"""Outputs that rounding takes far from the graph's are right where they are about as far from float."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from records import Records
from torch import nn

from nncompress.analysis.distance import rounding
from nncompress.errors import VerificationError
from nncompress.exporting import write_onnx
from nncompress.exporting.check import compare as verify
from nncompress.exporting.check import openvino as in_openvino
from nncompress.exporting.check.compare import Comparison, compare, differs_without_rounding
from nncompress.exporting.check.onnxruntime import open_session, run
from nncompress.ir import Model
from nncompress.ir.formats.samples import samples_of, verification_inputs
from nncompress.passes import Context, Quantize


@pytest.fixture(scope="module")
def layer():
    torch.manual_seed(0)
    return nn.Linear(64, 16, bias=False)


@pytest.fixture(scope="module")
def quantized(layer):
    """Inputs near 10, of whose common part the outputs have nothing: large steps on a small rest."""
    with torch.no_grad():
        layer.weight -= layer.weight.mean(1, keepdim=True)
    model = Model.from_module(layer.eval(), (torch.randn(2, 64),))
    x = 10 + 0.06 * torch.randn(64, 64)
    Quantize().apply(model, Context(data=Records((x,))))
    return model


@pytest.mark.parametrize(("times", "right"), [(0.9, True), (1.1, True), (1.5, False), (5.0, False)])
def test_a_kernel_may_be_as_far_from_float_as_the_graph(layer, quantized, times, right):
    """The reference is the layer itself, with its rounded weights, in torch's own float64."""
    stored = quantized.tensor("weight_int8").double() * quantized.tensor("weight_scale").double()[:, None]

    def kernel(inputs):
        exact = inputs[0].double() @ stored.T
        rounding = (quantized(*inputs) - exact).norm()
        noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(len(exact)))
        return [(exact + times * rounding * noise / noise.norm()).float()]

    if right:
        found = compare(quantized, kernel, "kernels")
        assert "from float, where the graph is" in found.rounding
        assert found.relative_error > 0.1
        return
    with pytest.raises(VerificationError, match="kernels disagrees") as refused:
        compare(quantized, kernel, "kernels")
    assert "from float, where the graph is" in refused.value.got


def test_a_file_as_it_is_written_has_no_such_excuse(quantized):
    wrong = torch.randn(16, generator=torch.Generator().manual_seed(1))
    with pytest.raises(VerificationError):
        compare(
            quantized,
            lambda inputs: [quantized(*inputs) * (1 + 0.1 * wrong)],
            "kernels",
            precision="int8 as written",
        )


@pytest.mark.parametrize(("last_bit", "right"), [(2.0**-12, True), (2.0**-24, False)])
def test_a_file_as_it_is_written_may_be_as_far_as_last_bits_take_the_graph(
    quantized, last_bit, right, monkeypatch
):
    """Its activations differ by a sixteenth of a step before they are rounded: are those last bits?"""
    monkeypatch.setattr(rounding, "LAST_BIT", last_bit)
    node = next(n for n in quantized.graph.nodes if "quantize_per_tensor" in str(n.target))
    moved = node.args[1] / 16

    def file(inputs):
        noise = torch.randn(inputs[0].shape, generator=torch.Generator().manual_seed(1))
        return [quantized(inputs[0] + moved * noise)]

    if right:
        assert "rounded otherwise" in compare(quantized, file, "it", precision="int8 as written").rounding
        return
    with pytest.raises(VerificationError):
        compare(quantized, file, "it", precision="int8 as written")


@pytest.mark.parametrize(
    ("times", "unlike", "right"), [(1.3, "", True), (1.3, "it has other steps", False), (4, "", False)]
)
def test_a_file_as_it_is_written_may_be_proven_otherwise(quantized, times, unlike, right):
    def file(inputs):
        exact = rounding.without_rounding(quantized)(*inputs)
        noise = torch.randn(exact.shape, generator=torch.Generator().manual_seed(len(exact)))
        return [exact + times * (quantized(*inputs) - exact).norm() * noise / noise.norm()]

    asked = []
    if right:
        found = compare(
            quantized, file, "it", precision="int8 as written", proof=lambda: asked.append(1) or unlike
        )
        assert "from float, where the graph is" in found.rounding
        assert asked == [1]  # of two sizes of a batch
        assert compare(quantized, file, "kernels", proven=file).relative_error > 0.1
        return
    with pytest.raises(VerificationError) as refused:
        compare(quantized, file, "it", precision="int8 as written", proof=lambda: unlike)
    assert unlike in str(refused.value)


def _scaled(file, of):
    """One scale of the file is 5 % larger: of its weights, or of an activation."""
    stored = {each.name: each for each in file.graph.initializer}
    kind = "QuantizeLinear" if of == "activations" else "DequantizeLinear"
    name = next(node for node in file.graph.node if node.op_type == kind).input[1]
    larger = numpy_helper.to_array(stored[name]) * np.float32(1.05)
    stored[name].CopyFrom(numpy_helper.from_array(larger, name))


def _opened(path):
    session = open_session(path, optimised=False)
    return lambda inputs: run(session, inputs)


@pytest.mark.parametrize("of", ["nothing", "weights", "activations"])
def test_the_proof_without_rounding_shows_a_scale_that_is_wrong_by_a_twentieth(of, quantized, tmp_path):
    write_onnx(quantized, tmp_path / "m.onnx")
    file = onnx.load(tmp_path / "m.onnx")
    if of != "nothing":
        _scaled(file, of)
        onnx.save(file, tmp_path / "m.onnx")
    said = {"nothing": "", "weights": "without rounding", "activations": "other steps than the graph"}[of]
    found = differs_without_rounding(quantized, tmp_path / "m.onnx", _opened)
    assert said in found
    assert bool(found) == bool(said)


@pytest.mark.parametrize("suffix", [".onnx", ".xml"])
@pytest.mark.parametrize("of", ["nothing", "weights"])
def test_of_a_file_in_openvino_that_proof_is_asked_too(quantized, tmp_path, monkeypatch, of, suffix):
    openvino = pytest.importorskip("openvino")
    source = tmp_path / "m.onnx"
    write_onnx(quantized, source)
    if of != "nothing":
        file = onnx.load(source)
        _scaled(file, of)
        onnx.save(file, source)
    path = source.with_suffix(suffix)
    if suffix == ".xml":
        openvino.save_model(openvino.Core().read_model(source), path)
    asked, really = [], verify.compare

    def compared(*given, **how):
        asked.append(how)
        return (
            Comparison(0.0, 0.0, "it", (1,)) if "proven" in how or "proof" in how else really(*given, **how)
        )

    monkeypatch.setattr(verify, "compare", compared)
    in_openvino.compare(quantized, path, source=source)
    assert bool(asked[0]["proof"]()) == (of != "nothing")
    assert [how["proven"] is not None for how in asked[1:] if "proven" in how].count(True) >= 1


@pytest.mark.parametrize("of", ["nothing", "weights", "activations"])
def test_the_proof_without_rounding_knows_weights_that_are_unpacked(of, tmp_path):
    """Codes of which most are zero are stored without these: others reach the scale through further nodes."""
    torch.manual_seed(0)
    conv, x = nn.Conv2d(16, 64, 3, bias=False), torch.randn(64, 16, 5, 5)
    with torch.no_grad():
        conv.weight *= torch.rand_like(conv.weight) < 0.1
    model = Model.from_module(conv.eval(), (x[:2],))
    Quantize().apply(model, Context(data=Records((x,))))
    write_onnx(model, tmp_path / "m.onnx")
    file = onnx.load(tmp_path / "m.onnx")
    assert "CumSum" in {node.op_type for node in file.graph.node}
    if of != "nothing":
        _scaled(file, of)
        onnx.save(file, tmp_path / "m.onnx")
    assert bool(differs_without_rounding(model, tmp_path / "m.onnx", _opened)) == (of != "nothing")


def test_nothing_is_explained_where_rounding_has_left_nothing(quantized):
    """All zeros are as far from float as an output that rounding has destroyed."""
    destroyed = quantized.copy()
    node = next(n for n in destroyed.graph.nodes if "quantize_per_tensor" in str(n.target))
    for each in (node, next(iter(node.users))):
        each.args = (each.args[0], 40 * each.args[1], *each.args[2:])
    destroyed.graph_module.recompile()
    with pytest.raises(VerificationError, match="kernels disagrees"):
        compare(destroyed, lambda inputs: [torch.zeros(len(inputs[0]), 16)], "kernels")


def test_files_are_compared_on_the_samples_kept(quantized, tmp_path):
    report = write_onnx(quantized, tmp_path / "m.onnx")
    assert report.relative_error < 1e-3
    (kept,) = samples_of(quantized.inputs)
    (x,) = verification_inputs(quantized, batch=3, seed=7)
    assert torch.equal(x, kept[[7, 0, 1]].float())


def test_the_report_says_where_it_decided_of_a_file_as_it_is_written(quantized, tmp_path, monkeypatch):
    really = verify.compare

    def told(*given, precision="", **named):
        found = really(*given, precision=precision, **named)
        return replace(found, rounding="as far") if precision.endswith("as written") else found

    monkeypatch.setattr(verify, "compare", told)
    assert write_onnx(quantized, tmp_path / "m.onnx").rounding == "as far"


def test_a_file_that_is_wrong_as_it_is_written_is_not_called_right(quantized, tmp_path, monkeypatch):
    really = verify.compare

    def refused(*given, precision="", **named):
        if precision.endswith("as written"):
            raise VerificationError("it disagrees")
        return really(*given, precision=precision, **named)

    monkeypatch.setattr(verify, "compare", refused)
    with pytest.raises(VerificationError, match=r"^it disagrees"):
        write_onnx(quantized, tmp_path / "m.onnx")


@pytest.mark.parametrize("off", [1, 8])
def test_samples_that_a_model_keeps_are_judged_together(off):
    """A value on a boundary takes one of them far from the graph, a wrong scale all of them."""
    torch.manual_seed(0)
    model = Model.from_module(nn.Linear(64, 16).eval(), (torch.randn(2, 64),))
    Quantize().apply(model, Context(data=Records((torch.randn(64, 64),))))
    (kept,) = samples_of(model.inputs)
    moved = kept[1 : 1 + off].float()

    def file(inputs):
        (x,), right = inputs, model(*inputs)
        own = (x[:, None] == moved).all(-1).any(1, keepdim=True)
        sign = torch.randint(0, 2, right.shape, generator=torch.Generator().manual_seed(1)) * 2 - 1
        return [right + 0.04 * own * sign * right.norm(dim=1, keepdim=True) / 4]

    if off == 1:
        assert 0.01 < compare(model, file, "kernels", precision="int8 as written").relative_error < 0.02
        return
    with pytest.raises(VerificationError):
        compare(model, file, "kernels", precision="int8 as written")


class _MovedCodes(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("codes", torch.arange(-6, 6, dtype=torch.int8).reshape(3, 4))

    def forward(self, x):
        ops = torch.ops.quantized_decomposed
        stored = ops.dequantize_per_tensor(self.codes.T, 0.5, 0, -128, 127, torch.int8)
        rounded = ops.quantize_per_tensor(x, 0.25, 128, 0, 255, torch.uint8)
        return ops.dequantize_per_tensor(rounded.flip(1), 0.25, 128, 0, 255, torch.uint8) @ stored


def test_without_rounding_weights_keep_their_scale_whatever_moves_their_codes():
    x = torch.randn(5, 4)
    model = Model.from_module(_MovedCodes().eval(), (x,))
    floats = rounding.without_rounding(model)(x)
    torch.testing.assert_close(floats, x.flip(1) @ (0.5 * torch.arange(-6.0, 6).reshape(3, 4).T))
