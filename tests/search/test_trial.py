"""Whether a trial is faster than the fastest so far is measured against that one, where it is near."""

import numpy as np
import pytest
import torch
from scripted_machine import artifact_bytes, script
from torch import nn

from nncompress import pipeline
from nncompress.api import dataset
from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.ir import Model
from nncompress.loading import load_model
from nncompress.passes import Context, PruneNodes, Quantize
from nncompress.progress import NullProgress
from nncompress.results import Estimate
from nncompress.search import trial
from nncompress.search.trial import Bounds, Judge
from nncompress.targets import TARGETS


class Clock:
    """In place of `ModelLatency`: models are numbers, their shares; a glance is 1 % off, either way."""

    def __init__(self):
        self.kept = self.last = 1.0
        self.asked = 0

    def glance(self, model):
        self.last = model
        seen = model * (0.99 if self.asked else 1.01)
        return Estimate(seen, 0.98 * seen, 1.02 * seen, 0.95)

    def keep(self):
        self.kept = self.last

    def beside(self):
        self.asked += 1
        ratio = self.last / self.kept
        return Estimate(ratio, 0.999 * ratio, 1.001 * ratio, 0.95)


def judge(drop):
    found = object.__new__(Judge)
    found.bounds, found._latency, found._seconds = Bounds(drop, None, 1.0, "latency", "ort-cpu"), Clock(), 2.0
    found._fastest = None
    return found


def test_the_fastest_so_far_is_compared_with_where_a_glance_cannot_tell():
    search = judge(0.01)
    clock = search._latency
    first = search.latency(0.5)
    assert (first["share"], clock.asked) == (pytest.approx(0.505), 0)
    slower = search.latency(0.501)  # both seem 1 % slower than they are: 0.2 % between them
    assert (slower["share"], clock.asked) == (pytest.approx(0.505 * 0.501 / 0.5), 1)
    assert first["share"] < slower["low"]
    assert clock.kept == 0.5
    lucky = search.latency(0.503)  # a glance that is 1 % too good is not believed
    assert lucky["share"] > first["share"]
    assert search.latency(0.3)["share"] == pytest.approx(0.297)  # far away: nothing to compare
    assert (clock.asked, clock.kept) == (2, 0.3)
    assert lucky["seconds"] == pytest.approx(2 * lucky["share"])


def test_a_glance_at_the_fastest_that_told_little_is_not_what_others_are_compared_with():
    """The interval of the first, 0.44 to 0.5, holds what is seen of the second; its own is narrow."""
    search = judge(0.01)
    clock = search._latency
    clock.glance = lambda model: Estimate(model, model - 0.03, model + 0.03, 0.95)
    search.latency(0.47)
    clock.glance = lambda model: Estimate(model, model - 0.002, model + 0.002, 0.95)
    clock.beside = lambda: Estimate(1.01, 1.0, 1.02, 0.95)
    assert search.latency(0.445)["share"] == pytest.approx(0.47 * 1.01)


def test_where_the_least_loss_is_wanted_no_model_is_the_one_to_beat():
    search = judge(None)
    for share in (0.5, 0.5):
        search.latency(share)
    assert search._latency.asked == 0


def test_two_models_in_turns(monkeypatch):
    script(monkeypatch, lambda *each: 1000 * artifact_bytes(*each))  # a machine that counts bytes
    wide, small, tiny = (
        Model.from_module(nn.Linear(64, width).eval(), (torch.randn(2, 64),)) for width in (64, 32, 16)
    )
    with ModelLatency(wide, NullProgress(), TARGETS["ort-cpu"]) as latency:
        first = latency.glance(small).value
        latency.keep()
        second = latency.glance(tiny).value
        assert latency.beside().value == pytest.approx(second / first, rel=0.02)


def test_what_is_rounded_in_several_ways_is_cut_once_and_as_in_one_go(here, monkeypatch):
    original = load_model("m.pt2")
    data = dataset("val.npz", original)
    context = Context(data=data, limit=64)
    cut, other = PruneNodes(macs=0.5), PruneNodes(macs=0.6)
    recipes = [
        (cut,),
        (cut, Quantize()),
        (cut, Quantize(weight_bits=4)),
        (other, Quantize()),
        (cut, Quantize()),
    ]
    expected = [pipeline.run(original, each, context)[0] for each in recipes]
    ran = []
    run = pipeline.run
    monkeypatch.setattr(
        pipeline,
        "run",
        lambda model, passes, *rest, **named: (ran.append(passes), run(model, passes, *rest, **named))[1],
    )
    search = Judge(original, data, context, Bounds(0.01, None, None, "macs"))
    for recipe, straight in zip(recipes, expected):
        found = search.compressed(recipe)
        assert [step["settings"] for step in found.history] == [step["settings"] for step in straight.history]
        for name, tensor in straight.state_dict().items():
            assert torch.equal(found.state_dict()[name], tensor)
    assert ran.count((cut,)) == ran.count((other,)) == 1
    monkeypatch.setattr(trial, "KEPT", 1)  # room for the latest alone
    search.compressed((other,))
    search.compressed((cut,))
    assert ran.count((cut,)) == 2


def test_what_is_much_further_away_than_what_lost_too_much_is_not_measured_by_the_metric(here):
    original = load_model("m.pt2")
    data = dataset("val.npz", original)
    search = Judge(original, data, Context(data=data, limit=64), Bounds(0.01, None, None, "macs"))
    weak, strong = (PruneNodes(macs=0.9),), (PruneNodes(macs=0.1),)
    far = search.run(strong)
    assert far["lost"] > 0.01
    with torch.no_grad():  # the error is that of the outputs, on samples that the pass was not fitted to
        x = torch.from_numpy(np.load("val.npz")["x"])
        before, after = (each.outputs_of(x)[0] for each in (original, search.compressed(strong)))
    assert far["error"] == pytest.approx(float((after - before).norm() / before.norm()), rel=0.3)
    lost = {"error": 0.4 * far["error"], "lost": 0.2, "samples": far["samples"]}
    again = search.run(strong, [lost] * 3)
    assert "lost" not in again
    assert "3 trials that lost too much" in trial.record(again)["failed"]
    assert not search.holds(again)
    held = {"error": 0.6 * far["error"], "lost": 0.0, "at_most": 0.005, "samples": 3000}
    trained = lost | {"trained": {}}
    for tried in ([lost] * 2, [lost] * 3 + [held], [lost | {"error": 0.6 * far["error"]}] * 3, [trained] * 3):
        assert search.run(strong, tried)["lost"] == far["lost"]
    assert search.run(weak, [lost] * 3)["samples"] == 3000
