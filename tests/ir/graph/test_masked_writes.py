"""Writes at a mask are a choice per element, and compute what they did."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from nncompress.ir import Model
from nncompress.ir.graph.ops import op_name

LISTS = {"index", "index_put", "masked_scatter", "masked_select"}


class Writes(nn.Module):
    def __init__(self, write: Callable[[Tensor], Tensor | None]) -> None:
        super().__init__()
        self.write = write

    def forward(self, x: Tensor) -> Tensor:
        h = x * 3
        result = self.write(h)
        return h if result is None else result


def _scaled(h: Tensor) -> None:
    h[h > 0] *= 2


def _root(h: Tensor) -> None:
    h[h > 0.5] = h[h > 0.5].sqrt()  # the mask twice


def _one_after_the_other(h: Tensor) -> None:
    negative = h < 0
    h[negative] = torch.exp(h[negative])
    h[~negative] = torch.tanh(h[~negative]) + h[~negative].clamp(max=1)


def _rows(h: Tensor) -> None:
    h[h[:, 0, 0] > 0] -= torch.arange(5.0)


def _rows_and_columns(h: Tensor) -> None:
    h[h[..., 0] > 0] *= torch.ones(1, 5)


def _last_dim(h: Tensor) -> None:
    h[..., torch.tensor([True, False, True, True, False])] += torch.ones(3, 1)


def _of_another(h: Tensor) -> None:
    h[h > 0] = (-h)[h > 0]


def _whole_numbers(h: Tensor) -> Tensor:
    n = (h * 3).to(torch.int64)
    n[n != 0] = 12 // n[n != 0]
    return n


def _halves(h: Tensor) -> None:
    h[h > 0] = h[h > 0].to(torch.float64).mul(2).to(h.dtype)


CHOICES = {
    "scaled": _scaled,
    "root": _root,
    "one after the other": _one_after_the_other,
    "rows": _rows,
    "rows and columns": _rows_and_columns,
    "last dim": _last_dim,
    "of another": _of_another,
    "whole numbers": _whole_numbers,
    "another precision": _halves,
    "added": lambda h: h.index_put((h > 0,), torch.tensor(2.0), accumulate=True),
    "scattered": lambda h: h.masked_scatter(h > 0, h.masked_select(h > 0) * 2),
}


@pytest.mark.parametrize("name", CHOICES)
def test_it_is_a_choice_that_computes_the_same(name: str) -> None:
    module = Writes(CHOICES[name]).eval()
    model = Model.from_module(module, (torch.randn(4, 3, 5),))
    assert not LISTS & {op_name(node) for node in model.graph.nodes}
    for batch in (1, 6):
        x = torch.randn(batch, 3, 5)
        torch.testing.assert_close(model(x), module(x))


def test_what_is_not_chosen_makes_no_gradient_nan() -> None:
    model = Model.from_module(Writes(_root).eval(), (torch.randn(4, 3, 5),))
    x = torch.randn(4, 3, 5).requires_grad_()
    model(x).sum().backward()
    assert x.grad is not None
    assert x.grad.isfinite().all()


def _less_their_mean(h: Tensor) -> None:
    h[h > 0] -= h[h > 0].mean()


def _shares(h: Tensor) -> None:
    h[h > 0] = h[h > 0].softmax(0)


def _others(h: Tensor) -> Tensor:
    return h.masked_scatter(h > 0, -h)  # the first elements of all, in their order


@pytest.mark.parametrize("write", [_less_their_mean, _shares, _others])
def test_what_looks_at_all_that_is_masked_stays_right(write: Callable[[Tensor], Tensor | None]) -> None:
    module = Writes(write).eval()
    model = Model.from_module(module, (torch.randn(4, 3, 5),))
    x = torch.randn(6, 3, 5)
    torch.testing.assert_close(model(x), module(x))


def _shifted(h: Tensor) -> Tensor:
    whole = h.long().clamp(-2, 3)
    mask = whole >= 0
    whole[mask] = torch.tensor(1) << whole[mask]
    return whole


def test_what_torch_tells_no_shape_of_stays_a_write() -> None:
    module, x = Writes(_shifted).eval(), torch.randn(4, 3, 5)
    assert torch.equal(Model.from_module(module, (x,))(x), module(x))
