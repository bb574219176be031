import io

import networks
import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from nncompress import pipeline
from nncompress.analysis.cost import cost
from nncompress.analysis.weight_targets import find_targets
from nncompress.errors import ModelFileError, UsageError
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes
from nncompress.passes import Context
from nncompress.passes.factorize.options import Factorize
from nncompress.passes.factors.forms.choice import forms_of
from nncompress.passes.factors.replace import replace_layer
from nncompress.passes.quantize.options import Quantize


def low_rank(weight: torch.Tensor, rank: int) -> torch.Tensor:
    """`weight` [o, ...] cut to a rank, by numpy."""
    u, s, v = np.linalg.svd(weight.detach().reshape(len(weight), -1).double().numpy(), full_matrices=False)
    cut = (u[:, :rank] * s[:rank]) @ v[:rank]
    return torch.from_numpy(cut).to(weight.dtype).reshape(weight.shape)


def run(model: Model, **options):
    step = Factorize(**options)
    context = Context()
    step.requires(model, context)
    changes = step.apply(model, context)
    step.ensures(model, changes)
    return [c for c in changes if c.applied], [c for c in changes if not c.applied]


LAYERS = {
    "linear": (nn.Linear(24, 20), (3, 24)),
    "linear on sequences": (nn.Linear(24, 20, bias=False), (3, 5, 24)),
    "strided": (nn.Conv2d(8, 12, 3, stride=2, padding=1), (2, 8, 11, 9)),
    "dilated, uneven": (nn.Conv2d(8, 12, (3, 5), (1, 2), (2, 1), (2, 1)), (2, 8, 13, 12)),
    "same": (nn.Conv2d(8, 12, 3, padding="same"), (2, 8, 7, 7)),
    "pointwise": (nn.Conv2d(16, 24, 1, stride=2, bias=False), (2, 16, 6, 6)),
    "grouped": (nn.Conv2d(16, 24, 3, groups=4), (2, 16, 6, 6)),
    "conv1d": (nn.Conv1d(10, 14, 5, padding=2), (2, 10, 16)),
    "conv3d": (nn.Conv3d(6, 8, 3, padding=1), (2, 6, 4, 5, 6)),
    "transposed": (nn.ConvTranspose2d(12, 10, 3, stride=2, padding=1, output_padding=1), (2, 12, 5, 5)),
    "transposed, grouped": (nn.ConvTranspose2d(12, 8, 4, stride=2, groups=2), (2, 12, 5, 5)),
    "transposed 1d": (nn.ConvTranspose1d(12, 10, 3, dilation=2), (2, 12, 6)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_at_full_rank_every_form_computes_the_same(kind):
    module, shape = LAYERS[kind]
    x = torch.randn(shape, generator=torch.Generator().manual_seed(2))
    for index in range(3):
        model = Model.from_module(module.eval(), (x,))
        shapes = Shapes(model)
        target = find_targets(model, shapes)[0][0]
        forms = forms_of(target, shapes)
        if index >= len(forms):
            break
        form = forms[index]
        ranks = form.full_ranks
        macs, parameters = form.cost(ranks, "macs"), form.cost(ranks, "parameters")
        replace_layer(model, form, form.weights(ranks))
        model.refresh()
        torch.testing.assert_close(model(x), module(x), rtol=1e-4, atol=1e-5)
        assert cost(model).macs == macs
        biases = 0 if module.bias is None else module.bias.numel()
        assert cost(model).parameters == parameters + biases


def test_rank_is_the_lowest_whose_error_stays_below():
    """The papers' loop: lower the rank by one while the error of the rebuilt weight stays below."""
    module = nn.Sequential(nn.Linear(60, 60))
    err = 2e-3
    weight = module[0].weight
    rank = 60
    while rank > 1 and float((weight - low_rank(weight, rank - 1)).detach().square().mean()) < err:
        rank -= 1
    model = Model.from_module(module, (torch.randn(2, 60),))
    applied, _ = run(model, err=err)
    assert [c.numbers["rank"] for c in applied] == [rank]
    x = torch.randn(4, 60)
    reference = F.linear(x, low_rank(weight, rank), module[0].bias)
    torch.testing.assert_close(model(x), reference, rtol=1e-4, atol=1e-5)
    mse = float((weight - low_rank(weight, rank)).detach().square().mean())
    assert applied[0].numbers["mse"] == pytest.approx(mse, rel=1e-4)


def test_factorizes_only_where_it_pays():
    """40x60 pays below rank 40·60 / (40 + 60) = 24 (eq. 2.1)."""
    for rank, pays in ((23, True), (24, False)):
        torch.manual_seed(0)
        module = nn.Linear(60, 40)
        with torch.no_grad():
            module.weight.copy_(low_rank(torch.randn(40, 60), rank))
        model = Model.from_module(module, (torch.randn(2, 60),))
        before = {k: v.clone() for k, v in model.state_dict().items()}
        graph = str(model.graph)
        applied, left = run(model, err=1e-9)
        assert bool(applied) == pays
        if pays:
            assert applied[0].numbers["rank"] == rank
            assert cost(model).macs == rank * 100
        else:
            assert "does not reduce" in left[0].what
            assert str(model.graph) == graph
            assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


class Mixed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(4, 32, 3, padding=1)
        self.depthwise = nn.Conv2d(32, 32, 3, padding=1, groups=32)
        self.up = nn.ConvTranspose2d(32, 16, 2, 2)
        self.bn = nn.BatchNorm2d(16)
        self.head = nn.Linear(16, 12)

    def forward(self, x):
        x = F.relu(self.depthwise(F.relu(self.stem(x))))
        return self.head(F.relu(self.bn(self.up(x))).mean((2, 3)))


@pytest.mark.parametrize(
    "options", [{"err": 1.0}, {"rank": 1}, {"ratio": 0.9}, {"macs": 0.6}, {"params": 0.9}]
)
def test_depthwise_is_never_touched_by_any_way_to_choose(options):
    module = Mixed().eval()
    given = Model.from_module(module, (torch.randn(2, 4, 8, 8),))
    for form in ("auto", "channel", "spatial", "tucker"):
        model = given.copy()
        applied, left = run(model, form=form, **options)
        assert applied
        assert ("depthwise", "skipped: depthwise") in [(c.where, c.what) for c in left]
        assert torch.equal(model.tensor("depthwise.weight"), module.depthwise.weight)


def test_depthwise_is_left_alone_and_said_so():
    module = Mixed().eval()
    model = Model.from_module(module, (torch.randn(2, 4, 8, 8),))
    applied, left = run(model, err=1.0)
    assert {c.where for c in applied} == {"stem", "up", "head"}
    assert [(c.where, c.what) for c in left] == [("depthwise", "skipped: depthwise")]
    assert torch.equal(model.tensor("depthwise.weight"), module.depthwise.weight)


def test_auto_takes_the_cheapest_form_that_meets_the_error():
    torch.manual_seed(4)
    module = nn.Conv2d(24, 32, 3, padding=1)
    with torch.no_grad():
        module.weight += 3 * low_rank(module.weight, 4)
    model = Model.from_module(module.eval(), (torch.randn(2, 24, 8, 8),))
    picked = set()
    for err in (1e-4, 1e-3, 2e-3, 4e-3):
        costs = {}
        for form in ("channel", "spatial", "tucker", "auto"):
            applied, _ = run(model.copy(), err=err, form=form)
            if applied:
                assert applied[0].numbers["mse"] < err
                costs[form] = applied[0].numbers["macs_after"], applied[0].numbers["form"]
        if "auto" in costs:
            cheapest, name = costs.pop("auto")
            assert cheapest == min(macs for macs, _ in costs.values())
            assert costs[name][0] == cheapest
            picked.add(name)
    assert picked


def test_twice_and_through_a_file():
    model = Model.from_module(Mixed().eval(), (torch.randn(2, 4, 8, 8),))
    x = torch.randn(5, 4, 8, 8)
    run(model, err=1e-3)
    first = cost(model).macs
    run(model, err=1e-2)
    assert cost(model).macs < first
    file = io.BytesIO()
    torch.export.save(model.exported_program(), file)
    file.seek(0)
    loaded = Model.from_exported(torch.export.load(file))
    torch.testing.assert_close(loaded(x), model(x))
    run(loaded, err=1e-1)
    assert torch.isfinite(loaded(x)).all()


class Tied(nn.Module):
    """An embedding whose weight is the output layer's too, and a convolution that runs twice."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 24)
        self.out = nn.Linear(24, 50, bias=False)
        self.out.weight = self.embed.weight
        self.conv = nn.Conv1d(24, 24, 3, padding=1)

    def forward(self, tokens):
        x = self.embed(tokens).transpose(1, 2)
        return self.out(self.conv(F.relu(self.conv(x))).transpose(1, 2))


def test_tied_weights_share_their_factors():
    module = Tied().eval()
    with torch.no_grad():
        module.embed.weight.copy_(low_rank(module.embed.weight, 5))
        module.conv.weight.copy_(low_rank(module.conv.weight, 6))
    tokens = torch.randint(0, 50, (2, 7))
    model = Model.from_module(module, (tokens,))
    applied, _ = run(model, err=1e-9)
    assert len(applied) == 2
    torch.testing.assert_close(model(tokens), module(tokens), rtol=1e-3, atol=1e-4)
    assert cost(model).parameters == 5 * (50 + 24) + 6 * (24 * 3 + 24) + 24


class Scores(nn.Module):
    """An output layer of which one direction, the same for all scores, hides what tells these apart."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.mix = nn.Embedding(40, 24), nn.Linear(24, 24)
        self.norm, self.out = nn.LayerNorm(24), nn.Linear(24, 40, bias=False)
        with torch.no_grad():
            self.mix.weight.copy_(low_rank(self.mix.weight, 8) + 0.03 * torch.randn(24, 24))
            self.out.weight += 3

    def forward(self, tokens):
        x = self.embed(tokens)
        return self.out(self.norm(x + self.mix(x)))


def test_a_budget_without_data_is_spent_by_what_random_tokens_lose_in_the_output():
    torch.manual_seed(0)
    module = Scores().eval()
    tokens = torch.randint(0, 40, (64, 6))
    model = Model.from_module(module, (tokens[:2],))

    def lost(minimize):
        smaller, context = model.copy(), Context()
        Factorize(params=0.85, minimize=minimize).apply(smaller, context)
        with torch.no_grad():
            chances, now = module(tokens).log_softmax(-1), smaller(tokens).log_softmax(-1)
        return float((chances.exp() * (chances - now)).sum(-1).mean()), context.notes

    by_output, told = lost("auto")
    by_weight, nothing = lost("weight")
    assert by_output < 0.2 * by_weight
    assert "random tokens" in told[0]
    assert not nothing


class ReadElsewhere(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)

    def forward(self, x):
        return self.layer(x) * self.layer.weight.sum()


def test_a_weight_that_something_else_reads_is_left():
    model = Model.from_module(ReadElsewhere(), (torch.randn(2, 20),))
    applied, left = run(model, err=1.0)
    assert not applied
    assert "also read by sum" in left[0].what


def test_round_to_and_form_and_exclude():
    model = Model.from_module(Mixed().eval(), (torch.randn(2, 4, 8, 8),))
    applied, left = run(model, err=1e-2, round_to=4, form="spatial", exclude=("head", "up"))
    assert [c.where for c in applied] == ["stem"]
    assert applied[0].what.startswith("spatial")
    assert applied[0].numbers["rank"] % 4 == 0
    assert {c.where: c.what for c in left}["head"] == "skipped: excluded"


def test_a_quantized_model_is_left_and_told_the_remedy():
    given = pipeline.run(networks.model("tied"), [Quantize()], networks.context("tied"))[0]
    result, steps = pipeline.run(given, [Factorize(err=1.0)], Context())
    assert result is given
    assert all("factorize before quantize" in change.what for change in steps[0].changes)
    assert "then quantize" in " ".join(steps[0].notes)


def test_bad_options_and_weights():
    for err in (0, -1e-3):
        with pytest.raises(UsageError, match="--err is out of range"):
            Factorize(err=err)
    module = Mixed().eval()
    with torch.no_grad():
        module.head.weight[0, 0] = float("nan")
    model = Model.from_module(module, (torch.randn(2, 4, 8, 8),))
    with pytest.raises(ModelFileError, match="head"):
        run(model)


@pytest.mark.parametrize("amount", [{"ratio": 0.5}, {"rank": 2}, {"energy": 0.9}, {"err": 0.001}])
def test_a_model_without_a_layer_to_factorize_is_left_as_it_is(amount):
    model = Model.from_module(nn.Sequential(nn.Linear(4, 4), nn.ReLU()).eval(), (torch.randn(2, 4),))
    rounded, _ = pipeline.run(model, [Quantize(mode="dynamic")], Context())
    found, steps = pipeline.run(rounded, [Factorize(**amount)], Context())
    assert found is rounded
    assert not any(change.applied for change in steps[0].changes)
