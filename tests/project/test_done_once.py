"""What `tests/support/done_once.py` takes for equal."""

import torch
from done_once import traced_once
from torch import nn

from nncompress.ir import Model


class Scaled(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by, self.weight = by, nn.Parameter(torch.ones(3))

    def forward(self, x):
        return x * self.weight * self.by


def test_a_module_is_traced_anew_where_anything_about_it_is_another():
    calls = []
    of_torch = Model.from_module.__wrapped__
    traced = traced_once(lambda *given, **named: calls.append(given) or of_torch(*given, **named))
    x = torch.randn(2, 3)
    first = traced(Scaled(2), (x,))
    first.tensor("weight").data.fill_(9)
    assert torch.equal(traced(Scaled(2), (x,))(x), 2 * x)  # of the first one, as it was
    assert len(calls) == 1
    assert torch.equal(traced(Scaled(3), (x,))(x), 3 * x)
    heavier = Scaled(2)
    heavier.weight.data.fill_(5)
    assert torch.equal(traced(heavier, (x,))(x), 10 * x)
    assert torch.equal(traced(Scaled(2), (x,), dynamic_batch=False)(x), 2 * x)
    odd = Scaled(2)
    odd.forward = lambda x: x - odd.weight  # which no fact tells: each time anew
    assert torch.equal(traced(odd, (x,))(x), x - 1)
    assert torch.equal(traced(odd, (x,))(x), x - 1)
    assert len(calls) == 6
