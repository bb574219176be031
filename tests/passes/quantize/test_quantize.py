from functools import partial

import numpy as np
import onnxruntime
import pytest
import torch
from exact_integers import Exact
from records import Records as Arrays
from records import Whole
from torch import nn
from torch.nn import functional as F

import nncompress
from nncompress import exporting, pipeline
from nncompress.data import Batch
from nncompress.errors import DataError, UnsupportedError, UsageError
from nncompress.exporting import write_pt2
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.ir import Model
from nncompress.ir.formats.qdq import QParams, round_weight
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context, Factorize, Prune, Quantize
from nncompress.targets import TARGETS
from tests.exporting.networks import convolutional, language

# For this machine's kernels, whatever it is.
write_onnx = partial(exporting.write_onnx, target=TARGETS["ort-cpu"])


class Records(Whole):
    """A small data set of random records for a model."""

    def __init__(self, model: Model, count: int = 64) -> None:
        self.inputs = model.example_inputs(max(count, 1), seed=11) if count else ()
        self.count = count

    def batches(self, batch_size, limit=None, shuffle_seed=None):
        for start in range(0, min(self.count, limit or self.count), batch_size):
            yield Batch(tuple(x[start : start + batch_size] for x in self.inputs), None)


def run(model: Model, *passes, data=None) -> tuple[Model, list]:
    result, steps = pipeline.run(model, passes, Context(data=data or Records(model)))
    return result, [change for step in steps for change in step.changes]


def relative_error(model: Model, reference: Model) -> float:
    inputs = model.example_inputs(16, seed=99)
    pairs = zip(model.outputs_of(*inputs), reference.outputs_of(*inputs))
    return max(float((a - b).norm() / b.norm()) for a, b in pairs)


def pairs_of(model: Model) -> int:
    return sum(op_name(node) == "quantize_per_tensor" for node in model.graph.nodes)


@pytest.mark.parametrize("method", ["mse", "min-max", "percentile", "entropy"])
@pytest.mark.parametrize("make", [convolutional, language])
def test_outputs_stay_close(make, method):
    model = make()
    result, changes = run(model, Quantize(calibration=method))
    assert all(layer.weight.quantized for layer in layers(result))
    assert {c.where for c in changes if c.applied} == {layer.name for layer in layers(model)}
    assert 1e-4 < relative_error(result, model) < (0.2 if method == "entropy" else 0.05)


def test_finer_weights_are_closer():
    model = convolutional()
    errors = [relative_error(run(model, Quantize(weight_bits=b))[0], model) for b in (3, 5, 8)]
    assert errors[0] > 2 * errors[1] > 2 * errors[2]


def test_weights_are_rounded_to_the_nearest_step_per_channel():
    weight = torch.randn(6, 4, 3, 3) * torch.logspace(-3, 1, 6).reshape(-1, 1, 1, 1)
    weight[2] = 0
    stored, scales = round_weight(weight, 0)
    for channel in range(6):
        step = float(weight[channel].abs().max()) / 127
        if channel != 2:
            assert float(scales[channel]) == pytest.approx(step, rel=1e-6)
        error = (stored[channel] * scales[channel] - weight[channel]).abs().max()
        assert float(error) <= step / 2 * (1 + 1e-5)
    assert int(stored.min()) >= -127  # symmetric: -128 is not used


def test_activation_grids_cover_their_range():
    for low, high in ((0.0, 6.0), (-1.3, 2.9), (-5.0, 0.0), (0.0, 1e-6)):
        grid = QParams.covering(low, high)
        values = np.random.default_rng(0).uniform(low, high, 1000)
        stored = np.clip(np.rint(values / grid.scale) + grid.zero_point, 0, 255)
        assert np.abs((stored - grid.zero_point) * grid.scale - values).max() <= grid.scale * 1.001
    relu6 = QParams.covering(0.0, 6.0)
    assert relu6.zero_point == 0
    assert np.float32(relu6.scale) * np.float32(255) <= 6.0  # so that a runtime may drop the clip


