"""Recurrent layers in ONNX Runtime against torch: directions, layers, projections, initial states."""

import numpy as np
import onnxruntime
import pytest
import torch
from torch import nn

from nncompress.errors import UnsupportedError
from nncompress.export import write_onnx
from nncompress.export.lower.onnxruntime import recurrent as lower_recurrent
from nncompress.ir import Model


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.projected = nn.LSTM(6, 8, 2, batch_first=True, proj_size=4, bidirectional=True)
        self.plain = nn.LSTM(8, 5, bias=False)
        self.gru = nn.GRU(5, 7, 2, bidirectional=True)

    def forward(self, x, hidden, cell, state):
        x, (h, c) = self.projected(x, (hidden, cell))
        x, _ = self.plain(x.transpose(0, 1))
        x, last = self.gru(x, state)
        return x, h, c, last


def test_agrees_with_torch(tmp_path):
    torch.manual_seed(0)
    module = Recurrent().eval()
    shapes = (2, 5, 6), (4, 2, 4), (4, 2, 8), (4, 2, 7)
    model = Model.from_module(module, tuple(torch.randn(s) for s in shapes), dynamic_batch=False)
    write_onnx(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    inputs = [torch.randn(s) for s in shapes]
    results = session.run(None, {v.name: t.numpy() for v, t in zip(session.get_inputs(), inputs)})
    for got, expected in zip(results, module(*inputs), strict=True):
        np.testing.assert_allclose(got, expected.detach().numpy(), atol=1e-5)


class Projected(nn.Module):
    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(6, 6), nn.ModuleDict({"r": nn.LSTM(6, 8, proj_size=4)})["r"])

    def forward(self, x):
        return self.body(x)[0]


def test_projections_that_cannot_be_unrolled_are_refused_by_name(tmp_path, monkeypatch):
    """Where the length is free, torch.export of today fixes it; should it not, the file must not."""
    monkeypatch.setattr(lower_recurrent, "take_apart", lambda graph, node: False)
    model = Model.from_module(Projected().eval(), (torch.randn(5, 2, 6),))
    with pytest.raises(UnsupportedError, match=r"projections, and body\.1 cannot be written step by step"):
        write_onnx(model, tmp_path / "m.onnx")
