"""The options of `quantize` beyond static int8: modes, budgets of bytes and of accuracy, rounding, biases."""

from functools import partial
from itertools import pairwise

import numpy as np
import onnx
import pytest
import torch
from networks import built_once
from torch import nn

from nncompress import exporting, pipeline
from nncompress.analysis.cost import cost
from nncompress.analysis.curvature.fisher import fisher_information
from nncompress.data import Batch
from nncompress.errors import UnsupportedError, UsageError
from nncompress.exporting import write_pt2
from nncompress.exporting.check.int8_coverage import int8_coverage
from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name
from nncompress.ir.layers.weights import layers
from nncompress.loading import load_model
from nncompress.passes import Context, Prune, Quantize
from nncompress.passes.base import NEAR
from nncompress.passes.quantize.equalization.cross_layer import equalize, pairs
from nncompress.targets import TARGETS
from tests.exporting.networks import convolutional, language
from tests.passes.quantize.test_quantize import Records, relative_error, run

# For this machine's kernels, whatever it is.
write_onnx = partial(exporting.write_onnx, target=TARGETS["ort-cpu"])


class Labelled(Records):
    """Records labelled with what the model itself says."""

    spec = "labelled"
    classes = None

    def __init__(self, model: Model, count: int = 64) -> None:
        super().__init__(model, count)
        self.labels = model(*self.inputs).argmax(1)

    def require_labels(self, purpose, remedy=""):
        pass

    def planned_samples(self, limit=None):
        return min(self.count, limit or self.count)

    def batches(self, batch_size, limit=None, shuffle_seed=None):
        for start in range(0, min(self.count, limit or self.count), batch_size):
            piece = slice(start, start + batch_size)
            yield Batch(tuple(x[piece] for x in self.inputs), self.labels[piece])


@built_once
def perceptron(*widths: int) -> Model:
    torch.manual_seed(3)
    parts = [nn.Sequential(nn.Linear(i, o), nn.ReLU()) for i, o in pairwise(widths)]
    return Model.from_module(nn.Sequential(*parts[:-1], parts[-1][0]), (torch.randn(2, widths[0]),))


@pytest.mark.parametrize("make", [convolutional, language])
@pytest.mark.parametrize("mode", ["weights", "dynamic", "float16"])
def test_modes_stay_close_and_the_file_says_the_same(make, mode, tmp_path):
    model = make()
    result, _ = pipeline.run(model, [Quantize(mode=mode)], Context())
    assert 1e-5 < relative_error(result, model) < 0.03
    write_onnx(result, tmp_path / "m.onnx")  # compares in ONNX Runtime
    write_pt2(result, tmp_path / "m.pt2")
    again = load_model(tmp_path / "m.pt2")
    inputs = model.example_inputs(3)
    assert all(torch.equal(a, b) for a, b in zip(again.outputs_of(*inputs), result.outputs_of(*inputs)))


def test_dynamic_products_run_in_int8(tmp_path):
    model = perceptron(64, 128, 10)
    result, _ = pipeline.run(model, [Quantize(mode="dynamic")], Context())
    report = write_onnx(result, tmp_path / "m.onnx")
    assert [kernel for kernel, _ in int8_coverage(tmp_path / "m.onnx").int8] == ["DynamicQuantizeMatMul"] * 2
    assert report.relative_error < 1e-5  # the same ranges, the same integers
    x = torch.randn(4, 64)
    assert float((result(100 * x) / 100 - model(100 * x) / 100).norm() / model(x).norm()) < 0.05  # own range


def test_weights_mode_needs_no_data_and_computes_in_float(tmp_path):
    model = perceptron(64, 128, 10)
    result, steps = pipeline.run(model, [Quantize(mode="weights")], Context())
    assert all("float arithmetic" in change.what for change in steps[0].changes)
    write_onnx(result, tmp_path / "m.onnx")
    write_onnx(model, tmp_path / "f.onnx")
    assert (tmp_path / "m.onnx").stat().st_size < 0.4 * (tmp_path / "f.onnx").stat().st_size
    kinds = {node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node}
    assert "DequantizeLinear" not in kinds  # which the runtime would compute in every call


