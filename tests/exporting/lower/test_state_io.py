"""Models that change their own tensors: state as inputs and outputs of the file."""

import json

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from nncompress.errors import UnsupportedError
from nncompress.exporting import write
from nncompress.ir import Model


class Remembers(nn.Module):
    """A cache of the last three keys, a running mean and a counter, none of them at zero."""

    def __init__(self):
        super().__init__()
        self.key, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.cache = nn.Module()
        self.cache.register_buffer("keys", torch.arange(12.0).view(1, 3, 4) / 10)
        self.register_buffer("mean", torch.ones(4))
        self.register_buffer("calls", torch.tensor(7))

    def forward(self, x):
        self.calls += 1
        self.mean.mul_(0.9).add_(x.mean(0), alpha=0.1)
        self.cache.keys[:, 1:] = self.cache.keys[:, :-1].clone()
        self.cache.keys[:, 0] = self.key(x)[:1]
        return self.head((self.cache.keys * (x - self.mean)[:, None]).sum(1)) / self.calls


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Model.from_module(Remembers().eval(), (torch.randn(2, 4),))


def test_calls_in_a_row_are_those_of_the_original(tmp_path, model):
    report = write(model, tmp_path / "m.onnx")
    pairs = {("cache_keys_in", "cache_keys_out"), ("mean_in", "mean_out"), ("calls_in", "calls_out")}
    assert set(report.state) == pairs
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    kept = json.loads(session.get_modelmeta().custom_metadata_map["nncompress.state"])
    assert set(kept.items()) == {(out, given) for given, out in pairs}
    torch.manual_seed(0)
    original, state = Remembers().eval(), {}
    for _ in range(4):
        x = torch.randn(3, 4)
        results = session.run(None, {"x": x.numpy(), **state})
        named = dict(zip([value.name for value in session.get_outputs()], results))
        np.testing.assert_allclose(named["output"], original(x).detach().numpy(), atol=1e-5)
        state = {given: named[out] for out, given in kept.items()}
    np.testing.assert_allclose(state["cache_keys_in"], original.cache.keys.detach().numpy(), atol=1e-5)
    assert state["calls_in"] == 11


def test_state_of_a_layer_called_by_a_number_has_a_name(tmp_path):
    class Counts(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("mean of all", torch.zeros(4))

        def forward(self, x):
            mean = getattr(self, "mean of all")
            mean.mul_(0.5).add_(x[0].detach())
            return x + mean

    net = nn.Sequential(nn.Linear(4, 4), Counts(), nn.Linear(4, 2)).eval()
    report = write(Model.from_module(net, (torch.randn(2, 4),)), tmp_path / "m.onnx")
    assert list(report.state) == [("state_1_mean_of_all_in", "state_1_mean_of_all_out")]


def test_the_mobile_format_has_them_too(tmp_path, model):
    report = write(model, tmp_path / "m.ort")
    assert {given for given, _ in report.state} == {"cache_keys_in", "mean_in", "calls_in"}
    session = onnxruntime.InferenceSession(tmp_path / "m.ort", providers=["CPUExecutionProvider"])
    torch.manual_seed(0)
    original, state = Remembers().eval(), {}
    for _ in range(3):
        x = torch.randn(3, 4)
        results = session.run(None, {"x": x.numpy(), **state})
        named = dict(zip([value.name for value in session.get_outputs()], results))
        np.testing.assert_allclose(named["output"], original(x).detach().numpy(), atol=1e-5)
        state = {given: named[out] for given, out in report.state}


def test_a_pte_names_what_it_would_change(tmp_path, model):
    pytest.importorskip("executorch")
    with pytest.raises(UnsupportedError, match=r"changes its own tensors") as caught:
        write(model, tmp_path / "m.pte")
    assert "cache.keys" in caught.value.got
