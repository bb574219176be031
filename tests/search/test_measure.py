"""What models are measured by: the metric that the data ask for, or what the original answers."""

import numpy as np
import pytest
import torch
from torch import nn

from nncompress.api import dataset
from nncompress.errors import DataError, UsageError
from nncompress.ir import Model
from nncompress.search.loss import lost
from nncompress.search.measure import Measure, settled


@pytest.fixture(scope="module")
def models():
    """A model of scores, and one whose weights are a little off."""
    torch.manual_seed(0)
    net = nn.Linear(5, 4)
    off = nn.Linear(5, 4)
    with torch.no_grad():
        off.weight.copy_(net.weight + 0.2 * torch.randn(4, 5))
        off.bias.copy_(net.bias)
    return tuple(Model.from_module(each, (torch.randn(2, 5),)) for each in (net, off))


@pytest.fixture
def data(models, tmp_path):
    generator = np.random.default_rng(0)
    x = generator.standard_normal((300, 5)).astype(np.float32)

    def made(y=None):
        np.savez(tmp_path / "d.npz", x=x, **({} if y is None else {"y": y}))
        return dataset(str(tmp_path / "d.npz"), models[0], None)

    return made


def test_the_metric_that_labels_ask_for(models, data):
    assert settled(models[0], data(np.arange(300) % 4), None) == "top1"
    assert settled(models[0], data(np.zeros((300, 4), np.float32)), None) == "rmse"
    assert settled(models[0], data(), None) == "agreement"
    assert settled(models[0], data(), "error") == "error"
    with pytest.raises(DataError, match="no output for"):
        settled(models[0], data(np.arange(300) % 5), None)
    with pytest.raises(DataError, match="does not fit"):
        settled(models[0], data(np.arange(300) % 4), "rmse")
    with pytest.raises(DataError, match="needs labels"):
        settled(models[0], data(), "top1")
    with pytest.raises(UsageError, match="unknown metric"):
        settled(models[0], data(), "points")


def test_an_output_of_numbers_without_labels_is_measured_by_its_error_or_its_input(tmp_path):
    np.savez(tmp_path / "d.npz", x=np.ones((9, 5), np.float32))
    for outputs, expected in ((1, "error"), (5, "mse")):
        model = Model.from_module(nn.Linear(5, outputs), (torch.randn(2, 5),))
        data = dataset(str(tmp_path / "d.npz"), model, None)
        assert settled(model, data, None) == expected


@pytest.mark.parametrize("name", ["agreement", "error", "rmse", "f1", "top1"])
def test_what_is_lost_is_the_difference_that_the_metric_says(models, data, name):
    target = np.zeros((300, 4), np.float32) if name == "rmse" else np.arange(300) % 4
    records = data(None if name in ("agreement", "error") else target)
    measure = Measure(models[0], name)
    scores = [measure.scores(each, records) for each in models]
    found = lost(*scores)
    (batch,) = records.batches(300)
    with torch.no_grad():
        a, b = (each.outputs_of(*batch.inputs)[0].double() for each in models)
    right = [(each.argmax(1).numpy() == target) for each in (a, b)] if name == "top1" else []
    expected = {
        "agreement": lambda: (a.argmax(1) != b.argmax(1)).double().mean(),
        "error": lambda: (a - b).norm() / a.norm(),
        "rmse": lambda: b.square().mean().sqrt() - a.square().mean().sqrt(),
        "f1": lambda: _f1(a, target) - _f1(b, target),
        "top1": lambda: right[0].mean() - right[1].mean(),
    }[name]()
    assert found.value == pytest.approx(float(expected), rel=1e-5, abs=1e-9)
    assert found.at_least() < found.value < found.at_most()
    part = measure.scores(models[1], records, limit=75)
    assert part.samples == 75


def _f1(scores, target):
    answers = scores.argmax(1).numpy()
    found = []
    for each in range(4):
        right = ((answers == each) & (target == each)).sum()
        found.append(2 * right / ((answers == each).sum() + (target == each).sum()))
    return np.mean(found)


def test_the_original_loses_nothing_against_itself(models, data):
    measure, records = Measure(models[0], "agreement"), data()
    found = lost(*(measure.scores(models[0], records) for _ in range(2)))
    assert found.value == 0
    assert found.at_most() == pytest.approx(1.6448536**2 / (300 + 1.6448536**2))
