import networks
import pytest
import torch
from records import images
from torch import nn

import nncompress
from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.ir.formats.precision import convert, has_other_floats, in_precision
from nncompress.passes import Context, Quantize
from nncompress.runtimes import open_artifact


@pytest.mark.parametrize(("precision", "tolerance"), [("float16", 0.01), ("bfloat16", 0.06)])
@pytest.mark.parametrize("name", ["residual", "attention", "tied"])
def test_outputs_stay_close_in_half_precision(name, precision, tolerance):
    model = networks.model(name)
    half = in_precision(model, precision)
    dtypes = {tensor.dtype for tensor in half.state_dict().values() if tensor.is_floating_point()}
    assert dtypes == {getattr(torch, precision)}
    inputs = networks.inputs(name, 8)
    expected = model(*inputs).detach()
    got = half(*(x.to(spec.torch_dtype()) for x, spec in zip(inputs, half.inputs))).detach()
    assert got.dtype == getattr(torch, precision)
    assert 0 < float((got.float() - expected).norm() / expected.norm()) < tolerance
    assert model.inputs[0].dtype != precision


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
@pytest.mark.parametrize("name", ["residual", "attention", "tied"])
def test_a_model_of_16_bits_becomes_one_of_float32(name, precision):
    """With the weights that it has: as exact as its own graph with these in float32."""
    half = in_precision(networks.model(name), precision)
    wide = half.copy()
    assert convert(wide, "float32")
    assert {t.dtype for t in wide.state_dict().values() if t.is_floating_point()} == {torch.float32}
    assert [spec.dtype for spec in wide.inputs] == [spec.dtype for spec in networks.model(name).inputs]
    rounded = networks.model(name).copy()
    for key in rounded.state_dict():
        rounded.tensor(key).data = half.tensor(key).to(rounded.tensor(key).dtype)
    inputs = networks.inputs(name, 8)
    torch.testing.assert_close(wide(*inputs), rounded(*inputs), rtol=1e-4, atol=1e-5)
    assert not convert(wide, "float32")


def test_a_quantized_model_has_no_half_precision():
    model = networks.model("residual")
    Quantize().apply(model, Context(data=images(32, None)))
    with pytest.raises(UnsupportedError, match="quantized"):
        in_precision(model, "float16")


class Masked(nn.Module):
    """Two float inputs and one of integers, a mask of −∞ and a constant beyond float16."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.head = nn.Embedding(7, 4), nn.Linear(4, 4)
        self.register_buffer("mask", torch.zeros(3, 3).masked_fill(torch.ones(3, 3).triu(1) > 0, -torch.inf))

    def forward(self, x: torch.Tensor, tokens: torch.Tensor, shift: torch.Tensor) -> tuple[torch.Tensor, ...]:
        y = self.head(x + self.table(tokens)) + shift
        scores = (y @ y.transpose(1, 2) + self.mask).masked_fill(tokens[:, None] == 0, -1e9)
        return scores.softmax(2) @ y, tokens + 1


def test_several_inputs_of_several_types_keep_them_where_the_ends_stay_float32():
    torch.manual_seed(0)
    inputs = (torch.randn(2, 3, 4), torch.tensor([[1, 2, 0], [3, 6, 5]]), torch.randn(2, 1, 4))
    model = Model.from_module(Masked().eval(), inputs)
    half = model.copy()
    converted = convert(half, "float16", float32_ends=True)
    assert half.inputs == model.inputs
    assert {name for name, _ in converted} == {"table.weight", "head.weight", "head.bias", "mask"}
    with torch.no_grad():
        expected, got = model.outputs_of(*inputs), half.outputs_of(*inputs)
    assert [y.dtype for y in got] == [torch.float32, torch.int64]
    assert torch.equal(got[1], expected[1])
    assert 0 < float((got[0] - expected[0]).abs().max()) < 5e-3  # finite: −1e9 did not become −∞
    assert torch.equal(
        in_precision(model, "float16")(inputs[0].half(), inputs[1], inputs[2].half())[0].float(), got[0]
    )


class MaskedByConstant(torch.nn.Module):
    """Adds a mask of -1e9, which float16 cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(4, 4)

    def forward(self, x):
        return torch.softmax(self.fc(x).masked_fill(x < 0, -1e9), -1)