def test_float16_computes_in_float16_between_float32_ends():
    model = convolutional()
    result, _ = pipeline.run(model, [Quantize(mode="float16")], Context())
    assert all(layer.weight.value().dtype == torch.float16 for layer in layers(result))
    assert result(*model.example_inputs(2)).dtype == torch.float32
    assert cost(result).bytes < 0.51 * cost(model).bytes
    with pytest.raises(UsageError, match="--keep"):
        Quantize(mode="float16", keep=("head",))
    with torch.no_grad():
        model.tensor("head.bias")[0] = 1e5
    with pytest.raises(UnsupportedError, match="65504"):
        pipeline.run(model, [Quantize(mode="float16")], Context())


def test_four_bits_are_stored_in_four_bits(tmp_path):
    model = perceptron(128, 256, 256, 10)
    result, _ = run(model, Quantize(weight_bits=4))
    weights = sum(layer.weight.value().numel() for layer in layers(model))
    for write, suffix in ((write_pt2, "pt2"), (write_onnx, "onnx")):
        whole = write(model, tmp_path / f"f.{suffix}").bytes
        small = write(result, tmp_path / f"q.{suffix}").bytes
        assert whole - small > 0.8 * weights * (4 - 0.5)
    assert cost(result).bytes < weights / 2 + 8 * 1100
    assert len(int8_coverage(tmp_path / "q.onnx").int8) == 3
    again = load_model(tmp_path / "q.pt2")
    x = torch.randn(3, 128)
    assert torch.equal(again(x), result(x))
    assert [layer.weight.quantized for layer in layers(again)] == [True] * 3


def test_adaptive_rounding_errs_less_and_moves_no_weight_by_more_than_a_step():
    model = perceptron(64, 128, 10)
    mixing = torch.randn(64, 64, generator=torch.Generator().manual_seed(1)) / 4  # correlated inputs
    errors = {}
    for rounding in ("nearest", "adaptive"):
        data = Records(model, 512)
        data.inputs = (data.inputs[0] @ mixing,)
        result, _ = run(model, Quantize(weight_bits=4, rounding=rounding, mode="weights"), data=data)
        fresh = torch.randn(500, 64) @ mixing
        errors[rounding] = float((result(fresh) - model(fresh)).norm() / model(fresh).norm())
        for before, after in zip(layers(model), layers(result)):
            step = result.tensor(f"{before.name}.weight_scale")[:, None]
            moved = (before.weight.value() - after.weight.value()).abs() / step
            inside = before.weight.value().abs() <= 7 * step
            assert float(moved[inside].max()) <= 1 + 1e-4
    assert errors["adaptive"] < 0.7 * errors["nearest"]


def test_fisher_information_is_the_mean_square_of_the_gradients():
    model = perceptron(6, 5, 3)
    inputs = torch.randn(400, 6)
    got = fisher_information(model, ["0.0.weight"], [(inputs[i : i + 1],) for i in range(400)])["0.0.weight"]
    weight = model.tensor("0.0.weight")
    expected, spread = torch.zeros_like(weight), model(inputs[:1]).std(correction=0) * 3**0.5
    for each in inputs:
        outputs = model(each[None])[0]
        for k in range(3):
            expected += torch.autograd.grad(outputs[k], weight, retain_graph=True)[0].square() / 400
    got = got * float(spread) ** 2
    assert float(got.sum() / expected.detach().sum()) == pytest.approx(1, abs=0.15)
    assert np.corrcoef(got.flatten(), expected.detach().flatten())[0, 1] > 0.9


def test_a_budget_of_bytes_is_kept_where_it_costs_least():
    model = perceptron(64, 128, 128, 10)
    whole = cost(model).bytes
    errors = {}
    for size in (0.16, 0.2, 0.27):
        result, changes = run(model, Quantize(size=size, rounding="nearest"))
        assert 0.8 * size * whole < cost(result).bytes <= size * whole
        errors[size] = relative_error(result, model)
        assert {change.numbers["bits"] for change in changes} <= {4, 8}
    assert errors[0.16] > errors[0.2] > errors[0.27]
    with pytest.raises(UsageError, match="cannot be reached"):
        run(model, Quantize(size=0.05))
    with pytest.raises(UsageError, match="one of --size and --max-drop"):
        Quantize(size=0.2, max_drop=1)


def test_max_drop_leaves_the_worst_layers_in_float():
    model = perceptron(32, 64, 64, 8)
    with torch.no_grad():  # the same function, but one large weight per row takes the second layer's range
        for name in ("0.0.weight", "0.0.bias"):
            model.tensor(name)[0] /= 100
        model.tensor("1.0.weight")[:, 0] *= 100
    data = Labelled(model, 256)
    result, changes = run(
        model, Quantize(weight_bits=6, rounding="nearest", max_drop=10.0, smooth=False), data=data
    )
    kept = [change.where for change in changes if "--max-drop" in change.what]
    assert kept == ["1.0"]
    agree = (result(*data.inputs).argmax(1) == data.labels).double().mean()
    assert agree >= 0.9
    assert {layer.name for layer in layers(result) if not layer.weight.quantized} == set(kept)


