"""Weights of 4 bits by groups in `.onnx`: what is stored, what runs it, and that it is read back exactly."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from networks import built_once
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import nn

from nncompress import exporting, pipeline
from nncompress.errors import UnsupportedError
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.loading import load_model
from nncompress.passes import Context, Quantize

ROWS, WIDTH, SIZE = 24, 48, 16  # 3 groups: an odd number of zero points in a row


class Words(nn.Module):
    """A table that is the output layer too, a product over tokens and one over records."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix, self.pool = nn.Embedding(ROWS, WIDTH), nn.Linear(WIDTH, 32), nn.Linear(32, 4)
        self.back = nn.Linear(32, WIDTH)
        self.head = nn.Linear(WIDTH, ROWS, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        hidden = torch.tanh(self.mix(self.embed(ids)))
        return self.head(self.back(hidden)), self.pool(hidden.mean(1))


@built_once
def words(asymmetric: bool) -> Model:
    torch.manual_seed(0)
    model = Model.from_module(Words().eval(), (torch.randint(0, ROWS, (2, 5)),))
    each = Quantize(weight_bits=4, group_size=SIZE, asymmetric=asymmetric)
    return pipeline.run(model, [each], Context())[0]


def stored_in(path) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    file = onnx.load(path)
    return file, {tensor.name: numpy_helper.to_array(tensor) for tensor in file.graph.initializer}


def attributes(node: onnx.NodeProto) -> dict:
    return {a.name: helper.get_attribute_value(a) for a in node.attribute}


@pytest.fixture(scope="module", params=[(False, None), (True, "ort-cpu")], ids=["plain", "ort-cpu"])
def written(request, tmp_path_factory):
    """(model, target, file, its report)."""
    asymmetric, target = request.param
    model, path = words(asymmetric), tmp_path_factory.mktemp("written") / "m.onnx"
    return model, target, path, exporting.write(model, path, target=target)


def test_a_file_is_read_back_to_the_bit(written):
    model, _, path, report = written
    assert report.bytes < 40_000
    again = load_model(path)
    ours, theirs = model.state_dict(), again.state_dict()
    grouped = [name for name in ours if name.endswith(("_int4", "_scale", "_zero"))]
    assert all(torch.equal(theirs[name], ours[name]) for name in grouped)
    assert [layer.weight.group_size for layer in layers(again)] == [SIZE] * 5
    ids = torch.randint(0, ROWS, (3, 5))
    for a, b in zip(model.outputs_of(ids), again.outputs_of(ids), strict=True):
        assert torch.allclose(a, b, atol=1e-5)


def test_products_run_on_kernels_for_4_bits(written):
    coverage = int8_coverage(written[2])
    assert {name for _, name in coverage.int4} == {"mix", "back", "pool", "embed"}
    assert not coverage.float
    assert "4 of 4 with weights of 4 bits" in written[3].int8


def test_what_the_file_holds(written):
    model, target, path, report = written
    file, stored = stored_in(path)
    weight = next(layer.weight for layer in layers(model) if layer.name == "mix")
    if target is None:
        assert next(each.version for each in file.opset_import if not each.domain) == 21
        assert {node.domain for node in file.graph.node} <= {"", "ai.onnx"}
        assert stored["mix.weight_int4_in_out"].dtype.name == "int4"
        scales = np.repeat(stored["mix.weight_scale_in_out"], SIZE, 0)
        codes = stored["mix.weight_int4_in_out"].astype(np.float32)
        assert np.array_equal((codes * scales).T, weight.value().numpy())
        return
    assert "accuracy level 4" in report.int8
    products = {node.name: node for node in file.graph.node if node.op_type == "MatMulNBits"}
    assert set(products) == {"mix", "back", "pool", "embed"}
    given = attributes(products["embed"])
    assert given == {"K": WIDTH, "N": ROWS, "bits": 4, "block_size": SIZE, "accuracy_level": 4}
    packed = stored[products["embed"].input[1]].reshape(ROWS, -1)
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(ROWS, WIDTH).astype(np.int8) - 8
    assert np.array_equal(codes, model.state_dict()["embed.weight_int4"].numpy())
    assert [node.op_type for node in file.graph.node].count("GatherBlockQuantized") == 1


class Outlier(nn.Module):
    """One channel is a thousand times as large as those beside it, and its weights are 0."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("large", torch.ones(WIDTH).index_fill(0, torch.tensor([3]), 1000.0))
        self.mix = nn.Linear(WIDTH, ROWS)
        with torch.no_grad():
            self.mix.weight[:, 3] = 0

    def forward(self, x):
        return self.mix(x * self.large)


def test_where_rounding_what_is_multiplied_takes_outputs_too_far_it_stays_floats(tmp_path):
    torch.manual_seed(0)
    model = Model.from_module(Outlier().eval(), (torch.randn(2, WIDTH),))
    small = pipeline.run(model, [Quantize(weight_bits=4, group_size=SIZE)], Context())[0]
    report = exporting.write(small, tmp_path / "m.onnx", target="ort-cpu")
    file, _ = stored_in(tmp_path / "m.onnx")
    (product,) = (attributes(node) for node in file.graph.node if node.op_type == "MatMulNBits")
    assert product["accuracy_level"] == 1
    assert "accuracy level 1, slower: their inputs are not rounded" in report.int8
    assert report.relative_error < 1e-3


def test_the_mobile_format_takes_it(tmp_path):
    report = exporting.write(words(True), tmp_path / "m.ort")
    assert report.relative_error is not None
    assert report.bytes < 40_000


def product(width: int, bits: int, tmp_path, **options):
    """A file of one product, rounded by ONNX Runtime's own quantizer; its path and its weight."""
    weight = np.random.default_rng(0).standard_normal((width, 32)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "fc.weight"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 32])],
        [numpy_helper.from_array(weight, "fc.weight")],
    )
    quantizer = MatMulNBitsQuantizer(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10),
        bits=bits,
        **options,
    )
    quantizer.process()
    onnx.save(quantizer.model.model, tmp_path / "theirs.onnx")
    return tmp_path / "theirs.onnx", weight


