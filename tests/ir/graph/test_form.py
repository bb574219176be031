"""A graph is traced again where its shapes can have changed, and nowhere else."""

from __future__ import annotations

import pytest
import torch
from records import Records
from torch import Tensor, fx, nn

from nncompress.ir import Model
from nncompress.ir.edit.fold import fold_batch_norms
from nncompress.ir.graph import model as model_module
from nncompress.ir.graph.form import same_calls
from nncompress.passes import Context, Quantize


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


def test_batch_norms_are_folded_and_layers_rounded_without_a_trace(traces):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1))
    model = Model.from_module(net.eval(), (torch.randn(2, 3, 8, 8),))
    del traces[:]
    assert fold_batch_norms(model)
    data = Records((torch.randn(16, 3, 8, 8),))
    assert all(change.applied for change in Quantize().apply(model, Context(data=data)))
    assert not traces
    again = Model.from_exported(model.exported_program())

    def shapes(of: Model) -> list[str]:
        return [f"{n.target} {n.meta['val']}" for n in of.graph.nodes if n.op == "call_function"]

    assert shapes(model) == shapes(again)
    stored = [n for n in model.graph.nodes if n.op == "get_attr"]
    assert all(n.meta["val"].shape == model.tensor(n.target).shape for n in stored)


def _graph(forward) -> fx.Graph:
    class Of(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4))

        def forward(self, x: Tensor) -> Tensor:
            return forward(self, x)

    return torch.export.export(Of(), (torch.ones(3, 4),)).module().graph


def _dead(m, x):
    x.sin()
    return x * m.a + 2


def test_the_same_calls_on_the_same_tensors():
    one = _graph(lambda m, x: x * m.a + 2)
    assert same_calls(one, _graph(lambda m, x: (x * m.a + 2,)), str.__eq__)
    assert same_calls(one, _graph(_dead), str.__eq__)
    assert not same_calls(one, _graph(lambda m, x: x * m.a + 2), lambda one, other: False)


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: x * m.b + 2,
        lambda m, x: x * m.a + 2.0,
        lambda m, x: x * m.a - 2,
        lambda m, x: m.a * x + 2,
        lambda m, x: (x * m.a + 2).relu(),
        lambda m, x: (x * m.a + 2, x),
    ],
)
def test_other_calls(forward):
    assert not same_calls(_graph(lambda m, x: x * m.a + 2), _graph(forward), str.__eq__)


def test_what_is_drawn_at_random_or_written_is_not_told():
    for forward in (lambda m, x: x * torch.rand(4), lambda m, x: x.clone().add_(m.a)):
        assert not same_calls(_graph(forward), _graph(forward), str.__eq__)
