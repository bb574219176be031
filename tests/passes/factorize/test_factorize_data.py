"""`factorize` with data: what it minimises, the budgets, the repairs."""

import numpy as np
import pytest
import torch
from records import Records
from torch import nn
from torch.nn import functional as F

from nncompress.analysis.compensation.batch_norms import reestimate
from nncompress.analysis.compensation.refit import refit
from nncompress.analysis.cost import cost
from nncompress.analysis.observe import budget, moments
from nncompress.analysis.observe.statistics import observe
from nncompress.data import open_data
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.layers.weights import layers
from nncompress.passes import Context, repair
from nncompress.passes.factorize.options import Factorize
from nncompress.progress import NullProgress


class Net(nn.Module):
    """Every kind of layer that factorize treats differently, residual additions and batch norms."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(16)
        self.block = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.grouped = nn.Conv2d(16, 24, 3, groups=2, stride=2, padding=1)
        self.depthwise = nn.Conv2d(24, 24, 3, padding=1, groups=24)
        self.point = nn.Conv2d(24, 20, 1)
        self.up = nn.ConvTranspose2d(20, 18, 2, 2)
        self.head = nn.Linear(18, 12)

    def forward(self, x):
        x = F.relu(self.bn(self.stem(x)))
        x = F.relu(self.bn2(self.block(x)) + x)
        x = F.relu(self.depthwise(F.relu(self.grouped(x))))
        return self.head(F.relu(self.up(F.relu(self.point(x)))).mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> Model:
    torch.manual_seed(3)
    module = Net()
    with torch.no_grad():
        for _ in range(20):
            module(torch.randn(32, 3, 8, 8) * 2 + 1)
    return Model.from_module(module.eval(), (torch.randn(2, 3, 8, 8),))


def smooth(count: int, seed: int) -> np.ndarray:
    """Correlated images with a mean, as real ones are."""
    generator = torch.Generator().manual_seed(seed)
    x = F.avg_pool2d(torch.randn(count, 3, 12, 12, generator=generator), 5, 1) * 4
    return (x + x.mean(1, keepdim=True) + 1).numpy()


def data_of(tmp_path, model: Model, **arrays):
    np.savez(tmp_path / "data.npz", **arrays)
    return open_data(str(tmp_path / "data.npz"), model.inputs)


@pytest.fixture
def images(tmp_path, net):
    return data_of(tmp_path, net, x=smooth(96, 1))


def run(model: Model, data, **options) -> list:
    step, context = Factorize(**options), Context(data=data, batch_size=32)
    step.requires(model, context)
    changes = step.apply(model, context)
    step.ensures(model, changes)
    return changes


def output_error(model: Model, original: Model) -> float:
    x = torch.from_numpy(smooth(64, 2))
    with torch.no_grad():
        wanted = original(x)
        return float((model(x) - wanted).square().mean() / wanted.var())


@pytest.mark.parametrize("share", [0.7, 0.45])
@pytest.mark.parametrize("unit", ["macs", "params"])
def test_a_budget_is_hit_within_two_percent(net, images, share, unit):
    model = net.copy()
    run(model, images, **{unit: share})
    field = {"macs": "macs", "params": "parameters"}[unit]
    spent = getattr(cost(model), field) / getattr(cost(net), field)
    if unit == "params":  # biases that take up the mean of the error come on top
        added = sum(t.numel() for n, t in model.state_dict().items() if n.endswith("bias"))
        added -= sum(t.numel() for n, t in net.state_dict().items() if n.endswith("bias"))
        spent -= added / cost(net).parameters
    assert share - 0.02 <= spent <= share


def test_a_budget_out_of_reach_says_what_is_reachable(net, images):
    model = net.copy()
    with pytest.raises(UsageError) as caught:
        run(model, images, macs=0.001)
    assert "cannot reach 0.1%" in caught.value.what
    least = float(caught.value.expected.removeprefix("at least ").split("%")[0]) / 100
    run(model, None, macs=least)
    assert cost(model).macs <= least * cost(net).macs
    with pytest.raises(UsageError):
        run(net.copy(), None, macs=least - 0.001)


def test_each_step_closer_to_the_output_loses_less(net, images):
    """At the same MACs: weight > layer output > model output > refitted."""
    errors = []
    for options in (
        {"minimize": "weight", "refit": False},
        {"minimize": "layer", "refit": False},
        {"minimize": "model", "refit": False},
        {},
    ):
        model = net.copy()
        run(model, images, macs=0.25, **options)
        errors.append(output_error(model, net))
    assert errors[1] < 0.8 * errors[0]
    assert errors[2] < errors[1]
    assert errors[3] < errors[2]


def test_inputs_in_a_subspace_need_no_more_rank_than_it_has(tmp_path):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Linear(30, 40), nn.Tanh(), nn.Linear(40, 7)).eval()
    model = Model.from_module(module, (torch.randn(2, 30),))
    x = torch.randn(200, 5) @ torch.randn(5, 30) + torch.randn(30)
    data = data_of(tmp_path, model, x=x.numpy())
    changes = run(model, data, minimize="layer", rank=5, exclude=("2",), refit=False)
    assert [c.where for c in changes if c.applied] == ["0"]
    torch.testing.assert_close(model(x), module(x), rtol=1e-3, atol=1e-4)  # the bias took the mean
    plain = Model.from_module(module, (torch.randn(2, 30),))
    run(plain, None, rank=5, exclude=("2",))
    assert (plain(x) - module(x)).abs().max() > 0.05


@pytest.mark.parametrize("form", ["channel", "spatial", "tucker"])
@pytest.mark.parametrize("minimize", ["layer", "model"])
def test_every_form_and_metric_runs_and_says_its_error(net, images, form, minimize):
    model = net.copy()
    changes = run(model, images, relative=0.05, form=form, minimize=minimize)
    applied = {c.where: c for c in changes if c.applied and "rank" in c.numbers}
    assert applied
    assert all(0 <= c.numbers["relative_error"] < 0.05 for c in applied.values())
    assert output_error(model, net) < 0.2


def test_energy_is_one_minus_relative_error(net, images):
    one, other = net.copy(), net.copy()
    run(one, images, energy=0.95, refit=False)
    run(other, images, relative=0.05, refit=False)
    assert cost(one) == cost(other)


def test_ratio_bounds_every_layer(net):
    model = net.copy()
    applied = [c for c in run(model, None, ratio=0.6) if c.applied]
    assert len(applied) > 3
    assert all(c.numbers["macs_after"] <= 0.6 * c.numbers["macs_before"] for c in applied)


def test_predicted_relative_error_is_the_measured_one(net, images):
    """Of one layer's output, on the calibration data themselves."""
    model = net.copy()
    changes = run(
        model, images, rank=5, minimize="layer", exclude=("[!b]*", "bn*"), refit=False, form="channel"
    )
    (change,) = [c for c in changes if c.applied]
    outputs = []
    for each in (net, model):
        node = [layer.node for layer in layers(each) if layer.name.startswith("block")][-1]
        seen = []
        from nncompress.analysis.observe.statistics import observe

        observe(each, (b.inputs for b in images.batches(96)), {node: [seen.append]})
        outputs.append(torch.cat(seen))
    centred = outputs[0] - outputs[0].mean((0, 2, 3), keepdim=True)
    measured = float((outputs[1] - outputs[0]).square().sum() / centred.square().sum())
    assert change.numbers["relative_error"] == pytest.approx(measured, rel=0.05)


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(60, 32)
        self.up = nn.Linear(32, 48)
        self.out = nn.Linear(48, 5)

    def forward(self, tokens):
        return self.out(F.gelu(self.up(self.embed(tokens))).mean(1))


