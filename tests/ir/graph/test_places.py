"""Messages say where in words of who wrote the model, and torch says nothing beside them."""

from __future__ import annotations

import logging

import pytest
import torch
from torch import nn

from nncompress.analysis.couplings import find_couplings
from nncompress.api import load
from nncompress.errors import UnsupportedError
from nncompress.ir import Model
from nncompress.ir.graph.places import first_place, place


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(4, 6), nn.ReLU())
        self.rnn = nn.GRU(6, 3, batch_first=True)

    def forward(self, x):
        scale = x.abs().amax()
        return self.rnn(self.body(x).softmax(-1))[0] * scale


def test_an_op_lies_in_or_behind_a_layer():
    model = load(Net().eval(), input=(torch.randn(2, 5, 4),))
    places = {place(node) for node in model.graph.nodes}
    assert {"input x", "body.0.weight", "linear in body.0", "softmax behind body.0", "gru in rnn"} <= places
    assert {"amax behind input x", "a product behind rnn", "output"} <= places
    assert first_place(model.graph, "aten::softmax.int") == "softmax behind body.0"
    assert first_place(model.graph, "aten.linalg_qr.default") == "linalg qr"
    assert first_place(model.graph, "aten::_softmax_forward") == "softmax behind body.0"
    assert first_place(model.graph, "prims.prod.default") == "prod"


def test_what_is_pinned_names_no_node_of_the_graph():
    model = load(Net().eval(), input=(torch.randn(2, 5, 4),))
    pinned = find_couplings(model).pinned
    assert pinned["body.0.weight", 0] == "softmax behind body.0: softmax along it"
    assert not [why for why in pinned.values() if "aten" in why or "_" in why]


class Mixing(nn.Module):
    """Records act on each other along the first dim: other dims are tried, and fail inside torch, which logs
    that with a traceback."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(6, 16)

    def forward(self, x):
        x = self.a(x)
        return x * torch.dist(x, torch.zeros_like(x))


def test_torch_logs_nothing_while_a_model_is_taken_in(monkeypatch):
    said = []
    monkeypatch.setattr(logging.StreamHandler, "emit", lambda self, record: said.append(record.getMessage()))
    load(Mixing().eval(), input=(torch.randn(2, 7, 6),))
    assert said == []


def test_a_change_of_shape_that_cannot_be_followed_is_told_with_its_layer():
    class Grows(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(4, 4)
            self.register_buffer("state", torch.zeros(1, 4))

        def forward(self, x):
            self.state.squeeze_(0)
            return self.inner(x)

    with pytest.raises(UnsupportedError) as refused:
        Model.from_module(Grows().eval(), (torch.randn(2, 4),))
    said = str(refused.value)
    assert "state" in said
    assert "aten" not in said
    assert "OpOverload" not in said
