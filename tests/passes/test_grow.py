"""`grow` as a pass: its options, what it records, and life after it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from networks import inputs, model
from torch import nn

import nncompress
from nncompress import pipeline
from nncompress.analysis.cost import cost
from nncompress.analysis.growth import is_quantized
from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.data import open_data
from nncompress.errors import UsageError
from nncompress.ir import Model
from nncompress.passes import Context, Grow, Prune, PruneNodes, Quantize
from nncompress.results import Estimate
from nncompress.train import TrainSettings, train


def grown(name: str, context: Context | None = None, **options):
    result, (step,) = pipeline.run(model(name), [Grow(**options)], context or Context())
    return result, step


def records(tmp_path, name: str, classes: int = 5):
    x = inputs(name, 64, seed=5)[0].numpy()
    np.savez(tmp_path / "data.npz", x=x, y=np.arange(64) % classes)
    return open_data(str(tmp_path / "data.npz"), model(name).inputs)


def test_by_default_every_group_gets_sixteen():
    result, step = grown("flatten")
    assert {c.where: c.what for c in step.changes} == {"conv": "8 -> 24 nodes", "fc1": "20 -> 36 nodes"}
    assert result.tensor("fc1.weight").shape == (36, 24 * 16)
    assert result.history[0]["pass"] == "grow"
    assert max(d.relative for d in step.drift) < 1e-6


def test_excluded_layers_stay():
    _, step = grown("flatten", exclude=("fc1",))
    assert [c.where for c in step.changes] == ["conv"]
    with pytest.raises(UsageError, match="no nodes can be added"):
        grown("flatten", exclude=("conv", "fc1"))


@pytest.mark.parametrize(
    "options", [{"by": 4, "factor": 2.0}, {"by": 0}, {"factor": 1.0}, {"macs": 0.5}, {"where": "std"}]
)
def test_growth_that_cannot_be_is_refused(options):
    with pytest.raises(UsageError):
        grown("flatten", **options)


def test_gradient_needs_labels(tmp_path):
    np.savez(tmp_path / "data.npz", x=inputs("flatten", 8)[0].numpy())
    data = open_data(str(tmp_path / "data.npz"), model("flatten").inputs)
    with pytest.raises(UsageError, match="labels"):
        grown("flatten", Context(data=data), where="gradient")
    _, step = grown("flatten", Context(data=data))  # auto: by spread
    assert step.changed


@pytest.mark.parametrize("most", [1.5, 2.0, 6.0])
def test_a_latency_budget_is_nearly_used_and_never_exceeded(monkeypatch, most):
    """It is nearly used and never exceeded, were latency proportional to MACs."""
    before = cost(model("flatten")).macs

    def share(_: ModelLatency, other: Model) -> Estimate:
        return Estimate(cost(other).macs / before, 0.0, 99.0, 0.95)

    monkeypatch.setattr(ModelLatency, "share", share)
    result, step = grown("flatten", latency=most)
    assert 0.9 * most < cost(result).macs / before <= most
    assert step.notes[0].startswith(f"grow: {cost(result).macs / before:.2f} times the latency of before")


def test_pruned_zeros_stay_and_new_nodes_train(tmp_path):
    """Zeros that prune made stay zero through growth and training; nothing new is taken for one of them."""
    data = records(tmp_path, "flatten")
    result, _ = pipeline.run(model("flatten"), [Prune(sparsity=0.5), Grow(by=4)], Context())
    before = {n: result.tensor(n).detach().clone() for n in ("conv.weight", "fc1.weight", "fc2.weight")}
    trained, _ = train(result, data, TrainSettings(epochs=2, batch=16, lr=0.1))
    for name, old in before.items():
        new = trained.tensor(name)
        assert torch.equal(new == 0, old == 0)
    assert (trained.tensor("fc2.weight")[:, 20:].abs() > 1e-6).all()


def test_prune_nodes_takes_silent_nodes_first():
    result, _ = grown("flatten", by=4)
    pruned, _ = pipeline.run(result, [PruneNodes(params=0.9, criterion="l2")], Context())
    assert cost(pruned).parameters < cost(result).parameters


def test_a_quantized_model_is_left(tmp_path):
    quantized, _ = pipeline.run(model("flatten"), [Quantize()], Context(data=records(tmp_path, "flatten")))
    assert is_quantized(quantized)
    same, (step,) = pipeline.run(quantized, [Grow()], Context())
    assert same is quantized
    assert "quantized" in step.changes[0].what


def test_where_nothing_takes_fresh_nodes_labels_are_no_obstacle():
    """The gradient of new weights was asked for, and there are none."""
    net = nn.Sequential(nn.Linear(8, 8), nn.LayerNorm(8), nn.Linear(8, 3))
    x = torch.randn(32, 8)
    kept = nncompress.compress(net, "grow:by=2", data=(x, torch.arange(32) % 3))
    torch.testing.assert_close(kept.to_module()(x), net(x).detach())