def test_constants_beyond_float16_become_its_ends():
    torch.manual_seed(0)
    model = Model.from_module(MaskedByConstant().eval(), (torch.randn(2, 4),))
    x = torch.tensor([[1.0, -1.0, 2.0, -0.5]])
    got = in_precision(model, "float16")(x.half())
    torch.testing.assert_close(got.float(), model(x).detach(), rtol=1e-2, atol=1e-3)
    assert (got[0, [1, 3]] == 0).all()
    with torch.no_grad():
        model.tensor("fc.weight")[0, 0] = 1e6
    with pytest.raises(UnsupportedError, match=r"fc\.weight holds values beyond 65504"):
        in_precision(model, "float16")
    assert in_precision(model, "bfloat16")(x.bfloat16()).isfinite().all()


class Positions(torch.nn.Module):
    """Reads positions and counts, floats that no float gave their dtype."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(6, 4)

    def forward(self, x, tokens):
        places = torch.linspace(-1, 1, 4).expand(x.shape[0], 4)
        share = (tokens > 2).sum(1, keepdim=True) / tokens.shape[1]
        return self.fc(torch.cat([places + torch.arange(4) / 4, x, share], 1))


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_floats_made_in_the_graph_are_of_its_precision(precision):
    """They stayed float32, and the first layer that read them refused."""
    torch.manual_seed(0)
    x, tokens = torch.randn(3, 1), torch.tensor([[1, 2, 3, 4], [3, 4, 5, 1], [5, 5, 5, 5]])
    model = Model.from_module(Positions().eval(), (x, tokens))
    half = in_precision(model, precision)
    got = half(x.to(half.inputs[0].torch_dtype()), tokens)
    assert got.dtype == getattr(torch, precision)
    torch.testing.assert_close(got.float(), model(x, tokens), rtol=0.05, atol=0.03)


class Shares(torch.nn.Module):
    """An output of no float that was read."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = torch.nn.Linear(8, 8)

    def forward(self, x):
        return self.fc(x), (x > 0).sum(1) / 8


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_float32_ends_are_all_that_were_float32(precision):
    x = torch.randn(3, 8)
    model = Model.from_module(Shares().eval(), (x,))
    convert(model, precision, float32_ends=True)
    assert [y.dtype for y in model.outputs_of(x)] == [torch.float32] * 2


def test_other_floats_are_weights_inputs_or_what_is_computed():
    class Rounded(torch.nn.Module):
        def forward(self, x):
            return x.half().float()

    x = torch.randn(2, 4)
    assert has_other_floats(Model.from_module(Rounded(), (x,)))
    assert has_other_floats(Model.from_module(torch.nn.Softmax(-1), (x.half(),)))
    assert has_other_floats(Model.from_module(torch.nn.Linear(4, 2).bfloat16(), (x.bfloat16(),)))
    assert has_other_floats(Model.from_module(torch.nn.Linear(4, 2).double(), (x.double(),)))
    assert not has_other_floats(Model.from_module(torch.nn.Linear(4, 2), (x,)))


class WithoutKernels(nn.Module):
    """Distances and determinants, which torch computes in no halves."""

    def __init__(self):
        super().__init__()
        self.layer, self.centres = nn.Linear(8, 4), nn.Parameter(torch.randn(5, 4))

    def forward(self, x):
        h = self.layer(x)
        return torch.cdist(h, self.centres) * 2, torch.linalg.det(h.view(-1, 2, 2)) + 1


def test_ops_without_a_kernel_of_halves_stay_in_float32_and_are_named(tmp_path):
    module = WithoutKernels().eval()
    model = Model.from_module(module, (torch.randn(2, 8),))
    left = [c.where for c in Quantize(mode="float16").apply(model, Context()) if not c.applied]
    assert left == ["cdist behind centres", "det behind layer"]
    assert model.tensor("layer.weight").dtype == torch.float16
    x = torch.randn(2, 8)
    nncompress.export(model, tmp_path / "m.pt2")
    nncompress.export(model, tmp_path / "m.onnx")
    written = tuple(map(torch.from_numpy, open_artifact(tmp_path / "m.onnx").run(x)))
    for got in (model(x), nncompress.load(tmp_path / "m.pt2")(x), written):
        torch.testing.assert_close(got, module(x), rtol=0.02, atol=0.02)
