"""Recurrent layers in ONNX Runtime against torch: directions, layers, projections, initial states."""

from functools import partial

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from nncompress.errors import UnsupportedError
from nncompress.exporting import write_onnx
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
        self.first = nn.Parameter(torch.randn(1, 1, 4))

    def forward(self, x, given=False):
        state = (self.first.expand(1, x.shape[1], 4), torch.zeros(1, x.shape[1], 8)) if given else None
        return self.body[1](self.body[0](x), state)[0]


def test_projections_are_not_written_step_by_step(tmp_path):
    module, x = Projected().eval(), torch.randn(31, 3, 6)
    model = Model.from_module(module, (x,))
    write_onnx(model, tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    np.testing.assert_allclose(got, module(x).detach().numpy(), atol=1e-5)
    operators = [node.op_type for node in onnx.load(tmp_path / "m.onnx").graph.node]
    assert operators.count("LSTM") == 1
    assert len(operators) < 12


def test_a_first_state_that_no_unit_projects_to_is_refused_by_name(tmp_path):
    module = Projected().eval()
    module.forward = partial(module.forward, given=True)
    with torch.no_grad():
        module.body[1].weight_hr_l0[1] = module.body[1].weight_hr_l0[0]
    model = Model.from_module(module, (torch.randn(5, 2, 6),))
    with pytest.raises(UnsupportedError, match=r"projections, and body\.1 cannot be written without"):
        write_onnx(model, tmp_path / "m.onnx")


def test_a_layer_without_gates_in_double_is_written_in_steps(tmp_path):
    module, x = nn.RNN(4, 5).double().eval(), torch.randn(3, 2, 4, dtype=torch.float64)
    write_onnx(Model.from_module(module, (x,), dynamic_batch=False), tmp_path / "m.onnx")
    session = onnxruntime.InferenceSession(tmp_path / "m.onnx", providers=["CPUExecutionProvider"])
    got = session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]
    np.testing.assert_allclose(got, module(x)[0].detach().numpy(), atol=1e-12)


def test_steps_of_a_free_number_in_double_are_refused_by_name(tmp_path):
    x = torch.randn(3, 7, 4, dtype=torch.float64)
    dims = ({0: torch.export.Dim("batch", min=1, max=64), 1: torch.export.Dim("length", min=2, max=64)},)
    module = nn.RNN(4, 5, batch_first=True).double().eval()
    model = Model.from_module(module, (x,), dynamic_shapes=dims)
    with pytest.raises(UnsupportedError, match="no RNN of float64") as refused:
        write_onnx(model, tmp_path / "m.onnx")
    assert "--precision float32" in refused.value.remedy
    write_onnx(Model.from_module(module, (x,)), tmp_path / "m.onnx")
    write_onnx(Model.from_module(module.float(), (x.float(),), dynamic_shapes=dims), tmp_path / "m.onnx")
