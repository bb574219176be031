"""`share`: the papers' table, the fit, what is stored, what is skipped."""

from __future__ import annotations

from dataclasses import replace

import networks
import pytest
import torch
from records import Whole
from torch import Tensor, nn
from torch.nn import functional as F

from nncompress import exporting, pipeline, zoo
from nncompress.analysis.cost import cost
from nncompress.analysis.observe.moments import RIDGES, with_ridge
from nncompress.data import Batch
from nncompress.errors import ModelFileError, UsageError
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes
from nncompress.ir.layers.weights import layers
from nncompress.loading import load_model
from nncompress.passes import Context, Share
from nncompress.passes.share.blocks import find_blocks
from nncompress.passes.share.candidates import find_groups
from nncompress.passes.share.fit import Problem, fit
from nncompress.passes.share.merge import merge_cheapest
from nncompress.passes.share.moments import held_out_ridge
from nncompress.zoo import architecture

# Three of ShaResNet's (Boulch 2018) Table 1: parameters in M, convolutions of the paper's, then our count.
TABLE_1 = [
    # name        before  after  decrease  paper's convolutions  layers that lose their own weight
    ("wrn-40-4", "8.95", "5.85", 35, 40, 25, 12),
    ("resnet34", "21.8", "13.6", 37, 34, 20, 12),
    ("resnet50", "25.6", "20.5", 20, 50, 38, 9),
]


def on_meta(name: str) -> Model:
    """The graph without weights."""
    each = architecture(name)
    with torch.device("meta"):
        return Model.from_module(getattr(zoo, each.factory)().eval(), (torch.empty(2, *each.shape),))


@pytest.mark.parametrize(("name", "before", "after", "decrease", "convs", "shared_convs", "tied"), TABLE_1)
def test_parameters_of_the_papers_table_1(name, before, after, decrease, convs, shared_convs, tied):
    model = on_meta(name)
    shapes = Shapes(model)
    groups, _ = find_groups(model, shapes, "auto", "auto")
    saved = sum((len(group) - 1) * group[0].weight.value().numel() for group in groups)
    parameters = architecture(name).parameters
    decimals = len(before.partition(".")[2])
    assert f"{parameters / 1e6:.{decimals}f}" == before
    assert f"{(parameters - saved) / 1e6:.{decimals}f}" == after
    assert int(100 * saved / parameters) <= decrease <= round(100 * saved / parameters) + 1
    assert sum(len(group) - 1 for group in groups) == tied
    # The paper's own count is the depth less (blocks − stages), but for ResNet-34.
    blocks = find_blocks(model, shapes)
    stages = len({block.stage for block in blocks})
    assert convs - (len(blocks) - stages) == (shared_convs if name != "resnet34" else 22)


class Records(Whole):
    """Noise of one shape."""

    has_labels = False

    def __init__(self, *shape: int) -> None:
        self.x = torch.randn(64, *shape, generator=torch.Generator().manual_seed(7))

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, batch_size, limit=None, shuffle_seed=None):
        for start in range(0, min(limit or 64, 64), batch_size):
            yield Batch((self.x[start : start + batch_size],), None)


def run(model: Model, *passes: Share, data: Records | None = None) -> tuple[Model, list[pipeline.Step]]:
    return pipeline.run(model, list(passes), Context(data=data))  # type: ignore[arg-type]


def tensors_of(model: Model) -> dict[str, int]:
    return {layer.name.partition("#")[0]: id(model.tensor(layer.weight.name)) for layer in layers(model)}


def test_without_data_the_weight_is_the_mean_and_has_all_its_names():
    model = networks.model("stages")
    names = [f"convolutions.{i}.weight" for i in (1, 3)]
    mean = torch.stack([model.tensor(name) for name in names]).mean(0)
    result, (step,) = run(model, Share(saving=1))
    shared = [result.tensor(name) for name in names]
    assert shared[0] is shared[1]
    torch.testing.assert_close(shared[0], mean)
    assert step.before.parameters - step.after.parameters == mean.numel() + 12 * 12 * 9
    changed = [change.where for change in step.changes if change.applied]
    assert changed == ["convolutions.1", "convolutions.3", "convolutions.5", "conv2"]


def test_which_and_first_blocks():
    model = networks.model("stages")

    def found(**options) -> list[list[str]]:
        groups, _ = find_groups(model, Shapes(model), **{"which": "auto", "first_blocks": "auto"} | options)
        return [[layer.name for layer in group] for group in groups]

    assert found() == [["convolutions.1", "convolutions.3"], ["convolutions.5", "conv2"]]
    assert found(first_blocks="keep") == [["convolutions.1", "convolutions.3"]]
    assert found(which="all-3x3") == [
        [f"convolutions.{i}" for i in range(4)],
        ["convolutions.5", "conv1", "conv2"],
    ]
    assert found(exclude=["conv*1"]) == [["convolutions.5", "conv2"]]