def test_zeros_from_prune_stay_zero():
    model, _ = run(convolutional(), Prune(sparsity=0.6))
    zeros = {layer.name: layer.weight.value() == 0 for layer in layers(model)}
    result, _ = run(model, Quantize())
    for layer in layers(result):
        assert (layer.weight.value()[zeros[layer.name]] == 0).all()
    assert sum(int(z.sum()) for z in zeros.values()) > 100


def test_tied_weight_has_one_int8_copy():
    result, changes = run(language(), Quantize())
    tied = [layer for layer in layers(result) if layer.name.startswith("embed")]
    assert len({layer.weight.name for layer in tied}) == 1
    assert len(tied) == 2
    stored = [v for v in result.state_dict().values() if v.dtype == torch.int8]
    assert sorted(v.numel() for v in stored) == [16 * 16, 60 * 16]
    assert any("shared with embed" in change.what for change in changes)


def test_int8_files_are_a_third_of_the_size(tmp_path):
    torch.manual_seed(0)
    model = Model.from_module(
        nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)), (torch.randn(2, 256),)
    )
    result, _ = run(model, Quantize())
    for write, suffix in ((write_pt2, "pt2"), (write_onnx, "onnx")):
        before = write(model, tmp_path / f"a.{suffix}").bytes
        after = write(result, tmp_path / f"b.{suffix}").bytes
        assert after < before / 3
    again = Model.from_exported(torch.export.load(tmp_path / "b.pt2"))
    x = torch.randn(3, 256)
    torch.testing.assert_close(again(x), result(x), rtol=0, atol=0)


def test_a_second_time_changes_nothing():
    once, _ = run(convolutional(), Quantize())
    before = {k: v.clone() for k, v in once.state_dict().items()}
    code = once.graph_module.code
    twice, changes = run(once, Quantize())
    assert changes
    assert not any(change.applied for change in changes)
    assert all("quantized already" in change.what for change in changes)
    assert twice.graph_module.code == code
    assert all(torch.equal(before[k], v) for k, v in twice.state_dict().items())


def test_new_float_layers_among_int8_ones_are_quantized():
    part, _ = run(convolutional(), Quantize(keep=("wide",)))
    left = pairs_of(part)
    whole, changes = run(part, Quantize())
    assert [c.where for c in changes if c.applied] == ["wide"]
    assert all(layer.weight.quantized for layer in layers(whole))
    assert pairs_of(whole) > left
    assert relative_error(whole, convolutional()) < 0.05


@pytest.mark.parametrize("order", [0, 1])
def test_with_factorize_in_any_order(order, tmp_path):
    torch.manual_seed(1)
    low = torch.randn(64, 4) @ torch.randn(4, 64) / 8
    module = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    module[0].weight.data = low
    model = Model.from_module(module, (torch.randn(2, 64),))
    passes = [Factorize(err=1e-6), Quantize()]
    result, _ = run(model, *(passes if order == 0 else passes[::-1]), Quantize())
    found = list(layers(result))
    assert len(found) > 2 or order == 1
    assert all(layer.weight.quantized for layer in found)
    assert relative_error(result, model) < 0.1
    write_onnx(result, tmp_path / "m.onnx")
    assert len(int8_coverage(tmp_path / "m.onnx").int8) == len(found)


def test_keep_leaves_layers_alone():
    result, changes = run(convolutional(), Quantize(keep=("head", "st*")))
    kept = {layer.name for layer in layers(result) if not layer.weight.quantized}
    assert kept == {"head", "stem"}
    assert {c.where for c in changes if "--keep" in c.what} == kept


