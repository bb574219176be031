"""Tensors given as input are what forward() takes; what no graph can have is refused with what to write."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import nncompress
from nncompress.errors import UnsupportedError, UsageError


class TimeFirst(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.head = nn.GRU(6, 8), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.rnn(x)[0][-1])


class EndsOf(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x[torch.tensor([0, -1])]


@pytest.mark.parametrize("network", [TimeFirst, EndsOf])
def test_a_model_takes_the_very_tensor_that_it_was_loaded_with(network) -> None:
    net, x = network().eval(), torch.randn(7, 3, 6)
    model = nncompress.load(net, input=x)
    torch.testing.assert_close(model.to_module()(x), net(x))
    more = torch.randn(7, 5, 6)
    torch.testing.assert_close(model.to_module()(more), net(more))


def test_data_has_its_samples_first_where_the_network_has_time_first() -> None:
    model = nncompress.load(TimeFirst(), data=torch.randn(4, 7, 6))
    assert model.inputs[0].shape == (7, "batch", 6)


def test_a_single_number_is_refused_with_how_to_fix_it_and_that_works() -> None:
    class Scaled(nn.Module):
        def forward(self, x: Tensor, step: Tensor) -> Tensor:
            return x * step

    with pytest.raises(UsageError, match=r'0-d(.|\n)*input="1x3x32x32,step=10"'):
        nncompress.load(Scaled(), input=(torch.ones(2, 4), torch.tensor(3.0)))
    model = nncompress.load(Scaled(), input="1x4,step=10")
    torch.testing.assert_close(model.to_module()(torch.ones(2, 4)), torch.full((2, 4), 10.0))


class Packed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.rnn = nn.Embedding(9, 4), nn.GRU(4, 5, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        packed = nn.utils.rnn.pack_padded_sequence(
            self.embed(x), lengths, batch_first=True, enforce_sorted=False
        )
        return self.rnn(packed)[1][0]


class Padded(Packed):
    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        y = self.rnn(self.embed(x))[0]
        return y[torch.arange(y.shape[0]), lengths - 1]


def test_packed_sequences_are_refused_with_what_computes_the_same_at_any_batch() -> None:
    x, lengths = torch.randint(0, 9, (3, 6)), torch.tensor([6, 2, 4])
    with pytest.raises(UnsupportedError, match=r"y\[torch.arange\(y.shape\[0\]\), lengths - 1\]"):
        nncompress.load(Packed(), input=(x, lengths))
    packed, padded = Packed().eval(), Padded().eval()
    padded.load_state_dict(packed.state_dict())
    model = nncompress.load(padded, input=(x[:2], lengths[:2]))
    torch.testing.assert_close(model.to_module()(x, lengths), packed(x, lengths))


def test_a_graph_whose_sizes_are_all_fixed_is_said_to_take_one_sample() -> None:
    class Neighbours(nn.Module):
        def forward(self, x: Tensor, edges: Tensor) -> Tensor:
            return torch.zeros(9, 6).index_add(0, edges[1], x[edges[0]])

    said: list[str] = []
    nncompress.load(Neighbours(), input=(torch.randn(9, 6), torch.randint(0, 9, (2, 20))), notice=said.append)
    assert any(
        "takes one size only, x [9, 6], edges [2, 20]: one call is one sample" in each for each in said
    )
