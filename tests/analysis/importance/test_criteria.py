"""Every criterion against its definition, computed another way."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import model, network
from records import Records, images
from torch import nn
from torch.nn import functional as F

from nncompress import pipeline
from nncompress.analysis.couplings import find_couplings
from nncompress.analysis.importance import CRITERIA, Setting, consumer_moments, group_choices
from nncompress.analysis.importance.consumer_moments import in_passes
from nncompress.analysis.observe import budget, shelf
from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.passes import Context, PruneNodes

RECORDS = 12


def scores(criterion, each, data, **options):
    choices = group_choices(each, find_couplings(each))
    found = CRITERIA[criterion].rank(Setting(each, choices, data, **options))
    return {name: ranking.scores for name, ranking in found.items()}


@pytest.mark.parametrize(("criterion", "power"), [("l1", 1), ("l2", 2)])
def test_magnitude_is_the_norm_of_each_filter_and_of_what_is_tied_to_it(criterion, power):
    module, each = network("residual"), model("residual")
    found = scores(criterion, each, None)
    conv1 = module.conv1.weight.detach().flatten(1).norm(power, dim=1)
    np.testing.assert_allclose(found["conv1"], conv1, rtol=1e-5)
    # The stem's eight channels come back in the middle of conv2's sixteen: one unit has a filter of each.
    stem = module.stem.weight.detach().flatten(1).abs().pow(power).sum(1)
    second = module.conv2.weight.detach().flatten(1).abs().pow(power).sum(1)[4:12]
    np.testing.assert_allclose(found["stem"], (stem + second).pow(1 / power), rtol=1e-5)


def hidden(module: nn.Module, x: torch.Tensor) -> torch.Tensor:
    """What conv2 of the residual network reads: after the ReLU."""
    y = F.relu(module.bn(module.stem(x)))
    return F.relu(module.bn1(module.conv1(y)))


@pytest.mark.parametrize("criterion", ["activation-count", "activation-variance"])
def test_activation_statistics_are_taken_after_the_relu(criterion):
    module, each, data = network("residual"), model("residual"), images(RECORDS)
    with torch.no_grad():
        a = hidden(module, next(data.batches(RECORDS)).inputs[0]).movedim(1, 0).flatten(1).double()
    want = (a != 0).double().mean(1) if criterion == "activation-count" else a.var(1, unbiased=False)
    found = scores(criterion, each, data, batch_size=5)["conv1"]
    np.testing.assert_allclose(found, want, rtol=1e-4)
    assert np.ptp(found) > 0


@pytest.mark.parametrize("criterion", ["taylor", "fisher"])
def test_gradient_criteria_are_the_gradients_of_eager_torch(criterion):
    module, each, data = network("residual"), model("residual"), images(RECORDS)
    batch = next(data.batches(RECORDS))
    total = torch.zeros(16, dtype=torch.float64)
    for x, y in zip(batch.inputs[0], batch.labels):
        a = hidden(module, x[None]).detach().requires_grad_()
        shortcut = F.relu(module.bn(module.stem(x[None])))
        z = module.bn2(module.conv2(a)) + F.pad(shortcut[:, :, ::2, ::2], (0, 0, 0, 0, 4, 4))
        F.cross_entropy(module.head(F.relu(z).mean((2, 3))), y[None]).backward()
        product = (a.grad * a).sum((0, 2, 3)).double()
        total += product.abs() if criterion == "taylor" else 0.5 * product.square()
    found = scores(criterion, each, data, batch_size=5)["conv1"]
    np.testing.assert_allclose(found, (total / RECORDS).detach(), rtol=1e-3, atol=1e-9)


class Perceptron(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 10), nn.Linear(10, 4)

    def forward(self, x):
        return self.b(F.relu(self.a(x)))


def perceptron(seed: int = 0) -> tuple[Perceptron, Model, Records]:
    torch.manual_seed(seed)
    module = Perceptron().eval()
    data = Records((torch.randn(300, 6),), torch.randint(0, 4, (300,)))
    return module, Model.from_module(module, (torch.randn(2, 6),)), data


def test_optimal_brain_damage_is_half_the_curvature_times_the_weight_squared():
    module, each, data = perceptron()
    weights = dict(module.named_parameters())
    want = torch.zeros(10, dtype=torch.float64)
    for batch in data.batches(1, limit=40):
        loss = F.cross_entropy(module(batch.inputs[0]), batch.labels)
        g = dict(zip(weights, torch.autograd.grad(loss, list(weights.values()))))
        saliency = {n: 0.5 * (g[n] * w).detach().double().square() / 40 for n, w in weights.items()}
        want += saliency["a.weight"].sum(1) + saliency["a.bias"] + saliency["b.weight"].sum(0)
    # One record per backward pass: no cross terms to average away.
    found = scores("obd", each, data, limit=40, batch_size=1)["a"]
    np.testing.assert_allclose(found, want, rtol=1e-4)


def test_reconstruction_removes_first_what_costs_nothing():
    module, _, data = perceptron()
    with torch.no_grad():
        module.a.weight[7], module.a.bias[7] = module.a.weight[2], module.a.bias[2]  # a twin
        module.a.bias[4] = -100.0  # never active
    each = Model.from_module(module, (torch.randn(2, 6),))
    choices = group_choices(each, find_couplings(each))
    ranking = CRITERIA["reconstruction"].rank(Setting(each, choices, data))["a"]
    assert set(ranking.order[:2]) in ({4, 7}, {4, 2})
    assert ranking.loss[2] < 1e-3 * ranking.loss[5]
    assert (np.diff(ranking.loss) >= 0).all()
    assert len(ranking.order) == 9


def test_reconstruction_estimates_the_divergence_of_a_classifier():
    """Half the units gone and compensated: estimate against the measured divergence."""
    module, each, data = perceptron(1)
    with torch.no_grad():  # a small effect, where the second order holds
        module.b.weight[:, ::2] *= 0.1
    each = Model.from_module(module, (torch.randn(2, 6),))
    choices = group_choices(each, find_couplings(each))
    ranking = CRITERIA["reconstruction"].rank(Setting(each, choices, data))["a"]
    x = next(data.batches(300)).inputs[0]
    with torch.no_grad():
        h = F.relu(module.a(x)).double()
        kept = [u for u in range(10) if u not in ranking.order[:5]]
        design = torch.cat([h[:, kept], torch.ones(300, 1, dtype=torch.float64)], 1)
        p = module(x).double()
        q = design @ torch.linalg.lstsq(design, p, driver="gelsd").solution
        divergence = (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean()
    assert ranking.loss[5] == pytest.approx(float(divergence), rel=0.35)


@pytest.mark.parametrize("files", [True, False])
def test_reconstruction_gathers_what_does_not_fit_in_a_file_or_in_more_passes(monkeypatch, files):
    # 8x8 positions per record: all of them are seen, so passes differ in nothing but rounding.
    each, data = model("residual"), images(40)
    choices = group_choices(each, find_couplings(each))
    want = CRITERIA["reconstruction"].rank(Setting(each, choices, data))
    monkeypatch.setattr(shelf, "_files_take", lambda size: files)
    monkeypatch.setattr(budget, "BUDGET", 100_000 if files else 1)
    passes, filed = in_passes(choices)
    assert filed == files
    assert len(passes) == (1 if files else len(choices))
    assert len(choices) > 2
    found = CRITERIA["reconstruction"].rank(Setting(each, choices, data))
    for name, ranking in found.items():
        assert ranking.order == want[name].order
        np.testing.assert_allclose(ranking.loss, want[name].loss, rtol=1e-4)


class RootOfNothing(nn.Module):
    """A finite answer whose gradient is none where the first input is 0: 0 times the slope of a root at 0."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branch, self.head = nn.Linear(6, 16), nn.Linear(16, 16), nn.Linear(16, 3)

    def forward(self, x):
        h = F.relu(self.first(x))
        h = h + self.branch(h)
        root = (h[:, :1] * x[:, :1]).abs().sqrt()
        return self.head(h) + torch.where(x[:, :1] == 0, torch.zeros_like(root), root)