def test_an_embedding_keeps_the_rows_that_occur(tmp_path):
    torch.manual_seed(0)
    model = Model.from_module(Words().eval(), (torch.randint(0, 60, (2, 9)),))
    tokens = torch.randint(0, 8, (64, 9))  # 8 of the 60 words
    data = data_of(tmp_path, model, x=tokens.numpy())
    small = model.copy()
    changes = run(small, data, rank=8, minimize="layer", exclude=("up", "out"), refit=False)
    assert [c.where for c in changes if c.applied] == ["embed"]
    torch.testing.assert_close(small(tokens), model(tokens), rtol=1e-2, atol=1e-3)


def test_refit_reaches_the_outputs_that_least_squares_can_reach(net, images):
    """The last stage, fitted on all positions, against numpy's least squares; nothing else changes."""
    model = net.copy()
    run(model, images, rank=6, minimize="layer", exclude=("[!h]*",), refit=False)
    stage = [layer for layer in layers(model) if layer.name.startswith("head")][-1]
    batches = [batch.inputs for batch in images.batches(32)]
    with torch.no_grad():
        for name in ("head.0.weight",):  # spoil what comes before: the fit has to make up for it
            model.tensor(name).mul_(1 + 0.3 * torch.randn(model.tensor(name).shape))
    refit(net, model, [("head", stage.name)], batches, 0, NullProgress())
    from nncompress.analysis.observe.statistics import observe

    seen: list[torch.Tensor] = []
    observe(model, batches, {stage.data: [seen.append]})
    x = torch.cat(seen).double().numpy()
    wanted = net(torch.cat([b[0] for b in batches])).detach().double().numpy()
    design = np.c_[x, np.ones(len(x))]
    residual = wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    ours = model(torch.cat([b[0] for b in batches])).detach().double().numpy() - wanted
    assert np.mean(ours**2) == pytest.approx(np.mean(residual**2), rel=0.02)