@pytest.mark.parametrize(
    ("decode", "options"),
    [
        ("matmul", {"weight_bits": 4}),
        ("matmul and bias", {}),
        ("linear", {"mode": "dynamic"}),
        ("linear and bias", {}),
    ],
)
def test_a_weight_read_along_both_dims_runs_in_int8_both_times(decode, options, tmp_path):
    """An autoencoder with tied weights: the decoder multiplies along the other dim."""

    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(24, 16)
            self.bias = nn.Parameter(torch.randn(24)) if "bias" in decode else None

        def forward(self, x):
            code = torch.relu(self.fc(x))
            if "linear" in decode:
                return F.linear(code, self.fc.weight.t(), self.bias)
            product = code @ self.fc.weight
            return product if self.bias is None else product + self.bias

    torch.manual_seed(0)
    model = Model.from_module(Autoencoder().eval(), (torch.randn(2, 24),))
    result, changes = run(model, Quantize(**options))
    assert [change.where for change in changes] == ["fc", "fc#2"]
    assert all("float" not in change.what for change in changes)
    assert 0 < relative_error(result, model) < (0.2 if "weight_bits" in options else 0.05)
    scales = result.tensor("fc.weight_scale")
    assert torch.equal(scales, scales[:1].expand(16))  # one for all, as no kernel takes a scale per input
    write_onnx(result, tmp_path / "m.onnx")  # compares in ONNX Runtime
    assert int8_coverage(tmp_path / "m.onnx").summary() == "2 of 2 in int8"


def test_a_kernel_that_a_transposed_convolution_shares_runs_in_int8_where_it_can():
    class Autoencoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 6, 3, padding=1)

        def forward(self, x):
            code = F.conv_transpose2d(x.repeat(1, 2, 1, 1), self.conv.weight, padding=1)
            return self.conv(torch.relu(code))

    model = Model.from_module(Autoencoder().eval(), (torch.randn(2, 3, 8, 8),))
    _, changes = run(model, Quantize())
    assert {change.where: change.what for change in changes} == {
        "conv": "int8 weights, float arithmetic",
        "conv#2": "int8 weights and activations, shared with conv",
    }


def test_keep_of_one_of_two_tied_layers_keeps_both():
    result, _ = run(language(), Quantize(keep=("embed#2",)))
    assert {layer.name for layer in layers(result) if layer.weight.quantized} == {"mix"}


def test_a_batch_norm_that_is_folded_has_no_name_to_keep():
    model = Model.from_module(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval(), (torch.randn(2, 3, 6, 6),)
    )
    with pytest.raises(UsageError, match="--keep 1 names no layer"):
        run(model, Quantize(keep=("1",)))


def test_contradicting_options_are_refused():
    model = convolutional()
    with pytest.raises(UsageError, match="needs data"):
        pipeline.run(model, [Quantize()], Context())
    with pytest.raises(UsageError, match="--keep nothing\\* names no layer"):
        run(model, Quantize(keep=("nothing*",)))
    with pytest.raises(UsageError, match="no such choice"):
        Quantize(calibration="guess")
    for contradiction in (
        {"mode": "dynamic", "calibration": "entropy"},
        {"mode": "float16", "weight_bits": 4},
        {"percentile": 99.0},
    ):
        with pytest.raises(UsageError, match="quantize: --"):
            Quantize(**contradiction)
    with pytest.raises(UnsupportedError, match="works on float32") as caught:
        run(convolutional(torch.float16), Quantize())
    assert "--keep" not in caught.value.remedy  # nothing would be left
    with pytest.raises(DataError, match="empty"):
        Quantize().apply(model.copy(), Context(data=Records(model, 0)))
    bad = model.copy()
    with torch.no_grad():
        bad.tensor("wide.weight")[0] = float("nan")
    with pytest.raises(UnsupportedError, match="NaN"):
        Quantize().requires(bad, Context(data=Records(model)))
    bare = Model.from_module(nn.Sequential(nn.ReLU()), (torch.randn(2, 3),))
    with pytest.raises(UsageError, match="no layer to quantize"):
        Quantize().requires(bare, Context(data=Records(bare)))


def test_an_int8_onnx_is_quantized_already_and_stays_as_it_is(tmp_path):
    model = Model.from_module(nn.Sequential(nn.Conv2d(2, 4, 3)).eval(), (torch.randn(2, 2, 5, 5),))
    small, _ = pipeline.run(model, [Quantize(weight_bits=7)], Context(data=Records(model, 16)))
    nncompress.export(small, tmp_path / "m.onnx")
    read = nncompress.load(tmp_path / "m.onnx")
    again, (step,) = pipeline.run(read, [Quantize()], Context(data=Records(read, 16)))
    assert [(each.what, each.applied) for each in step.changes] == [("skipped: quantized already", False)]
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), read.state_dict().values()))