@pytest.mark.parametrize("options", [{"macs": 0.5}, {"drop_blocks": 1}])
def test_gradients_that_are_no_numbers_rank_nothing(options):
    torch.manual_seed(0)
    x = torch.randn(64, 6)
    x[20:24, 0] = 0
    found = Model.from_module(RootOfNothing().eval(), (x[:4],))
    with pytest.raises(UnsupportedError, match="not finite"):
        pipeline.run(found, [PruneNodes(**options)], Context(data=Records((x,))))


def test_reconstruction_of_layers_too_wide_for_all_moments(monkeypatch):
    torch.manual_seed(0)
    module = nn.Sequential(nn.Conv2d(3, 9, 3), nn.ReLU(), nn.Flatten(), nn.Linear(9 * 36, 5)).eval()
    with torch.no_grad():
        module[0].bias[4] = -100.0  # never active
        module[3].weight[:, 2 * 36 : 3 * 36] = 0  # never heard
    each, data = Model.from_module(module, (torch.randn(2, 3, 8, 8),)), images(200)
    choices = group_choices(each, find_couplings(each))
    monkeypatch.setattr(consumer_moments, "LARGEST", 100)
    (found,) = consumer_moments.moments_of_consumers(choices, 0).values()
    assert found.columns.shape == (9, 36)
    ranking = CRITERIA["reconstruction"].rank(Setting(each, choices, data))["0"]
    assert set(ranking.order[:2]) == {4, 2}
    # Channels at their means, nobody making up for them: the divergence that the loss estimates.
    x = next(data.batches(200)).inputs[0]
    with torch.no_grad():
        h = module[1](module[0](x)).double()
        cut = h.clone()
        gone = list(ranking.order[:4])
        cut[:, gone] = h.mean(0)[gone]
        head = module[3].double()
        p, q = head(h.flatten(1)), head(cut.flatten(1))
        divergence = (p.softmax(1) * (p.log_softmax(1) - q.log_softmax(1))).sum(1).mean()
    assert ranking.loss[4] == pytest.approx(float(divergence), rel=0.35)


def test_random_is_seeded():
    each = model("residual")
    first, again, other = (scores("random", each, None, seed=s)["conv1"] for s in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


@pytest.mark.parametrize("criterion", CRITERIA)
@pytest.mark.parametrize("name", ["attention", "two-outputs", "depthwise", "concat"])
def test_every_criterion_ranks_every_kind_of_network(criterion, name):
    from networks import inputs

    each = model(name)
    classes = {"attention": 6, "two-outputs": 5, "depthwise": 5, "concat": 4}[name]
    data = Records(inputs(name, 24), torch.randint(0, classes, (24,)))
    choices = group_choices(each, find_couplings(each))
    found = CRITERIA[criterion].rank(Setting(each, choices, data, batch_size=8))
    for choice in choices:
        ranking = found[choice.name]
        assert len(ranking.scores) == choice.size
        assert len(set(ranking.order)) == len(ranking.order) == len(ranking.loss) - 1 >= choice.size - 1
        assert np.isfinite(ranking.loss).all()
        assert not np.isnan(ranking.scores).any()