@built_once
def cancelling(seed: int) -> Model:
    """The second layer takes large weights times what is equal, beside small ones: int8 leaves nothing."""
    torch.manual_seed(seed)
    first, second = nn.Linear(16, 16), nn.Linear(16, 4)
    with torch.no_grad():
        first.weight[1], first.bias[1] = first.weight[0], first.bias[0]
        second.weight[:, 0], second.weight[:, 1] = 300, -300
    return Model.from_module(nn.Sequential(first, nn.ReLU(), second).eval(), (torch.randn(2, 16),))


@pytest.mark.parametrize("mode", ["weights", "dynamic"])
def test_without_data_no_rounding_moves_the_outputs_far(mode):
    model = cancelling(torch.initial_seed() % 2**31)
    result, (step,) = pipeline.run(model, [Quantize(mode=mode)], Context())
    assert step.drift[0].amount <= NEAR
    assert {change.where: change.applied for change in step.changes} == {"0": True, "2": False}
    assert any("(2)" in note and "--max-drift" in note for note in step.notes)
    x = torch.randn(64, 16)
    with torch.no_grad():
        assert (result(x) - model(x)).norm() / model(x).norm() < 2 * NEAR
    _, (step,) = pipeline.run(model, [Quantize(mode=mode, max_drift=0.99)], Context())
    assert step.drift[0].amount > 0.3  # what the bound was for
    assert step.warnings


def test_static_rounding_is_bounded_where_that_is_asked_for():
    model = cancelling(5)
    data = Records(model, 64)
    whole, (step,) = pipeline.run(model, [Quantize(smooth=False)], Context(data=data))
    assert relative_error(whole, model) > 0.3
    assert any("--max-drift 0.05" in warning for warning in step.warnings)  # which is what follows
    near, changes = run(model, Quantize(max_drift=0.05, smooth=False), data=data)
    assert relative_error(near, model) < 0.1
    assert [change.where for change in changes if "--max-drift" in change.what] == ["2"]


def test_what_was_asked_for_by_a_number_is_not_bounded_by_default():
    assert Quantize(mode="weights").drift_bound == Quantize(mode="dynamic").drift_bound == NEAR
    for asked in (Quantize(), Quantize(mode="weights", weight_bits=4), Quantize(mode="dynamic", size=0.2)):
        assert asked.drift_bound is None
    with pytest.raises(UsageError, match="--max-drop and --max-drift"):
        Quantize(max_drop=1, max_drift=0.1)


def test_equalizing_changes_ranges_and_not_the_function():
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1)
    )
    with torch.no_grad():
        module[0].weight *= torch.logspace(-2, 1, 8).reshape(-1, 1, 1, 1)
    model = Model.from_module(module.eval(), (torch.randn(2, 3, 8, 8),))
    x = torch.randn(4, 3, 8, 8)
    before = model(x).detach()
    assert [(p.first.name, p.second.name) for p in pairs(model)] == [("0", "2"), ("2", "4")]
    equalize(model)
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)
    first, second = (model.tensor(f"{i}.weight").abs().flatten(1).amax(1) for i in (0, 2))
    assert float((first / second).log().abs().max()) < 0.2
    assert pairs(convolutional())[:1] == []  # relu6, residuals, batch norms in between


class OtherAxes(nn.Module):
    """Two layers whose features lie along different dims of the same size, or with a pool over features."""

    def __init__(self, between):
        super().__init__()
        first, second = {
            "->": (nn.Conv2d(8, 8, 1), nn.Linear(8, 8)),
            "<-": (nn.Linear(8, 8), nn.Conv2d(8, 8, 1)),
        }.get(between, (nn.Linear(8, 8), nn.Linear(8, 8)))
        self.layers, self.pool = nn.ModuleList([first, second]), between == "pool"

    def forward(self, x):
        x = self.layers[0](x)
        x = (
            torch.nn.functional.max_pool1d(x.flatten(1, 2), 3, 1, 1).unflatten(1, (8, 8))
            if self.pool
            else x.relu()
        )
        return self.layers[1](x)


