"""Training that grows: when, how far, what the optimizer remembers, and a kill in the middle."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from networks import built_once
from torch import nn

from nncompress.analysis.cost import cost
from nncompress.benchmarking.latency.model import ModelLatency
from nncompress.data import Dataset, open_data
from nncompress.errors import DataError, UnsupportedError, UsageError
from nncompress.ir import Model
from nncompress.progress import NullProgress
from nncompress.results import Estimate
from nncompress.train import GrowSettings, TrainSettings, train
from nncompress.train.growth.grow import Plateau
from nncompress.train.run import Run

TASK = {"task": "regression", "batch": 16, "schedule": "constant"}


class Unexportable(nn.Module):
    """ONNX has no eigenvalues."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.linalg.eigvalsh(x[:, :, None] * x[:, None])[:, :1]


@pytest.fixture
def data(tmp_path) -> Dataset:
    rng = np.random.default_rng(0)
    x = rng.normal(0, 1, (48, 3, 6, 6)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=x, y=np.sin(x.sum((1, 2, 3)))[:, None])
    return open_data(str(tmp_path / "train.npz"), network().inputs)


@built_once
def network(hidden: int = 4) -> Model:
    torch.manual_seed(0)
    module = nn.Sequential(
        nn.Conv2d(3, hidden, 3, bias=False), nn.BatchNorm2d(hidden), nn.ReLU(), nn.Flatten(),
        nn.Linear(16 * hidden, 6), nn.ReLU(), nn.Linear(6, 1),
    )  # fmt: skip
    return Model.from_module(module.eval(), (torch.randn(2, 3, 6, 6),))


def always(**options) -> GrowSettings:
    """Every epoch is a plateau."""
    settings = {"grow_by": 2, "grow_patience": 1, "grow_delta": 0.99, "grow_where": "uniform"}
    return GrowSettings(grow="plateau", **{"max_params": 1e6, **settings, **options})


@pytest.mark.parametrize(
    ("losses", "patience", "delta", "reached"),
    [
        ([5, 4, 3, 2, 1], 1, 0.0, []),
        ([5, 5, 5, 5, 5], 2, 0.0, [2, 4]),  # the first sets the best; then two without improvement, twice
        ([5, 4.99, 4.98, 4.97], 1, 0.01, [1, 2, 3]),  # falls too little each time …
        ([5, 4.99, 4.98, 4.9, 4.89], 3, 0.01, []),  # … but in three epochs enough
        ([5, 6, 4, 6, 4], 2, 0.0, [4]),  # an improvement starts the count anew
        ([-5, -5.2, -5.2], 1, 0.01, [2]),  # a negative loss improves by falling further
    ],
)
def test_a_plateau_is_reached_after_its_patience(losses, patience, delta, reached):
    plateau = Plateau(patience, delta)
    assert [i for i, loss in enumerate(losses) if plateau.reached(loss)] == reached


def test_grows_up_to_the_bound_and_no_further(data):
    model = network()
    most = 3 * cost(model).macs
    settings = TrainSettings(epochs=12, lr=0.01, **TASK)
    grown, result = train(model, data, settings, growth=always(grow_by=6, max_params=None, max_macs=most))
    assert 0.95 * most < cost(grown).macs <= most
    told = [row["macs"] for row in result.epochs if "grown" in row]
    assert told == sorted(told)
    assert told[-1] == cost(grown).macs
    last = [row["grown"] for row in result.epochs if "grown" in row][-1]
    assert grown.tensor("0.weight").shape[0] == last["0"]
    assert grown.history[-1]["growth"]["grow"] == "plateau"
    assert grown.history[-1]["steps"] == len(told)


def test_quarters_of_a_maximum(data):
    settings = TrainSettings(epochs=8, lr=0.01, **TASK)
    growth = always(grow_by=None, grow_quarter_of=16, max_params=None)
    grown, result = train(network(), data, settings, growth=growth)
    assert [row["grown"]["0"] for row in result.epochs if "0" in row.get("grown", {})] == [8, 12, 16]
    assert grown.tensor("0.weight").shape[0] == grown.tensor("4.weight").shape[0] == 16


