"""What a report says that a saving is worth."""

from __future__ import annotations

import pytest
import torch
from networks import built_once
from torch import nn

from nncompress import pipeline
from nncompress.benchmarking.latency import model as model_latency
from nncompress.benchmarking.latency.model import ModelLatency, speed_note
from nncompress.ir import Model
from nncompress.passes import Context, PruneNodes
from nncompress.progress import NullProgress
from nncompress.results import Estimate
from nncompress.targets import TARGETS


@built_once
def model(width: int) -> Model:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(8, width), nn.ReLU(), nn.Linear(width, 4))
    return Model.from_module(net.eval(), (torch.randn(2, 8),))


@pytest.mark.parametrize(
    ("share", "said"),
    [
        (Estimate(0.99, 0.95, 1.03), "50% fewer MACs and 50% fewer parameters, 1.01x [0.97, 1.05] as fast"),
        (Estimate(0.99, 0.95, 1.03), ": nothing measurable"),
        (Estimate(1.25, 1.2, 1.3), "0.80x"),
        (Estimate(1.25, 1.2, 1.3), ": slower"),
        (Estimate(0.5, 0.49, 0.51), "2.00x [1.96, 2.04] as fast here in ONNX Runtime (batch 1, one thread)"),
    ],
)
def test_the_line_says_what_the_interval_allows(monkeypatch, share, said):
    monkeypatch.setattr(ModelLatency, "share", lambda *_: share)
    assert said in speed_note(model(64), model(32), NullProgress())


def test_a_faster_model_has_no_verdict(monkeypatch):
    monkeypatch.setattr(ModelLatency, "share", lambda *_: Estimate(0.5, 0.49, 0.51))
    assert speed_note(model(64), model(32), NullProgress()).endswith("(batch 1, one thread)")


def test_a_large_model_is_not_timed_and_that_is_said(monkeypatch):
    monkeypatch.setattr(model_latency, "LARGEST", 10)
    note = speed_note(model(64), model(32), NullProgress())
    assert "speed not measured" in note
    assert "nncompress bench" in note


def test_a_pass_with_a_budget_is_timed_where_that_is_asked_for():
    steps = [
        pipeline.run(model(64), [each], Context(), timing=timing)[1][0]
        for each, timing in [
            (PruneNodes(macs=0.6), True),
            (PruneNodes(macs=0.6), False),
            (PruneNodes(ratio=0.4), True),
        ]
    ]
    assert [any("as fast here" in note for note in step.notes) for step in steps] == [True, False, False]


def test_whole_models_are_timed_at_the_sizes_that_they_are_used_at(monkeypatch):
    """Not at the 16 that stands for a size of which nothing is known."""
    timed = []
    really = model_latency.benchmark
    monkeypatch.setattr(
        model_latency,
        "benchmark",
        lambda *args, **named: (timed.append(named["inputs"][0].shape), really(*args, **named))[1],
    )
    free = ({0: torch.export.Dim("batch"), 2: torch.export.Dim("length")},)
    sounds = Model.from_module(nn.Conv1d(1, 2, 1).eval(), (torch.randn(2, 1, 60),), dynamic_shapes=free)
    sounds.sizes = {dim: 60 for dim in sounds.dynamic if dim != "batch"}
    with ModelLatency(sounds, NullProgress(), TARGETS["ort-cpu"]) as latency:
        latency.glance(sounds)
    assert timed == [(1, 1, 60)]
