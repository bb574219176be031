"""`factorize` by measured latency, with a clock of ours, and once through the whole measurement."""

import math

import pytest
import torch
from scripted_machine import script
from torch import nn
from torch.nn import functional as F

from nncompress.analysis.cost import cost
from nncompress.analysis.weight_targets import find_targets
from nncompress.benchmarking.latency import layer as layer_latency
from nncompress.benchmarking.latency import table as latency_table
from nncompress.benchmarking.latency.layer import Latencies
from nncompress.benchmarking.latency.steps import Steps
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.ir.graph.shapes import Shapes
from nncompress.passes import Context
from nncompress.passes.factorize.latency import grid
from nncompress.passes.factorize.options import Factorize
from nncompress.passes.factors.forms.choice import forms_of
from nncompress.results import Estimate


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.block = nn.Conv2d(32, 48, 3, padding=1)
        self.depthwise = nn.Conv2d(48, 48, 3, padding=1, groups=48)
        self.point = nn.Conv2d(48, 40, 1)
        self.head = nn.Linear(40, 12)

    def forward(self, x):
        x = F.relu(self.depthwise(F.relu(self.block(F.relu(self.stem(x))))))
        return self.head(F.relu(self.point(x)).mean((2, 3)))


@pytest.fixture(scope="module")
def net() -> Model:
    torch.manual_seed(3)
    return Model.from_module(Net().eval(), (torch.randn(2, 3, 8, 8),))


@pytest.fixture(autouse=True)
def _own_cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def run(model: Model, **options) -> list:
    step, context = Factorize(**options), Context()
    step.requires(model, context)
    changes = step.apply(model, context)
    step.ensures(model, changes)
    return changes


def seconds(chain) -> float:
    """Kernels that work on blocks of 16 output channels, 1 µs each."""
    return 1e-6 * sum(math.ceil(layer.weight[0] / 16) * math.prod(layer.weight[1:]) for layer in chain)


def clock(monkeypatch, time=seconds) -> list:
    """Replaces what is measured by a function of the layers; returns the shapes that were asked for."""
    asked = []

    def measure(reference, chains, shape, target, seed=0):
        asked.append(shape)
        return Latencies(time(reference), tuple(time(chain) / time(reference) for chain in chains))

    monkeypatch.setattr(latency_table, "measure", measure)
    monkeypatch.setattr("nncompress.passes.factorize.latency.measure", measure)
    return asked


def kind(chain) -> str:
    kernels = [layer.weight[2:] for layer in chain]
    if len(chain) == 2 and kernels[0] == (3, 1):
        return "spatial"
    return "channel" if len(chain) == 2 and kernels[0] == (3, 3) else "other"


@pytest.mark.parametrize("quick", ["channel", "spatial", None])
def test_only_factors_that_were_measured_faster_are_taken(net, monkeypatch, quick):
    """One form takes half the layer's time, everything else half more."""

    def time(chain):
        return 1.0 if len(chain) == 1 else 0.5 if kind(chain) == quick else 1.5

    clock(monkeypatch, time)
    monkeypatch.setattr(Steps, "of", lambda *_: 1)
    changes = run(net.copy(), ratio=0.7, faster=True)
    applied = [c for c in changes if c.applied]
    assert bool(applied) == (quick is not None)
    for change in applied:
        assert change.numbers["form"] == quick
        assert change.numbers["latency_share_predicted"] == 0.5
        assert change.numbers["latency_share_measured"] == 0.5
        assert change.numbers["macs_after"] < change.numbers["macs_before"]
    for change in changes:
        if not change.applied and change.where in ("stem", "block") and quick is None:
            assert "took 1.50 of its time" in change.what


def test_fewer_macs_that_are_slower_are_left(net, monkeypatch, tmp_path):
    """Ranks of 9 to 16 take equally long: the threshold is met by the rank at the end of the step."""
    clock(monkeypatch)
    fast = {c.where: c for c in run(net.copy(), energy=0.5, faster=True, form="channel") if c.applied}
    least = {c.where: c for c in run(net.copy(), energy=0.5, form="channel") if c.applied}
    assert fast["block"].numbers["rank"] >= least["block"].numbers["rank"]
    assert fast["block"].numbers["rank"] % 16 == 0
    for file in (tmp_path / "nncompress").iterdir():
        file.unlink()  # what the other clock said
    clock(monkeypatch, lambda chain: float(len(chain)))
    changes = run(net.copy(), energy=0.5, faster=True, form="channel")
    assert not any(c.applied for c in changes)
    assert any("measured at 2.00 of its time" in c.what for c in changes)