def test_latency_bounds_growth_and_a_cut_step_is_the_last(data, monkeypatch):
    """The bound is on multiples of the latency of the model as it began; here a node takes a share each."""
    compared = []

    def share(latency: ModelLatency, other: Model) -> Estimate:
        nodes = [other.tensor(name).shape[0] for name in ("0.weight", "4.weight")]
        compared.append(tuple(nodes))
        return Estimate(sum(nodes) / 10, 0.0, 99.0, 0.95)

    monkeypatch.setattr(ModelLatency, "share", share)
    settings = TrainSettings(epochs=6, lr=0.01, **TASK)
    growth = always(grow_by=4, max_params=None, max_latency=2.5)
    grown, result = train(network(), data, settings, growth=growth)
    told = [(row["epoch"], row["grown"], row["latency"]) for row in result.epochs if "grown" in row]
    assert told == [(2, {"0": 8, "4": 10}, 1.8), (3, {"0": 11, "4": 13}, 2.4)]
    assert compared[:2] == [(8, 10), (12, 14)]
    assert all(a[0] < 12 for a in compared[2:])
    assert len(compared) == len(set(compared))  # none is measured twice
    assert grown.tensor("4.weight").shape == (13, 11 * 16)


def test_a_latency_that_cannot_be_measured_is_refused_before_training(data):
    module = nn.Sequential(nn.Flatten(), nn.Linear(108, 6), nn.ReLU(), nn.Linear(6, 1), Unexportable())
    model = Model.from_module(module.eval(), (torch.randn(2, 3, 6, 6),))
    with pytest.raises(UnsupportedError, match="ONNX"):
        train(model, data, TrainSettings(**TASK), growth=always(max_params=None, max_latency=2.0))


def test_labels_that_are_not_of_the_outputs(tmp_path):
    """An autoencoder on images with classes: auto looks at the activations; a gradient of the classes is
    refused before training, not at the first growth."""
    x = np.random.default_rng(0).normal(0, 1, (32, 1, 4, 4)).astype(np.float32)
    np.savez(tmp_path / "train.npz", x=x, y=np.arange(32) % 3)
    module = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 1, 3, padding=1)).eval()
    model = Model.from_module(module, (torch.randn(2, 1, 4, 4),))
    data = open_data(str(tmp_path / "train.npz"), model.inputs)
    settings = TrainSettings(epochs=3, lr=0.01, batch=16, task="reconstruction")
    grown, _ = train(model, data, settings, growth=always(grow_where="auto"))
    assert len(grown.tensor("0.weight")) == 6
    with pytest.raises(DataError, match="do not fit"):
        Run(model, data, settings, None, None, NullProgress(), always(grow_where="gradient"))


def test_no_plateau_no_growth(data):
    settings = TrainSettings(epochs=3, lr=0.01, **TASK)
    plain, _ = train(network(), data, settings)
    same, _ = train(network(), data, settings, growth=always(grow_patience=5))
    for name, tensor in plain.state_dict().items():
        assert torch.equal(same.tensor(name), tensor)


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_old_weights_go_on_as_if_nothing_had_grown(data, optimizer):
    """In the step after a growth the outputs are the same, so every old weight moves, and is remembered by
    the optimizer, as in the run that did not grow; a fresh optimizer would move it otherwise."""
    settings = TrainSettings(epochs=9, lr=0.01, optimizer=optimizer, weight_decay=0.1, **TASK)
    made = (network(), data, settings, None, None, NullProgress())
    runs = [Run(*made, growth) for growth in (None, always())]
    for run in (*runs, *runs):
        for batch in run.rest_of_epoch():
            run.step(batch)
        run.end_epoch()
    plain, grown = runs
    assert [row.get("grown") for row in grown.state.rows] == [None, {"0": 6, "4": 8}]
    for batch in itertools.islice(plain.rest_of_epoch(), 1):
        for run in runs:
            run.step(batch)
    for name, parameter in plain.trained.items():
        larger, own = grown.trained[name], tuple(slice(n) for n in parameter.shape)
        torch.testing.assert_close(larger[own], parameter, rtol=1e-5, atol=1e-6)
        for key, value in plain.optimizer.state[parameter].items():
            if value is not None and value.dim():
                known = grown.optimizer.state[larger][key][own]
                torch.testing.assert_close(known, value, rtol=1e-4, atol=1e-6)
    moved = grown.trained["6.weight"][:, 6:]
    assert (moved.abs() > 1e-6).any()