@pytest.mark.parametrize("between", ["->", "<-", "pool"])
def test_layers_whose_features_lie_along_other_dims_are_not_equalized(between):
    model = Model.from_module(OtherAxes(between).eval(), (torch.randn(2, 8, 8, 8),))
    assert pairs(model) == []


def test_bias_correction_brings_the_means_back():
    model = perceptron(32, 64, 64, 8)
    shifts = {}
    for correct in (False, True):
        data = Records(model, 256)
        data.inputs = (data.inputs[0] + 2,)
        result, _ = run(model, Quantize(weight_bits=3, rounding="nearest", correct_bias=correct), data=data)
        shifts[correct] = float((result(*data.inputs) - model(*data.inputs)).mean(0).abs().max())
    assert shifts[True] < 0.05 * shifts[False]


@pytest.mark.parametrize(
    "options", [{"weight_bits": 4}, {"size": 0.3}, {"mode": "dynamic"}, {"equalize": True}]
)
def test_zeros_from_prune_stay_zero_in_every_mode(options):
    model, _ = run(convolutional(), Prune(sparsity=0.6))
    zeros = {layer.name: layer.weight.value() == 0 for layer in layers(model)}
    result, _ = run(model, Quantize(**options))
    for layer in layers(result):
        assert (layer.weight.value()[zeros[layer.name]] == 0).all()


def test_few_records_are_warned_of_and_an_int8_model_is_no_float16_one():
    model = perceptron(16, 16, 4)
    result, steps = pipeline.run(model, [Quantize()], Context(data=Records(model, 1)))
    assert "a single sample" in " ".join(steps[0].notes)
    with pytest.raises(UnsupportedError, match="quantized already"):
        pipeline.run(result, [Quantize(mode="float16")], Context())
    assert sum(op_name(n) == "quantize_per_tensor" for n in result.graph.nodes) == 2


def test_a_bare_parameter_keeps_its_layer_name_and_every_option_finds_it():
    class Bare(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.matrix, self.shift = nn.Parameter(torch.randn(12, 8)), nn.Parameter(torch.randn(12))
            self.head = nn.Linear(12, 5)

        def forward(self, x):
            return self.head(torch.relu(nn.functional.linear(x, self.matrix, self.shift)))

    torch.manual_seed(9)
    model = Model.from_module(Bare(), (torch.randn(2, 8),))
    result, changes = run(model, Quantize(correct_bias=True))
    assert [layer.name for layer in layers(result)] == ["matrix", "head"]
    assert {change.where for change in changes if change.applied} == {"matrix", "head"}


def test_a_budget_of_bytes_with_an_output_that_is_one_number():
    class Scalar(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.head = nn.Linear(64, 256), nn.Linear(256, 2)

        def forward(self, x):
            y = self.head(torch.relu(self.wide(x)))
            return y, y.square().mean()

    model = Model.from_module(Scalar(), (torch.randn(2, 64),))
    result, _ = run(model, Quantize(size=0.3))
    assert cost(result).bytes <= 0.3 * cost(model).bytes


def test_small_convolutions_are_told_to_gain_nothing():
    from nncompress.passes.quantize.small import PAYS_FROM, too_small

    for pixels, told in ((8, True), (64, False)):  # 27 · 8 products per pixel
        model = Model.from_module(nn.Conv2d(3, 8, 3, padding=1), (torch.randn(2, 3, pixels, pixels),))
        macs = 27 * 8 * pixels**2
        assert (macs < PAYS_FROM) == told
        sentence = too_small(model, list(layers(model)))
        assert (sentence is not None) == told
        assert not told or f"{macs:,}" in str(sentence)


class Spectrum(nn.Module):
    """A layer of complex numbers, and one that reads their parts."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 8, dtype=torch.complex64), nn.Linear(16, 4)

    def forward(self, x):
        return self.b(torch.view_as_real(self.a(x.to(torch.complex64))).flatten(1))


@pytest.mark.parametrize("mode", ["weights", "float16"])
def test_complex_weights_stay_and_are_named(mode):
    given = Model.from_module(Spectrum().eval(), (torch.randn(2, 4),))
    model, changes = run(given, Quantize(mode=mode))
    said = {change.where: change.what for change in changes}
    assert model.tensor("a.weight").dtype == torch.complex64
    assert relative_error(model, given) < 0.02
    assert mode == "float16" or said["a"] == "skipped: complex64 is not rounded"
