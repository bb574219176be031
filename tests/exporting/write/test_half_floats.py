"""Int8 for a runtime that computes floats in the types of the file: float16 between 8-bit layers."""

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn
from torch.nn import functional as F

from nncompress import pipeline
from nncompress.errors import UnsupportedError
from nncompress.exporting import write_onnx
from nncompress.exporting.write.half_floats import in_float16
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.passes import Context, Quantize
from nncompress.targets import TARGETS, written_for
from tests.passes.quantize.test_quantize import Records

NEWEST = 20  # opset that the first TensorRT 10 reads


class Block(nn.Module):
    def __init__(self, factor: float = 1.0) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c, self.factor = nn.Conv2d(4, 4, 1), factor
        self.norm, self.head = nn.LayerNorm(4), nn.Linear(4, 5)

    def forward(self, x):
        x = torch.relu(self.a(x))
        x = self.c(torch.relu(x + self.b(x)))
        return self.head(self.norm(x.mean((2, 3)) * self.factor * self.factor))


def written(file, factor=1.0):
    torch.manual_seed(0)
    model = Model.from_module(Block(factor).eval(), (torch.randn(2, 3, 6, 6),))
    small, _ = pipeline.run(model, [Quantize()], Context(data=Records(model, 32), target="tensorrt"))
    return small, write_onnx(small, file, target=TARGETS["tensorrt"])


def test_a_file_for_tensorrt_has_the_form_that_it_fuses(tmp_path):
    small, report = written(tmp_path / "m.onnx")
    assert "tensors of floats in float16; inputs" in report.int8
    with pytest.raises(UnsupportedError, match="with scales in float16"):
        load_model(tmp_path / "m.onnx")
    model = onnx.load(tmp_path / "m.onnx")
    onnx.checker.check_model(model, full_check=True)
    properties = {each.key: each.value for each in model.metadata_props}
    assert "of floats in float16" in written_for.notes(properties, "onnxruntime")[0]
    assert max(each.version for each in model.opset_import if not each.domain) <= NEWEST
    stored = {each.name: each for each in model.graph.initializer}
    assert {each.data_type for each in stored.values()} <= {
        TensorProto.FLOAT16,
        TensorProto.INT8,
        TensorProto.INT64,
    }
    ends = [*model.graph.input, *model.graph.output]
    assert {each.type.tensor_type.elem_type for each in ends} == {TensorProto.FLOAT}
    maker = {result: node for node in model.graph.node for result in node.output}
    readers = {name: [n for n in model.graph.node if name in n.input] for name in maker}
    layers = [node for node in model.graph.node if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    for node in model.graph.node:
        if node.op_type.endswith("quantizeLinear") and len(node.input) > 2:
            assert not numpy_helper.to_array(stored[node.input[2]]).any()
    for layer in layers:
        activation, weight = (maker[name] for name in layer.input[:2])
        assert activation.op_type == weight.op_type == "DequantizeLinear"
        assert stored[weight.input[0]].data_type == TensorProto.INT8
        assert len(numpy_helper.to_array(stored[weight.input[1]])) == stored[weight.input[0]].dims[0]
        assert next(each.i for each in weight.attribute if each.name == "axis") == 0
        assert layer.input[2] in stored  # a float bias
    first, second, third, _ = layers
    assert [n.op_type for n in readers[first.output[0]]] == ["Relu"]
    (total,) = readers[second.output[0]]
    assert total.op_type == "Add"
    assert sorted(maker[name].op_type for name in total.input) == ["Conv", "DequantizeLinear"]
    (mean,) = readers[third.output[0]]
    assert mean.op_type == "ReduceMean"  # in floats: nothing that gains by 8 bits reads the convolution
    x = torch.randn(8, 3, 6, 6)
    (got,) = onnxruntime.InferenceSession(tmp_path / "m.onnx").run(None, {"x": x.numpy()})
    expected = small(x).detach().numpy()
    assert np.linalg.norm(got - expected) < 0.05 * np.linalg.norm(expected)


class Joined(nn.Module):
    """Branches of very different range, one of them read by a layer of its own, too."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 1)
        self.d = nn.Conv2d(8, 4, 1)
        with torch.no_grad():
            self.b.weight.mul_(8)

    def forward(self, x):
        a, b = torch.relu(self.a(x)), self.b(x)
        return self.d(torch.cat([a, F.max_pool2d(b, 3, 1, 1)], 1)) + self.c(a)


def test_branches_of_a_concatenation_have_one_scale_in_a_file_for_tensorrt(tmp_path):
    torch.manual_seed(0)
    model = Model.from_module(Joined().eval(), (torch.randn(2, 3, 6, 6),))
    scales = {}
    for target in (None, "tensorrt"):
        options = Quantize(symmetric_activations=True)
        small, _ = pipeline.run(model, [options], Context(data=Records(model, 32), target=target))
        write_onnx(small, tmp_path / "m.onnx", target=TARGETS["tensorrt"])
        graph = onnx.load(tmp_path / "m.onnx").graph
        stored = {each.name: numpy_helper.to_array(each) for each in graph.initializer}
        maker = {result: node for node in graph.node for result in node.output}
        (cat,) = (node for node in graph.node if node.op_type == "Concat")
        around = [maker[name] for name in cat.input]
        around += [node for node in graph.node if cat.output[0] in node.input]
        assert {node.op_type for node in around} == {"DequantizeLinear", "QuantizeLinear"}
        scales[target] = {float(stored[node.input[1]]) for node in around}
    assert len(scales[None]) > 1
    assert len(scales["tensorrt"]) == 1
    (scale,) = scales["tensorrt"]
    assert 0.5 * max(scales[None]) <= scale <= 2 * max(scales[None])


def test_where_float16_overflows_floats_stay_float32_and_the_report_says_so(tmp_path):
    _, report = written(tmp_path / "m.onnx", factor=1e4)
    assert "floats stay float32: in float16" in report.int8
    kinds = {each.data_type for each in onnx.load(tmp_path / "m.onnx").graph.initializer}
    assert TensorProto.FLOAT16 not in kinds


@pytest.mark.parametrize("scale", [1e-3, 2e-6, 3e-8])
def test_weights_with_scales_that_are_coarse_in_float16_keep_their_values(scale):
    codes = np.array([[127, -127, 64, 1], [3, -90, 0, 50]], np.int8)
    scales = np.array([scale, 1e-3], np.float32)
    graph = helper.make_graph(
        [helper.make_node("DequantizeLinear", ["w", "s"], ["y"], axis=0)],
        "weights",
        [],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, (2, 4))],
        [numpy_helper.from_array(codes, "w"), numpy_helper.from_array(scales, "s")],
    )
    model = in_float16(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)]))
    stored = {each.name: numpy_helper.to_array(each) for each in model.graph.initializer}
    assert stored["s"].dtype == np.float16
    got = stored["w"] * stored["s"].astype(np.float64)[:, None]
    unit = np.maximum(scales, 2.0**-24).astype(np.float64)[:, None]
    assert (np.abs(got - codes * scales[:, None]) <= 0.57 * unit).all()  # half a step of float16's own scale