@pytest.mark.parametrize("growth", [always(hold=2), always(grow_init="split", grow_where="std")])
def test_a_killed_run_continues_bit_for_bit(data, tmp_path, growth, monkeypatch):
    settings = TrainSettings(epochs=5, lr=0.01, optimizer="adam", patience=4, **TASK)
    whole, told = train(network(), data, settings, growth=growth)
    taken = {"steps": 0}
    original = Run.step

    class Killed(Exception):
        pass

    def step(self, batch):
        taken["steps"] += 1
        if taken["steps"] in (4, 9, 10):
            raise Killed
        original(self, batch)

    monkeypatch.setattr(Run, "step", step)
    kept = {"checkpoint": tmp_path / "c", "resume": True, "checkpoint_seconds": 0.0}
    for _ in range(3):
        with pytest.raises(Killed):
            train(network(), data, settings, growth=growth, **kept)
    resumed, result = train(network(), data, settings, growth=growth, **kept)
    assert [r.get("grown") for r in result.epochs] == [r.get("grown") for r in told.epochs]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(resumed.tensor(name), tensor), name


def test_what_was_there_is_held_and_let_go(data):
    settings = TrainSettings(epochs=9, lr=0.01, weight_decay=0.1, **TASK)
    run = Run(network(), data, settings, None, None, NullProgress(), always(hold=2, grow_patience=3))
    seen = []
    for _ in range(8):
        for batch in run.rest_of_epoch():
            run.step(batch)
        run.end_epoch()
        seen.append(run.trained["4.weight"].detach().clone())
    grown = next(row["epoch"] for row in run.state.rows if "grown" in row) - 1
    old = [weight[:6, :64] for weight in seen]
    assert torch.equal(old[grown], old[grown + 1])
    assert torch.equal(old[grown], old[grown + 2])
    assert not torch.equal(seen[grown], seen[grown + 1])  # the new ones train meanwhile
    assert not torch.equal(old[grown + 2], old[grown + 3])


def test_freeze_ends_on_schedule(data):
    settings = TrainSettings(
        epochs=4, lr=0.01, optimizer="adam", freeze=("0.*", "4.*"), unfreeze=("1", "3"), **TASK
    )
    run = Run(network(), data, settings, None, None, NullProgress())
    seen = {name: [run.model.tensor(name).detach().clone()] for name in ("0.weight", "4.weight", "6.weight")}
    for _ in range(4):
        for batch in run.rest_of_epoch():
            run.step(batch)
        run.end_epoch()
        for name, values in seen.items():
            values.append(run.model.tensor(name).detach().clone())
    moved = {n: [not torch.equal(a, b) for a, b in itertools.pairwise(v)] for n, v in seen.items()}
    assert moved == {
        "0.weight": [False, True, True, True],
        "4.weight": [False, False, False, True],
        "6.weight": [True] * 4,
    }


def test_growth_settings_that_cannot_be_are_refused(data):
    with pytest.raises(UsageError, match="where to stop"):
        GrowSettings(grow="plateau")
    with pytest.raises(UsageError, match="belongs to --grow"):
        GrowSettings(grow_by=4)
    with pytest.raises(UsageError, match="one of them"):
        always(grow_factor=2.0)
    with pytest.raises(UsageError, match="larger than --max-params"):
        train(network(), data, TrainSettings(), growth=always(max_params=10))
    with pytest.raises(UsageError, match="layers of one width"):
        train(network(), data, TrainSettings(match=("4",)), teacher=network(), growth=always())
    with pytest.raises(UsageError, match="--unfreeze"):
        TrainSettings(freeze=("0.*",), unfreeze=("1", "2"))


def test_a_quantized_model_does_not_grow(data):
    from nncompress import pipeline
    from nncompress.passes import Context, Quantize

    quantized, _ = pipeline.run(network(), [Quantize()], Context(data=data))
    with pytest.raises(UnsupportedError, match="cannot grow"):
        train(quantized, data, TrainSettings(), growth=always())
