"""Weights of 4 bits by groups: what is stored, how well, and what other passes make of it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import built_once
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer
from torch import nn

from nncompress import exporting, pipeline
from nncompress.analysis.cost import cost
from nncompress.analysis.observe.moments import InputMoments
from nncompress.data import open_data
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.formats.groups import Groups
from nncompress.ir.layers.weights import layers
from nncompress.loading import load_model
from nncompress.passes import Context, Prune, PruneNodes, Quantize
from nncompress.passes.quantize.equalization.norm_scales import NormScales
from nncompress.recipe import parse_pass
from nncompress.train.quantized import round_per_group

V, D, T = 40, 32, 6


class Decoder(nn.Module):
    """One block of a GPT: attention and MLP on a residual stream, the output layer tied to the embedding.

    GPT-2 stores the weights of its MLP [in, out].
    """

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.place = nn.Embedding(V, D), nn.Embedding(T, D)
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(D), nn.LayerNorm(D), nn.LayerNorm(D)
        self.qkv, self.out = nn.Linear(D, 3 * D), nn.Linear(D, D)
        self.up, self.up_bias = nn.Parameter(0.2 * torch.randn(D, 4 * D)), nn.Parameter(torch.randn(4 * D))
        self.down = nn.Linear(4 * D, D)
        self.head = nn.Linear(D, V, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, ids):
        x = self.embed(ids) + self.place(torch.arange(ids.shape[1]))
        q, k, v = self.qkv(self.norm1(x)).view(*ids.shape, 3, 2, D // 2).permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(x.shape))
        hidden = nn.functional.gelu(self.norm2(x) @ self.up + self.up_bias)
        return self.head(self.norm3(x + self.down(hidden)))


@pytest.fixture(scope="module")
def decoder() -> Model:
    torch.manual_seed(0)
    return Model.from_module(Decoder().eval(), (torch.randint(0, V, (2, T)),))


@pytest.fixture(scope="module")
def data(decoder):
    return open_data(torch.randint(0, V, (64, T), generator=torch.Generator().manual_seed(1)), decoder.inputs)


def rounded(model: Model, data=None, size: int = 16, **options) -> tuple[Model, list]:
    each = Quantize(weight_bits=4, group_size=size, **options)
    result, steps = pipeline.run(model, [each], Context(data=data))
    return result, steps[0].changes


def moved(model: Model, reference: Model, data) -> float:
    ids = next(data.batches(64)).inputs
    with torch.no_grad():
        ours, theirs = model.outputs_of(*ids)[0], reference.outputs_of(*ids)[0]
    return float((ours - theirs).norm() / theirs.norm())


@pytest.mark.parametrize("asymmetric", [False, True])
def test_every_matrix_is_rounded_and_means_what_its_codes_say(decoder, asymmetric):
    result, changes = rounded(decoder, asymmetric=asymmetric)
    assert {change.where for change in changes} == {"embed", "embed#2", "place", "qkv", "out", "up", "down"}
    stored = {name: tensor.numpy() for name, tensor in result.state_dict().items()}
    for layer in layers(result):
        name = layer.weight.name.removesuffix("_int4")
        codes, scales = stored[f"{name}_int4"], stored[f"{name}_scale"]
        assert codes.dtype == np.int8
        assert codes.min() >= -8
        assert codes.max() <= 7
        assert scales.shape == (len(codes), codes.shape[1] // 16)
        zeros = stored[f"{name}_zero"] if asymmetric else np.zeros_like(scales, np.int8)
        means = (codes - np.repeat(zeros, 16, 1)).astype(np.float32) * np.repeat(scales, 16, 1)
        assert np.array_equal(layer.weight.value().numpy(), means)
    assert moved(result, decoder, open_data(torch.randint(0, V, (64, T)), decoder.inputs)) < 0.3


@pytest.mark.parametrize("asymmetric", [False, True])
def test_the_nearest_values_lose_no_more_than_those_of_onnxruntime(asymmetric):
    weight = np.random.default_rng(2).standard_t(4, (24, 64)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 24])],
        [numpy_helper.from_array(np.ascontiguousarray(weight.T), "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])
    quantizer = MatMulNBitsQuantizer(model, block_size=32, is_symmetric=not asymmetric)
    quantizer.process()
    found = {t.name: numpy_helper.to_array(t) for t in quantizer.model.model.graph.initializer}
    packed, scales = (next(v for n, v in found.items() if n.startswith(p)) for p in ("w_Q4", "w_scales"))
    codes = np.stack([packed & 15, packed >> 4], -1).reshape(24, 64).astype(np.float32)
    zeros = np.full((24, 2), 8, np.float32)
    if asymmetric:
        points = next(v for n, v in found.items() if n.startswith("w_zero"))
        zeros = np.stack([points & 15, points >> 4], -1).reshape(24, 2).astype(np.float32)
    theirs = (codes - np.repeat(zeros, 32, 1)) * np.repeat(scales.reshape(24, 2), 32, 1)
    groups = Groups.fit(torch.from_numpy(weight), 32, asymmetric=asymmetric)
    ours = groups.values(groups.codes(torch.from_numpy(weight))).numpy()
    assert np.square(ours - weight).sum() < np.square(theirs - weight).sum()


@pytest.mark.parametrize("rows", [torch.zeros(3, 32), torch.full((3, 32), 1e-44), torch.eye(3, 32) * -2.0])
@pytest.mark.parametrize("asymmetric", [False, True])
def test_what_is_zero_stays_zero(rows, asymmetric):
    groups = Groups.fit(rows, 16, asymmetric=asymmetric)
    values = groups.values(groups.codes(rows))
    assert torch.isfinite(values).all()
    assert torch.equal(values[rows == 0], rows[rows == 0].abs())
    assert torch.allclose(values, rows, rtol=0.1, atol=1e-40)


def test_data_makes_the_outputs_err_less(decoder, data):
    far = {rounding: moved(rounded(decoder, data, rounding=rounding)[0], decoder, data)
           for rounding in ("nearest", "auto")}  # fmt: skip
    assert far["auto"] < 0.9 * far["nearest"]
    assert moved(rounded(decoder)[0], decoder, data) == far["nearest"]


@built_once
def outlying() -> Model:
    """A decoder with some large inputs behind its norms, as trained ones have them."""
    torch.manual_seed(0)
    net = Decoder().eval()
    with torch.no_grad():
        net.norm1.weight[::7] *= 20
        net.norm2.weight[3::5] *= 20
    return Model.from_module(net, (torch.randint(0, V, (2, T)),))


def test_scales_of_inputs_are_taken_back_in_the_norm(data):
    model = outlying()
    products = [layer for layer in layers(model) if layer.kind == "linear" and layer.name != "embed#2"]
    original = model.copy()
    norms = NormScales(model, products, lambda layer: layer.weight.value(), 16, asymmetric=False)
    moments = InputMoments(model, {each.name: [each] for each in products}, data.input_batches(64, None))
    scales = {each.name: norms.of(each, moments[each.name].second[0]) for each in products}
    assert scales["qkv"] is not None
    assert scales["out"] is scales["down"] is None  # behind no norm
    for each in products:
        found = scales[each.name]
        if found is not None:
            each.weight.assign(each.weight.value() * found)
    vectors = norms.vectors()
    assert {name.partition(".")[0] for name in vectors} == {"norm1"}  # the other's product is no linear layer
    for name, vector in vectors.items():
        model.tensor(name).detach().copy_(vector)
    assert moved(model, original, data) < 1e-5


def test_scales_of_inputs_lower_the_error(data, monkeypatch):
    model = outlying()
    scaled = moved(rounded(model, data, size=32)[0], model, data)
    monkeypatch.setattr("nncompress.passes.quantize.equalization.norm_scales.POWERS", (0.0,))
    assert scaled < 0.97 * moved(rounded(model, data, size=32)[0], model, data)


def test_a_pt2_holds_four_bits_and_loads_to_the_bit(decoder, tmp_path):
    wide = nn.Sequential(nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 64))
    for asymmetric in (False, True):
        model = rounded(Model.from_module(wide, (torch.randn(2, 512),)), asymmetric=asymmetric, size=64)[0]
        exporting.write_pt2(model, tmp_path / "m.pt2")
        again = load_model(tmp_path / "m.pt2")
        assert all(torch.equal(again.state_dict()[n], t) for n, t in model.state_dict().items())
        assert (tmp_path / "m.pt2").stat().st_size < 0.2 * 4 * 512 * 576  # 5 bits of 32, and the graph


def test_bytes_and_zeros_are_counted():
    linear = nn.Linear(64, 8, bias=False)
    with torch.no_grad():
        linear.weight[:, 1::2] = 0
    model = Model.from_module(linear, (torch.randn(2, 64),))
    for asymmetric, points in ((False, 0), (True, 8 * 2 // 2)):
        found = cost(rounded(model, size=32, asymmetric=asymmetric)[0])
        assert found.bytes == 8 * 64 // 2 + 4 * 8 * 2 + points
        assert found.parameters == 8 * 64
        assert 8 * 64 // 4 < found.nonzero <= 8 * 64 // 2


def test_what_is_quantized_is_left_alone(decoder):
    once = rounded(decoder)[0]
    again, changes = rounded(once)
    assert again is once
    assert not any(change.applied for change in changes)


def test_convolutions_and_kept_layers_are_left(decoder):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(64, 16), nn.Linear(16, 16))
    result, changes = rounded(Model.from_module(net, (torch.randn(2, 3, 6, 6),)), keep=("3",))
    said = {change.where: change.what for change in changes}
    assert "convolution" in said["0"]
    assert "--keep" in said["3"]
    assert [layer.weight.quantized for layer in layers(result)] == [False, True, False]


def test_inputs_go_in_whole_groups(decoder, data):
    """Removing hidden units of a rounded model: 16 of them share scales, and go together."""
    given = rounded(decoder)[0]
    result, steps = pipeline.run(given, [PruneNodes(ratio=0.4, exclude=("embed*",))], Context(data=data))
    assert steps[0].changed
    widths = {layer.name: layer.weight.value().shape for layer in layers(result)}
    assert widths["down"][1] < 4 * D
    assert widths["down"][1] % 16 == 0
    assert widths["up"] == (widths["down"][1], D)
    assert all(layer.weight.group_size == 16 for layer in layers(result))
    assert result.state_dict()["down.weight_scale"].shape == (D, widths["down"][1] // 16)


def test_small_weights_become_zero(decoder):
    given = rounded(decoder, asymmetric=True)[0]
    result = pipeline.run(given, [Prune(sparsity=0.5)], Context())[0]
    assert 0.4 < cost(result).nonzero / cost(given).parameters < 0.6


def test_a_gradient_passes_the_rounding():
    groups = Groups.fit(torch.randn(4, 32), 16, asymmetric=True)
    x = torch.randn(4, 32, requires_grad=True)
    assert groups.zeros is not None
    value = round_per_group(x, groups.scales, groups.zeros, -8, 7, torch.int8, 16, torch.float32)
    value.sum().backward()
    assert torch.equal(value, groups.values(groups.codes(x)))
    assert set(x.grad.unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("group-size=32", "4 bits"),
        ("asymmetric=true", "--group-size"),
        ("weight-bits=4,group-size=48", "power of two"),
        ("weight-bits=4,group-size=32,mode=dynamic", "--mode weights"),
        ("weight-bits=4,group-size=32,calibration=entropy", "without --calibration"),
        ("weight-bits=4,group-size=32,max-drop=1", "without --max-drop"),
        ("weight-bits=4,group-size=512", "--group-size"),
    ],
)
def test_options_that_do_not_fit(text, said):
    with pytest.raises(UsageError, match=said):
        parse_pass(f"quantize:{text}")


def test_a_group_that_does_not_divide(decoder):
    with pytest.raises(UsageError, match="does not divide the inputs of embed") as caught:
        rounded(decoder, size=64)
    assert "--group-size 32" in caught.value.remedy
    convolution = Model.from_module(nn.Conv2d(3, 4, 3), (torch.randn(2, 3, 6, 6),))
    with pytest.raises(UsageError, match="no linear layer or embedding"):
        rounded(convolution)
    with pytest.raises(UsageError, match="needs data"):
        rounded(decoder, rounding="adaptive")


def test_the_recorded_pass_is_the_pass(decoder):
    each = parse_pass("quantize:weight-bits=4,group-size=32,asymmetric=true")
    assert parse_pass(str(each)) == each
    assert each.mode == "weights"
