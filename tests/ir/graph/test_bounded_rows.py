"""Tables with a largest norm of their rows are stored so; the graph writes to no parameter."""

import pytest
import torch
from torch import nn

import nncompress
from nncompress.ir import Model


class Bounded(nn.Module):
    """An embedding and a bag of one table, whose rows are too long; `tied`: its head reads it, too."""

    def __init__(self, tied: bool) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4, max_norm=1.0)
        self.bag = nn.EmbeddingBag(9, 4, mode="sum", max_norm=1.0)
        self.bag.weight = self.table.weight
        self.head = nn.Linear(4, 9)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, tokens):
        return self.head(self.table(tokens).mean(1) + self.bag(tokens))


@pytest.mark.parametrize("tied", [False, True])
def test_rows_are_bounded_once(tied, tmp_path):
    torch.manual_seed(0)
    net = Bounded(tied).eval()
    rows = net.table.weight.detach().clone()
    tokens = torch.tensor([[1, 3], [3, 8]])
    model = nncompress.load(net, input=tokens)
    assert torch.equal(net.table.weight, rows)
    assert (
        any("next_state" in str(node.target) for node in model.graph.nodes) == tied
    )  # a head reads other rows
    with torch.no_grad():
        torch.testing.assert_close(model(tokens), net(tokens))
    if not tied:
        assert model.tensor("table.weight") is model.tensor("bag.weight")
        assert model.tensor("table.weight").norm(dim=1).max() <= 1
        nncompress.export(model, tmp_path / "m.onnx")
        model.to_module()(tokens).sum().backward()


class Shared(nn.Module):
    """Two embeddings of one table, each with its own norm or none."""

    def __init__(self, one: float | None, other: float | None) -> None:
        super().__init__()
        self.one = nn.Embedding(9, 4, max_norm=one)
        self.other = nn.Embedding(9, 4, max_norm=other)
        self.other.weight = self.one.weight

    def forward(self, tokens, others):
        return self.one(tokens) + 3 * self.other(others)


@pytest.mark.parametrize(
    ("one", "other"), [(1.0, 1.0), (1.0, None), (None, 1.0), (2.0, 1.0), (1.0, 2.0)], ids=str
)
def test_a_table_is_bounded_only_where_all_who_read_it_bound_it_alike(one, other):
    torch.manual_seed(0)
    net = Shared(one, other).eval()
    net.one.weight.data *= 3
    inputs = torch.tensor([[1, 3], [3, 8]]), torch.tensor([[2, 3], [8, 5]])
    model = Model.from_module(net, inputs)
    assert any("next_state" in str(node.target) for node in model.graph.nodes) == (one != other)
    with torch.no_grad():
        torch.testing.assert_close(model.outputs_of(*inputs)[0], net(*inputs))


def test_rows_that_are_read_before_they_are_bounded_stay_as_they_are():
    class Before(nn.Embedding):
        def forward(self, tokens):
            return nn.functional.embedding(tokens, self.weight) - super().forward(tokens)

    net = Before(9, 4, max_norm=1.0).eval()
    tokens = torch.tensor([[1, 3], [3, 8]])
    model = Model.from_module(net, (tokens,))
    with torch.no_grad():
        torch.testing.assert_close(model.outputs_of(tokens)[0], net(tokens))