def test_a_second_run_changes_nothing():
    once, _ = run(networks.model("stages"), Share(saving=1))
    twice, (step,) = run(once, Share(saving=1))
    assert not step.changed
    assert twice is once


def test_gradients_add_up():
    result, _ = run(networks.model("stages"), Share(saving=1))
    x = torch.randn(3, 3, 8, 8)
    shared = result.tensor("convolutions.1.weight")
    result(x).square().sum().backward()
    total = shared.grad.clone()
    # The same function with the weight untied: one gradient per use.
    apart = result.copy()
    second = next(layer for layer in layers(apart) if layer.name == "convolutions.1#2")
    from nncompress.ir.edit.nodes import add_tensor, read_tensor, set_argument

    name = add_tensor(apart, "apart", shared.detach())
    set_argument(second.node, 1, read_tensor(apart, name, second.node))
    apart.graph_module.recompile()
    apart.graph_module.zero_grad()
    apart(x).square().sum().backward()
    one, two = apart.tensor("convolutions.1.weight").grad, apart.tensor(name).grad
    assert one.norm() > 0
    assert two.norm() > 0
    torch.testing.assert_close(total, one + two, rtol=1e-4, atol=1e-5)


class Wide(nn.Module):
    """Two residual blocks of 32 channels: the shared weight is most of the file."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 1)
        self.convolutions = nn.ModuleList(nn.Conv2d(32, 32, 3, padding=1, bias=False) for _ in range(6))
        self.norms = nn.ModuleList(nn.BatchNorm2d(32) for _ in range(6))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for i in range(0, 6, 2):
            y = F.relu(self.norms[i](self.convolutions[i](x)))
            x = F.relu(self.norms[i + 1](self.convolutions[i + 1](y)) + x)
        return x.mean((2, 3))


@pytest.fixture(scope="module")
def wide() -> Model:
    torch.manual_seed(0)
    module = Wide()
    with torch.no_grad():
        for _ in range(10):
            module(torch.randn(16, 3, 8, 8))
    return Model.from_module(module.eval(), (torch.zeros(2, 3, 8, 8),))


@pytest.mark.parametrize("suffix", [".pt2", ".onnx", ".safetensors"])
def test_files_hold_one_copy(wide, tmp_path, suffix):
    result, _ = run(wide, Share(saving=1))
    files = [
        exporting.write(m, tmp_path / f"{i}{suffix}", read_back=False) for i, m in enumerate((wide, result))
    ]
    sizes = [file.bytes for file in files]
    one = 32 * 32 * 9 * 4
    assert 2 * one - 8000 < sizes[0] - sizes[1] < 2 * one + 8000
    if suffix == ".pt2":
        loaded = load_model(tmp_path / f"1{suffix}")
        assert cost(loaded).parameters == cost(result).parameters
        x = torch.randn(2, 3, 8, 8)
        torch.testing.assert_close(loaded(x), result(x))


def held(moment):
    return lambda: moment


def test_the_fit_without_scales_is_the_least_squares_solution():
    generator = torch.Generator().manual_seed(1)
    weights = torch.randn(3, 1, 5, 18, generator=generator, dtype=torch.float64)
    roots = torch.randn(3, 1, 40, 18, generator=generator, dtype=torch.float64)
    problems = [Problem(w, 9, held(r.transpose(1, 2) @ r / 40)) for w, r in zip(weights, roots)]
    found = fit(problems)
    # The same by stacking the records of all layers, each layer scaled to unit power.
    x, y = [], []
    for w, r in zip(weights, roots):
        power = (r[0] @ w[0].T).square().mean(0).sum().sqrt()
        x.append(r[0] / power)
        y.append(r[0] @ w[0].T / power)
    best = torch.linalg.lstsq(torch.cat(x), torch.cat(y), driver="gelsd").solution.T
    torch.testing.assert_close(found.weight[0], best, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("scaled", ["outputs", "inputs"])
def test_layers_that_differ_in_scales_alone_are_recovered(scaled):
    generator = torch.Generator().manual_seed(2)
    base = torch.randn(1, 6, 36, generator=generator, dtype=torch.float64)
    problems = []
    for _ in range(3):
        scale = torch.rand(6 if scaled == "outputs" else 4, generator=generator, dtype=torch.float64) + 0.5
        wide = scale[:, None] if scaled == "outputs" else scale.repeat_interleave(9)
        root = torch.randn(80, 36, generator=generator, dtype=torch.float64)
        problems.append(Problem(base * wide, 9, held((root.T @ root / 80)[None]), scaled))
    plain = [Problem(p.weight, 9, p.moment) for p in problems]
    assert max(fit(problems, turns=60).errors) < 0.02 * min(fit(plain).errors)


def test_batch_norms_make_up_for_weights_that_differ_in_scale(wide):
    model = wide.copy()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for i in (3, 5):
            scale = torch.rand(32, 1, 1, 1, generator=generator) + 0.5
            model.tensor(f"convolutions.{i}.weight").copy_(model.tensor("convolutions.1.weight") * scale)
    plain, scaled = (
        run(model, Share(saving=1, rescale=flag), data=Records(3, 8, 8))[1][0] for flag in (False, True)
    )
    errors = [sum(c.numbers.get("relative_error", 0) for c in step.changes) for step in (plain, scaled)]
    assert errors[1] < 0.1 * errors[0]
    assert scaled.drift[0].relative < 0.5 * plain.drift[0].relative


def test_a_scale_in_the_batch_norm_is_exact(wide):
    from nncompress.passes.share.scales import norm_after, norm_before, scale_inputs, scale_outputs

    model = wide.copy()
    x = torch.randn(2, 3, 8, 8)
    before = model(x)
    layer = next(layer for layer in layers(model) if layer.name == "convolutions.1")
    assert norm_after(model, layer) is not None
    assert norm_before(model, layer) is not None
    outputs = (torch.rand(32, dtype=torch.float64) + 0.5) * torch.where(torch.arange(32) % 3 == 0, -1, 1)
    inputs = torch.rand(32, dtype=torch.float64) + 0.5
    scale_outputs(model, layer, outputs)
    scale_inputs(model, layer, inputs)
    assert (model(x) - before).norm() > 0.1 * before.norm()
    layer.weight.assign(layer.weight.value() / outputs[:, None, None, None] / inputs[:, None, None])
    torch.testing.assert_close(model(x), before, rtol=1e-4, atol=1e-5)


def test_data_lowers_the_error_of_the_output(wide):
    data = Records(3, 8, 8)
    blind, informed = run(wide, Share(saving=1))[1][0], run(wide, Share(), data=data)[1][0]
    assert informed.drift[0].relative < blind.drift[0].relative


def test_the_ridge_follows_from_the_samples_that_are_held_out():
    """Against all ridges tried on further samples of the same inputs, which lie near a subspace."""
    torch.manual_seed(0)
    mixing = torch.randn(4, 24, dtype=torch.float64)

    def moment(count: int) -> Tensor:
        rows = torch.randn(count, 4, dtype=torch.float64) @ mixing + 0.3 * torch.randn(count, 24).double()
        return (rows.T @ rows / count).unsqueeze(0)

    problems = [Problem(torch.randn(1, 8, 24, dtype=torch.float64), 1) for _ in range(3)]

    def error(fitted: list[Tensor], true: list[Tensor], ridge: float) -> float:
        lifted = [replace(p, moment=lambda m=m: with_ridge(m, ridge)) for p, m in zip(problems, fitted)]
        moved = [p.weight - fit(lifted).weight for p in problems]
        own = [float(((p.weight @ m) * p.weight).sum()) for p, m in zip(problems, true)]
        return sum(float(((d @ m) * d).sum()) / o for d, m, o in zip(moved, true, own))

    chosen = []
    for count in (6, 2000):
        fitted, held, true = ([moment(n) for _ in problems] for n in (count, max(4, count // 3), 20000))
        ridge = held_out_ridge(problems, [lambda m=m: m for m in fitted], [lambda m=m: m for m in held])
        assert error(fitted, true, ridge) <= 1.02 * min(error(fitted, true, each) for each in RIDGES)
        chosen.append(ridge)
    assert chosen[0] > chosen[1]


def test_adaptive_ties_the_layers_that_are_alike(wide):
    model = wide.copy()
    alike = model.tensor("convolutions.1.weight")
    with torch.no_grad():
        model.tensor("convolutions.5.weight").copy_(alike * 1.01)
    result, (step,) = run(model, Share(adaptive=True, saving=0.5))
    changed = [change.where for change in step.changes if change.applied]
    assert changed == ["convolutions.1", "convolutions.5"]
    assert max(change.numbers["relative_error"] for change in step.changes if change.applied) < 1e-3
    assert cost(model).parameters - cost(result).parameters == 32 * 32 * 9


@pytest.mark.parametrize(
    ("data", "savings"), [(None, {0.2: 1, 0.7: 3, 1.0: 4}), (Records(3, 8, 8), {0.7: 3})]
)
def test_what_is_shared_stays_shared_when_more_is_shared_later(wide, data, savings):
    """One tensor is one candidate, however many layers read it: neither torn apart nor counted again."""
    first, _ = run(wide, Share(adaptive=True, saving=0.5))
    tensors = tensors_of(first)
    assert sum("#2" in layer.name for layer in layers(first)) == 1
    for saving, pairs in savings.items():
        more, (step,) = run(first, Share(which="all-3x3", adaptive=True, saving=saving), data=data)
        assert cost(first).parameters - cost(more).parameters == pairs * 32 * 32 * 9
        assert sum(change.numbers.get("tied", 0) for change in step.changes if change.applied) == pairs
        changed = {change.where for change in step.changes if change.applied}
        for name in tensors:
            same = torch.equal(more.tensor(f"{name}.weight"), first.tensor(f"{name}.weight"))
            assert same != (name in changed) or name == "stem"


def test_merging_stops_when_enough_is_saved_and_counts_parameters():
    positions = [[0.0, 1.0, 10.0], [0.0, 3.0]]

    def error(group: int, cluster: tuple[int, ...]) -> float:
        chosen = [positions[group][i] for i in cluster]
        return max(chosen) - min(chosen)

    apart: list[list[tuple[int, ...]]] = [[(0,), (1,), (2,)], [(0,), (1,)]]
    sizes = [10, 100]  # the second group's pair costs 0.03 a parameter, the first's 0.1
    assert merge_cheapest(apart, sizes, error, 0.5) == [[(0,), (1,), (2,)], [(0, 1)]]
    assert merge_cheapest(apart, sizes, error, 0.9) == [[(2,), (0, 1)], [(0, 1)]]
    assert merge_cheapest(apart, sizes, error, 1.0) == [[(0, 1, 2)], [(0, 1)]]
    tied: list[list[tuple[int, ...]]] = [[(0, 2), (1,)], [(0,), (1,)]]
    assert merge_cheapest(tied, sizes, error, 1.0) == [[(0, 1, 2)], [(0, 1)]]


@pytest.mark.parametrize("name", ["concat", "attention", "two-outputs", "residual"])
def test_networks_without_two_alike_blocks_are_left_whole(name):
    model = networks.model(name)
    result, (step,) = run(model, Share(saving=1))
    assert result is model
    assert step.changes
    assert all("skipped" in change.what for change in step.changes)


def test_an_encoder_and_its_decoder_are_two_stages():
    class UNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.convolutions = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
            self.join = nn.Conv2d(8, 4, 1)

        def forward(self, x: Tensor) -> Tensor:
            x = self.convolutions[0](x) + x
            x = self.convolutions[1](F.relu(x)) + x
            up = F.interpolate(F.max_pool2d(x, 2), scale_factor=2.0)
            x = self.join(torch.cat([x, up], 1))
            x = self.convolutions[2](F.relu(x)) + x
            return self.convolutions[3](F.relu(x)) + x

    model = Model.from_module(UNet().eval(), (torch.randn(2, 4, 8, 8),))
    assert [block.stage for block in find_blocks(model, Shapes(model))] == [0, 0, 1, 1]


def test_a_saving_needs_no_other_word_and_goes_with_no_bound():
    with pytest.raises(UsageError, match="how much is shared"):
        Share(saving=0.3, relative=0.1)
    with pytest.raises(UsageError, match="--adaptive and --relative"):
        Share(adaptive=True, relative=0.1)
    assert Share(adaptive=True, saving=0.3).saving == Share(saving=0.3).saving
    assert Share(adaptive=True).saving == 0.5


@pytest.mark.parametrize("data", [None, Records(3, 8, 8)])
def test_by_default_only_weights_that_are_nearly_equal_are_shared(wide, data):
    _, (step,) = run(wide, Share(), data=data)
    assert not step.changed
    assert "--saving 1" in step.notes[0]
    model = wide.copy()
    with torch.no_grad():
        alike = model.tensor("convolutions.1.weight")
        model.tensor("convolutions.5.weight").copy_(alike * 1.01)
    _, (step,) = run(model, Share(), data=data)
    assert {c.where for c in step.changes if c.applied} >= {"convolutions.1", "convolutions.5"}
    assert all(c.numbers["relative_error"] <= 1e-3 for c in step.changes if "relative_error" in c.numbers)


def test_a_bound_on_what_every_layer_loses(wide):
    errors = [c.numbers["relative_error"] for c in run(wide, Share(saving=1))[1][0].changes if c.applied]
    for bound in (0.5, 0.9 * max(errors)):
        _, (step,) = run(wide, Share(relative=bound))
        assert all(c.numbers["relative_error"] <= bound for c in step.changes if c.applied)
        assert all("is within" in c.what for c in step.changes if not c.applied)


def test_weights_that_are_not_finite_are_refused(wide):
    model = wide.copy()
    with torch.no_grad():
        model.tensor("convolutions.1.weight")[0, 0, 0, 0] = torch.nan
    with pytest.raises(ModelFileError, match=r"convolutions\.1"):
        Share().requires(model, Context())
