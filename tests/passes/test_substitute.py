"""`substitute`: the papers' costs, least-squares beginnings, what is skipped."""

from __future__ import annotations

import networks
import pytest
import torch
from records import Whole
from torch import Tensor, nn
from torch.nn import functional as F

from nncompress import pipeline
from nncompress.analysis.cost import cost
from nncompress.data import Batch
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context, Substitute
from nncompress.passes.substitute import initial
from nncompress.recipe import parse_pass

SIZE = 12


class Net(nn.Module):
    """A convolution of each kernel that has a substitute."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.three = nn.Conv2d(16, 20, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(20)
        self.five = nn.Conv2d(20, 24, 5, padding=2)
        self.seven = nn.Conv2d(24, 20, 7, padding=3)
        self.strided = nn.Conv2d(20, 16, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4)
        self.point = nn.Conv2d(16, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.bn(self.three(x)))
        x = F.relu(self.seven(F.relu(self.five(x))))
        x = F.relu(self.grouped(F.relu(self.strided(x))))
        return self.point(x).mean((2, 3))


class Records(Whole):
    """Correlated images."""

    has_labels = False

    def __init__(self) -> None:
        noise = torch.randn(96, 3, SIZE + 4, SIZE + 4, generator=torch.Generator().manual_seed(7))
        self.x = F.avg_pool2d(noise, 5, 1) * 4 + 0.5

    def __len__(self) -> int:
        return len(self.x)

    def batches(self, batch_size, limit=None, shuffle_seed=None):
        for start in range(0, min(limit or 96, 96), batch_size):
            yield Batch((self.x[start : start + batch_size],), None)


@pytest.fixture(scope="module")
def net() -> Model:
    torch.manual_seed(1)
    module = Net()
    with torch.no_grad():
        for _ in range(10):
            module(Records().x)
    return Model.from_module(module.eval(), (torch.zeros(2, 3, SIZE, SIZE),))


def run(model: Model, *, data: bool = False, **options) -> tuple[Model, pipeline.Step]:
    context = Context(data=Records() if data else None)  # type: ignore[arg-type]
    if not {"layers", "macs", "relative"} & set(options):
        options["relative"] = 1
    result, (step,) = pipeline.run(model, [Substitute(**options)], context)
    return result, step


def macs_of(model: Model, prefix: str) -> int:
    return sum(row.macs for row in cost(model).layers if row.name.startswith(prefix))


PIXELS = SIZE * SIZE


@pytest.mark.parametrize(
    ("options", "layer", "formula"),
    [  # METHODS: H·W·m_in(m_out + K²); W·H·K·n(m_in + m_out); the stack by 3×3 convolutions
        ({"with_": "separable"}, "three", PIXELS * 16 * (20 + 9)),
        ({"with_": "separable"}, "five", PIXELS * 20 * (24 + 25)),
        ({"with_": "nonlinear-separable"}, "seven", PIXELS * 24 * (20 + 49)),
        ({"with_": "kernel-composing", "channels": 14}, "five", PIXELS * 5 * 14 * (20 + 24)),
        ({"with_": "kernel-composing", "channels": 7}, "three", PIXELS * 3 * 7 * (16 + 20)),
        ({"with_": "stacked-3x3", "channels": 13}, "five", PIXELS * 9 * 13 * (20 + 24)),
        ({"with_": "stacked-3x3", "channels": 11}, "seven", PIXELS * 9 * (24 * 11 + 11 * 11 + 11 * 20)),
    ],
)
def test_macs_are_the_papers_formulas(net, options, layer, formula):
    result, step = run(net, layers=(layer,), **options)
    assert macs_of(result, f"{layer}.") == formula
    (change,) = [change for change in step.changes if change.applied]
    assert change.numbers["macs_after"] == formula


def test_a_strided_separable_convolution_costs_its_outputs(net):
    result, _ = run(net, layers=("strided",))
    assert macs_of(result, "strided.") == PIXELS // 4 * 20 * (16 + 9)


def test_separable_is_the_best_rank_one_of_each_input_channel():
    weight = torch.randn(6, 4, 5, 5, generator=torch.Generator().manual_seed(3))
    found = initial.dense(list(initial.separable(weight)))
    for channel in range(4):
        matrix = weight[:, channel].flatten(1).double()
        tail = torch.linalg.svdvals(matrix)[1:].square().sum()
        error = (found[:, channel].flatten(1) - matrix).square().sum()
        assert float(error) == pytest.approx(float(tail))


def test_kernel_composing_is_the_spatial_svd():
    weight = torch.randn(6, 4, 5, 3, generator=torch.Generator().manual_seed(4))
    first, second = initial.kernel_composing(weight, 7)
    assert (first.shape, second.shape) == ((7, 4, 1, 3), (6, 7, 5, 1))
    matrix = weight.double().permute(1, 3, 0, 2).reshape(12, 30)
    tail = torch.linalg.svdvals(matrix)[7:].square().sum()
    error = (initial.compose([first, second]) - weight).square().sum()
    assert float(error) == pytest.approx(float(tail))
    assert initial.compose(list(initial.kernel_composing(weight, 40))).sub(weight).norm() < 1e-6


def test_compose_is_what_two_convolutions_do():
    generator = torch.Generator().manual_seed(5)
    a, b = (torch.randn(*s, generator=generator, dtype=torch.float64) for s in ((4, 3, 3, 3), (5, 4, 3, 3)))
    x = torch.randn(2, 3, 9, 9, generator=generator, dtype=torch.float64)
    torch.testing.assert_close(F.conv2d(F.conv2d(x, a), b), F.conv2d(x, initial.compose([a, b])))


@pytest.mark.parametrize("size", [5, 7])
def test_a_stack_recovers_a_kernel_that_is_one(size):
    generator = torch.Generator().manual_seed(6)
    count = (size - 1) // 2
    parts = [torch.randn(4, 4, 3, 3, generator=generator) for _ in range(count)]
    weight = initial.compose([p.double() for p in parts])
    kernels = initial.stacked(weight, 8)
    assert [k.shape for k in kernels] == [(8, 4, 3, 3), *[(8, 8, 3, 3)] * (count - 2), (4, 8, 3, 3)]
    assert float((initial.compose(kernels) - weight).norm() / weight.norm()) < 0.1


def test_each_kernel_of_a_stack_is_the_least_squares_solution_given_the_others():
    generator = torch.Generator().manual_seed(8)
    weight = torch.randn(5, 4, 7, 7, generator=generator, dtype=torch.float64)
    shapes = [(6, 4, 3, 3), (6, 6, 3, 3), (5, 6, 3, 3)]
    kernels = [torch.randn(*s, generator=generator, dtype=torch.float64) / 6 for s in shapes]
    power = weight.square().sum()
    for position in (0, 1, 2, 0):
        before = initial.compose(kernels[:position]) if position else None
        after = initial.compose(kernels[position + 1 :]) if position < 2 else None
        worse = (initial.compose(kernels) - weight).square().sum()
        kernel = initial._solve(weight, before, after, kernels[position]).requires_grad_(True)
        error = (
            (initial.compose([*kernels[:position], kernel, *kernels[position + 1 :]]) - weight).square().sum()
        )
        error.backward()
        assert float(error.detach()) < float(worse)
        if position != 1:  # the one within takes several turns
            assert float(kernel.grad.norm()) < 1e-5 * float(power.sqrt())
        kernels[position] = kernel.detach()
    found = initial.stacked(weight, 6)
    assert float((initial.compose(found) - weight).square().sum()) < 0.2 * float(power)


@pytest.mark.parametrize("with_", ["kernel-composing", "stacked-3x3"])
def test_activations_in_between_start_as_the_identity(net, with_):
    x = torch.randn(3, 3, SIZE, SIZE)
    bent, linear = (run(net, with_=with_, layers=("five",), linear=flag)[0] for flag in (False, True))
    torch.testing.assert_close(bent(x), linear(x))
    assert any("prelu" in str(node.target) for node in bent.graph.nodes)
    assert not any("prelu" in str(node.target) for node in linear.graph.nodes)


def test_the_norm_and_relu_in_between_hardly_bend_at_first(net):
    x = Records().x[:16]
    plain, bent = (run(net, with_=f"{kind}separable", layers=("five",))[0] for kind in ("", "nonlinear-"))
    before, data = plain(x), run(net, with_="nonlinear-separable", layers=("five",), data=True)[0]
    assert any("batch_norm" in str(n.target) for n in bent.graph.nodes)
    # Statistics of these images, and a refit: closer to the original than the plain rank 1.
    reference = net(x)
    assert (data(x) - reference).norm() < (before - reference).norm()


def test_the_shift_of_the_norm_is_taken_out_exactly():
    """Where no value lies 3 deviations below its mean, ReLU passes everything."""
    torch.manual_seed(2)
    module = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 6, 3, padding=1)).eval()
    model = Model.from_module(module, (torch.zeros(2, 3, SIZE, SIZE),))
    x = model.example_inputs(batch=8, seed=0)[0] * 0.3  # the statistics are those of this input, unscaled
    plain, bent = (run(model, with_=f"{kind}separable")[0] for kind in ("", "nonlinear-"))
    torch.testing.assert_close(bent(x), plain(x), rtol=1e-3, atol=1e-4)


def test_data_brings_the_output_closer(net):
    blind, informed = (run(net, data=flag)[0] for flag in (False, True))
    x = Records().x
    reference = net(x).detach()
    errors = [float((m(x).detach() - reference).norm()) for m in (blind, informed)]
    assert errors[1] < 0.7 * errors[0]


def test_the_first_convolution_is_left_alone_unless_it_is_named(net):
    result, step = run(net)
    reasons = {change.where: change.what for change in step.changes if not change.applied}
    assert reasons["stem"] == "skipped: the first convolution"
    assert reasons["point"] == "skipped: 1×1"
    assert reasons["grouped"] == "skipped: grouped"
    assert "stem" in {layer.name for layer in layers(result)}
    named, _ = run(net, with_="kernel-composing", layers=("stem",))
    assert "stem" not in {layer.name for layer in layers(named)}


def test_a_budget_takes_what_saves_most_and_stops(net):
    _, step = run(net, macs=0.7)
    changed = [change.where for change in step.changes if change.applied]
    assert changed == ["seven"]
    assert step.after.macs <= 0.7 * step.before.macs


def test_channels_follow_from_the_ratio(net):
    for kind, layer in (("kernel-composing", "five"), ("stacked-3x3", "seven")):
        _, step = run(net, with_=kind, layers=(layer,), ratio=0.4)
        for change in step.changes:
            if change.applied:
                share = change.numbers["macs_after"] / change.numbers["macs_before"]
                assert 0.3 < share <= 0.4


def test_what_would_cost_more_is_left(net):
    result, step = run(net, with_="kernel-composing", layers=("five",), channels=200)
    assert result is net
    assert "multiply less" in step.changes[0].what


def test_layers_that_share_a_weight_share_the_substitute():
    from nncompress.passes import Share

    shared, _ = pipeline.run(networks.model("stages"), [Share(saving=1)], Context())
    result, step = run(shared)
    changed = [change.where for change in step.changes if change.applied]
    assert "convolutions.1" in changed
    assert "convolutions.3" not in changed
    assert step.after.parameters < step.before.parameters
    names = [layer.name for layer in layers(result)]
    assert {"convolutions.1.0", "convolutions.1.0#2"} <= set(names)


@pytest.mark.parametrize("with_", ["separable", "nonlinear-separable"])
@pytest.mark.parametrize("option", [{"ratio": 0.3}, {"channels": 4}, {"linear": True}])
def test_options_of_other_operations_are_refused(with_, option):
    with pytest.raises(UsageError, match=f"--{next(iter(option))} goes with"):
        Substitute(with_=with_, **option)
    assert Substitute(with_="stacked-3x3", **option)


def test_channels_and_ratio_say_the_same():
    with pytest.raises(UsageError, match="how many channels"):
        Substitute(with_="kernel-composing", channels=4, ratio=0.3)


def test_a_named_layer_that_is_no_convolution_is_reported():
    parts = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 16, 3), nn.Flatten(), nn.Linear(16 * 64, 4)
    model = Model.from_module(nn.Sequential(*parts).eval(), (torch.zeros(2, 3, SIZE, SIZE),))
    _, step = run(model, layers=("1", "3"))
    assert {c.where: c.what for c in step.changes if not c.applied} == {"3": "skipped: not a convolution"}
    assert [c.where for c in step.changes if c.applied] == ["1"]
    _, step = run(model)
    assert "3" not in [change.where for change in step.changes]


def test_a_model_without_convolutions_is_told_so():
    model = Model.from_module(nn.Linear(3, 4).eval(), (torch.zeros(2, 3),))
    _, step = run(model)
    assert [c.what for c in step.changes] == ["skipped: it has no convolution with a stored weight"]


def test_a_shared_weight_goes_by_the_name_of_any_of_its_layers():
    from nncompress.passes import Share

    shared, _ = pipeline.run(networks.model("stages"), [Share(saving=1)], Context())
    _, step = run(shared, layers=("convolutions.1#2",))
    assert [change.where for change in step.changes] == ["convolutions.1"]


def test_by_default_only_what_a_convolution_can_do_without_is_replaced(net):
    (step,) = pipeline.run(net, [Substitute()], Context())[1]
    assert not step.changed
    assert "--relative 1" in step.notes[0]
    assert any("of its weight" in change.what for change in step.changes)
    separable = net.copy()  # a convolution that is one already: the outer product of its inputs and outputs
    with torch.no_grad():
        weight = separable.tensor("three.weight")
        weight.copy_(torch.randn(len(weight), 1, 1, 1) * weight[:1])
    (step,) = pipeline.run(separable, [Substitute()], Context())[1]
    assert [change.where for change in step.changes if change.applied] == ["three"]
    assert step.drift[0].relative < 1e-4


def test_an_unknown_layer_is_refused(net):
    with pytest.raises(UsageError, match="no layer is called head"):
        run(net, layers=("head",))


def test_the_option_is_spelt_with_everywhere():
    made = parse_pass("substitute:with=stacked-3x3,layers=a+b")
    assert made == Substitute(with_="stacked-3x3", layers=("a", "b"))
    assert made.settings() == {"with": "stacked-3x3", "layers": ["a", "b"]}
    assert parse_pass(str(made)) == made
    with pytest.raises(UsageError, match="--with has no such choice"):
        Substitute(with_="magic")
