"""Studies of growth: what a row says, the curves, the network's widths, and the whole path on small data."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.analysis.couplings import find_couplings
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.results import Estimate
from nncompress.studies import STUDIES, Request, plot
from nncompress.studies.growth import classifier as classifier_growth
from nncompress.studies.growth import sine
from nncompress.studies.growth import trainings as growth
from nncompress.studies.growth.cifar100 import PLAN as CIFAR100
from nncompress.studies.growth.mnist import PLAN as MNIST
from nncompress.studies.growth.trainings import GrowthResult, GrowthRow, GrowthTrial, Point, Ratio, difference
from nncompress.zoo.cifar_resnet import CifarResNet


def result(measure: str = "RMSE") -> GrowthResult:
    curve = (Point(10, 1.0, 0.5), Point(20, 2.0, 0.4, True), Point(30, 4.0, 0.3))
    trials = tuple(GrowthTrial(seed, 100, 1, 0.3 + seed / 10, 4.0 + seed, curve) for seed in (0, 1))
    return GrowthResult("sine", measure, (GrowthRow("dynamic", "", trials),), (), "3 epochs", "so", 1.0)


def test_a_row_sums_up_its_seeds():
    (row,) = result().rows
    assert row.mean == pytest.approx(0.35)
    assert row.spread == pytest.approx(np.std([0.3, 0.4], ddof=1))
    assert row.seconds == 4.5
    mean, error = difference([1.0, 2.0, 3.0], [2.0, 4.0])
    assert mean == 1.0
    assert error == pytest.approx(math.sqrt(1 / 3 + 2 / 2))
    assert math.isnan(difference([1.0], [2.0])[1])


def test_the_curves_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    plot(result(), tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_sine_grows_in_quarters(tmp_path, monkeypatch):
    """The whole study in small: 8 nodes from 2, on few points."""
    monkeypatch.setattr(sine, "MOST", 8)
    monkeypatch.setattr(sine, "SAMPLES", 64)
    monkeypatch.setattr(
        sine,
        "GROWTH",
        sine.GrowSettings(grow="plateau", grow_quarter_of=8, grow_delta=0.99, grow_where="uniform"),
    )
    found = sine.run(Request(tmp_path, runs=1, epochs=9))
    static, large, dynamic = found.rows
    assert [row.trials[0].parameters for row in (static, large, dynamic)] == [301, 25, 25]
    assert dynamic.trials[0].growths == 3
    assert 0 < dynamic.mean < 2
    assert "RMSE" in found.verdict


def test_an_interrupted_study_goes_on(tmp_path, monkeypatch):
    """Trainings that ended are not trained again, and those of other settings are not mistaken for them."""
    monkeypatch.setattr(sine, "MOST", 8)
    monkeypatch.setattr(sine, "SAMPLES", 64)
    monkeypatch.setattr(sine, "GROWTH", replace(sine.GROWTH, grow_quarter_of=8))
    first = sine.run(Request(tmp_path, runs=1, epochs=2))
    monkeypatch.setattr(growth, "train", None)
    again = sine.run(Request(tmp_path, runs=1, epochs=2))
    assert again.rows == first.rows
    monkeypatch.setattr(sine, "TRAINING", {**sine.TRAINING, "lr": 0.5})
    with pytest.raises(UsageError, match="another training"):
        sine.run(Request(tmp_path, runs=1, epochs=2))
    for path in tmp_path.glob("[!.]*.json"):
        path.write_text("[]")
    with pytest.raises(UsageError, match="no such record"):
        sine.run(Request(tmp_path, runs=1, epochs=2))


@pytest.mark.parametrize("plan", [MNIST, CIFAR100], ids=lambda plan: plan.name)
def test_a_quarter_doubled_twice_is_the_full_network(plan):
    full, quarter = (
        Model.from_module(plan.network(width, 7, 3).eval(), (torch.randn(2, 3, plan.size, plan.size),))
        for width in (1.0, 0.25)
    )
    sizes = [{g.name: g.size for g in find_couplings(m).groups} for m in (full, quarter)]
    assert sizes[0] == {name: 4 * size for name, size in sizes[1].items()}


def test_cifar100_on_synthetic_data_of_its_shape(tmp_path, monkeypatch):
    """The whole path, through one block a stage; the times are those of the real network's study."""
    rng = np.random.default_rng(0)
    y = np.arange(150) % 100
    x = rng.integers(0, 200, (150, 32, 32, 3), dtype=np.uint8)
    np.savez(tmp_path / "cifar100.npz", x=x, y=y)

    def network(width: float, classes: int, channels: int) -> nn.Module:
        return CifarResNet(1, classes, channels, width=round(width * 16))

    step_time = classifier_growth.step_time
    short = {"rounds": 2, "sessions": 2}
    monkeypatch.setattr(classifier_growth, "step_time", lambda *a, **k: step_time(*a, **{**k, **short}))
    plan = replace(CIFAR100, network=network, training={**CIFAR100.training, "batch": 16}, quick_images=64)
    request = Request(tmp_path, quick=True, data=str(tmp_path / "cifar100.npz"))
    found = classifier_growth.run(plan, request)
    static, dynamic, longer = found.rows
    wanted = sum(p.numel() for p in network(1.0, 100, 3).parameters())
    assert static.trials[0].parameters == dynamic.trials[0].parameters == wanted
    assert dynamic.trials[0].growths == longer.trials[0].growths == 2
    assert (
        longer.trials[0].curve[-1].step >= dynamic.trials[0].curve[-1].step == static.trials[0].curve[-1].step
    )
    assert all(ratio.value.value > 0 for ratio in found.ratios)
    assert "points" in found.verdict


@pytest.mark.parametrize(("sizes", "said"), [((100, 100), False), ((100, 60), True)])
def test_a_network_that_stayed_small_is_not_called_grown(sizes, said):
    def row(*parameters: int) -> GrowthRow:
        return GrowthRow("", "", tuple(GrowthTrial(i, n, 2, 90.0, 1.0, ()) for i, n in enumerate(parameters)))

    times = (Ratio("", "", Estimate(4.0, 3.9, 4.1)), Ratio("", "", Estimate(1.0, 0.9, 1.1)))
    verdict = classifier_growth._verdict((row(100, 100), row(*sizes), row(100, 100)), times)
    assert ("1 of 4 did not reach the full width" in verdict) == said


def test_they_are_listed():
    assert {"sine", "mnist-growth", "cifar100-growth"} <= STUDIES.keys()
