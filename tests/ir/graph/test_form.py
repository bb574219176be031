"""A graph is traced again where its shapes can have changed, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from nncompress.ir import Model
from nncompress.ir.graph import model as model_module


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 6), nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.b(self.a(x).relu()).relu())


@pytest.fixture
def model() -> Model:
    torch.manual_seed(0)
    return Model.from_module(Net().eval(), (torch.randn(2, 4),))


@pytest.fixture
def traces(monkeypatch) -> list[int]:
    done: list[int] = []
    monkeypatch.setattr(Model, "refresh", Model.refresh.__wrapped__)  # not what `done_once` remembers
    trace = model_module.trace
    monkeypatch.setattr(model_module, "trace", lambda *how: (done.append(1), trace(*how))[1])
    return done


def test_values_alone_change_no_shape(model, traces):
    copied = model.copy()
    with torch.no_grad():
        copied.tensor("a.weight").zero_()
    copied.refresh()
    assert not traces
    assert torch.equal(copied(torch.ones(3, 4)), copied.graph_module(torch.ones(3, 4))[0])


def test_a_narrower_weight_is_traced_once(model, traces):
    for name, taken in {"a.weight": (0,), "a.bias": (0,), "b.weight": (1,)}.items():
        prefix, _, leaf = name.rpartition(".")
        narrow = model.tensor(name).detach().narrow(taken[0], 0, 5)
        setattr(model.graph_module.get_submodule(prefix), leaf, nn.Parameter(narrow.clone()))
    model.refresh()
    model.copy().refresh()
    assert len(traces) == 1
    (relu, _) = (n for n in model.graph.nodes if "relu" in str(n.target))
    assert relu.meta["val"].shape[1] == 5


@pytest.mark.parametrize("edit", ["tied", "another type", "another op", "another name"])
def test_what_else_is_traced_again(edit, model, traces):
    module = model.graph_module
    if edit == "tied":
        module.c.weight = nn.Parameter(module.b.weight.detach())  # the same memory under two names
    elif edit == "another type":
        module.double()
    else:
        node = next(n for n in module.graph.nodes if "relu" in str(n.target))
        if edit == "another op":
            node.target = torch.ops.aten.tanh.default
        else:
            module.extra = module.b
            reader = next(n for n in module.graph.nodes if n.target == "b.weight")
            reader.target = "extra.weight"
    if edit == "another type":
        model.inputs = tuple(type(s)(s.name, "float64", s.shape) for s in model.inputs)
    model.refresh()
    assert len(traces) == 1
    if edit == "tied":
        assert model.tensor("b.weight") is model.tensor("c.weight")


def test_a_node_without_a_shape_gets_one(model, traces):
    node = next(n for n in model.graph.nodes if "relu" in str(n.target))
    del node.meta["val"]
    model.refresh()
    assert len(traces) == 1
    assert all("val" in n.meta for n in model.graph.nodes if n.op == "call_function")