@pytest.mark.parametrize("symmetric", [True, False])
def test_files_of_onnxruntimes_quantizer_are_read(symmetric, tmp_path):
    path, weight = product(64, 4, tmp_path, block_size=32, is_symmetric=symmetric)
    model = load_model(path)  # which compares it with ONNX Runtime
    (layer,) = layers(model)
    assert layer.weight.group_size == 32
    error = (layer.weight.value().numpy() - weight.T).astype(np.float64)
    assert np.square(error).sum() < 0.03 * np.square(weight).sum()


def test_other_forms_are_refused(tmp_path):
    path, _ = product(64, 8, tmp_path, block_size=32)
    with pytest.raises(UnsupportedError, match="MatMulNBits"):
        load_model(path)
    path, _ = product(40, 4, tmp_path, block_size=32)
    with pytest.raises(UnsupportedError, match="MatMulNBits"):
        load_model(path)


class Bytes(nn.Module):
    """What other tools make: groups of 8 bits."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("codes", torch.randint(-128, 128, (8, 32), dtype=torch.int8))
        self.register_buffer("scales", 0.01 + torch.rand(8, 2))

    def forward(self, x):
        dequantize = torch.ops.quantized_decomposed.dequantize_per_channel_group
        bounds = (-128, 127, torch.int8, 16, torch.float32)
        return nn.functional.linear(x, dequantize(self.codes, self.scales, None, *bounds))


def test_groups_of_8_bits_stay_8_bits(tmp_path):
    torch.manual_seed(0)
    model = Model.from_module(Bytes(), (torch.randn(2, 32),))
    (layer,) = layers(model)
    assert layer.weight.group_size == 16
    exporting.write(
        model, tmp_path / "m.onnx", target="ort-cpu"
    )  # which compares it, without rounding to 1e-3
    _, stored = stored_in(tmp_path / "m.onnx")
    assert any(np.array_equal(each, model.state_dict()["codes"].numpy().T) for each in stored.values())