def test_a_tiny_channel_with_a_large_bias_does_not_overflow_in_the_runtime(tmp_path):
    torch.manual_seed(2)
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 36, 5))
    with torch.no_grad():
        module[0].weight[0] *= 1e-12
        module[0].weight[1] = 0
        module[0].bias[:2] = torch.tensor([3.0, 0.4])
        module[3].weight[0] = 0
    model = Model.from_module(module, (torch.randn(2, 3, 8, 8),))
    result, _ = run(model, Quantize())
    assert relative_error(result, model) < 0.05
    assert write_onnx(result, tmp_path / "m.onnx").relative_error < 0.02


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("size", [1e-30, 3e-44])
@pytest.mark.filterwarnings("error:divide by zero")
def test_activations_next_to_nothing_are_zeros_and_not_a_division_by_zero(size, symmetric, tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4)).eval()
    with torch.no_grad():
        net[0].weight *= size
        net[0].bias *= size
    model = nncompress.load(net, input="1x8")
    result, _ = run(model, Quantize(symmetric_activations=symmetric))
    assert relative_error(result, model) < 0.02  # what its last bias says
    write_onnx(result, tmp_path / "m.onnx")


def test_biases_are_what_an_integer_kernel_stores(tmp_path):
    """3-bit weights have large units: unrounded, a bias moves one value in twenty by a step."""

    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3, groups=2)
            self.head = nn.Linear(128, 5)

        def forward(self, x):
            return self.head(self.second(self.first(x).relu()).relu().flatten(1))

    torch.manual_seed(0)
    model = Model.from_module(Plain().eval(), (torch.randn(2, 3, 8, 8),))
    result, _ = run(model, Quantize(weight_bits=3))
    for layer in layers(result):
        scales = result.tensor(str(layer.weight.source.args[1].target)).double()
        assert layer.bias is not None
        counts = layer.bias.value().double() / (scales * QParams.of(layer.data).scale)
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-4)
        assert not torch.equal(layer.bias.value(), model.tensor(layer.bias.name))
    exporting.write(result, tmp_path / "m.onnx")
    x = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    exact = Exact(result)
    expected = exact.run(x.double())[0].detach().numpy()
    certain = exact.nearest_tie.detach().numpy() > 6e-5  # steps: further than float32 errs
    assert certain.mean() > 0.5
    assert np.abs(found - expected)[certain].max() < 1e-6 * np.abs(expected).max()


@pytest.mark.parametrize("low", [0.0, -float("inf")])
def test_an_input_that_is_a_mask_may_be_the_same_everywhere_and_infinite(low):
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.q, self.o = nn.Linear(16, 16), nn.Linear(16, 4)

        def forward(self, x, mask):
            q = self.q(x)
            return self.o(torch.softmax(q @ q.mT + mask, -1) @ q)

    torch.manual_seed(0)
    x, mask = torch.randn(40, 6, 16), torch.triu(torch.full((6, 6), low), 1).expand(40, 6, 6)
    mask = torch.nan_to_num(mask, nan=0.0, neginf=low)
    model = Model.from_module(Masked().eval(), (x[:2], mask[:2]))
    result, changes = run(model, Quantize(), data=Arrays((x, mask)))
    assert [change.where for change in changes if change.applied] == ["q", "o"]
    a, b = result(x, mask), model(x, mask)
    assert float((a - b).norm() / b.norm()) < 0.05
    with pytest.raises(DataError, match="constant"):
        run(model, Quantize(), data=Arrays((0 * x, mask)))


def test_a_batch_norm_that_makes_weights_infinite_is_refused_before_the_work():
    network = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)).eval()
    model = Model.from_module(network, (torch.randn(2, 3, 6, 6),))
    model.tensor("1.weight").data.fill_(float("inf"))
    with pytest.raises(UnsupportedError, match="the weight of 0 has NaN or infinite values"):
        Quantize(mode="weights").requires(model, Context())