def test_new_batch_norm_statistics_are_kept_only_if_they_help(net, images):
    batches = [batch.inputs for batch in images.batches(32)]
    for harm, kept in ((False, False), (True, True)):
        model = net.copy()
        if harm:
            model.tensor("bn.running_mean").add_(3.0)
            model.tensor("bn.running_var").mul_(4.0)
        x = torch.from_numpy(smooth(64, 2))
        with torch.no_grad():
            # without harm, the reference is the model as it is: nothing can be better
            wanted = (net if harm else model)(x)

        def error(model=model, x=x, wanted=wanted):
            with torch.no_grad():
                return float((model(x) - wanted).square().mean())

        state = {k: v.clone() for k, v in model.state_dict().items()}
        share, before, after = reestimate(model, batches, error)
        assert (share > 0) == kept
        assert error() == pytest.approx(after)
        if kept:
            assert after < before
        else:
            assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_one_way_to_choose_the_ranks():
    with pytest.raises(UsageError, match="one way"):
        Factorize(err=1e-3, macs=0.5)
    assert (Factorize().relative, Factorize().err) == (None, None)  # follows from how far outputs move
    assert Factorize(macs=0.5).err is None
    for wrong in ({"macs": 1.0}, {"macs": 0.0}, {"energy": 1.5}, {"rank": 0}, {"relative": -1}):
        with pytest.raises(UsageError, match="out of range"):
            Factorize(**wrong)


def test_minimizing_outputs_needs_data(net):
    with pytest.raises(UsageError, match="needs data"):
        run(net.copy(), None, minimize="layer")


@pytest.mark.parametrize("options", [{"macs": 0.6, "form": "tucker"}, {"relative": 0.02, "form": "spatial"}])
def test_statistics_that_do_not_fit_are_gathered_in_more_passes(monkeypatch, net, images, options):
    """Same ranks and factors: here every position is seen, whatever the number of passes."""
    want, found = net.copy(), net.copy()
    expected = run(want, images, **options)
    monkeypatch.setattr(budget, "BUDGET", 1)
    passes = []
    monkeypatch.setattr(moments, "observe", lambda *a, **k: (passes.append(1), observe(*a, **k))[1])
    changes = run(found, images, **options)
    assert [(c.where, c.what) for c in changes] == [(c.where, c.what) for c in expected]
    assert sum(c.applied for c in changes) >= 3
    assert len(passes) > 6  # one per layer for the choice, again for the factors
    x = torch.from_numpy(smooth(8, 5))
    with torch.no_grad():
        torch.testing.assert_close(found(x), want(x), rtol=1e-4, atol=1e-4)


def test_repairs_are_measured_on_outputs_with_infinities_and_on_whole_numbers():
    class Masked(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(6, 4)
            self.register_buffer("off", torch.tensor([False, True, False, False]))

        def forward(self, x):
            y = self.layer(x).masked_fill(self.off, float("-inf"))
            return y, y.argmax(-1)

    torch.manual_seed(0)
    original = Model.from_module(Masked().eval(), (torch.randn(2, 6),))
    changed, x = original.copy(), torch.randn(40, 6)
    error = repair.output_error(original, changed.outputs_of, [(x,)])
    assert error() == 0
    with torch.no_grad():
        changed.tensor("layer.bias")[3] += 1
    (before, choice), (after, now) = original.outputs_of(x), changed.outputs_of(x)
    kept = before[:, [0, 2, 3]].detach()
    scores = (after[:, [0, 2, 3]] - kept).square().mean() / kept.var()
    expected = (scores + (choice != now).float().mean()) / 2
    assert error() == pytest.approx(float(expected.detach()), rel=1e-4)
    assert 0 < error() < 10


def test_no_word_about_batch_norms_where_there_are_none():
    torch.manual_seed(0)
    original = Model.from_module(nn.Linear(6, 4), (torch.randn(2, 6),))
    data = Records((torch.randn(32, 6),))
    changes = repair.repair(original, original.copy(), {}, Context(data=data))  # type: ignore[arg-type]
    assert [change.where for change in changes] == ["factors"]