def test_a_layer_without_ranks_at_the_ends_of_steps_is_left(net, monkeypatch):
    clock(monkeypatch)
    options, context = Factorize(energy=0.5, faster=True), Context()
    skipped = {c.where: c.what for c in options.apply(net.copy(), context) if not c.applied}
    assert context.notes == ["ranks are multiples of 16, the steps of latency in ONNX Runtime"]
    assert "is a multiple of 16, at which its latency falls" in skipped["stem"]


def test_a_layer_that_is_slower_when_timed_again_is_left(net, monkeypatch):
    clock(monkeypatch, lambda chain: 1 / len(chain))
    monkeypatch.setattr(
        "nncompress.passes.factorize.latency.measure", lambda *_, seed: Latencies(1.0, (1.2,))
    )
    changes = run(net.copy(), ratio=0.7, faster=True)
    assert not any(c.applied for c in changes)
    assert any("timed again" in c.what and "1.20 of its time" in c.what for c in changes)


class Clocked:
    """In place of `ModelLatency`: the sum over layers, off by a factor that the layers do not show."""

    off = 1.0

    def __init__(self, original, progress, target, **ending):
        self.before = self._of(original)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    @staticmethod
    def _of(model):
        shapes, total = Shapes(model), 0.0
        for target in find_targets(model, shapes)[0]:
            weight = tuple(target.weight.value().shape)
            total += seconds([type("L", (), {"weight": weight if not target.is_matrix else weight[::-1]})])
        return total

    def seconds(self):
        return self.before

    def share(self, other):
        value = self._of(other) / self.before * self.off
        return Estimate(value, value, value)


@pytest.mark.parametrize("off", [1.0, 1.1, 0.9])
def test_a_latency_is_reached_as_measured_on_the_whole_model(net, monkeypatch, off):
    clock(monkeypatch)
    monkeypatch.setattr(Clocked, "off", off)
    monkeypatch.setattr("nncompress.passes.factorize.latency_budget.ModelLatency", Clocked)
    model = net.copy()
    changes = run(model, latency=0.6)
    (reached,) = [c for c in changes if c.where == "latency"]
    measured = Clocked._of(model) / Clocked._of(net) * off
    assert reached.numbers["latency_share_measured"] == pytest.approx(measured, abs=1e-3)
    assert 0.5 < measured <= 0.6 * 1.02
    assert all("latency_share_predicted" in c.numbers for c in changes if c.applied)
    with pytest.raises(UsageError, match="cannot reach 1% of the model's latency") as caught:
        run(net.copy(), latency=0.01)
    assert "at least" in caught.value.expected


def test_equal_shapes_are_measured_once_and_never_again(monkeypatch):
    module = nn.Sequential(*(nn.Conv2d(24, 24, 3, padding=1) for _ in range(4))).eval()
    model = Model.from_module(module, (torch.randn(2, 24, 6, 6),))
    asked = clock(monkeypatch)
    run(model.copy(), ratio=0.7, faster=True)
    assert asked.count((1, 24, 6, 6)) <= 2  # into the table, and what was chosen again
    first = len(asked)
    run(model.copy(), ratio=0.5, faster=True)
    assert len(asked) <= first + 1


@pytest.mark.parametrize("shape", [(8, 4), (64, 64), (3000, 700)])
@pytest.mark.parametrize("multiple", [1, 8, 10, 16])
def test_ranks_that_are_measured(shape, multiple):
    for module, x in (
        (nn.Linear(*shape), torch.randn(2, shape[0])),
        (nn.Conv2d(shape[0] // 4, shape[1] // 4, 3), torch.randn(2, shape[0] // 4, 5, 5)),
    ):
        model = Model.from_module(module.eval(), (x,))
        shapes = Shapes(model)
        target = find_targets(model, shapes)[0][0]
        for form in forms_of(target, shapes):
            ranks = grid(form, target.macs, multiple)
            assert len(ranks) <= 12
            assert all(form.cost(r, "macs") < target.macs for r in ranks)
            assert all(each % multiple == 0 for r in ranks for each in r)
            assert len(set(ranks)) == len(ranks)
            if multiple == 1 and min(form.full_ranks) >= 8:
                assert ranks


def test_layers_are_really_run_to_be_measured(net, monkeypatch):
    """On a machine where a layer takes as long as it has weights."""
    script(monkeypatch)
    monkeypatch.setattr(layer_latency, "MOST_ROUNDS", 7)
    model = net.copy()
    changes = run(model, energy=0.3, faster=True, exclude=("stem", "point", "head"))
    applied = [c for c in changes if c.applied]
    assert applied
    for change in applied:
        assert change.numbers["latency_share_measured"] < 1
    assert cost(model).macs < cost(net).macs
    assert torch.isfinite(model(torch.randn(3, 3, 8, 8))).all()
